// The policies that need no statistics: what they ask for, when they are due, what they leave.
//
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "kernels/policy/policy.h"
#include "tests/kernels/policy/still_session.h"
#include "tests/kernels/test_session.h"

namespace kvpool {
namespace {

TEST(Policy, FullNeverCompacts) {
  const auto policy = Make("full", {});
  EXPECT_EQ(policy->NextCompactAt({}), std::nullopt);
  EXPECT_FALSE(CompactAt(*policy, 1 << 20).has_value());
  EXPECT_EQ(policy->PeakTokens({.max_tokens = 5000, .chunk = 256}), 5000u);
  const PolicyNeeds needs = policy->Needs();
  EXPECT_EQ(needs.queries, QueryNeed::kSampled);
  EXPECT_EQ(needs.sample_every, 16u);
  EXPECT_EQ(needs.prompt_rows, 0u);
  EXPECT_EQ(needs.planes, PlaneSet{});
  EXPECT_EQ(Make("full", {{"recovery_every", 4}})->Needs().sample_every, 4u);
  EXPECT_EQ(Make("full", {{"recovery_every", 0}})->Needs().queries, QueryNeed::kNone);
}

TEST(Policy, StreamingKeepsSinksAndTheNewest) {
  const auto policy = Make("streaming", {{"sinks", 4}, {"recent", 60}, {"slack", 16}});
  EXPECT_EQ(policy->NextCompactAt({}), 80u);
  EXPECT_EQ(policy->PeakTokens({.max_tokens = 5000, .chunk = 256}), 80u + 256);
  EXPECT_EQ(policy->PeakTokens({.max_tokens = 100, .chunk = 256}), 100u);
  EXPECT_FALSE(CompactAt(*policy, 64).has_value());
  EXPECT_TRUE(CompactAt(*policy, 65).has_value());  // under pressure, before it is due
  EXPECT_EQ(policy->Needs().queries, QueryNeed::kSampled);

  Planes planes(kOneHead, {});
  planes.Append(0, 80);
  for (int round = 0; round < 3; ++round) {
    const std::vector<KeepRows> keep = SelectNow(*policy, planes);
    ASSERT_EQ(keep[0].size(), 64u);
    planes.Gather(0, keep[0]);
    const uint32_t next = 80 + round * 16;
    std::vector<uint32_t> expected = {0, 1, 2, 3};
    for (uint32_t p = next - 60; p < next; ++p) expected.push_back(p);
    EXPECT_EQ(planes.positions(0), expected);
    planes.Append(next, 16);
  }
}

// The last rows that stay native are by default as many as KIVI's residual (arXiv 2402.02750).
TEST(Policy, EveryPolicyHasAFormat) {
  for (const PolicySchema& schema : PolicySchemas()) {
    EXPECT_EQ(SealRuleOf(*MakePolicySpec(schema.name, {})), SealRule()) << schema.name;
    for (SealedFormat format : kSealedFormats) {
      const auto spec = MakePolicySpec(schema.name, {{"format", NameOf(format)}});
      ASSERT_TRUE(spec.ok()) << schema.name << ": " << spec.status();
      EXPECT_EQ(SealRuleOf(*spec), (SealRule{.format = format, .open_rows = 128}));
    }
    const absl::Status bad = MakePolicySpec(schema.name, {{"format", "int2"}}).status();
    EXPECT_NE(bad.message().find("native or fp8 or int8 or int4"), std::string::npos) << bad;
  }
}

}  // namespace
}  // namespace kvpool
