// Check, write, commit.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/control.h"

#include <chrono>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/json_diff.h"
#include "common/tenant_json.h"
#include "manager/records.h"

namespace kvpool {
namespace {

AuditEntry Entry(const std::string& actor, const std::string& action, const std::string& kind,
                 const std::string& name) {
  return {.time = UtcText(std::chrono::system_clock::now()),
          .actor = actor,
          .action = action,
          .kind = kind,
          .name = name};
}

AuditEntry TenantEntry(const std::string& actor, const std::string& action,
                       const std::string& name) {
  return Entry(actor, action, "tenant", name);
}

// Of the token, what may be seen.
boost::json::object TokenObject(const Sha256Hash& hash) { return {{"token", TokenId(hash)}}; }

boost::json::object OperatorObject(const Operator& each) {
  return {{"scope", ToString(each.scope)}, {"token", TokenId(each.token)}};
}

boost::json::object AgentObject(const AgentInfo& agent) {
  return {{"pool", agent.pool_bytes.value()},
          {"slab", agent.slab_bytes.value()},
          {"device", agent.device}};
}

// "limit 1048576 -> 2097152, weight 1 -> 3"
std::string Describe(const AuditEntry& entry) {
  std::string text;
  for (const FieldChange& change : Differences(entry.before, entry.after)) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", change.field, " ",
                    boost::json::serialize(change.before), " -> ",
                    boost::json::serialize(change.after));
  }
  return text;
}

}  // namespace

AuditEntry OperatorCreated(const std::string& actor, const Operator& created) {
  AuditEntry entry = Entry(actor, "operator.create", "operator", created.name);
  entry.after = OperatorObject(created);
  return entry;
}

Control::Control(State state, std::unique_ptr<Store> store)
    : cluster_(std::move(state.cluster)),
      operators_(std::move(state.operators)),
      audit_(std::move(state.audit)),
      store_(std::move(store)),
      log_("control") {}

kj::Promise<absl::Status> Control::Write(Store::Changes changes) {
  return Offload(store_thread_, [store = store_.get(), changes = std::move(changes)] {
    return store->Write(changes);
  });
}

kj::Promise<absl::Status> Control::WriteAudited(Store::Changes changes,
                                                std::vector<AuditEntry> entries) {
  entries = audit_.Number(std::move(entries));
  changes.merge(SaveAudit(entries, audit_.Dropped(entries.size())));
  return Write(std::move(changes)).then([this, entries = std::move(entries)](absl::Status saved) {
    if (!saved.ok()) return saved;
    audit_.Commit(entries);
    for (const AuditEntry& entry : entries) {
      log_.Info(entry.action,
                {{"name", entry.name}, {"actor", entry.actor}, {"change", Describe(entry)}});
    }
    return saved;
  });
}

template <typename F>
std::invoke_result_t<F&> Control::TakeTurn(F change) {
  auto turn = last_turn_.then(kj::mv(change)).fork();
  last_turn_ =
      turn.addBranch().then([](auto&&) {}, [](kj::Exception&&) {}).eagerlyEvaluate(nullptr);
  return turn.addBranch();
}

kj::Promise<absl::StatusOr<std::vector<AuditEntry>>> Control::Apply(
    std::string actor, std::vector<TenantSpec> specs, std::optional<uint64_t> revision) {
  using Result = absl::StatusOr<std::vector<AuditEntry>>;
  return TakeTurn([this, actor = std::move(actor), specs = std::move(specs),
                   revision]() -> kj::Promise<Result> {
    if (revision.has_value()) {
      absl::Status status = cluster_.tenants().CheckRevision(specs.at(0).name, *revision);
      if (!status.ok()) return Result(status);
    }
    const auto changed = cluster_.tenants().PlanApply(specs, cluster_.AgentPools());
    if (!changed.ok()) return Result(changed.status());
    std::vector<AuditEntry> entries;
    if (changed->empty()) return Result(entries);
    for (const Tenant& tenant : *changed) {
      const Tenant* before = cluster_.tenants().Find(tenant.spec.name);
      AuditEntry entry = TenantEntry(actor, before == nullptr ? "tenant.create" : "tenant.update",
                                     tenant.spec.name);
      if (before != nullptr) entry.before = ToJson(before->spec);
      entry.after = ToJson(tenant.spec);
      entry.revision = tenant.revision;
      entries.push_back(std::move(entry));
    }
    return WriteAudited(SaveTenants(*changed, cluster_.tenants().next_id()), entries)
        .then([this, changed = *changed, entries](absl::Status saved) -> Result {
          if (!saved.ok()) return saved;
          cluster_.CommitTenants(changed);
          return entries;
        });
  });
}

