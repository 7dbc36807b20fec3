// Check, write, commit.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/control.h"

#include <chrono>
#include <map>
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

// The tenants whose leases come to something else than now when `after` is in force.
std::vector<LeaseOutlook> Compare(const Cluster& now, const Cluster& after) {
  const std::map<TenantId, int64_t> outlook = after.Outlook();
  std::vector<LeaseOutlook> leases;
  const auto add = [&](const Tenant& tenant) {
    const auto found = outlook.find(tenant.id);
    const int64_t slabs = found == outlook.end() ? 0 : found->second;
    const Bytes leased = now.SlabBytes() * now.ledger().Committed(tenant.id);
    const Bytes then = after.SlabBytes() * slabs;
    if (leased != then) leases.push_back({tenant.spec.name, leased, then});
  };
  for (const auto& [name, tenant] : now.tenants().by_name()) add(tenant);
  for (const auto& [name, tenant] : after.tenants().by_name()) {
    if (now.tenants().Find(name) == nullptr) add(tenant);
  }
  return leases;
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

boost::json::object RungObject(const Tenant& tenant) {
  return {{"rung", tenant.rung.index},
          {"policy", ToString(tenant.policy())},
          {"reason", tenant.rung.reason}};
}

AuditEntry RungEntry(const Tenant& before, const Tenant& after) {
  AuditEntry entry = TenantEntry(
      kManagerActor, after.rung.index > before.rung.index ? "policy.climb" : "policy.descend",
      after.spec.name);
  entry.before = RungObject(before);
  entry.before.as_object().erase("reason");  // so that each change shows its own
  entry.after = RungObject(after);
  return entry;
}

}  // namespace

AuditEntry OperatorCreated(const std::string& actor, const Operator& created) {
  AuditEntry entry = Entry(actor, "operator.create", "operator", created.name);
  entry.after = OperatorObject(created);
  return entry;
}

Control::Control(Leadership& leadership) : Control(leadership, State()) {}

Control::Control(Leadership& leadership, State state)
    : leadership_(leadership),
      cluster_(std::move(state.cluster)),
      operators_(std::move(state.operators)),
      log_("control") {}

