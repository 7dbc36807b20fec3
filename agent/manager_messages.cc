// Field by field.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/manager_messages.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/overage.h"
#include "common/convert.h"
#include "common/tenants_file.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

rpc::ReclaimStep ToCapnp(ReclaimStep step) {
  switch (step) {
    case ReclaimStep::kCompaction:
      return rpc::ReclaimStep::COMPACTION;
    case ReclaimStep::kRequantisation:
      return rpc::ReclaimStep::REQUANTISATION;
    case ReclaimStep::kPreemption:
      return rpc::ReclaimStep::PREEMPTION;
    case ReclaimStep::kRefusal:
      break;
  }
  return rpc::ReclaimStep::REFUSAL;
}

rpc::ReclaimReason ToCapnp(ReclaimReason reason) {
  switch (reason) {
    case ReclaimReason::kScheduled:
      return rpc::ReclaimReason::SCHEDULED;
    case ReclaimReason::kLeaseShrink:
      return rpc::ReclaimReason::LEASE_SHRINK;
    case ReclaimReason::kNoPages:
      return rpc::ReclaimReason::NO_PAGES;
    case ReclaimReason::kAdmission:
      return rpc::ReclaimReason::ADMISSION;
    case ReclaimReason::kLeaseGrowing:
      return rpc::ReclaimReason::LEASE_GROWING;
  }
  return rpc::ReclaimReason::UNKNOWN;
}

void Fill(const ReportedTenant& from, rpc::TenantUse::Builder to) {
  to.setTenant(from.tenant.value());
  to.setLeaseEpoch(from.lease_epoch);
  to.setLeaseSeq(from.lease_seq);
  to.setLeaseSlabs(from.promised_slabs);
  to.setHeldSlabs(from.held_slabs);
  to.setUsedBytes(from.used.value());
  to.setChargedSlabs(from.charged_slabs);
  to.setWantedSlabs(from.wanted_slabs);
  to.setSessions(from.sessions);
  to.setWorkers(from.workers);
  to.setRefusals(from.counters.refusals);
  to.setCompactions(from.counters.compactions);
  to.setRecoverySum(from.counters.recovery_sum);
  to.setRecoveryCount(from.counters.recovery_count);
  to.setRecoveryMin(from.counters.recovery_min);
  to.setOverMillis(
      static_cast<uint64_t>(std::chrono::ceil<std::chrono::milliseconds>(from.over).count()));
  to.setPastDeadline(from.past_deadline);
}

void Fill(const ReclaimRecord& from, TimePoint now, rpc::Reclaim::Builder to) {
  const auto age = std::chrono::duration_cast<std::chrono::milliseconds>(now - from.time);
  to.setTenant(from.tenant.value());
  to.setAgeMillis(std::max<int64_t>(age.count(), 0));
  to.setStep(ToCapnp(from.step));
  to.setReason(ToCapnp(from.reason));
  to.setPolicy(from.policy);
  to.setSessions(from.sessions);
  to.setBytes(from.bytes);
  to.setBytesBefore(from.bytes_before);
  to.setRecovery(from.recovery.mean);
  to.setRecoveryMin(from.recovery.min);
  to.setCumulativeRecovery(from.cumulative.mean);
  to.setCumulativeRecoveryMin(from.cumulative.min);
  to.setCount(from.count);
  to.setMeasured(from.recovery.count);
}

// InvalidArgument: longer than any grace can be.
absl::Status ReadGrace(rpc::TenantOrder::Reader reader, TenantOrder* order) {
  order->over_deadline = reader.getOverDeadline() == rpc::OverDeadline::PREEMPT
                             ? OverDeadline::kPreempt
                             : OverDeadline::kHold;
  order->grace = {.cold = std::chrono::milliseconds(reader.getGraceColdMillis()),
                  .running = std::chrono::milliseconds(reader.getGraceRunningMillis())};
  if (order->grace.cold > kMaxGrace || order->grace.running > kMaxGrace) {
    return absl::InvalidArgumentError("a grace of more than an hour");
  }
  if (reader.getOverDeadline() == rpc::OverDeadline::UNKNOWN) order->grace = kEndlessGrace;
  return absl::OkStatus();
}

uint32_t Millis(Duration duration) {
  const auto millis = std::chrono::ceil<std::chrono::milliseconds>(duration).count();
  return static_cast<uint32_t>(millis);
}

