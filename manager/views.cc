// Sums and JSON.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/views.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/json_diff.h"
#include "common/quantity.h"
#include "common/tenant_json.h"

namespace kvpool {
namespace {

int64_t Millis(Duration duration) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(duration).count();
}

int64_t MillisSince(TimePoint then, TimePoint now) { return Millis(now - then); }

// One tenant at one agent.
boost::json::object ShareView(const Cluster& cluster, const Cluster::Agent& agent,
                              TenantId tenant) {
  const Bytes slab = agent.info.slab_bytes;
  const auto found = agent.use.find(tenant);
  const TenantUse use = found == agent.use.end() ? TenantUse() : found->second;
  const int64_t leased = cluster.ledger().Committed(tenant, agent.info.name);
  const int64_t ordered = cluster.ledger().Ordered(tenant, agent.info.name);
  return {{"leased", (slab * leased).value()},
          {"ordered", (slab * ordered).value()},
          {"overage", (slab * std::max<int64_t>(leased - ordered, 0)).value()},
          {"held", (slab * use.held_slabs).value()},
          {"used", use.used.value()},
          {"charged", (slab * use.charged_slabs).value()},
          {"wanted", (slab * use.wanted_slabs).value()},
          {"sessions", use.sessions},
          {"workers", use.workers},
          {"over_ms", Millis(use.over)},
          {"past_deadline", use.past_deadline}};
}

boost::json::value OrNull(double recovery) {
  return recovery < 0 ? boost::json::value(nullptr) : boost::json::value(recovery);
}

boost::json::object RecoveryView(const TenantTotals& totals) {
  if (totals.recovery_count == 0) return {{"mean", nullptr}, {"min", nullptr}};
  return {{"mean", totals.recovery_sum / static_cast<double>(totals.recovery_count)},
          {"min", totals.recovery_min}};
}

}  // namespace

TenantTotals TotalsOf(const Cluster& cluster, const Tenant& tenant) {
  TenantTotals totals;
  if (tenant.spec.ladder.has_value()) totals.rungs.resize(tenant.spec.ladder->rungs.size());
  for (const auto& [name, agent] : cluster.agents()) {
    const Bytes slab = agent.info.slab_bytes;
    totals.leased += slab * cluster.ledger().Committed(tenant.id, name);
    totals.ordered += slab * cluster.ledger().Ordered(tenant.id, name);
    const auto found = agent.use.find(tenant.id);
    if (found == agent.use.end()) continue;
    const TenantUse& use = found->second;
    totals.held += slab * use.held_slabs;
    totals.used += use.used;
    totals.charged += slab * use.charged_slabs;
    totals.wanted += slab * use.wanted_slabs;
    totals.sessions += use.sessions;
    totals.workers += use.workers;
    totals.refusals += use.refusals;
    totals.compactions += use.compactions;
    totals.recovery_sum += use.recovery_sum;
    totals.recovery_count += use.recovery_count;
    totals.recovery_min = std::min(totals.recovery_min, use.recovery_min);
    totals.over = std::max(totals.over, use.over);
    totals.past_deadline |= use.past_deadline;
    // An agent that has not applied the tenant's newest ladder yet may count others.
    if (use.rungs.size() != totals.rungs.size()) continue;
    for (size_t rung = 0; rung < use.rungs.size(); ++rung) totals.rungs[rung] += use.rungs[rung];
  }
  return totals;
}

Bytes Effective(const Cluster& cluster, Bytes budget) {
  const Bytes slab = cluster.SlabBytes();
  return slab == 0_B ? budget : slab * (budget / slab);
}

std::vector<std::string> BudgetNotes(const Cluster& cluster, const TenantSpec& spec) {
  const Bytes slab = cluster.SlabBytes();
  std::vector<std::string> notes;
  for (const auto& [field, budget] :
       {std::pair("guaranteed", spec.guaranteed), std::pair("limit", spec.limit)}) {
    const Bytes effective = Effective(cluster, budget);
    if (effective == budget) continue;
    const int64_t slabs = effective / slab;
    notes.push_back(absl::StrCat(field, " ", FormatBytes(budget), " is ", slabs,
                                 slabs == 1 ? " slab of " : " slabs of ", FormatBytes(slab), " = ",
                                 FormatBytes(effective)));
  }
  return notes;
}

