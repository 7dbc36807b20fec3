// FastGen's rules and schedule, given the classes of the heads. How classes come about:
// profile_test.cc; both together: tests/client/fastgen_test.cc.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/fastgen.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "kernels/token_flags.h"
#include "tests/kernels/test_session.h"

namespace kvpool {
namespace {

constexpr uint32_t kPrompt = 200;

const Geometry& FiveHeads() {
  static const Geometry geometry = TestGeometry(1, 5, 5, 8, 8, Dtype::kF32);
  return geometry;
}

FastGenPolicy Make(const PolicyValues& values = {}) {
  return FastGenPolicy(*MakePolicySpec("fastgen", values));
}

PolicyState State(std::vector<uint8_t> classes, uint32_t step) {
  return {.geometry = &FiveHeads(),
          .plan = {.prompt_tokens = kPrompt, .max_tokens = 1000, .chunk = 64},
          .step = step,
          .length = step,
          .head_classes = std::move(classes)};
}

// A session of `length` rows in five heads that hold the same random statistics and flags.
Planes RandomPlanes(uint32_t length, uint32_t seed) {
  std::mt19937 random(seed);
  Planes planes(FiveHeads(), Make().Needs().planes);
  std::vector<uint8_t> flags(length);
  std::vector<float> sums(length);
  for (uint32_t i = 0; i < length; ++i) {
    const uint32_t dice = random() % 20;
    flags[i] = dice == 0 ? kSpecialToken : dice < 3 ? kPunctuationToken : 0;
    sums[i] = static_cast<float>(random() % 100);  // with ties
  }
  planes.Append(0, length);
  planes.SetNewestFlags(flags);
  for (uint32_t plane = 0; plane < 5; ++plane) planes.SetSums(plane, sums);
  return planes;
}

TEST(FastGen, IsDueAtThePromptsEndAndThenEverySlack) {
  const FastGenPolicy policy = Make({{"slack", int64_t{32}}});
  EXPECT_EQ(policy.NextCompactAt(State({}, 0)), kPrompt);
  EXPECT_EQ(policy.NextCompactAt(State({}, 100)), kPrompt);
  EXPECT_EQ(policy.NextCompactAt(State({}, kPrompt)), std::nullopt) << "no profile";
  EXPECT_EQ(policy.NextCompactAt(State({3, 4, 4, 4, 4}, 300)), 332u);
  EXPECT_EQ(policy.NextCompactAt(State({4, 4, 4, 4, 4}, 300)), std::nullopt);
}

TEST(FastGen, DropsNothingWithoutClassesOrWhenAllAreFull) {
  EXPECT_FALSE(Make().Compact(State({}, 500)).has_value());
  EXPECT_FALSE(Make().Compact(State({4, 4, 4, 4, 4}, 500)).has_value());
}

TEST(FastGen, WantsEveryQueryAndTheRuleOfTheSpec) {
  const PolicyNeeds needs =
      Make(
          {{"recovery", 0.98}, {"group", std::string("mean")}, {"profile", std::string("sampled")}})
          .Needs();
  EXPECT_EQ(needs.queries, QueryNeed::kExact);
  ASSERT_TRUE(needs.profile.has_value());
  EXPECT_EQ(needs.profile->recovery, 0.98);
  EXPECT_EQ(needs.profile->group, ProfileRule::Group::kMean);
  EXPECT_EQ(needs.profile->sample_every, kSampledProfile);
  EXPECT_EQ(Make().Needs().profile->sample_every, 1u);
}

// What each class keeps, written down plainly; and P7: a dearer class keeps all that a cheaper one
// does.
TEST(FastGen, ClassesKeepWhatTheyNameAndMoreThanCheaperOnes) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    const uint32_t length = 50 + seed * 17;
    const Planes planes = RandomPlanes(length, seed);
    const FastGenPolicy policy = Make({{"local", 0.2}, {"frequent", 0.1}});
    const std::optional<Selection> selection = policy.Compact(State({0, 1, 2, 3, 4}, length));
    ASSERT_TRUE(selection.has_value());
    const std::vector<KeepRows> keep =
        Select(*selection, FiveHeads(), planes, PlaneScores(selection->score, planes));
    std::vector<float> sums(length);
    for (uint32_t row = 0; row < length; ++row) sums[row] = planes.Sum(0, row);
    const std::vector<uint8_t> frequent = MostFrequent(sums, length / 10);
    for (uint32_t c = 0; c < 5; ++c) {
      KeepRows expected;
      for (uint32_t row = 0; row < length; ++row) {
        const uint8_t flag = planes.flags(c)[row];
        if (c == 4 || flag == kSpecialToken || (c >= 1 && flag == kPunctuationToken) ||
            (c >= 2 && frequent[row] != 0) || (c >= 3 && row >= length - length / 5)) {
          expected.push_back(row);
        }
      }
      EXPECT_EQ(keep[c], expected) << "class " << c << " seed " << seed;
      if (c == 0) continue;
      EXPECT_TRUE(
          std::includes(keep[c].begin(), keep[c].end(), keep[c - 1].begin(), keep[c - 1].end()))
          << "class " << c << " seed " << seed;
    }
    EXPECT_LE(selection->expected, length);
  }
}

}  // namespace
}  // namespace kvpool