// The reverse of CheckedOrder.
void Fill(const TenantOrder& from, rpc::TenantOrder::Builder to) {
  to.setTenant(from.tenant.value());
  to.setName(from.name.c_str());
  to.setSeq(from.seq);
  to.setLeaseSlabs(from.lease_slabs);
  to.setLimitSlabs(from.limit_slabs);
  to.setFloorSlabs(from.floor_slabs);
  ToProto(from.policy, to.initPolicy());
  auto hashes = to.initTokenHashes(static_cast<unsigned>(from.token_hashes.size()));
  for (unsigned i = 0; i < hashes.size(); ++i) {
    const TokenHash& hash = from.token_hashes[i];
    hashes.set(i, capnp::Data::Reader(hash.data(), hash.size()));
  }
  if (from.grace.running == kEndlessGrace.running) return;  // `unknown` stands for that
  to.setGraceColdMillis(Millis(from.grace.cold));
  to.setGraceRunningMillis(Millis(from.grace.running));
  to.setOverDeadline(from.over_deadline == OverDeadline::kPreempt ? rpc::OverDeadline::PREEMPT
                                                                  : rpc::OverDeadline::HOLD);
}

absl::StatusOr<TenantOrder> CheckedOrder(rpc::TenantOrder::Reader reader) {
  absl::StatusOr<PolicySpec> policy = FromProto(reader.getPolicy());
  if (!policy.ok()) return policy.status();
  TenantOrder order{.tenant = TenantId(reader.getTenant()),
                    .name = reader.getName().cStr(),
                    .seq = reader.getSeq(),
                    .lease_slabs = reader.getLeaseSlabs(),
                    .limit_slabs = reader.getLimitSlabs(),
                    .policy = *std::move(policy),
                    .floor_slabs = reader.getFloorSlabs()};
  if (absl::Status grace = ReadGrace(reader, &order); !grace.ok()) return grace;
  if (order.tenant.value() == 0 || reader.getTokenHashes().size() > limits::kTokensPerTenant) {
    return absl::InvalidArgumentError("a tenant without an id, or with too many tokens");
  }
  for (capnp::Data::Reader hash : reader.getTokenHashes()) {
    if (hash.size() != TokenHash().size()) {
      return absl::InvalidArgumentError("a token hash that is not 32 bytes");
    }
    std::copy(hash.begin(), hash.end(), order.token_hashes.emplace_back().begin());
  }
  return order;
}

}  // namespace

void ToProto(const OutgoingReport& report, TimePoint now, rpc::Report::Builder to) {
  to.setSeq(report.seq);
  to.setFreeSlabs(report.free_slabs);
  to.setStuckSlabs(report.stuck_slabs);
  auto tenants = to.initTenants(static_cast<unsigned>(report.tenants.size()));
  for (unsigned i = 0; i < tenants.size(); ++i) Fill(report.tenants[i], tenants[i]);
  auto reclaims = to.initReclaims(static_cast<unsigned>(report.reclaims.size()));
  for (unsigned i = 0; i < reclaims.size(); ++i) Fill(report.reclaims[i], now, reclaims[i]);
}

void ToProto(const KeptOrders& kept, const std::string& agent, Bytes slab_bytes,
             rpc::AgentState::Builder to) {
  to.setAgent(agent.c_str());
  to.setSlabBytes(static_cast<uint64_t>(slab_bytes.value()));
  auto orders = to.initOrders();
  orders.setEpoch(kept.epoch);
  orders.setComplete(true);
  auto tenants = orders.initTenants(static_cast<unsigned>(kept.tenants.size()));
  for (unsigned i = 0; i < tenants.size(); ++i) Fill(kept.tenants[i], tenants[i]);
}

absl::StatusOr<ReceivedOrders> CheckedOrders(rpc::Orders::Reader from) {
  if (from.getTenants().size() > limits::kTenants) {
    return absl::InvalidArgumentError(absl::StrCat("orders for ", from.getTenants().size(),
                                                   " tenants, at most ", limits::kTenants,
                                                   " can be"));
  }
  ReceivedOrders orders{.epoch = from.getEpoch(),
                        .coverage = from.getComplete() ? TenantBook::Coverage::kComplete
                                                       : TenantBook::Coverage::kPartial};
  for (rpc::TenantOrder::Reader reader : from.getTenants()) {
    absl::StatusOr<TenantOrder> order = CheckedOrder(reader);
    // Dropping one order of a complete message would look like the tenant's end: take none.
    if (!order.ok()) return order.status();
    orders.tenants.push_back(*std::move(order));
  }
  return orders;
}

}  // namespace kvpool
