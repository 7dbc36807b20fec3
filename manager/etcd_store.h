// The records in etcd 3.4, for several managers of which one leads. Blocking; one thread at a time.
//
//   <prefix>/leader        the leader's address for operators; bound to its lease
//   <prefix>/records/KEY   one record
//   <prefix>/pending       a change too large for one transaction, until it is carried out
//
// Who creates the leader key leads; its create_revision is the epoch. Every write is a transaction
// that insists on that revision and on the key's mod_revision, and writes the key anew: so a
// deposed leader writes nothing, and a write that is repeated for want of an answer happens once,
// also when the first attempt arrives late. (Locks of etcd without such fencing are unsafe: Jepsen,
// etcd 3.4.3.) A lost key or lease says nothing about agents: this manager just leads no longer.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "manager/etcd_client.h"
#include "manager/store.h"

namespace kvpool {

struct EtcdStoreOptions {
  std::vector<HostPort> endpoints;
  std::shared_ptr<TlsSource> tls;  // null: HTTP
  std::string user, password;      // no user: without authentication
  std::string prefix;              // of all keys, without a '/' at its end
  Duration ttl;                    // of the leadership, when it is not renewed
  std::string advertise;           // this manager's address for operators
};

class EtcdStore final : public Store {
 public:
  // Does nothing yet: etcd may be away.
  explicit EtcdStore(EtcdStoreOptions options);
  ~EtcdStore() override;

  absl::StatusOr<Standing> Campaign() override;
  absl::StatusOr<Contents> Begin() override;
  absl::Status Write(const Changes& changes) override;
  absl::StatusOr<TimePoint> Renew() override;
  void Resign() override;

 private:
  std::string LeaderKey() const { return options_.prefix + "/leader"; }
  std::string PendingKey() const { return options_.prefix + "/pending"; }
  std::string RecordKey(const std::string& key) const {
    return options_.prefix + "/records/" + key;
  }

  std::vector<std::vector<EtcdWrite>> Transactions(const Changes& changes) const;
  // One guarded transaction, repeated while its outcome is unknown and this manager leads.
  absl::Status Commit(const std::vector<EtcdWrite>& writes);
  // Carries out a change that lies under PendingKey, which is deleted with its last part.
  absl::Status Finish(const Changes& changes);
  // Resigns, and says why with what became of a change.
  enum class Change : uint8_t { kNone, kNotMade, kUnknown };
  absl::Status Lost(const std::string& why, Change change);
  TimePoint Until(TimePoint sent, Duration ttl) const;

  const EtcdStoreOptions options_;
  EtcdClient client_;
  int64_t lease_ = 0;      // of this leadership, or of an earlier one that is not revoked yet
  int64_t epoch_ = 0;      // the leader key's create_revision; 0: does not lead
  int64_t turn_ = 0;       // the leader key's mod_revision
  TimePoint leads_until_;  // while epoch_ is not 0
};

}  // namespace kvpool
