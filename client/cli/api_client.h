// The operator API as kvpoolctl calls it: one request, JSON back, errors as statuses with what to
// do. Main thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/address.h"

namespace kvpool {

// What kvpoolctl exits with.
enum class ExitCode : int {
  kOk = 0,
  kFailure = 1,      // the server refused, or something broke
  kUsage = 2,        // the command line or a file is wrong
  kNotFound = 3,     // no such tenant, agent or token
  kConflict = 4,     // somebody else changed it, or it is in use
  kUnreachable = 5,  // no answer from the server
};
ExitCode ExitCodeOf(const absl::Status& status);

class ApiClient {
 public:
  ApiClient(HostPort server, std::string token);

  // NotFound, Aborted (conflict), InvalidArgument, Unauthenticated, Unavailable, or Internal, with
  // the server's words. The body may be null.
  absl::StatusOr<boost::json::value> Call(const std::string& method, const std::string& path,
                                          const boost::json::value& body = nullptr) const;

 private:
  const HostPort server_;
  const std::string token_;
};

}  // namespace kvpool