kj::Promise<absl::Status> Control::WriteAudited(Store::Changes changes,
                                                std::vector<AuditEntry> entries) {
  entries = audit_.Number(std::move(entries));
  changes.merge(SaveAudit(entries, audit_.Dropped(entries.size())));
  return leadership_.Write(std::move(changes))
      .then([this, entries = std::move(entries)](absl::Status saved) {
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
  using Result = std::invoke_result_t<F&>;
  auto turn = last_turn_
                  .then([this, change = kj::mv(change)]() mutable -> Result {
                    absl::Status leads = leadership_.CheckLeads();
                    if (!leads.ok()) return {std::move(leads)};
                    return change();
                  })
                  .fork();
  last_turn_ =
      turn.addBranch().then([](auto&&) {}, [](kj::Exception&&) {}).eagerlyEvaluate(nullptr);
  return turn.addBranch();
}

kj::Promise<void> Control::Replace(State state) {
  auto turn = last_turn_
                  .then([this, state = std::move(state)]() mutable {
                    cluster_ = std::move(state.cluster);
                    operators_ = std::move(state.operators);
                    audit_ = std::move(state.audit);
                    moving_.clear();
                    removing_.clear();
                  })
                  .fork();
  last_turn_ = turn.addBranch().then([] {}, [](kj::Exception&&) {}).eagerlyEvaluate(nullptr);
  return turn.addBranch();
}

kj::Promise<absl::StatusOr<Outcome>> Control::Make(Effect effect, Store::Changes changes,
                                                   std::vector<AuditEntry> entries,
                                                   std::function<void(Cluster&)> commit) {
  using Result = absl::StatusOr<Outcome>;
  if (effect == Effect::kRehearse) {
    Cluster copy = cluster_;
    commit(copy);
    Outcome outcome{.changes = std::move(entries), .leases = Compare(cluster_, copy)};
    return Result(std::move(outcome));
  }
  return WriteAudited(std::move(changes), entries)
      .then([this, entries, commit = std::move(commit)](absl::Status saved) -> Result {
        if (!saved.ok()) return saved;
        commit(cluster_);
        return Outcome{.changes = entries};
      });
}

kj::Promise<absl::StatusOr<Outcome>> Control::Apply(Asker asker, std::vector<TenantSpec> specs,
                                                    std::optional<uint64_t> revision) {
  using Result = absl::StatusOr<Outcome>;
  return TakeTurn([this, asker = std::move(asker), specs = std::move(specs),
                   revision]() -> kj::Promise<Result> {
    if (revision.has_value()) {
      absl::Status status = cluster_.tenants().CheckRevision(specs.at(0).name, *revision);
      if (!status.ok()) return Result(status);
    }
    const auto changed = cluster_.tenants().PlanApply(specs, cluster_.AgentPools());
    if (!changed.ok()) return Result(changed.status());
    if (changed->empty()) return Result(Outcome());
    std::vector<AuditEntry> entries;
    for (const Tenant& tenant : *changed) {
      const Tenant* before = cluster_.tenants().Find(tenant.spec.name);
      AuditEntry entry = TenantEntry(
          asker.actor, before == nullptr ? "tenant.create" : "tenant.update", tenant.spec.name);
      if (before != nullptr) entry.before = ToJson(before->spec);
      entry.after = ToJson(tenant.spec);
      entry.revision = tenant.revision;
      entries.push_back(std::move(entry));
    }
    return Make(asker.effect, SaveTenants(*changed, cluster_.tenants().next_id()),
                std::move(entries),
                [changed = *changed](Cluster& cluster) { cluster.CommitTenants(changed); });
  });
}

kj::Promise<absl::StatusOr<Outcome>> Control::RemoveTenant(Asker asker, std::string name) {
  using Result = absl::StatusOr<Outcome>;
  return TakeTurn(
      [this, asker = std::move(asker), name = std::move(name)]() -> kj::Promise<Result> {
        const auto leaving = cluster_.tenants().PlanLeave(name);
        if (!leaving.ok()) return Result(leaving.status());
        const Tenant before = *cluster_.tenants().Find(name);
        AuditEntry entry = TenantEntry(asker.actor, "tenant.delete", name);
        entry.before = ToJson(before.spec);
        if (cluster_.ledger().Committed(before.id) == 0) {
          return RemoveNow(asker.effect, before, std::move(entry));
        }
        if (before.leaving) return Result(Outcome());
        entry.revision = leaving->revision;
        return Make(asker.effect, SaveTenants({*leaving}, cluster_.tenants().next_id()),
                    {std::move(entry)},
                    [leaving = *leaving](Cluster& cluster) { cluster.CommitTenants({leaving}); });
      });
}

kj::Promise<absl::StatusOr<Outcome>> Control::RemoveNow(Effect effect, const Tenant& tenant,
                                                        AuditEntry entry) {
  if (effect == Effect::kChange) {
    // Without a limit it is given no lease while the store works.
    Tenant leaving = tenant;
    leaving.spec.guaranteed = leaving.spec.limit = 0_B;
    cluster_.CommitTenants({leaving});
  }
  return Make(effect, kvpool::RemoveTenant(tenant.id), {std::move(entry)},
              [name = tenant.spec.name](Cluster& cluster) { cluster.RemoveTenant(name); })
      .then([this, tenant](absl::StatusOr<Outcome> outcome) {
        if (!outcome.ok()) cluster_.CommitTenants({tenant});
        return outcome;
      });
}

void Control::RemoveLeft() {
  for (const auto& [name, tenant] : cluster_.tenants().by_name()) {
    if (!tenant.leaving || cluster_.ledger().Committed(tenant.id) > 0) continue;
    if (!removing_.insert(name).second) continue;
    // A turn ends by itself: nobody needs to wait for it.
    (void)TakeTurn([this, name = name] {
      return RemoveIfLeft(name).then([this, name](absl::StatusOr<Outcome> outcome) {
        removing_.erase(name);
        if (!outcome.ok()) {
          log_.Error("a tenant that has left was not removed",
                     {{"tenant", name}, {"error", outcome.status().ToString()}});
        }
        return outcome;
      });
    });
  }
}

void Control::MoveRungs() {
  for (RungMove& move : cluster_.RungsDue(BootClock::now())) {
    const std::string name = move.tenant;
    if (!moving_.insert(name).second) continue;
    // A turn ends by itself: nobody needs to wait for it.
    (void)TakeTurn([this, name, move = std::move(move)] {
      return MoveRung(move).then([this, name](absl::Status status) {
        moving_.erase(name);
        if (!status.ok()) {
          log_.Error("the policy of a tenant was not changed",
                     {{"tenant", name}, {"error", status.ToString()}});
        }
        return status;
      });
    });
  }
}

kj::Promise<absl::Status> Control::MoveRung(const RungMove& move) {
  std::optional<Tenant> moved = cluster_.Moved(move);
  if (!moved.has_value()) return absl::OkStatus();
  AuditEntry entry = RungEntry(*cluster_.tenants().Find(move.tenant), *moved);
  return SaveTenant(*std::move(moved), std::move(entry));
}

// Somebody may have applied the tenant again, or something may be leased to it, since.
kj::Promise<absl::StatusOr<Outcome>> Control::RemoveIfLeft(const std::string& name) {
  const Tenant* tenant = cluster_.tenants().Find(name);
  if (tenant == nullptr || !tenant->leaving || cluster_.ledger().Committed(tenant->id) > 0) {
    return absl::StatusOr<Outcome>(Outcome());
  }
  return RemoveNow(Effect::kChange, *tenant, TenantEntry("manager", "tenant.gone", name));
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
      return Result(Registration{.epoch = cluster_.epoch(), .link = cluster_.Connect(agent)});
    }
    return leadership_.Write(SaveAgent(agent)).then([this, agent](absl::Status saved) -> Result {
      if (!saved.ok()) return saved;
      return Registration{.epoch = cluster_.epoch(), .link = cluster_.Connect(agent)};
    });
  });
}

