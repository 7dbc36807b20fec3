// What is told of compactions and sealings: by policy and step, and every session counts.
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

TEST(ReclaimRecordsTest, WhatFailedOrMovedOnlyIsNoReclaim) {
  EXPECT_THAT(
      Records(
          {{.status = absl::DataLossError("")}, {.effect = CompactionOutcome::Effect::kMoved}, {}}),
      IsEmpty());
}

}  // namespace
}  // namespace kvpool
