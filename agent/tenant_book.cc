// Leases in, records out. See tenant_book.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/tenant_book.h"

#include <algorithm>
#include <set>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

constexpr std::chrono::seconds kMergeWithin(1);
// Two reports: the first brings the demand, and others may have to give way before the second.
constexpr std::chrono::milliseconds kLeaseGrows(2 * limits::kReportMillis);
constexpr std::chrono::seconds kDemandFades(3);
// Unreported records kept while the manager is away; older ones go first.
constexpr size_t kUnreportedRecords = 1024;

void ApplyOrder(uint64_t epoch, const TenantOrder& order, TenantState* state) {
  if (std::pair(epoch, order.seq) < std::pair(state->lease_epoch, state->lease_seq)) return;
  state->name = order.name;
  state->limit_slabs = order.limit_slabs;
  state->floor_slabs = order.floor_slabs;
  state->token_hashes = order.token_hashes;
  state->grace = order.grace;
  state->over_deadline = order.over_deadline;
  if (state->policy == nullptr || !(state->spec == order.policy)) {
    state->spec = order.policy;
    state->policy = MakePolicy(order.policy);
    state->seal = SealRuleOf(order.policy);
  }
  // The same message again gives back no lease that a complete one without this tenant has taken.
  if (std::pair(epoch, order.seq) == std::pair(state->lease_epoch, state->lease_seq)) return;
  state->lease_epoch = epoch;
  state->lease_seq = order.seq;
  state->lease_slabs = order.lease_slabs;
}

bool SameKind(const ReclaimRecord& a, const ReclaimRecord& b) {
  return std::tie(a.tenant, a.step, a.reason, a.policy) ==
         std::tie(b.tenant, b.step, b.reason, b.policy);
}

void Merge(const ReclaimRecord& record, ReclaimRecord* into) {
  into->count += record.count;
  into->sessions += record.sessions;
  into->bytes += record.bytes;
  into->bytes_before += record.bytes_before;
  into->recovery.Add(record.recovery);
  into->cumulative.Add(record.cumulative);
}

}  // namespace

std::string ToString(ReclaimStep step) {
  switch (step) {
    case ReclaimStep::kCompaction:
      return "compaction";
    case ReclaimStep::kRequantisation:
      return "requantisation";
    case ReclaimStep::kPreemption:
      return "preemption";
    case ReclaimStep::kRefusal:
      break;
  }
  return "refusal";
}

std::string ToString(ReclaimReason reason) {
  switch (reason) {
    case ReclaimReason::kScheduled:
      return "scheduled";
    case ReclaimReason::kLeaseShrink:
      return "lease_shrink";
    case ReclaimReason::kNoPages:
      return "no_pages";
    case ReclaimReason::kAdmission:
      return "admission";
    case ReclaimReason::kLeaseGrowing:
      return "lease_growing";
  }
  return "unknown";
}

std::string PastDeadlineText(const TenantState& tenant, TimePoint now, const std::string& what) {
  const auto lasted = std::chrono::ceil<std::chrono::seconds>(tenant.overage.Lasted(now));
  return absl::StrCat("tenant ", tenant.name, " has held more than its lease of ",
                      tenant.lease_slabs, " slabs at this agent for ", lasted.count(),
                      " s, longer than its grace: no new ", what, " until it fits");
}

absl::Status TenantBook::Apply(uint64_t epoch, Coverage coverage,
                               const std::vector<TenantOrder>& orders) {
  if (epoch < highest_epoch_) {
    return absl::FailedPreconditionError(absl::StrCat("the manager's epoch ", epoch,
                                                      " is lower than ", highest_epoch_,
                                                      ": it is not the leader any more"));
  }
  highest_epoch_ = epoch;
  std::set<TenantId> named;
  for (const TenantOrder& order : orders) {
    named.insert(order.tenant);
    TenantState& state = tenants_[order.tenant];
    state.id = order.tenant;
    state.gone = false;
    ApplyOrder(epoch, order, &state);
  }
  if (coverage == Coverage::kPartial) return absl::OkStatus();
  for (auto& [id, state] : tenants_) {
    if (named.contains(id)) continue;
    state.gone = true;
    state.lease_slabs = 0;
    state.token_hashes.clear();
  }
  return absl::OkStatus();
}

void TenantBook::ForgetGone(const std::vector<TenantId>& in_use) {
  std::erase_if(tenants_, [&](const auto& entry) {
    const auto& [id, state] = entry;
    return state.gone && state.kept_slabs == 0 &&
           std::find(in_use.begin(), in_use.end(), id) == in_use.end();
  });
}