boost::json::value LadderView(const Tenant& tenant, const TenantTotals& totals) {
  if (!tenant.spec.ladder.has_value()) return nullptr;
  const PolicyLadder& ladder = *tenant.spec.ladder;
  boost::json::array rungs;
  for (size_t i = 0; i < ladder.rungs.size(); ++i) {
    const RungUse& use = totals.rungs[i];
    boost::json::value recovery;
    if (use.cumulative_count > 0) {
      recovery = use.cumulative_sum / static_cast<double>(use.cumulative_count);
    }
    rungs.push_back({{"policy", ToString(ladder.rungs[i])},
                     {"sessions", use.sessions},
                     {"compactions", use.compactions},
                     {"floor_stops", use.floor_stops},
                     {"cumulative_recovery", recovery}});
  }
  return {{"rung", tenant.rung.index},
          {"reason", tenant.rung.reason},
          {"min_recovery", ladder.min_recovery},
          {"rungs", std::move(rungs)}};
}

boost::json::object TenantView(const Cluster& cluster, const Tenant& tenant) {
  const TenantTotals totals = TotalsOf(cluster, tenant);
  boost::json::object json = ToJson(tenant.spec);
  json["id"] = tenant.id.value();
  json["revision"] = tenant.revision;
  json["leaving"] = tenant.leaving;
  json["requested"] = {{"guaranteed", tenant.spec.guaranteed.value()},
                       {"limit", tenant.spec.limit.value()}};
  json["effective"] = {{"guaranteed", Effective(cluster, tenant.spec.guaranteed).value()},
                       {"limit", Effective(cluster, tenant.spec.limit).value()}};
  json["leased"] = totals.leased.value();
  json["ordered"] = totals.ordered.value();
  json["held"] = totals.held.value();
  json["used"] = totals.used.value();
  json["charged"] = totals.charged.value();
  json["wanted"] = totals.wanted.value();
  json["overage"] = std::max<int64_t>((totals.leased - tenant.spec.limit).value(), 0);
  json["over_ms"] = Millis(totals.over);
  json["past_deadline"] = totals.past_deadline;
  json["sessions"] = totals.sessions;
  json["workers"] = totals.workers;
  json["refusals"] = totals.refusals;
  json["compactions"] = totals.compactions;
  json["recovery"] = RecoveryView(totals);
  json["ladder"] = LadderView(tenant, totals);
  boost::json::array agents, tokens;
  for (const auto& [name, agent] : cluster.agents()) {
    boost::json::object share = ShareView(cluster, agent, tenant.id);
    share["agent"] = name;
    agents.push_back(std::move(share));
  }
  for (const Sha256Hash& hash : tenant.tokens) tokens.emplace_back(TokenId(hash));
  json["agents"] = std::move(agents);
  json["tokens"] = std::move(tokens);
  return json;
}

boost::json::object TenantsView(const Cluster& cluster, TimePoint now) {
  boost::json::array tenants;
  for (const auto& [name, tenant] : cluster.tenants().by_name()) {
    tenants.push_back(TenantView(cluster, tenant));
  }
  return {{"epoch", cluster.epoch()},
          {"learning", cluster.Learning(now)},
          {"capacity", cluster.Capacity().value()},
          {"tenants", std::move(tenants)}};
}

