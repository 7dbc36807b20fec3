// Shares against the rule itself, one slab after the other, and where numbers are large.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/max_min.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace kvpool {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(MaxMinTest, NobodyNothingAndEnough) {
  EXPECT_THAT(ShareMaxMin(5, {}), IsEmpty());
  EXPECT_THAT(ShareMaxMin(0, {{3}, {4}}), ElementsAre(0, 0));
  EXPECT_THAT(ShareMaxMin(9, {{3}, {4, 7}}), ElementsAre(3, 4));
}

TEST(MaxMinTest, SmallWantsFirstThenByWeightAndEarlierOnesWinTies) {
  EXPECT_THAT(ShareMaxMin(11, {{8}, {8}, {2}}), ElementsAre(5, 4, 2));
  EXPECT_THAT(ShareMaxMin(40, {{40, 3}, {40, 1}, {8, 4}}), ElementsAre(24, 8, 8));
  EXPECT_THAT(ShareMaxMin(3, {{5, 1}, {5, 100}, {5, 1}}), ElementsAre(1, 1, 1));
}

TEST(MaxMinTest, OneByOneToThePoorest) {
  for (unsigned seed = 0; seed < 5000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    std::vector<Claim> claims(random() % 12);
    const int64_t heaviest = seed % 3 == 0 ? 1 : seed % 3 == 1 ? 5 : 1000;
    int64_t wanted = 0;
    for (Claim& claim : claims) {
      claim = {.want = static_cast<int64_t>(random() % 50),
               .weight = 1 + static_cast<int64_t>(random()) % heaviest};
      wanted += claim.want;
    }
    const int64_t amount = static_cast<int64_t>(random()) % (wanted + 10);
    std::vector<int64_t> expected(claims.size());
    for (int64_t given = 0; given < std::min(amount, wanted); ++given) {
      size_t poorest = claims.size();
      for (size_t i = 0; i < claims.size(); ++i) {
        if (expected[i] == claims[i].want) continue;
        if (poorest == claims.size() ||
            expected[i] * claims[poorest].weight < expected[poorest] * claims[i].weight) {
          poorest = i;
        }
      }
      ++expected[poorest];
    }
    ASSERT_EQ(ShareMaxMin(amount, claims), expected);
  }
}

TEST(MaxMinTest, ALargeClusterDoesNotOverflow) {
  constexpr int64_t kSlabs = int64_t{1} << 30;  // 1,024 agents of 1 << 20
  const std::vector<int64_t> shares =
      ShareMaxMin(kSlabs, std::vector<Claim>(512, {.want = kSlabs, .weight = 1'000'000}));
  for (const int64_t share : shares) EXPECT_EQ(share, kSlabs / 512);
}

}  // namespace
}  // namespace kvpool