kj::Promise<absl::StatusOr<Outcome>> Control::DrainAgent(Asker asker, std::string name,
                                                         Drain drain) {
  using Result = absl::StatusOr<Outcome>;
  return TakeTurn(
      [this, asker = std::move(asker), name = std::move(name), drain]() -> kj::Promise<Result> {
        const auto known = cluster_.agents().find(name);
        if (known == cluster_.agents().end()) {
          return Result(absl::NotFoundError(absl::StrCat("agent \"", name, "\" does not exist")));
        }
        const AgentSettings before = known->second.settings;
        AgentSettings after = before;
        after.draining = drain == Drain::kOn;
        if (after == before) return Result(Outcome());
        ++after.revision;
        AuditEntry entry =
            Entry(asker.actor, after.draining ? "agent.drain" : "agent.undrain", "agent", name);
        entry.before = boost::json::object{{"draining", before.draining}};
        entry.after = boost::json::object{{"draining", after.draining}};
        entry.revision = after.revision;
        return Make(asker.effect, SaveSettings(name, after), {std::move(entry)},
                    [name, after](Cluster& cluster) { cluster.CommitSettings(name, after); });
      });
}

kj::Promise<absl::StatusOr<Outcome>> Control::ForgetAgent(Asker asker, std::string name) {
  using Result = absl::StatusOr<Outcome>;
  return TakeTurn(
      [this, asker = std::move(asker), name = std::move(name)]() -> kj::Promise<Result> {
        if (absl::Status status = cluster_.CheckForget(name); !status.ok()) return Result(status);
        AuditEntry entry = Entry(asker.actor, "agent.forget", "agent", name);
        entry.before = AgentObject(cluster_.agents().at(name).info);
        return Make(asker.effect, RemoveAgent(name), {std::move(entry)},
                    [name](Cluster& cluster) { cluster.Forget(name); })
            .then([this](Result outcome) {
              RemoveLeft();
              return outcome;
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
    return leadership_.Write(std::move(changes))
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
