// The cluster and its store, changed together: a change is checked, written, and takes effect once
// the write is acknowledged. Changes take turns, so that each is checked against what the one
// before left. KJ thread.
//
// Every change that an operator asks for leaves an entry in the audit log, in the same write; the
// `actor` is the operator's name.
//
// A change that has begun is finished even if nobody waits for its result any more. While another
// manager leads the cluster is empty, and every change is refused (Cancelled, with who leads).
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kj/async.h>

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/kj_asio.h"
#include "common/log.h"
#include "manager/audit.h"
#include "manager/cluster.h"
#include "manager/leadership.h"
#include "manager/operators.h"
#include "manager/outcome.h"

namespace kvpool {

struct Registration {
  RegisterOutcome outcome = RegisterOutcome::kOk;
  uint64_t epoch = 0;  // that the link belongs to
  uint64_t link = 0;
};

// What the audit log says of an operator's first token, too.
AuditEntry OperatorCreated(const std::string& actor, const Operator& created);

enum class Drain { kOn, kOff };

class Control {
 public:
  // What is kept in the store; of a manager that stands by, nothing.
  struct State {
    Cluster cluster{Cluster::Start()};
    OperatorTable operators{{}, std::nullopt};
    AuditLog audit;
  };

  // `leadership` must outlive this.
  explicit Control(Leadership& leadership);

  // What a manager begins to lead with, or the empty state of one that stands by, in its turn.
  // Whoever holds a link of the cluster before knows it by the epoch.
  kj::Promise<void> Replace(State state);
  const Leadership& leadership() const { return leadership_; }

  Cluster& cluster() { return cluster_; }
  const Cluster& cluster() const { return cluster_; }
  const OperatorTable& operators() const { return operators_; }
  const AuditLog& audit() const { return audit_; }

  // Creates and updates tenants, all or nothing; `revision`, where given, is what the (only) tenant
  // must be at. Errors as TenantTable's.
  kj::Promise<absl::StatusOr<Outcome>> Apply(Asker asker, std::vector<TenantSpec> specs,
                                             std::optional<uint64_t> revision);
  // Removes it, or, while something is leased to it, takes its budget away: then it leaves, and
  // RemoveLeft removes it.
  kj::Promise<absl::StatusOr<Outcome>> RemoveTenant(Asker asker, std::string name);
  // Removes tenants that have left, in turns of their own. After anything that ends a lease.
  void RemoveLeft();
  // Changes the rungs of tenants whose time it is, in turns of their own. After every report.
  void MoveRungs();
  // A new worker token: the only time that it can be seen.
  kj::Promise<absl::StatusOr<std::string>> CreateToken(std::string actor, std::string tenant);
  kj::Promise<absl::Status> RevokeToken(std::string actor, std::string tenant,
                                        std::string token_id);
  // Likewise an operator's token. Errors as OperatorTable's.
  kj::Promise<absl::StatusOr<std::string>> CreateOperator(std::string actor, std::string name,
                                                          Scope scope);
  kj::Promise<absl::Status> RevokeOperator(std::string actor, std::string name);

  kj::Promise<absl::StatusOr<Registration>> Register(AgentInfo agent, uint64_t highest_epoch);
  // NotFound.
  kj::Promise<absl::StatusOr<Outcome>> DrainAgent(Asker asker, std::string name, Drain drain);
  kj::Promise<absl::StatusOr<Outcome>> ForgetAgent(Asker asker, std::string name);
  // Puts the bounds of the agent's leases on record, where an order waits for that.
  kj::Promise<absl::Status> RecordBounds(std::string agent);

 private:
  Control(Leadership& leadership, State state);
  // A change of this manager as leader: refused when it does not lead.
  template <typename F>
  std::invoke_result_t<F&> TakeTurn(F change);
  // With the entries, which take their place in the log once the write is acknowledged.
  kj::Promise<absl::Status> WriteAudited(Store::Changes changes, std::vector<AuditEntry> entries);
  // A change as it is asked for: made, by writing and then `commit`, or rehearsed on a copy.
  kj::Promise<absl::StatusOr<Outcome>> Make(Effect effect, Store::Changes changes,
                                            std::vector<AuditEntry> entries,
                                            std::function<void(Cluster&)> commit);
  // Of a tenant without leases.
  kj::Promise<absl::StatusOr<Outcome>> RemoveNow(Effect effect, const Tenant& tenant,
                                                 AuditEntry entry);
  kj::Promise<absl::Status> MoveRung(const RungMove& move);
  kj::Promise<absl::StatusOr<Outcome>> RemoveIfLeft(const std::string& name);
  kj::Promise<absl::Status> SaveTenant(absl::StatusOr<Tenant> tenant, AuditEntry entry);

  Leadership& leadership_;
  Cluster cluster_;
  OperatorTable operators_;
  AuditLog audit_;
  std::set<std::string> moving_;    // tenants whose rung MoveRungs has begun to change
  std::set<std::string> removing_;  // tenants that RemoveLeft has begun to remove
  Logger log_;
  kj::Promise<void> last_turn_ = kj::READY_NOW;
};

}  // namespace kvpool
