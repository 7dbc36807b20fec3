// Which rung of its ladder each tenant should be on, by what the agents report. See cluster.h and
// rung_choice.h.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/quantity.h"
#include "manager/cluster.h"

namespace kvpool {
namespace {

// Between two looks at all ladders; a report comes every quarter of a second.
constexpr Duration kRungPause = std::chrono::milliseconds(250);

}  // namespace

void Cluster::TakeRungs(const Agent& agent, const AgentReport& report) {
  for (const TenantUse& use : report.tenants) {
    const auto rungs = rungs_.find(use.lease.tenant);
    const auto before = agent.use.find(use.lease.tenant);
    // Of an agent's first report nobody knows how old it is what it counts.
    if (rungs == rungs_.end() || before == agent.use.end()) continue;
    Rungs& known = rungs->second;
    const uint64_t refused = before->second.refusals;
    known.refusals += use.refusals > refused ? use.refusals - refused : 0;
    if (known.rung >= use.rungs.size() || known.rung >= before->second.rungs.size()) continue;
    known.done += use.rungs[known.rung].Since(before->second.rungs[known.rung]);
  }
}

RungInput Cluster::RungInputOf(const Tenant& tenant, const Rungs& rungs) const {
  RungInput input{.rung = tenant.rung.index,
                  .done = rungs.done,
                  .min_recovery = tenant.spec.ladder->min_recovery};
  int64_t wanted = 0, ordered = 0;
  Duration over{};
  for (const auto& [name, agent] : agents_) {
    const auto use = agent.use.find(tenant.id);
    if (!agent.connected || use == agent.use.end()) continue;
    input.pressure = RungInput::Pressure::kNone;
    over = std::max(over, use->second.over);
    const int64_t here = ledger_.Ordered(tenant.id, name);
    if (use->second.wanted_slabs <= here) continue;
    wanted += use->second.wanted_slabs;
    ordered += here;
  }
  if (input.pressure == RungInput::Pressure::kUnknown) return input;
  if (over > Duration(0)) {
    input.why = "it holds more than its lease";
  } else if (wanted > ordered) {
    input.why = absl::StrCat("it wants ", FormatBytes(SlabBytes() * wanted), " where it is given ",
                             FormatBytes(SlabBytes() * ordered));
  } else if (rungs.refusals > 0) {
    input.why = "sessions or pages were refused";
  } else {
    return input;
  }
  input.pressure = RungInput::Pressure::kPressed;
  return input;
}

std::vector<RungMove> Cluster::RungsDue(TimePoint now) {
  std::vector<RungMove> due;
  if (now < next_rungs_ || Learning(now)) return due;
  next_rungs_ = now + kRungPause;
  for (const auto& [name, tenant] : tenants_.by_name()) {
    if (!tenant.spec.ladder.has_value() || tenant.leaving) {
      rungs_.erase(tenant.id);
      continue;
    }
    const auto size = static_cast<uint32_t>(tenant.spec.ladder->rungs.size());
    const auto known = rungs_.find(tenant.id);
    if (known != rungs_.end() && known->second.choice.rungs() != size) rungs_.erase(known);
    Rungs& rungs = rungs_.try_emplace(tenant.id, Rungs{RungChoice(size, tenant.rung.index, now)})
                       .first->second;
    if (std::exchange(rungs.rung, tenant.rung.index) != tenant.rung.index) rungs.done = {};
    std::optional<RungStep> step = rungs.choice.Step(RungInputOf(tenant, rungs), now);
    rungs.done = {};
    rungs.refusals = 0;
    if (step.has_value()) {
      due.push_back({.tenant = name, .from = tenant.rung.index, .step = *std::move(step)});
    }
  }
  return due;
}

std::optional<Tenant> Cluster::Moved(const RungMove& move) const {
  const Tenant* tenant = tenants_.Find(move.tenant);
  if (tenant == nullptr || !tenant->spec.ladder.has_value() || tenant->leaving ||
      tenant->rung.index != move.from || move.step.to >= tenant->spec.ladder->rungs.size()) {
    return std::nullopt;
  }
  Tenant moved = *tenant;
  moved.rung = {.index = move.step.to, .reason = move.step.reason};
  return moved;
}

const RungChanges& Cluster::RungChangesOf(TenantId tenant) const {
  static const RungChanges none;
  const auto found = rung_changes_.find(tenant);
  return found == rung_changes_.end() ? none : found->second;
}

void Cluster::CountRungChanges(const std::vector<Tenant>& changed) {
  for (const Tenant& tenant : changed) {
    const Tenant* before = tenants_.Find(tenant.spec.name);
    if (before == nullptr || before->spec.ladder != tenant.spec.ladder) {
      rungs_.erase(tenant.id);  // it begins anew with another ladder
      continue;
    }
    RungChanges& changes = rung_changes_[tenant.id];
    if (tenant.rung.index > before->rung.index) ++changes.climbs;
    if (tenant.rung.index < before->rung.index) ++changes.descents;
  }
}

}  // namespace kvpool