KeptOrders TenantBook::ToKeep() const {
  KeptOrders kept{.epoch = highest_epoch_};
  for (const auto& [id, state] : tenants_) {
    if (state.gone) continue;
    kept.tenants.push_back({.tenant = id,
                            .name = state.name,
                            .lease_slabs = std::min(state.floor_slabs, state.lease_slabs),
                            .limit_slabs = state.limit_slabs,
                            .policy = state.spec,
                            .token_hashes = state.token_hashes,
                            .grace = state.grace,
                            .over_deadline = state.over_deadline,
                            .floor_slabs = state.floor_slabs});
  }
  return kept;
}

void TenantBook::BeginKeeping(const KeptOrders& orders) {
  for (const TenantOrder& order : orders.tenants) {
    const auto found = tenants_.find(order.tenant);
    if (found == tenants_.end()) continue;
    found->second.kept_slabs = std::max(found->second.kept_slabs, order.lease_slabs);
  }
}

void TenantBook::Kept(const KeptOrders& orders) {
  for (auto& [id, state] : tenants_) state.kept_slabs = 0;
  BeginKeeping(orders);
}

void TenantBook::Restore(const KeptOrders& orders, uint32_t slabs) {
  highest_epoch_ = orders.epoch;
  for (TenantOrder order : orders.tenants) {
    TenantState& state = tenants_[order.tenant];
    state.id = order.tenant;
    // Not of an epoch: whatever a manager orders is newer.
    order.seq = 1;
    order.lease_slabs = std::min(order.lease_slabs, slabs);
    slabs -= order.lease_slabs;
    state.kept_slabs = order.lease_slabs;
    ApplyOrder(0, order, &state);
    state.lease_seq = 0;
  }
}

const TenantState* TenantBook::Find(TenantId tenant) const {
  const auto found = tenants_.find(tenant);
  return found == tenants_.end() ? nullptr : &found->second;
}

const TenantState* TenantBook::FindByToken(const TokenHash& hash) const {
  const TenantState* match = nullptr;
  for (const auto& [id, state] : tenants_) {
    for (const TokenHash& known : state.token_hashes) {
      if (EqualInConstantTime(known, hash)) match = &state;
    }
  }
  return match;
}

void TenantBook::SeeHeld(TenantId tenant, uint32_t slabs, TimePoint now) {
  const auto found = tenants_.find(tenant);
  if (found != tenants_.end()) found->second.overage.See(slabs, found->second.lease_slabs, now);
}

void TenantBook::DemandHeard(TenantId tenant, uint32_t slabs, TimePoint now) {
  const auto found = tenants_.find(tenant);
  if (found == tenants_.end()) return;
  KnownDemand& known = found->second.known_demand;
  if (slabs > known.slabs) known = {.slabs = slabs, .since = now, .asked = now};
  if (slabs == known.slabs) known.asked = now;
  if (now - known.asked > kDemandFades)
    known = {.slabs = slabs, .since = known.since, .asked = now};
}

ReclaimReason TenantBook::WhyRefused(const TenantState& tenant, uint32_t needed, uint32_t most,
                                     TimePoint now) const {
  if (now - manager_heard_ > kLeaseGrows) return ReclaimReason::kAdmission;
  const KnownDemand& known = tenant.known_demand;
  const bool news = needed > known.slabs || now - known.since < kLeaseGrows;
  return needed <= most && news ? ReclaimReason::kLeaseGrowing : ReclaimReason::kAdmission;
}

void TenantBook::Record(const ReclaimRecord& record) {
  const auto found = tenants_.find(record.tenant);
  if (found != tenants_.end()) {
    TenantCounters& counters = found->second.counters;
    if (record.step == ReclaimStep::kRefusal) {
      if (record.reason != ReclaimReason::kLeaseGrowing) ++counters.refusals;
    } else if (record.step == ReclaimStep::kCompaction) {
      counters.compactions += record.sessions;
    }
    if (record.recovery.measured()) {
      counters.recovery_sum += double{record.recovery.mean} * record.recovery.count;
      counters.recovery_count += record.recovery.count;
      counters.recovery_min = std::min<double>(counters.recovery_min, record.recovery.min);
    }
  }
  if (observer_ && found != tenants_.end()) observer_(found->second, record);
  const auto same = std::find_if(unreported_.rbegin(), unreported_.rend(),
                                 [&](const auto& last) { return SameKind(last, record); });
  if (same != unreported_.rend() && record.time - same->time < kMergeWithin) {
    return Merge(record, &*same);
  }
  if (unreported_.size() == kUnreportedRecords) unreported_.pop_front();
  unreported_.push_back(record);
}

std::vector<ReclaimRecord> TenantBook::TakeRecords() {
  const size_t count = std::min<size_t>(unreported_.size(), limits::kReclaimsPerReport);
  std::vector<ReclaimRecord> taken(unreported_.begin(), unreported_.begin() + count);
  unreported_.erase(unreported_.begin(), unreported_.begin() + count);
  return taken;
}

}  // namespace kvpool
