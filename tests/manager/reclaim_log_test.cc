// What becomes one run of reclaims and what does not, and how the numbers of a run come about.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/reclaim_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "proto/limits.h"

namespace kvpool {
namespace {

using std::chrono::seconds;
using ::testing::SizeIs;

ReclaimEntry Entry(const std::string& step, int64_t at, RecoverySummary recovery = {}) {
  const TimePoint time{seconds(at)};
  return {.agent = "a",
          .first = time,
          .last = time,
          .step = step,
          .reason = "admission",
          .policy = "full",
          .sessions = 2,
          .bytes = Bytes(100),
          .recovery = recovery};
}

TEST(ReclaimLogTest, EqualRecordsAreOneRun) {
  ReclaimLog log;
  ReclaimEntry seven = Entry("refusal", 5);
  seven.count = 7;
  log.Add(Entry("refusal", 3));
  log.Add(seven);
  log.Add(Entry("refusal", 400));
  ASSERT_THAT(log.runs(), SizeIs(1)) << "nothing came in between";
  const ReclaimEntry& run = log.runs().front();
  EXPECT_EQ(run.count, 9u);
  EXPECT_EQ(run.sessions, 6u);
  EXPECT_EQ(run.bytes, Bytes(300));
  EXPECT_EQ(run.first, TimePoint(seconds(3)));
  EXPECT_EQ(run.last, TimePoint(seconds(400)));
  EXPECT_LT(run.recovery.mean, 0) << "nothing was measured";
}

TEST(ReclaimLogTest, EachPartOfTheKindSeparatesRuns) {
  ReclaimLog log;
  log.Add(Entry("refusal", 1));
  ReclaimEntry other = Entry("refusal", 1);
  other.agent = "b";
  log.Add(other);
  other = Entry("refusal", 1);
  other.reason = "no-pages";
  log.Add(other);
  other = Entry("refusal", 1);
  other.policy = "streaming";
  log.Add(other);
  log.Add(Entry("compaction", 1));
  EXPECT_THAT(log.runs(), SizeIs(5));
}

TEST(ReclaimLogTest, KindsThatTakeTurnsAreOneRunEach) {
  ReclaimLog log;
  for (int64_t at = 0; at < 100; ++at) log.Add(Entry(at % 2 == 0 ? "refusal" : "compaction", at));
  ASSERT_THAT(log.runs(), SizeIs(2));
  EXPECT_EQ(log.runs()[0].step, "compaction") << "newest first";
  EXPECT_EQ(log.runs()[0].count, 50u);
  EXPECT_EQ(log.runs()[1].count, 50u);
}

TEST(ReclaimLogTest, APauseWithSomethingElseInItEndsARun) {
  ReclaimLog log;
  log.Add(Entry("refusal", 10));
  log.Add(Entry("compaction", 15));
  log.Add(Entry("refusal", 21));
  ASSERT_THAT(log.runs(), SizeIs(3));
  log.Add(Entry("compaction", 25));
  ASSERT_THAT(log.runs(), SizeIs(3)) << "ten seconds are no pause";
  EXPECT_EQ(log.runs()[0].count, 2u);
  EXPECT_EQ(log.runs()[1].last, TimePoint(seconds(21)));
}

TEST(ReclaimLogTest, RecoveryIsTheLeastAndTheMeanByCountOfWhatWasMeasured) {
  ReclaimLog log;
  log.Add(Entry("compaction", 1));
  log.Add(Entry("compaction", 2, {.mean = 0.9, .min = 0.5, .count = 1}));
  log.Add(Entry("compaction", 3, {.mean = 0.6, .min = 0.55, .count = 2}));
  log.Add(Entry("compaction", 4));
  ASSERT_THAT(log.runs(), SizeIs(1));
  EXPECT_NEAR(log.runs().front().recovery.mean, 0.7, 1e-12);
  EXPECT_EQ(log.runs().front().recovery.min, 0.5);
  EXPECT_EQ(log.runs().front().recovery.count, 3u);
}

TEST(ReclaimLogTest, TheOldestRunGoesWhenThereAreTooMany) {
  ReclaimLog log;
  for (uint32_t i = 0; i < limits::kReclaimsKept + 3; ++i) {
    ReclaimEntry entry = Entry("refusal", i);
    entry.policy = std::to_string(i);
    log.Add(entry);
  }
  ASSERT_THAT(log.runs(), SizeIs(limits::kReclaimsKept));
  EXPECT_EQ(log.runs().back().policy, "3");
}

TEST(ReclaimLogTest, AbsurdBytesDoNotWrap) {
  ReclaimLog log;
  for (int64_t at = 0; at < 20'000; ++at) {
    ReclaimEntry entry = Entry("refusal", at);
    entry.bytes = Bytes(limits::kTenantBytes);
    log.Add(entry);
  }
  EXPECT_GT(log.runs().front().bytes, Bytes(std::numeric_limits<int64_t>::max() / 4));
}

}  // namespace
}  // namespace kvpool
