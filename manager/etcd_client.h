// The few calls of etcd 3.4 that a store needs, through its JSON gateway: HTTP, base64, 64-bit
// numbers as text, and what is zero or false left out. Knows nothing of leaders and records.
//
// A request goes to one endpoint after the other until one can be reached. Blocking; one thread at
// a time.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/address.h"
#include "common/clock.h"
#include "common/tls.h"

namespace kvpool {

struct EtcdOptions {
  std::vector<HostPort> endpoints;  // client URLs of the members, at least one
  std::shared_ptr<TlsSource> tls;   // null: HTTP
  std::string user, password;       // no user: without authentication
  Duration deadline;                // of one request at one endpoint
};

// A key as etcd holds it.
struct EtcdKey {
  std::string key, value;
  int64_t create_revision = 0;  // 0: it does not exist
  int64_t mod_revision = 0;
};

// What a transaction insists on: a key's revisions. A create_revision of 0: it must not exist.
struct EtcdGuard {
  std::string key;
  int64_t create_revision = 0;
  std::optional<int64_t> mod_revision;
};

struct EtcdWrite {
  std::string key;
  std::optional<std::string> value;  // none: deleted
  int64_t lease = 0;                 // 0: without
};

struct EtcdTxn {
  bool succeeded = false;
  int64_t revision = 0;  // of the store after it
  EtcdKey guarded;       // when it did not succeed: the guard's key as it is
};

// Whether an answer leaves it open if the request was, or will be, carried out.
bool IsUnknownOutcome(const absl::Status& status);

class EtcdClient {
 public:
  explicit EtcdClient(EtcdOptions options) : options_(std::move(options)) {}

  // Errors of all calls: Unavailable, DeadlineExceeded or Unknown when etcd gives no answer or no
  // final one (IsUnknownOutcome); others are etcd's own refusals, after which nothing was done:
  // InvalidArgument (too large), ResourceExhausted (out of space), Unauthenticated,
  // PermissionDenied, NotFound (no such lease).

  absl::StatusOr<EtcdKey> Get(const std::string& key);
  // Keys that begin with `prefix`, in order, read page by page.
  absl::StatusOr<std::vector<EtcdKey>> List(const std::string& prefix);
  // All writes, if the guard holds.
  absl::StatusOr<EtcdTxn> Txn(const EtcdGuard& guard, const std::vector<EtcdWrite>& writes);

  struct Lease {
    int64_t id = 0;
    Duration ttl;  // at least what was asked for
  };
  absl::StatusOr<Lease> Grant(Duration ttl);
  // What it lives for from now on; none when it has ended.
  absl::StatusOr<std::optional<Duration>> KeepAlive(int64_t lease);
  // Deletes its keys. OK as well when it has ended.
  absl::Status Revoke(int64_t lease);

 private:
  absl::StatusOr<boost::json::object> Call(const std::string& path,
                                           const boost::json::object& body);
  // To the endpoint that answered last, then to the others.
  absl::StatusOr<boost::json::object> Post(const std::string& path,
                                           const boost::json::object& body);
  absl::Status Authenticate();

  const EtcdOptions options_;
  size_t endpoint_ = 0;
  std::string token_;
};

}  // namespace kvpool
