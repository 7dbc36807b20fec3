// What an agent says arrives at a manager as it was, and orders that make no sense are refused as a
// whole.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/manager_messages.h"

#include <capnp/message.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "common/convert.h"
#include "manager/agent_messages.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::SizeIs;

const AgentInfo kAgent{
    .name = "gpu-0", .incarnation = 1, .pool_bytes = 2_MiB * 64, .slab_bytes = 2_MiB};
constexpr TimePoint kNow{seconds(5000)};

OutgoingReport Report() {
  OutgoingReport report{.seq = 12, .free_slabs = 40, .stuck_slabs = 1};
  report.tenants.push_back({.tenant = TenantId(3),
                            .lease_epoch = 7,
                            .lease_seq = 9,
                            .promised_slabs = 20,
                            .held_slabs = 18,
                            .used = 10_MiB,
                            .charged_slabs = 15,
                            .wanted_slabs = 30,
                            .sessions = 4,
                            .workers = 2,
                            .counters = {.refusals = 5,
                                         .compactions = 6,
                                         .recovery_sum = 1.5,
                                         .recovery_count = 2,
                                         .recovery_min = 0.25},
                            .over = milliseconds(1500),
                            .past_deadline = true});
  report.reclaims.push_back({.tenant = TenantId(3),
                             .time = kNow - seconds(2),
                             .step = ReclaimStep::kCompaction,
                             .reason = ReclaimReason::kLeaseShrink,
                             .policy = "corm",
                             .count = 2,
                             .sessions = 3,
                             .bytes = 1000,
                             .bytes_before = 4000,
                             .recovery = {.mean = 0.5f, .min = 0.25f, .count = 3},
                             .cumulative = {.mean = 0.375f, .min = 0.125f, .count = 3}});
  return report;
}

absl::StatusOr<AgentReport> Received(const OutgoingReport& report) {
  capnp::MallocMessageBuilder message;
  ToProto(report, kNow, message.initRoot<rpc::Report>());
  return CheckedReport(message.getRoot<rpc::Report>().asReader(), kAgent, kNow);
}

TEST(ManagerMessages, AReportArrivesAsItWas) {
  const auto report = Received(Report());
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->seq, 12u);
  EXPECT_EQ(report->free_slabs, 40);
  EXPECT_EQ(report->stuck_slabs, 1);
  ASSERT_THAT(report->tenants, SizeIs(1));
  const TenantUse& use = report->tenants[0];
  EXPECT_EQ(use.lease.tenant, TenantId(3));
  EXPECT_EQ(use.lease.epoch, 7u);
  EXPECT_EQ(use.lease.seq, 9u);
  EXPECT_EQ(use.lease.slabs, 20);
  EXPECT_EQ(use.held_slabs, 18);
  EXPECT_EQ(use.used, 10_MiB);
  EXPECT_EQ(use.charged_slabs, 15);
  EXPECT_EQ(use.wanted_slabs, 30);
  EXPECT_EQ(use.sessions, 4u);
  EXPECT_EQ(use.workers, 2u);
  EXPECT_EQ(use.refusals, 5u);
  EXPECT_EQ(use.compactions, 6u);
  EXPECT_EQ(use.recovery_sum, 1.5);
  EXPECT_EQ(use.recovery_count, 2u);
  EXPECT_EQ(use.recovery_min, 0.25);
  EXPECT_EQ(use.over, milliseconds(1500));
  EXPECT_TRUE(use.past_deadline);
  ASSERT_THAT(report->reclaims, SizeIs(1));
  const ReclaimEntry& entry = report->reclaims[0];
  EXPECT_EQ(entry.agent, "gpu-0");
  EXPECT_EQ(entry.last, kNow - seconds(2));
  EXPECT_EQ(entry.step, "compaction");
  EXPECT_EQ(entry.reason, "lease-shrink");
  EXPECT_EQ(entry.policy, "corm");
  EXPECT_EQ(entry.count, 2u);
  EXPECT_EQ(entry.sessions, 3u);
  EXPECT_EQ(entry.bytes, Bytes(1000));
  EXPECT_EQ(entry.before, Bytes(4000));
  EXPECT_EQ(entry.recovery.mean, 0.5);
  EXPECT_EQ(entry.cumulative.min, 0.125);
}

TEST(ManagerMessages, EveryStepAndReasonHasItsName) {
  OutgoingReport report = Report();
  for (const auto step : {ReclaimStep::kCompaction, ReclaimStep::kRequantisation,
                          ReclaimStep::kRefusal, ReclaimStep::kPreemption}) {
    for (const auto reason :
         {ReclaimReason::kScheduled, ReclaimReason::kLeaseShrink, ReclaimReason::kNoPages,
          ReclaimReason::kAdmission, ReclaimReason::kLeaseGrowing}) {
      report.reclaims[0].step = step;
      report.reclaims[0].reason = reason;
      const auto received = Received(report);
      ASSERT_TRUE(received.ok()) << received.status();
      EXPECT_EQ(received->reclaims[0].step, ToString(step));
      std::string name = ToString(reason);
      std::replace(name.begin(), name.end(), '_', '-');
      EXPECT_EQ(received->reclaims[0].reason, name);
    }
  }
}

// A message of one order that is right but for what `spoil` does to it.
absl::Status Check(const std::function<void(rpc::TenantOrder::Builder)>& spoil) {
  capnp::MallocMessageBuilder message;
  auto orders = message.initRoot<rpc::Orders>();
  orders.setEpoch(1);
  auto order = orders.initTenants(2)[1];
  for (auto one : orders.getTenants()) {
    one.setTenant(1);
    one.setName("chat");
    ToProto(DefaultPolicySpec(), one.initPolicy());
  }
  spoil(order);
  const auto checked = CheckedOrders(orders.asReader());
  if (checked.ok()) {
    EXPECT_THAT(checked->tenants, SizeIs(2));
  }
  return checked.status();
}

TEST(ManagerMessages, OrdersThatMakeNoSenseAreRefusedAsAWhole) {
  EXPECT_TRUE(Check([](auto) {}).ok());
  EXPECT_THAT(std::string(Check([](auto order) { order.setTenant(0); }).message()),
              HasSubstr("without an id"));
  EXPECT_THAT(std::string(Check([](auto order) {
                            order.initTokenHashes(limits::kTokensPerTenant + 1);
                          }).message()),
              HasSubstr("too many tokens"));
  EXPECT_THAT(
      std::string(Check([](auto order) { order.initTokenHashes(1).init(0, 31); }).message()),
      HasSubstr("not 32 bytes"));
  EXPECT_THAT(
      std::string(Check([](auto order) { order.setGraceRunningMillis(3'600'001); }).message()),
      HasSubstr("more than an hour"));
  EXPECT_THAT(
      std::string(Check([](auto order) { order.getPolicy().setName("no-such"); }).message()),
      HasSubstr("no-such"));
}

TEST(ManagerMessages, OrdersForMoreTenantsThanThereCanBeAreRefused) {
  capnp::MallocMessageBuilder message;
  auto orders = message.initRoot<rpc::Orders>();
  orders.initTenants(limits::kTenants + 1);
  EXPECT_THAT(std::string(CheckedOrders(orders.asReader()).status().message()),
              HasSubstr("at most 512"));
}

}  // namespace
}  // namespace kvpool
