// When a tenant's grace begins, passes and ends, and what that allows.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/overage.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace kvpool {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr TimePoint kStart{seconds(100)};
constexpr Grace kGrace{.cold = seconds(2), .running = seconds(15)};

TEST(Overage, TheGraceRunsFromTheMomentThatTheTenantIsAboveItsLease) {
  Overage overage;
  overage.See(4, 4, kStart);
  EXPECT_EQ(overage.Phase(kGrace, kStart + seconds(60)), OveragePhase::kWithin);
  EXPECT_EQ(overage.Lasted(kStart + seconds(60)), Duration::zero());
  overage.See(4, 3, kStart);
  EXPECT_EQ(overage.Phase(kGrace, kStart), OveragePhase::kGrace);
  EXPECT_EQ(overage.Phase(kGrace, kStart + seconds(2) - Duration(1)), OveragePhase::kGrace);
  EXPECT_EQ(overage.Phase(kGrace, kStart + seconds(2)), OveragePhase::kColdOver);
  EXPECT_EQ(overage.Phase(kGrace, kStart + seconds(15) - Duration(1)), OveragePhase::kColdOver);
  EXPECT_EQ(overage.Phase(kGrace, kStart + seconds(15)), OveragePhase::kPastDeadline);
  EXPECT_EQ(overage.Lasted(kStart + seconds(15)), seconds(15));
}

TEST(Overage, ALowerLeaseMeanwhileStartsNoNewGraceAndFittingEndsIt) {
  Overage overage;
  overage.See(4, 3, kStart);
  overage.See(4, 1, kStart + seconds(14));
  EXPECT_EQ(overage.Phase(kGrace, kStart + seconds(15)), OveragePhase::kPastDeadline);
  overage.See(1, 1, kStart + seconds(16));
  EXPECT_EQ(overage.Phase(kGrace, kStart + seconds(16)), OveragePhase::kWithin);
  overage.See(1, 0, kStart + seconds(17));
  EXPECT_EQ(overage.Phase(kGrace, kStart + seconds(18)), OveragePhase::kGrace);
}

TEST(Overage, ColdBytesNeverWaitLongerThanRunningOnes) {
  Overage overage;
  overage.See(2, 1, kStart);
  const Grace grace{.cold = seconds(30), .running = seconds(1)};
  EXPECT_EQ(overage.Phase(grace, kStart + milliseconds(999)), OveragePhase::kGrace);
  EXPECT_EQ(overage.Phase(grace, kStart + seconds(1)), OveragePhase::kPastDeadline);
  EXPECT_EQ(overage.Phase({.cold = {}, .running = {}}, kStart), OveragePhase::kPastDeadline);
  EXPECT_EQ(overage.Phase(kEndlessGrace, kStart + std::chrono::hours(100'000)),
            OveragePhase::kGrace);
}

TEST(Overage, OnlyAnOperatorsWordAllowsPreemption) {
  for (const OveragePhase phase : {OveragePhase::kWithin, OveragePhase::kGrace,
                                   OveragePhase::kColdOver, OveragePhase::kPastDeadline}) {
    EXPECT_EQ(AllowedPreemption(phase, OverDeadline::kHold), Preemption::kNone);
  }
  const OverDeadline preempt = OverDeadline::kPreempt;
  EXPECT_EQ(AllowedPreemption(OveragePhase::kWithin, preempt), Preemption::kNone);
  EXPECT_EQ(AllowedPreemption(OveragePhase::kGrace, preempt), Preemption::kNone);
  EXPECT_EQ(AllowedPreemption(OveragePhase::kColdOver, preempt), Preemption::kIdle);
  EXPECT_EQ(AllowedPreemption(OveragePhase::kPastDeadline, preempt), Preemption::kAll);
}

// Against the definition: the last moment at which it was within its lease, found anew each time.
TEST(Overage, FollowsRandomHistories) {
  std::mt19937 random(11);
  for (int round = 0; round < 300; ++round) {
    Overage overage;
    TimePoint now = kStart, over_since = kStart;
    bool over = false;
    for (int step = 0; step < 50; ++step) {
      now += milliseconds(random() % 4000);
      const uint32_t held = random() % 4, lease = random() % 4;
      overage.See(held, lease, now);
      if (held > lease && !over) over_since = now;
      over = held > lease;
      const TimePoint later = now + milliseconds(random() % 20'000);
      const Duration lasted = over ? later - over_since : Duration::zero();
      ASSERT_EQ(overage.Lasted(later), lasted);
      const OveragePhase phase = overage.Phase(kGrace, later);
      ASSERT_EQ(phase == OveragePhase::kWithin, !over);
      ASSERT_EQ(phase == OveragePhase::kPastDeadline, over && lasted >= kGrace.running);
      ASSERT_EQ(phase >= OveragePhase::kColdOver, over && lasted >= kGrace.cold);
    }
  }
}

}  // namespace
}  // namespace kvpool