kj::Promise<absl::Status> Control::RemoveTenant(std::string actor, std::string name) {
  return TakeTurn(
      [this, actor = std::move(actor), name = std::move(name)]() -> kj::Promise<absl::Status> {
        if (absl::Status status = cluster_.CheckRemove(name); !status.ok()) return status;
        // Without a limit it is given no lease while the store works.
        const Tenant before = *cluster_.tenants().Find(name);
        Tenant leaving = before;
        leaving.spec.guaranteed = leaving.spec.limit = 0_B;
        cluster_.CommitTenants({leaving});
        AuditEntry entry = TenantEntry(actor, "tenant.delete", name);
        entry.before = ToJson(before.spec);
        return WriteAudited(kvpool::RemoveTenant(before.id), {std::move(entry)})
            .then([this, before](absl::Status removed) {
              if (removed.ok()) {
                cluster_.RemoveTenant(before.spec.name);
              } else {
                cluster_.CommitTenants({before});
              }
              return removed;
            });
      });
}

kj::Promise<absl::Status> Control::SaveTenant(absl::StatusOr<Tenant> tenant, AuditEntry entry) {
  if (!tenant.ok()) return tenant.status();
  entry.revision = tenant->revision;
  return WriteAudited(SaveTenants({*tenant}, cluster_.tenants().next_id()), {std::move(entry)})
      .then([this, tenant = *tenant](absl::Status saved) {
        if (saved.ok()) cluster_.CommitTenants({tenant});
        return saved;
      });
}

kj::Promise<absl::StatusOr<std::string>> Control::CreateToken(std::string actor, std::string name) {
  using Result = absl::StatusOr<std::string>;
  return TakeTurn(
      [this, actor = std::move(actor), name = std::move(name)]() -> kj::Promise<Result> {
        Result token = NewToken();
        if (!token.ok()) return token;
        AuditEntry entry = TenantEntry(actor, "token.create", name);
        entry.after = TokenObject(Sha256(*token));
        return SaveTenant(cluster_.tenants().PlanAddToken(name, Sha256(*token)), std::move(entry))
            .then([token](absl::Status saved) -> Result {
              if (!saved.ok()) return saved;
              return token;
            });
      });
}

kj::Promise<absl::Status> Control::RevokeToken(std::string actor, std::string name,
                                               std::string token_id) {
  return TakeTurn(
      [this, actor = std::move(actor), name = std::move(name), token_id = std::move(token_id)] {
        AuditEntry entry = TenantEntry(actor, "token.revoke", name);
        entry.before = boost::json::object{{"token", token_id}};
        return SaveTenant(cluster_.tenants().PlanRevokeToken(name, token_id), std::move(entry));
      });
}

kj::Promise<absl::StatusOr<std::string>> Control::CreateOperator(std::string actor,
                                                                 std::string name, Scope scope) {
  using Result = absl::StatusOr<std::string>;
  return TakeTurn(
      [this, actor = std::move(actor), name = std::move(name), scope]() -> kj::Promise<Result> {
        if (absl::Status status = operators_.CheckCreate(name); !status.ok()) return Result(status);
        Result token = NewToken();
        if (!token.ok()) return token;
        const Operator created{.name = name, .scope = scope, .token = Sha256(*token)};
        return WriteAudited(SaveOperator(created), {OperatorCreated(actor, created)})
            .then([this, created, token](absl::Status saved) -> Result {
              if (!saved.ok()) return saved;
              operators_.Commit(created);
              return token;
            });
      });
}

kj::Promise<absl::Status> Control::RevokeOperator(std::string actor, std::string name) {
  return TakeTurn(
      [this, actor = std::move(actor), name = std::move(name)]() -> kj::Promise<absl::Status> {
        const auto revoked = operators_.CheckRevoke(name);
        if (!revoked.ok()) return revoked.status();
        AuditEntry entry = Entry(actor, "operator.revoke", "operator", name);
        entry.before = OperatorObject(*revoked);
        return WriteAudited(RemoveOperator(revoked->token), {std::move(entry)})
            .then([this, name](absl::Status removed) {
              if (removed.ok()) operators_.Remove(name);
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

kj::Promise<absl::Status> Control::ForgetAgent(std::string actor, std::string name) {
  return TakeTurn(
      [this, actor = std::move(actor), name = std::move(name)]() -> kj::Promise<absl::Status> {
        if (absl::Status status = cluster_.CheckForget(name); !status.ok()) return status;
        AuditEntry entry = Entry(actor, "agent.forget", "agent", name);
        entry.before = AgentObject(cluster_.agents().at(name).info);
        return WriteAudited(RemoveAgent(name), {std::move(entry)})
            .then([this, name](absl::Status removed) {
              if (removed.ok()) cluster_.Forget(name);
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
