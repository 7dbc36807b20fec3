// The cluster and its store, changed together: a change is checked, written, and takes effect once
// the write is acknowledged. Changes take turns, so that each is checked against what the one
// before left. KJ thread.
//
// A change that has begun is finished even if nobody waits for its result any more. While another
// manager leads the cluster is empty, and every change is refused (Cancelled, with who leads).
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kj/async.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/kj_asio.h"
#include "common/log.h"
#include "manager/cluster.h"
#include "manager/leadership.h"

namespace kvpool {

struct Registration {
  RegisterOutcome outcome = RegisterOutcome::kOk;
  uint64_t epoch = 0;  // that the link belongs to
  uint64_t link = 0;
};

class Control {
 public:
  // `leadership` must outlive this.
  explicit Control(Leadership& leadership);

  // The cluster of a manager that begins to lead, or an empty one of one that stands by, in its
  // turn. Whoever holds a link of the cluster before knows it by the epoch.
  kj::Promise<void> Replace(Cluster cluster);
  const Leadership& leadership() const { return leadership_; }

  Cluster& cluster() { return cluster_; }
  const Cluster& cluster() const { return cluster_; }

  // Creates and updates tenants, all or nothing; `revision`, where given, is what the (only) tenant
  // must be at. Returns those that changed. Errors as TenantTable's.
  kj::Promise<absl::StatusOr<std::vector<Tenant>>> Apply(std::vector<TenantSpec> specs,
                                                         std::optional<uint64_t> revision);
  kj::Promise<absl::Status> RemoveTenant(std::string name);
  // A new worker token: the only time that it can be seen.
  kj::Promise<absl::StatusOr<std::string>> CreateToken(std::string tenant);
  kj::Promise<absl::Status> RevokeToken(std::string tenant, std::string token_id);

  kj::Promise<absl::StatusOr<Registration>> Register(AgentInfo agent, uint64_t highest_epoch);
  kj::Promise<absl::Status> ForgetAgent(std::string name);
  // Puts the bounds of the agent's leases on record, where an order waits for that.
  kj::Promise<absl::Status> RecordBounds(std::string agent);

 private:
  // A change of this manager as leader: refused when it does not lead.
  template <typename F>
  std::invoke_result_t<F&> TakeTurn(F change);
  kj::Promise<absl::Status> SaveTenant(absl::StatusOr<Tenant> tenant);

  Leadership& leadership_;
  Cluster cluster_{Cluster::Start()};
  Logger log_;
  kj::Promise<void> last_turn_ = kj::READY_NOW;
};

}  // namespace kvpool