boost::json::object AgentView(const Cluster& cluster, const Cluster::Agent& agent, TimePoint now) {
  const Bytes slab = agent.info.slab_bytes;
  boost::json::array tenants;
  Bytes leased, charged;
  for (const auto& [name, tenant] : cluster.tenants().by_name()) {
    leased += slab * cluster.ledger().Committed(tenant.id, agent.info.name);
    if (const auto use = agent.use.find(tenant.id); use != agent.use.end()) {
      charged += slab * use->second.charged_slabs;
    }
    boost::json::object share = ShareView(cluster, agent, tenant.id);
    share["tenant"] = name;
    tenants.push_back(std::move(share));
  }
  const Bytes effective = agent.settings.draining ? 0_B : agent.info.pool_bytes;
  const bool reported = agent.last_report != TimePoint();
  return {{"name", agent.info.name},
          {"connected", agent.connected},
          {"draining", agent.settings.draining},
          {"revision", agent.settings.revision},
          {"device", agent.info.device},
          {"requested", agent.info.pool_bytes.value()},
          {"effective", effective.value()},
          {"overage", std::max<int64_t>((leased - effective).value(), 0)},
          {"pool", agent.info.pool_bytes.value()},
          {"slab", slab.value()},
          {"leased", leased.value()},
          {"charged", charged.value()},
          {"free", (slab * agent.free_slabs).value()},
          {"stuck", (slab * agent.stuck_slabs).value()},
          {"report_age_ms", reported ? boost::json::value(MillisSince(agent.last_report, now))
                                     : boost::json::value(nullptr)},
          {"tenants", std::move(tenants)}};
}

boost::json::object AgentsView(const Cluster& cluster, TimePoint now) {
  boost::json::array agents;
  for (const auto& [name, agent] : cluster.agents()) {
    agents.push_back(AgentView(cluster, agent, now));
  }
  return {{"agents", std::move(agents)}};
}

boost::json::object ReclaimsView(const Cluster& cluster, const Tenant& tenant, TimePoint now) {
  boost::json::array reclaims;
  for (const ReclaimEntry& entry : cluster.ReclaimsOf(tenant.id)) {
    boost::json::value before, after;  // null: there is nothing that got smaller
    if (entry.before > 0_B && entry.before >= entry.bytes) {
      before = entry.before.value();
      after = (entry.before - entry.bytes).value();
    }
    reclaims.push_back({{"agent", entry.agent},
                        {"age_ms", MillisSince(entry.last, now)},
                        {"first_age_ms", MillisSince(entry.first, now)},
                        {"count", entry.count},
                        {"step", entry.step},
                        {"reason", entry.reason},
                        {"policy", entry.policy},
                        {"sessions", entry.sessions},
                        {"bytes", entry.bytes.value()},
                        {"bytes_before", before},
                        {"bytes_after", after},
                        {"recovery", OrNull(entry.recovery.mean)},
                        {"recovery_min", OrNull(entry.recovery.min)},
                        {"cumulative_recovery", OrNull(entry.cumulative.mean)},
                        {"cumulative_recovery_min", OrNull(entry.cumulative.min)}});
  }
  return {{"tenant", tenant.spec.name}, {"reclaims", std::move(reclaims)}};
}

boost::json::object OperatorsView(const OperatorTable& table) {
  boost::json::array operators;
  for (const auto& [name, each] : table.by_name()) {
    operators.push_back(
        {{"name", name}, {"scope", ToString(each.scope)}, {"id", TokenId(each.token)}});
  }
  return {{"operators", std::move(operators)}};
}

boost::json::object RehearsalView(const Outcome& outcome) {
  boost::json::array changes, leases;
  for (const AuditEntry& entry : outcome.changes) {
    changes.push_back({{"action", entry.action},
                       {"name", entry.name},
                       {"revision", entry.revision},
                       {"fields", ToJson(Differences(entry.before, entry.after))}});
  }
  for (const LeaseOutlook& lease : outcome.leases) {
    leases.push_back({{"tenant", lease.tenant},
                      {"leased", lease.leased.value()},
                      {"after", lease.after.value()}});
  }
  return {{"dry_run", true}, {"changes", std::move(changes)}, {"leases", std::move(leases)}};
}

}  // namespace kvpool
