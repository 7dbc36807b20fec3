// What is told of compactions, sealings and ended sessions: by policy and step, and every session
// counts.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/reclaim_records.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvpool {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr TenantId kTenant(3);

std::vector<ReclaimRecord> Records(const std::vector<CompactionOutcome>& outcomes) {
  return RecordsOf({.tenant = kTenant, .reason = ReclaimReason::kLeaseShrink}, 4_KiB, outcomes);
}

CompactionOutcome Compacted(const std::string& policy, uint32_t freed, float recovery) {
  return {.policy = policy,
          .pages_before = 10,
          .freed_pages = freed,
          .recovery = {.mean = recovery, .min = recovery / 2, .count = 4},
          .cumulative = {.mean = recovery / 4, .min = recovery / 8, .count = 4},
          .effect = CompactionOutcome::Effect::kCompacted};
}

TEST(ReclaimRecordsTest, TheSessionsOfABatchAreOneRecordThatCountsThemAll) {
  CompactionOutcome unmeasured = Compacted("full", 1, 0.5f);
  unmeasured.recovery = unmeasured.cumulative = {};
  const auto records =
      Records({Compacted("full", 2, 0.8f), unmeasured, Compacted("full", 3, 0.4f)});
  ASSERT_THAT(records, SizeIs(1));
  EXPECT_EQ(records[0].tenant, kTenant);
  EXPECT_EQ(records[0].reason, ReclaimReason::kLeaseShrink);
  EXPECT_EQ(records[0].step, ReclaimStep::kCompaction);
  EXPECT_EQ(records[0].sessions, 3u);
  EXPECT_EQ(records[0].bytes, 6u * 4096);
  EXPECT_EQ(records[0].bytes_before, 30u * 4096);
  EXPECT_FLOAT_EQ(records[0].recovery.mean, 0.6f);
  EXPECT_FLOAT_EQ(records[0].recovery.min, 0.2f);
  EXPECT_EQ(records[0].recovery.count, 2u) << "sessions, not heads";
  EXPECT_FLOAT_EQ(records[0].cumulative.mean, 0.15f);
  EXPECT_EQ(records[0].cumulative.count, 2u);
}

TEST(ReclaimRecordsTest, SessionsHandedOverOneByOneAreReportedAsOneBatchWouldBe) {
  CompactionOutcome sealed = Compacted("h2o", 3, 0.4f);
  sealed.sealing_freed = 5;
  sealed.sealing = CompactionOutcome::Sealing::kSealed;
  CompactionOutcome unmeasured = Compacted("full", 1, 0.5f);
  unmeasured.recovery = unmeasured.cumulative = {};
  const std::vector<CompactionOutcome> all = {unmeasured, Compacted("full", 2, 0.8f), sealed,
                                              Compacted("h2o", 4, 0.7f), Compacted("h2o", 1, 1)};
  TenantBook book;
  for (const CompactionOutcome& one : all) {
    for (const ReclaimRecord& record : Records({one})) book.Record(record);
  }
  const std::vector<ReclaimRecord> singly = book.TakeRecords(), together = Records(all);
  ASSERT_EQ(singly.size(), together.size());
  for (size_t i = 0; i < together.size(); ++i) {
    EXPECT_EQ(singly[i].policy, together[i].policy);
    EXPECT_EQ(singly[i].step, i == 2 ? ReclaimStep::kRequantisation : ReclaimStep::kCompaction);
    EXPECT_EQ(singly[i].step, together[i].step);
    EXPECT_EQ(singly[i].sessions, together[i].sessions);
    EXPECT_EQ(singly[i].bytes, together[i].bytes);
    EXPECT_EQ(singly[i].bytes_before, together[i].bytes_before);
    EXPECT_FLOAT_EQ(singly[i].recovery.mean, together[i].recovery.mean);
    EXPECT_EQ(singly[i].recovery.min, together[i].recovery.min);
    EXPECT_EQ(singly[i].recovery.count, together[i].recovery.count);
    EXPECT_FLOAT_EQ(singly[i].cumulative.mean, together[i].cumulative.mean);
    EXPECT_EQ(singly[i].cumulative.min, together[i].cumulative.min);
  }
}

