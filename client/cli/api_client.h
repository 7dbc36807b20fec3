// The operator API from the caller's side: one request, one JSON answer, errors as Status. Of
// several managers the one that leads answers.
// Blocking, one thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json.hpp>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/address.h"
#include "common/tls.h"

namespace kvpool {

class ApiClient {
 public:
  // `servers`: at least one. Without `tls` they are spoken to in the clear.
  ApiClient(std::vector<HostPort> servers, std::string token,
            std::shared_ptr<TlsSource> tls = nullptr)
      : servers_(std::move(servers)), token_(std::move(token)), tls_(std::move(tls)) {}

  // `path` may go on with "?" and a query. NotFound for 404, Aborted for 409, PermissionDenied for
  // 401 and 403, FailedPrecondition for other 4xx, with the server's own message. Unavailable when
  // the server cannot be reached or is not ready.
  absl::StatusOr<boost::json::object> Get(const std::string& path) const;
  absl::StatusOr<boost::json::object> Put(const std::string& path,
                                          const boost::json::object& body) const;
  absl::StatusOr<boost::json::object> Post(const std::string& path,
                                           const boost::json::object& body) const;
  absl::StatusOr<boost::json::object> Delete(const std::string& path) const;

 private:
  // Asks one server after the other until one leads; goes on only where nothing can have happened.
  absl::StatusOr<boost::json::object> Call(const std::string& method, const std::string& path,
                                           const std::string& body) const;

  const std::vector<HostPort> servers_;
  const std::string token_;
  const std::shared_ptr<TlsSource> tls_;
};

}  // namespace kvpool
