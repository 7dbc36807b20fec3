// Check, write, commit.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/control.h"

#include <type_traits>
#include <utility>

#include "common/quantity.h"
#include "manager/records.h"

namespace kvpool {
namespace {

std::string Describe(const Tenant* tenant) {
  if (tenant == nullptr) return "none";
  return "guaranteed " + FormatBytes(tenant->spec.guaranteed) + ", limit " +
         FormatBytes(tenant->spec.limit) + ", " + ToString(tenant->spec.policy);
}

}  // namespace

Control::Control(Cluster cluster, OperatorTable operators, std::unique_ptr<Store> store)
    : cluster_(std::move(cluster)),
      operators_(std::move(operators)),
      store_(std::move(store)),
      log_("control") {}

kj::Promise<absl::Status> Control::Write(Store::Changes changes) {
  return Offload(store_thread_, [store = store_.get(), changes = std::move(changes)] {
    return store->Write(changes);
  });
}

template <typename F>
std::invoke_result_t<F&> Control::TakeTurn(F change) {
  auto turn = last_turn_.then(kj::mv(change)).fork();
  last_turn_ =
      turn.addBranch().then([](auto&&) {}, [](kj::Exception&&) {}).eagerlyEvaluate(nullptr);
  return turn.addBranch();
}

kj::Promise<absl::StatusOr<std::vector<Tenant>>> Control::Apply(std::vector<TenantSpec> specs,
                                                                std::optional<uint64_t> revision) {
  using Result = absl::StatusOr<std::vector<Tenant>>;
  return TakeTurn([this, specs = std::move(specs), revision]() -> kj::Promise<Result> {
    if (revision.has_value()) {
      absl::Status status = cluster_.tenants().CheckRevision(specs.at(0).name, *revision);
      if (!status.ok()) return Result(status);
    }
    Result changed = cluster_.tenants().PlanApply(specs, cluster_.AgentPools());
    if (!changed.ok() || changed->empty()) return changed;
    return Write(SaveTenants(*changed, cluster_.tenants().next_id()))
        .then([this, changed = *changed](absl::Status saved) mutable -> Result {
          if (!saved.ok()) return saved;
          for (const Tenant& tenant : changed) {
            log_.Info("tenant changed",
                      {{"tenant", tenant.spec.name},
                       {"before", Describe(cluster_.tenants().Find(tenant.spec.name))},
                       {"after", Describe(&tenant)}});
          }
          cluster_.CommitTenants(changed);
          return std::move(changed);
        });
  });
}

kj::Promise<absl::Status> Control::RemoveTenant(std::string name) {
  return TakeTurn([this, name = std::move(name)]() -> kj::Promise<absl::Status> {
    if (absl::Status status = cluster_.CheckRemove(name); !status.ok()) return status;
    // Without a limit it is given no lease while the store works.
    const Tenant before = *cluster_.tenants().Find(name);
    Tenant leaving = before;
    leaving.spec.guaranteed = leaving.spec.limit = 0_B;
    cluster_.CommitTenants({leaving});
    return Write(kvpool::RemoveTenant(before.id)).then([this, before](absl::Status removed) {
      if (removed.ok()) {
        cluster_.RemoveTenant(before.spec.name);
        log_.Info("tenant deleted", {{"tenant", before.spec.name}, {"before", Describe(&before)}});
      } else {
        cluster_.CommitTenants({before});
      }
      return removed;
    });
  });
}

kj::Promise<absl::Status> Control::SaveTenant(absl::StatusOr<Tenant> tenant) {
  if (!tenant.ok()) return tenant.status();
  return Write(SaveTenants({*tenant}, cluster_.tenants().next_id()))
      .then([this, tenant = *tenant](absl::Status saved) {
        if (saved.ok()) cluster_.CommitTenants({tenant});
        return saved;
      });
}

kj::Promise<absl::StatusOr<std::string>> Control::CreateToken(std::string name) {
  using Result = absl::StatusOr<std::string>;
  return TakeTurn([this, name = std::move(name)]() -> kj::Promise<Result> {
    Result token = NewToken();
    if (!token.ok()) return token;
    return SaveTenant(cluster_.tenants().PlanAddToken(name, Sha256(*token)))
        .then([this, name, token](absl::Status saved) -> Result {
          if (!saved.ok()) return saved;
          log_.Info("token created", {{"tenant", name}, {"id", TokenId(Sha256(*token))}});
          return token;
        });
  });
}

kj::Promise<absl::Status> Control::RevokeToken(std::string name, std::string token_id) {
  return TakeTurn([this, name = std::move(name), token_id = std::move(token_id)] {
    return SaveTenant(cluster_.tenants().PlanRevokeToken(name, token_id))
        .then([this, name, token_id](absl::Status saved) {
          if (saved.ok()) log_.Info("token revoked", {{"tenant", name}, {"id", token_id}});
          return saved;
        });
  });
}

kj::Promise<absl::StatusOr<std::string>> Control::CreateOperator(std::string name, Scope scope) {
  using Result = absl::StatusOr<std::string>;
  return TakeTurn([this, name = std::move(name), scope]() -> kj::Promise<Result> {
    if (absl::Status status = operators_.CheckCreate(name); !status.ok()) return Result(status);
    Result token = NewToken();
    if (!token.ok()) return token;
    const Operator created{.name = name, .scope = scope, .token = Sha256(*token)};
    return Write(SaveOperator(created)).then([this, created, token](absl::Status saved) -> Result {
      if (!saved.ok()) return saved;
      operators_.Commit(created);
      log_.Info("operator created",
                {{"operator", created.name}, {"scope", ToString(created.scope)}});
      return token;
    });
  });
}

kj::Promise<absl::Status> Control::RevokeOperator(std::string name) {
  return TakeTurn([this, name = std::move(name)]() -> kj::Promise<absl::Status> {
    const auto revoked = operators_.CheckRevoke(name);
    if (!revoked.ok()) return revoked.status();
    return Write(RemoveOperator(revoked->token)).then([this, name](absl::Status removed) {
      if (removed.ok()) {
        operators_.Remove(name);
        log_.Info("operator revoked", {{"operator", name}});
      }
      return removed;
    });
  });
}

kj::Promise<absl::StatusOr<Registration>> Control::Register(AgentInfo agent,
                                                            uint64_t highest_epoch) {
  using Result = absl::StatusOr<Registration>;
  return TakeTurn([this, agent = std::move(agent), highest_epoch]() -> kj::Promise<Result> {
    const RegisterOutcome outcome = cluster_.CheckAgent(agent, highest_epoch);
    if (outcome != RegisterOutcome::kOk) return Result(Registration{.outcome = outcome});
    const auto known = cluster_.agents().find(agent.name);
    if (known != cluster_.agents().end() && known->second.info == agent) {
      return Result(Registration{.link = cluster_.Connect(agent)});
    }
    return Write(SaveAgent(agent)).then([this, agent](absl::Status saved) -> Result {
      if (!saved.ok()) return saved;
      return Registration{.link = cluster_.Connect(agent)};
    });
  });
}

kj::Promise<absl::Status> Control::ForgetAgent(std::string name) {
  return TakeTurn([this, name = std::move(name)]() -> kj::Promise<absl::Status> {
    if (absl::Status status = cluster_.CheckForget(name); !status.ok()) return status;
    return Write(RemoveAgent(name)).then([this, name](absl::Status removed) {
      if (removed.ok()) {
        cluster_.Forget(name);
        log_.Info("agent forgotten", {{"agent", name}});
      }
      return removed;
    });
  });
}

kj::Promise<absl::Status> Control::RecordBounds(std::string agent) {
  return TakeTurn([this, agent = std::move(agent)]() -> kj::Promise<absl::Status> {
    if (!cluster_.agents().contains(agent) || !cluster_.AwaitsBounds(agent)) {
      return absl::OkStatus();
    }
    LeaseBounds bounds = cluster_.PrepareBounds(agent);
    Store::Changes changes = SaveBounds(agent, bounds);
    return Write(std::move(changes))
        .then([this, agent, bounds = std::move(bounds)](absl::Status saved) {
          if (saved.ok()) {
            cluster_.BoundsRecorded(agent, bounds);
          } else {
            log_.Error("the leases of an agent cannot grow: their bounds were not saved",
                       {{"agent", agent}, {"error", saved.ToString()}});
          }
          return saved;
        });
  });
}

}  // namespace kvpool
