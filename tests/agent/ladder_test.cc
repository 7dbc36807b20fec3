// What sessions of a ladder keep, push and are charged, for every policy that can stand on one.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/ladder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace kvpool {
namespace {

Layout SmallLayout() {
  return *Layout::Make({.layers = 2,
                        .query_heads = 4,
                        .kv_heads = 4,
                        .key_dim = 32,
                        .value_dim = 32,
                        .dtype = Dtype::kBf16,
                        .kv_of_layer = {0, 1}},
                       256_KiB);
}

// Those that act as a session grows, with their defaults.
std::vector<PolicySpec> GrowthPolicies() {
  std::vector<PolicySpec> specs;
  for (const PolicySchema& schema : PolicySchemas()) {
    if (schema.acts == Acts::kGrowth) specs.push_back(*MakePolicySpec(schema.name, {}));
  }
  return specs;
}

bool Covers(const PolicyNeeds& all, const PolicyNeeds& one) {
  const auto counts = one.planes.low_count_ring > 0 || one.planes.last_hit;
  const bool planes = all.planes.low_count_ring >= one.planes.low_count_ring &&
                      all.planes.last_hit >= one.planes.last_hit &&
                      all.planes.sum >= one.planes.sum &&
                      all.planes.square_sum >= one.planes.square_sum &&
                      all.planes.window_queries >= one.planes.window_queries &&
                      (!counts || all.planes.threshold == one.planes.threshold);
  if (one.queries == QueryNeed::kNone) return planes;
  if (all.queries == QueryNeed::kExact) return planes && all.prompt_rows >= one.prompt_rows;
  return planes && all.queries == one.queries && one.sample_every % all.sample_every == 0;
}

TEST(LadderTest, SessionsKeepAndPushWhatEachOfTheirPoliciesNeeds) {
  const std::vector<PolicySpec> specs = GrowthPolicies();
  ASSERT_GE(specs.size(), 10u);
  for (const PolicySpec& first : specs) {
    for (const PolicySpec& second : specs) {
      if (first == second) continue;
      const PolicyLadder said{.min_recovery = 0.5, .rungs = {first, second}};
      ASSERT_TRUE(CheckLadder(said).ok()) << CheckLadder(said);
      const auto ladder = MakeLadder(said);
      for (const Rung& rung : ladder->rungs) {
        EXPECT_TRUE(Covers(ladder->needs, rung.policy->Needs()))
            << first.name << " and " << second.name;
      }
    }
  }
}

TEST(LadderTest, NothingIsPushedWhereNobodyNeedsIt) {
  const auto ladder =
      MakeLadder({.rungs = {*MakePolicySpec("full", {{"recovery_every", 0}}),
                            *MakePolicySpec("full", {{"recovery_every", 0}, {"format", "int4"}})}});
  EXPECT_EQ(ladder->needs.queries, QueryNeed::kNone);
  EXPECT_EQ(MakeLadder({.rungs = DefaultRungs()})->needs.queries, QueryNeed::kSampled)
      << "the built-in ladder makes no worker wait";
}

TEST(LadderTest, OnTheWayUpNoSessionIsChargedMoreAndNeverMoreThanItsWhole) {
  const Layout layout = SmallLayout();
  const std::vector<PolicySpec> specs = GrowthPolicies();
  std::mt19937 random(7);
  for (int i = 0; i < 300; ++i) {
    PolicyLadder said{.min_recovery = 0.9};
    const char* formats[] = {"native", "int8", "int4"};
    size_t format = 0;
    while (said.rungs.size() < 4) {
      const PolicySpec& base = specs[random() % specs.size()];
      format = std::min<size_t>(2, format + random() % 2);
      PolicyValues values = base.parameters;
      values["format"] = std::string(formats[format]);
      PolicyLadder longer = said;
      longer.rungs.push_back(*MakePolicySpec(base.name, values));
      if (CheckLadder(longer).ok()) said = longer;
    }
    const uint32_t tokens = 1 + random() % 3000;
    const SessionPlan plan{.prompt_tokens = 1 + static_cast<uint32_t>(random() % tokens),
                           .max_tokens = tokens,
                           .chunk = 1 + static_cast<uint32_t>(random() % 64)};
    const bool has_int8 = random() % 2 == 0;
    const SessionLadder session = LadderFor(layout, MakeLadder(said), plan, [&](SealedFormat one) {
      return one == SealedFormat::kNone || has_int8 || one != SealedFormat::kInt8;
    });
    Charge before = session.whole;
    for (size_t rung = 0; rung < session.rungs.size(); ++rung) {
      const auto& [seal, charge] = session.rungs[rung];
      EXPECT_LE(charge.pages, before.pages);
      EXPECT_LE(charge.overhead, before.overhead);
      const Charge own = PeakCharge(layout, *session.ladder->rungs[rung].policy, seal, plan);
      EXPECT_GE(charge.pages, own.pages);
      EXPECT_GE(charge.overhead, own.overhead) << "the union keeps no less";
      EXPECT_TRUE(has_int8 || seal.format != SealedFormat::kInt8);
      before = charge;
    }
    EXPECT_GE(session.whole.pages, CeilDiv(tokens, kPageTokens));
  }
}

TEST(LadderTest, RoomIsKeptForOneSessionToGrowToItsWhole) {
  const Layout layout = SmallLayout();
  const uint32_t slab = layout.pages_per_slab();
  TenantCharges charges;
  charges.Add(layout, {.pages = slab});
  EXPECT_EQ(charges.Slabs(), 1u);
  charges.AddHeadroom(layout, {});
  EXPECT_EQ(charges.Slabs(), 1u);
  charges.AddHeadroom(layout, {.pages = 1});
  EXPECT_EQ(charges.Slabs(), 2u);
  charges.AddHeadroom(layout, {.pages = slab * 2});
  charges.AddHeadroom(layout, {.pages = slab});
  EXPECT_EQ(charges.Slabs(), 3u) << "for the one that takes most, not for all";
  EXPECT_EQ(charges.WantedSlabs(), 3u);
  EXPECT_EQ(charges.UsableSlabs(3), 3u) << "it may be used";
}

}  // namespace
}  // namespace kvpool
