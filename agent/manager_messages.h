// Between the agent's values and the messages that it exchanges with the manager: reports out,
// orders in. Orders are checked as a whole: one that makes no sense spoils the message. KJ thread
// (readers and builders belong to it).
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "agent/tenant_book.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/units.h"
#include "proto/manager.capnp.h"

namespace kvpool {

// What the agent says about one tenant.
struct ReportedTenant {
  TenantId tenant;
  uint64_t lease_epoch = 0;
  uint64_t lease_seq = 0;
  uint32_t promised_slabs = 0;  // TenantBook::Promise
  uint32_t held_slabs = 0;
  Bytes used;
  uint32_t charged_slabs = 0;
  uint32_t wanted_slabs = 0;
  uint32_t sessions = 0;
  uint32_t workers = 0;
  TenantCounters counters;
  Duration over{};             // for how long it has held more than its lease
  bool past_deadline = false;  // for longer than its grace
};

struct OutgoingReport {
  uint64_t seq = 0;
  uint32_t free_slabs = 0;
  uint32_t stuck_slabs = 0;
  std::vector<ReportedTenant> tenants;
  std::vector<ReclaimRecord> reclaims;  // oldest first
};

// `now` turns the reclaims' times into ages.
void ToProto(const OutgoingReport& report, TimePoint now, rpc::Report::Builder to);

// What TenantBook::Apply takes.
struct ReceivedOrders {
  uint64_t epoch = 0;
  TenantBook::Coverage coverage = TenantBook::Coverage::kPartial;
  std::vector<TenantOrder> tenants;
};

// What is kept on disk; `agent` is the agent's name.
void ToProto(const KeptOrders& kept, const std::string& agent, Bytes slab_bytes,
             rpc::AgentState::Builder to);

// InvalidArgument when there are too many tenants or one of them makes no sense.
absl::StatusOr<ReceivedOrders> CheckedOrders(rpc::Orders::Reader from);

}  // namespace kvpool
