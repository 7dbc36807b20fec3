// Demand goes up at once and comes down by halves, however often it is told.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/smoothed_demand.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace kvpool {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr TimePoint kStart{seconds(1000)};

TEST(SmoothedDemandTest, NothingIsWantedAtFirst) { EXPECT_EQ(SmoothedDemand().At(kStart), 0); }

TEST(SmoothedDemandTest, GoesUpAtOnce) {
  SmoothedDemand demand;
  demand.Set(7, kStart);
  EXPECT_EQ(demand.At(kStart), 7);
  demand.Set(90, kStart + milliseconds(1));
  EXPECT_EQ(demand.At(kStart + milliseconds(1)), 90);
  EXPECT_EQ(demand.At(kStart + seconds(1000)), 90);
}

TEST(SmoothedDemandTest, ComesDownByHalves) {
  SmoothedDemand demand;
  demand.Set(100, kStart);
  demand.Set(20, kStart);
  EXPECT_EQ(demand.At(kStart), 100);
  EXPECT_EQ(demand.At(kStart + kDemandHalfLife), 60);
  EXPECT_EQ(demand.At(kStart + 2 * kDemandHalfLife), 40);
  EXPECT_EQ(demand.At(kStart + 8 * kDemandHalfLife), 20);
}

TEST(SmoothedDemandTest, ARiseWhileComingDownCountsFromWhereItIs) {
  SmoothedDemand demand;
  demand.Set(100, kStart);
  demand.Set(0, kStart);
  const TimePoint later = kStart + kDemandHalfLife;
  demand.Set(30, later);
  EXPECT_EQ(demand.At(later), 50);
  demand.Set(60, later);
  EXPECT_EQ(demand.At(later + kDemandHalfLife), 60);
}

// Told every 250 ms or once: the same; always between what is wanted and the highest so far.
TEST(SmoothedDemandTest, HowOftenItIsToldDoesNotMatter) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    SmoothedDemand seldom, often;
    TimePoint now = kStart;
    int64_t highest = 0;
    for (int change = 0; change < 20; ++change) {
      const int64_t wanted = random() % 1000;
      highest = std::max(highest, wanted);
      seldom.Set(wanted, now);
      for (unsigned i = random() % 40; i > 0; --i, now += milliseconds(250)) {
        often.Set(wanted, now);
        ASSERT_GE(often.At(now), wanted);
        ASSERT_LE(often.At(now), highest);
      }
      often.Set(wanted, now);
      ASSERT_LE(std::abs(seldom.At(now) - often.At(now)), 1);  // rounding
    }
  }
}

}  // namespace
}  // namespace kvpool
