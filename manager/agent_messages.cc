// Field by field.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/agent_messages.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/convert.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

constexpr int64_t kMaxBytes = limits::kTenantBytes;

absl::Status Impossible(const std::string& field) {
  return absl::InvalidArgumentError(absl::StrCat("an impossible value of ", field));
}

// For people: bounded, and only what a terminal shows as it is.
std::string Printable(capnp::Text::Reader text) {
  std::string shown(text.begin(), std::min<size_t>(text.size(), limits::kPolicyTextBytes));
  std::replace_if(
      shown.begin(), shown.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return shown;
}

std::string StepName(rpc::ReclaimStep step) {
  switch (step) {
    case rpc::ReclaimStep::PARKED:
      return "parked";
    case rpc::ReclaimStep::COMPACTION:
      return "compaction";
    case rpc::ReclaimStep::REQUANTISATION:
      return "requantisation";
    case rpc::ReclaimStep::SPILL:
      return "spill";
    case rpc::ReclaimStep::REFUSAL:
      return "refusal";
    case rpc::ReclaimStep::PREEMPTION:
      return "preemption";
    default:
      return "unknown";
  }
}

std::string ReasonName(rpc::ReclaimReason reason) {
  switch (reason) {
    case rpc::ReclaimReason::SCHEDULED:
      return "scheduled";
    case rpc::ReclaimReason::LEASE_SHRINK:
      return "lease-shrink";
    case rpc::ReclaimReason::NO_PAGES:
      return "no-pages";
    case rpc::ReclaimReason::ADMISSION:
      return "admission";
    case rpc::ReclaimReason::LEASE_GROWING:
      return "lease-growing";
    default:
      return "unknown";
  }
}

// Longer than anything runs; what is above it is shown as it.
constexpr Duration kLongestOver = std::chrono::hours(24 * 365);

rpc::OverDeadline ToCapnp(OverDeadline action) {
  return action == OverDeadline::kPreempt ? rpc::OverDeadline::PREEMPT : rpc::OverDeadline::HOLD;
}

uint32_t Millis(Duration grace) {
  return static_cast<uint32_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(grace).count());
}

bool IsRecovery(double value) { return value >= 0 && value <= 1; }  // false for NaN

// Of an agent that sends no minimum the mean is all there is.
RecoverySummary CheckedRecovery(double mean, double min, uint64_t count) {
  if (!IsRecovery(mean)) return {};
  return {.mean = mean, .min = IsRecovery(min) ? std::min(min, mean) : mean, .count = count};
}

absl::StatusOr<TenantUse> CheckedUse(rpc::TenantUse::Reader from, int64_t slabs, Bytes pool) {
  const TenantId tenant(from.getTenant());
  if (tenant == TenantId()) return Impossible("tenant");
  if (from.getLeaseSlabs() > slabs) return Impossible("leaseSlabs");
  if (from.getHeldSlabs() > slabs) return Impossible("heldSlabs");
  if (from.getChargedSlabs() > slabs) return Impossible("chargedSlabs");
  // Nobody holds too much who holds nothing.
  const bool holds = from.getHeldSlabs() > 0;
  if (!holds && from.getOverMillis() > 0) return Impossible("overMillis");
  if (!holds && from.getPastDeadline()) return Impossible("pastDeadline");
  const auto over = std::chrono::milliseconds(std::min<uint64_t>(
      from.getOverMillis(), static_cast<uint64_t>(kLongestOver / std::chrono::milliseconds(1))));
  if (from.getUsedBytes() > static_cast<uint64_t>(pool.value())) return Impossible("usedBytes");
  const double sum = from.getRecoverySum(), count = static_cast<double>(from.getRecoveryCount());
  if (!(sum >= 0 && sum <= count * (1 + 1e-6) + 1e-6)) return Impossible("recoverySum");
  if (!IsRecovery(from.getRecoveryMin())) return Impossible("recoveryMin");
  return TenantUse{.lease = {.tenant = tenant,
                             .epoch = from.getLeaseEpoch(),
                             .seq = from.getLeaseSeq(),
                             .slabs = from.getLeaseSlabs()},
                   .held_slabs = from.getHeldSlabs(),
                   .used = Bytes(static_cast<int64_t>(from.getUsedBytes())),
                   .charged_slabs = from.getChargedSlabs(),
                   // May exceed the pool: then there is demand that only another agent can serve.
                   .wanted_slabs = std::min<int64_t>(from.getWantedSlabs(), limits::kSlabsPerAgent),
                   .sessions = from.getSessions(),
                   .workers = from.getWorkers(),
                   .refusals = from.getRefusals(),
                   .compactions = from.getCompactions(),
                   .recovery_sum = sum,
                   .recovery_count = from.getRecoveryCount(),
                   .recovery_min = from.getRecoveryMin(),
                   .over = over,
                   .past_deadline = from.getPastDeadline()};
}

