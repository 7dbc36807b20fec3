// What every policy of the registry must do, whatever its paper, with its defaults, with every
// other choice that it offers, and as its paper has it, compacted at every step: a policy that is
// added to the table of schemas is tested here without an edit.
//
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <set>

#include "tests/kernels/policy/policy_session.h"

namespace kvpool {
namespace {

const Geometry kGeometry = TestGeometry(2, 4, 2, 16, 16, Dtype::kF32);
constexpr SessionPlan kPlan{.prompt_tokens = 130, .max_tokens = 420, .chunk = 48};

// A policy and one choice of it, or none: its defaults.
struct Variant {
  PolicySchema schema;
  PolicyValues chosen;
};

// Parameters small enough for a short session: an eighth of each default, as far as it is allowed.
PolicySpec SmallSpec(const Variant& variant) {
  const PolicySchema& schema = variant.schema;
  PolicyValues values = variant.chosen;
  for (const PolicyParameter& parameter : schema.parameters) {
    const auto* range = std::get_if<IntegerRange>(&parameter.allowed);
    if (range == nullptr || range->default_value < 64) continue;
    if (values.contains(parameter.name)) continue;
    values[parameter.name] = std::max(range->min, range->default_value / 8);
  }
  return *MakePolicySpec(schema.name, values);
}

class PolicyConformance : public testing::TestWithParam<Variant> {
 protected:
  const std::unique_ptr<const Policy> policy_ = MakePolicy(SmallSpec(GetParam()));
};

// Positions of every head after each append.
using History = std::vector<std::vector<std::vector<uint32_t>>>;

History Live(const Policy& policy, uint32_t seed) {
  PolicySession session(kGeometry, policy, kPlan, seed);
  History history;
  while (session.committed() < kPlan.max_tokens) {
    const uint32_t prompt =
        kPlan.prompt_tokens - std::min(kPlan.prompt_tokens, session.committed());
    session.Feed(prompt > 0 ? std::min(prompt, kPlan.chunk) : 1);
    history.emplace_back();
    for (uint32_t p = 0; p < kGeometry.planes(); ++p) {
      history.back().push_back(session.planes().positions(p));
    }
  }
  return history;
}

void ExpectLivesWithinItsPeakAndLosesNoRow(const Policy& policy, const SealRule& seal) {
  const uint32_t peak = policy.PeakTokens(kPlan);
  EXPECT_LE(peak, kPlan.max_tokens);
  PolicySession session(kGeometry, policy, kPlan, 1);
  session.SealAs(seal);
  uint32_t seen = 0;
  while (session.committed() < kPlan.max_tokens) {
    const uint32_t prompt =
        kPlan.prompt_tokens - std::min(kPlan.prompt_tokens, session.committed());
    session.Feed(prompt > 0 ? std::min(prompt, kPlan.chunk) : 1);
    ASSERT_LE(session.MeanLength(), peak) << "at step " << session.committed();
    ASSERT_TRUE(session.RowsAreRight()) << "at step " << session.committed();
    if (session.compactions() == seen) continue;
    seen = session.compactions();
    for (uint32_t p = 0; p < kGeometry.planes(); ++p) {
      std::vector<uint32_t> before = session.before()[p];
      std::sort(before.begin(), before.end());
      const std::vector<uint32_t>& now = session.planes().positions(p);
      const std::set<uint32_t> kept(now.begin(), now.end());
      ASSERT_EQ(kept.size(), now.size()) << "a row was doubled";
      const HeadRule& rule = session.selection().Rule(p);
      for (size_t i = 0; i < before.size(); ++i) {
        const bool recent = i + rule.recent >= before.size();
        if (recent || before[i] < rule.first) {
          ASSERT_TRUE(kept.contains(before[i])) << "position " << before[i];
        }
      }
      for (uint32_t position : now) {
        ASSERT_TRUE(std::binary_search(before.begin(), before.end(), position) ||
                    position >= before.back());
      }
    }
  }
  const PolicyState opened{.geometry = &kGeometry, .plan = kPlan};
  EXPECT_EQ(seen > 0, policy.NextCompactAt(opened).has_value());
}

TEST_P(PolicyConformance, LivesWithinItsPeakAndLosesNoRow) {
  ExpectLivesWithinItsPeakAndLosesNoRow(*policy_, {});
}

TEST_P(PolicyConformance, LivesWithinItsPeakAndLosesNoRowWhenSealed) {
  ExpectLivesWithinItsPeakAndLosesNoRow(*policy_, {.format = SealedFormat::kInt4, .open_rows = 16});
}

// Hand-overs that drop nothing, to seal or to leave a slab, change the order of rows and where the
// fresh ones begin, and nothing that a policy sees. The agent makes none where the policy is due.
TEST_P(PolicyConformance, MovesChangeNeitherWhenItCompactsNorWhatItDrops) {
  PolicySession still(kGeometry, *policy_, kPlan, 6), moved(kGeometry, *policy_, kPlan, 6);
  for (uint32_t i = 0; still.committed() < kPlan.max_tokens; ++i) {
    const uint32_t prompt = kPlan.prompt_tokens - std::min(kPlan.prompt_tokens, still.committed());
    const uint32_t tokens = prompt > 0 ? std::min(prompt, 23u) : 1;
    still.Feed(tokens);
    still.Drain();
    moved.Feed(tokens);
    moved.Drain();
    ASSERT_EQ(moved.compactions(), still.compactions()) << "at step " << still.committed();
    for (uint32_t p = 0; p < kGeometry.planes(); ++p) {
      std::vector<uint32_t> a = still.planes().positions(p), b = moved.planes().positions(p);
      std::sort(a.begin(), a.end());
      std::sort(b.begin(), b.end());
      ASSERT_EQ(a, b) << "at step " << still.committed();
    }
    const uint32_t next = moved.committed() < kPlan.prompt_tokens
                              ? std::min(kPlan.prompt_tokens - moved.committed(), 23u)
                              : 1;
    const bool due = moved.compact_at().has_value() && moved.Longest() + next > *moved.compact_at();
    if (!due && (prompt > 0 || i % 5 == 0)) moved.Move();
  }
}

// Bytes follow keys: what a session holds after a compaction is the share of its keys that stayed,
// within two pages, however unevenly its heads lost them.
TEST_P(PolicyConformance, FreesTheBytesOfTheKeysItDrops) {
  const SessionPlan plan{.prompt_tokens = 500, .max_tokens = 900, .chunk = 64};
  PolicySession session(TestGeometry(3, 4, 2, 16, 16, Dtype::kBf16), *policy_, plan, 4);
  const uint32_t rows_of_page = session.planes().planes() * kPageTokens;
  uint32_t seen = 0;
  while (session.committed() < plan.max_tokens) {
    session.Feed(session.committed() < plan.prompt_tokens ? std::min(64u, 500 - session.committed())
                                                          : 1);
    if (session.compactions() == seen) continue;
    seen = session.compactions();
    const std::vector<uint32_t>& lengths = session.compacted().lengths;
    const uint32_t rows = std::accumulate(lengths.begin(), lengths.end(), 0u);
    ASSERT_LE(session.compacted().pages.size(), rows / rows_of_page + 2) << session.committed();
  }
}

TEST_P(PolicyConformance, ChoosesTheSameKeysInEveryRun) {
  EXPECT_EQ(Live(*policy_, 5), Live(*policy_, 5));
}

// Pressure compacts at any time: whatever is selected then, is a choice among the rows there.
TEST_P(PolicyConformance, MayBeCompactedAtAnyTime) {
  PolicySession session(kGeometry, *policy_, kPlan, 2);
  for (uint32_t i = 0; session.committed() < kPlan.max_tokens; ++i) {
    session.Feed(std::min(1 + i % 7, kPlan.max_tokens - session.committed()));
    if (i % 3 == 0) session.HandOver();
    ASSERT_TRUE(session.RowsAreRight());
    ASSERT_LE(session.MeanLength(), policy_->PeakTokens(kPlan));
    session.HandOver();  // with nothing fed since
    ASSERT_TRUE(session.RowsAreRight());
  }
}

TEST_P(PolicyConformance, AnyGeometryWillDo) {
  for (const Geometry& g :
       {TestGeometry(1, 1, 1, 8, 0, Dtype::kBf16), TestGeometry(5, 6, 3, 12, 20, Dtype::kBf16)}) {
    PolicySession session(g, *policy_, {.max_tokens = 200, .chunk = 8}, 3);
    while (session.committed() < 200) session.Feed(8);
    EXPECT_TRUE(session.RowsAreRight());
  }
}

// Every bound of every parameter makes a policy whose numbers hang together.
TEST_P(PolicyConformance, TakesEveryValueThatItsSchemaAllows) {
  for (const PolicyParameter& parameter : GetParam().schema.parameters) {
    std::vector<PolicyValue> values;
    if (const auto* range = std::get_if<IntegerRange>(&parameter.allowed)) {
      values = {range->min, range->max};
    } else if (const auto* range = std::get_if<NumberRange>(&parameter.allowed)) {
      values = {range->min, range->max};
    } else {
      for (const std::string& name : std::get<Choices>(parameter.allowed).names) {
        values.emplace_back(name);
      }
    }
    for (const PolicyValue& value : values) {
      const auto spec = MakePolicySpec(GetParam().schema.name, {{parameter.name, value}});
      if (!spec.ok()) continue;  // a rule between parameters
      const auto policy = MakePolicy(*spec);
      ASSERT_NE(policy, nullptr);
      uint32_t before = 0;
      for (uint32_t tokens = 1; tokens < 1 << 20; tokens = tokens * 2 + 1) {
        const uint32_t peak = policy->PeakTokens({.max_tokens = tokens, .chunk = 64});
        EXPECT_LE(peak, tokens) << ToString(*spec);
        EXPECT_GE(peak, before) << ToString(*spec);
        before = peak;
      }
      const PolicyState opened{.geometry = &kGeometry, .plan = kPlan};
      EXPECT_NE(policy->NextCompactAt(opened), 0u) << ToString(*spec);
      EXPECT_FALSE(policy->Compact(opened).has_value()) << "an empty session has nothing to drop";
      const PolicyNeeds needs = policy->Needs();
      EXPECT_GE(needs.sample_every, 1u);
      EXPECT_LE(needs.planes.low_count_ring, 8192u) << ToString(*spec);
    }
  }
}

// Of every policy, its defaults, each choice beside them, and a slack of 1 where that is allowed.
// Formats: what is sealed is tested in each of them.
std::vector<Variant> Variants() {
  std::vector<Variant> variants;
  for (const PolicySchema& schema : PolicySchemas()) {
    variants.push_back({.schema = schema, .chosen = {}});
    for (const PolicyParameter& parameter : schema.parameters) {
      const auto* range = std::get_if<IntegerRange>(&parameter.allowed);
      if (parameter.name == "slack" && range->min == 1) {
        variants.push_back({.schema = schema, .chosen = {{"slack", 1}}});
      }
      const auto* choices = std::get_if<Choices>(&parameter.allowed);
      if (choices == nullptr || parameter.name == "format") continue;
      for (size_t i = 1; i < choices->names.size(); ++i) {
        variants.push_back({.schema = schema, .chosen = {{parameter.name, choices->names[i]}}});
      }
    }
  }
  return variants;
}

std::string NameOf(const testing::TestParamInfo<Variant>& info) {
  std::string name = info.param.schema.name;
  for (const auto& [parameter, value] : info.param.chosen) {
    name += "_" + parameter + "_" + ToString(value);
  }
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Registry, PolicyConformance, testing::ValuesIn(Variants()), NameOf);

TEST(PolicyRegistry, EverySchemaHasAClassAndNoOtherNameDoes) {
  std::set<std::string> names;
  for (const PolicySchema& schema : PolicySchemas()) {
    EXPECT_NE(MakePolicy(*MakePolicySpec(schema.name, {})), nullptr) << schema.name;
    EXPECT_TRUE(names.insert(schema.name).second) << schema.name << " is there twice";
    EXPECT_FALSE(schema.summary.empty());
  }
  EXPECT_EQ(MakePolicy({.name = "nobody", .parameters = {}}), nullptr);
}

}  // namespace
}  // namespace kvpool
