// Recovery over heads, sessions and compactions.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/recovery.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace kvpool {
namespace {

using ::testing::ElementsAre;

TEST(RecoveryTest, StatsOverHeadsSkipWhatWasNotMeasured) {
  const RecoveryStats stats = StatsOf(std::vector<float>{0.9f, -1, 0.5f, -1});
  EXPECT_FLOAT_EQ(stats.mean, 0.7f);
  EXPECT_FLOAT_EQ(stats.min, 0.5f);
  EXPECT_EQ(stats.count, 2u);
  EXPECT_FALSE(StatsOf(std::vector<float>{-1, -1}).measured());
  EXPECT_FALSE(StatsOf(std::vector<float>{}).measured());
  EXPECT_TRUE(StatsOf(std::vector<float>{0}).measured()) << "everything lost is a measurement";
}

TEST(RecoveryTest, StatsOverSessionsAreTheMeanOfMeansAndTheLeastOfMinima) {
  const RecoveryStats stats = StatsOf(std::vector<RecoveryStats>{
      {.mean = 0.9f, .min = 0.2f, .count = 8}, {}, {.mean = 0.5f, .min = 0.4f, .count = 1}});
  EXPECT_FLOAT_EQ(stats.mean, 0.7f);
  EXPECT_FLOAT_EQ(stats.min, 0.2f);
  EXPECT_EQ(stats.count, 2u) << "sessions, not heads";
}

TEST(RecoveryTest, AddedPartsAreTheStatsOfTheWhole) {
  constexpr uint32_t kSeed = 6;
  std::mt19937 random(kSeed);
  std::uniform_real_distribution<float> share(0, 1);
  for (int round = 0; round < 100; ++round) {
    std::vector<float> all;
    RecoveryStats sum;
    for (uint32_t part = random() % 5; part > 0; --part) {
      std::vector<float> heads(random() % 6);
      for (float& head : heads) head = random() % 3 == 0 ? -1 : share(random);
      all.insert(all.end(), heads.begin(), heads.end());
      sum.Add(StatsOf(heads));
    }
    const RecoveryStats whole = StatsOf(all);
    EXPECT_EQ(sum.count, whole.count);
    EXPECT_EQ(sum.min, whole.min);
    EXPECT_NEAR(sum.mean, whole.mean, 1e-6);
  }
}

TEST(RecoveryTest, TwoCompactionsMultiplyHeadByHead) {
  std::vector<float> product;
  MultiplyRecovery(std::vector<float>{0.9f, 0.5f, -1, 0.8f}, &product);
  EXPECT_THAT(product, ElementsAre(0.9f, 0.5f, -1.0f, 0.8f));
  MultiplyRecovery(std::vector<float>{0.5f, 1.0f, 0.25f, -1}, &product);
  EXPECT_THAT(product, ElementsAre(0.9f * 0.5f, 0.5f, 0.25f, 0.8f));
  const RecoveryStats stats = StatsOf(product);
  EXPECT_FLOAT_EQ(stats.mean, (0.45f + 0.5f + 0.25f + 0.8f) / 4);
  EXPECT_FLOAT_EQ(stats.min, 0.25f);
}

TEST(RecoveryTest, ALongSessionIsTheProductOfItsCompactions) {
  constexpr uint32_t kSeed = 5;
  std::mt19937 random(kSeed);
  std::uniform_real_distribution<float> share(0.7f, 1.0f);
  std::vector<double> expected(8, 1.0);
  std::vector<float> product;
  for (int compaction = 0; compaction < 50; ++compaction) {
    std::vector<float> heads(expected.size());
    for (size_t head = 0; head < heads.size(); ++head) {
      heads[head] = share(random);
      expected[head] *= heads[head];
    }
    MultiplyRecovery(heads, &product);
  }
  for (size_t head = 0; head < expected.size(); ++head) {
    EXPECT_NEAR(product[head] / expected[head], 1.0, 1e-4) << "seed " << kSeed;
  }
}

}  // namespace
}  // namespace kvpool