absl::StatusOr<ReclaimEntry> CheckedReclaim(rpc::Reclaim::Reader from, const AgentInfo& agent,
                                            TimePoint now) {
  if (from.getBytes() > static_cast<uint64_t>(kMaxBytes)) return Impossible("bytes");
  if (from.getBytesBefore() > static_cast<uint64_t>(kMaxBytes) ||
      (from.getBytesBefore() > 0 && from.getBytesBefore() < from.getBytes())) {
    return Impossible("bytesBefore");
  }
  const auto longest = std::chrono::duration_cast<std::chrono::milliseconds>(
      now.time_since_epoch());  // nothing is older than the machine's uptime
  const auto age = std::chrono::milliseconds(
      std::min<uint64_t>(from.getAgeMillis(), static_cast<uint64_t>(longest.count())));
  const uint64_t count = std::max<uint64_t>(from.getCount(), 1);
  const uint64_t measured = from.getMeasured() > 0 ? from.getMeasured() : count;
  return ReclaimEntry{
      .tenant = TenantId(from.getTenant()),
      .agent = agent.name,
      .first = now - age,
      .last = now - age,
      .step = StepName(from.getStep()),
      .reason = ReasonName(from.getReason()),
      .policy = Printable(from.getPolicy()),
      .count = count,
      .sessions = from.getSessions(),
      .bytes = Bytes(static_cast<int64_t>(from.getBytes())),
      .before = Bytes(static_cast<int64_t>(from.getBytesBefore())),
      .recovery = CheckedRecovery(from.getRecovery(), from.getRecoveryMin(), measured),
      .cumulative =
          CheckedRecovery(from.getCumulativeRecovery(), from.getCumulativeRecoveryMin(), measured)};
}

}  // namespace

absl::StatusOr<AgentInfo> CheckedAgentInfo(rpc::RegisterParams::Reader from) {
  const std::string name(from.getAgent().begin(), from.getAgent().size());
  if (absl::Status status = CheckName("agent", name); !status.ok()) return status;
  if (from.getPoolBytes() > static_cast<uint64_t>(kMaxBytes) ||
      from.getSlabBytes() > static_cast<uint64_t>(kMaxBytes)) {
    return Impossible("poolBytes or slabBytes");
  }
  return AgentInfo{.name = name,
                   .incarnation = from.getIncarnation(),
                   .pool_bytes = Bytes(static_cast<int64_t>(from.getPoolBytes())),
                   .slab_bytes = Bytes(static_cast<int64_t>(from.getSlabBytes())),
                   .device = Printable(from.getDevice())};
}

absl::StatusOr<AgentReport> CheckedReport(rpc::Report::Reader from, const AgentInfo& agent,
                                          TimePoint now) {
  if (from.getTenants().size() > limits::kTenants) return Impossible("the number of tenants");
  if (from.getReclaims().size() > limits::kReclaimsPerReport) {
    return Impossible("the number of reclaims");
  }
  AgentReport report{
      .seq = from.getSeq(), .free_slabs = from.getFreeSlabs(), .stuck_slabs = from.getStuckSlabs()};
  std::set<TenantId> seen;
  for (const auto tenant : from.getTenants()) {
    absl::StatusOr<TenantUse> use = CheckedUse(tenant, agent.slabs(), agent.pool_bytes);
    if (!use.ok()) return use.status();
    if (!seen.insert(use->lease.tenant).second) return Impossible("tenants: one is there twice");
    report.tenants.push_back(*std::move(use));
  }
  for (const auto reclaim : from.getReclaims()) {
    absl::StatusOr<ReclaimEntry> entry = CheckedReclaim(reclaim, agent, now);
    if (!entry.ok()) return entry.status();
    report.reclaims.push_back(*std::move(entry));
  }
  return report;
}

void ToProto(const AgentOrders& orders, rpc::Orders::Builder to) {
  to.setEpoch(orders.epoch);
  to.setComplete(orders.complete);
  to.setReportMillis(limits::kReportMillis);
  auto tenants = to.initTenants(static_cast<unsigned>(orders.tenants.size()));
  for (unsigned i = 0; i < tenants.size(); ++i) {
    const TenantOrders& order = orders.tenants[i];
    auto line = tenants[i];
    line.setTenant(order.tenant->id.value());
    line.setName(order.tenant->spec.name.c_str());
    line.setSeq(order.lease.seq);
    line.setLeaseSlabs(static_cast<uint32_t>(order.lease.slabs));
    line.setLimitSlabs(static_cast<uint32_t>(
        std::min<int64_t>(order.limit_slabs, std::numeric_limits<uint32_t>::max())));
    line.setFloorSlabs(static_cast<uint32_t>(order.floor_slabs));
    ToProto(order.tenant->spec.policy, line.initPolicy());
    line.setGraceColdMillis(Millis(order.tenant->spec.grace.cold));
    line.setGraceRunningMillis(Millis(order.tenant->spec.grace.running));
    line.setOverDeadline(ToCapnp(order.tenant->spec.over_deadline));
    auto hashes = line.initTokenHashes(static_cast<unsigned>(order.tenant->tokens.size()));
    for (unsigned h = 0; h < hashes.size(); ++h) {
      const Sha256Hash& hash = order.tenant->tokens[h];
      hashes.set(h, capnp::Data::Reader(hash.data(), hash.size()));
    }
  }
}

}  // namespace kvpool