TEST(ReclaimRecordsTest, SessionsOfTwoPoliciesAreTwoRecords) {
  const auto records =
      Records({Compacted("h2o", 2, 1), Compacted("corm", 3, 1), Compacted("h2o", 4, 1)});
  ASSERT_THAT(records, SizeIs(2));
  EXPECT_EQ(records[0].policy, "corm");
  EXPECT_EQ(records[0].bytes, 3u * 4096);
  EXPECT_EQ(records[1].policy, "h2o");
  EXPECT_EQ(records[1].bytes, 6u * 4096);
}

TEST(ReclaimRecordsTest, WhatSealingFreedIsARecordOfItsOwn) {
  CompactionOutcome both = Compacted("h2o", 2, 0.8f);
  both.sealing_freed = 5;
  both.sealing = CompactionOutcome::Sealing::kSealed;
  const auto records = Records({both, Compacted("h2o", 1, 0.8f)});
  ASSERT_THAT(records, SizeIs(2));
  EXPECT_EQ(records[1].step, ReclaimStep::kRequantisation);
  EXPECT_EQ(records[1].policy, "h2o");
  EXPECT_EQ(records[1].sessions, 1u);
  EXPECT_EQ(records[1].bytes, 5u * 4096);
  EXPECT_EQ(records[1].bytes_before, 8u * 4096) << "what the compaction left";
  EXPECT_FALSE(records[1].recovery.measured());
}

TEST(ReclaimRecordsTest, SessionsThatWereEndedAreARecordOfTheirOwn) {
  const CompactionOutcome ended{.status = absl::CancelledError(""),
                                .policy = "h2o",
                                .pages_before = 7,
                                .freed_pages = 7,
                                .effect = CompactionOutcome::Effect::kEnded};
  const auto records = Records({ended, Compacted("h2o", 1, 0.8f), ended});
  ASSERT_THAT(records, SizeIs(2));
  EXPECT_EQ(records[0].bytes, 1u * 4096);
  EXPECT_EQ(records[1].step, ReclaimStep::kPreemption);
  EXPECT_EQ(records[1].sessions, 2u);
  EXPECT_EQ(records[1].bytes, 14u * 4096);
  EXPECT_EQ(records[1].bytes_before, 14u * 4096);
  EXPECT_FALSE(records[1].recovery.measured());
}

TEST(ReclaimRecordsTest, WhatFailedOrMovedOnlyIsNoReclaim) {
  EXPECT_THAT(
      Records(
          {{.status = absl::DataLossError("")}, {.effect = CompactionOutcome::Effect::kMoved}, {}}),
      IsEmpty());
}

TEST(ReclaimRecordsTest, WhatTheFloorHeldIsARefusalOfItsOwnAndSaidOnce) {
  std::vector<CompactionOutcome> outcomes(3);
  for (CompactionOutcome& outcome : outcomes) {
    outcome.policy = "h2o";
    outcome.floor = CompactionOutcome::Floor::kHeld;
    outcome.held_pages = 5;
  }
  outcomes[1].floor = CompactionOutcome::Floor::kHeldAgain;
  outcomes[2].effect = CompactionOutcome::Effect::kMoved;  // out of a slab, all the same
  const auto records =
      RecordsOf({.tenant = TenantId(1), .reason = ReclaimReason::kLeaseShrink}, 8_KiB, outcomes);
  ASSERT_EQ(records.size(), 1u);
  EXPECT_EQ(records[0].step, ReclaimStep::kRefusal);
  EXPECT_EQ(records[0].reason, ReclaimReason::kFloor);
  EXPECT_EQ(records[0].sessions, 2u);
  EXPECT_EQ(records[0].bytes, 2u * 5 * 8192);
  EXPECT_EQ(records[0].bytes_before, 0u);
  EXPECT_FALSE(records[0].recovery.measured());
}

}  // namespace
}  // namespace kvpool
