// What the operator may change about tenants, and in what words the rest is refused.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/tenants.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/limits.h"

namespace kvpool {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TenantSpec Spec(const std::string& name, Bytes guaranteed, Bytes limit) {
  return {.name = name, .guaranteed = guaranteed, .limit = limit};
}

// One agent with so much.
Pools Pool(Bytes bytes) { return {.agents = {{"gpu-0", bytes}}}; }

class TenantTableTest : public ::testing::Test {
 protected:
  // Applies without a known capacity.
  void Apply(const std::vector<TenantSpec>& specs) {
    const auto changed = table_.PlanApply(specs, {});
    ASSERT_TRUE(changed.ok()) << changed.status();
    table_.Commit(*changed);
  }

  TenantTable table_{{}, TenantId(7)};
};

TEST_F(TenantTableTest, CreatesUpdatesAndLeavesTheRestAlone) {
  Apply({Spec("a", 1_MiB, 2_MiB), Spec("b", 0_B, 4_MiB)});
  EXPECT_EQ(table_.Find("a")->id, TenantId(7));
  EXPECT_EQ(table_.Find("b")->id, TenantId(8));
  EXPECT_EQ(table_.Find("a")->revision, 1u);

  const auto changed = table_.PlanApply({Spec("a", 1_MiB, 2_MiB), Spec("b", 0_B, 8_MiB)}, {});
  ASSERT_TRUE(changed.ok());
  ASSERT_THAT(*changed, SizeIs(1));
  EXPECT_EQ((*changed)[0].id, TenantId(8));
  EXPECT_EQ((*changed)[0].revision, 2u);
  EXPECT_EQ(table_.Find("b")->spec.limit, 4_MiB) << "planned only";
}

TEST_F(TenantTableTest, IdsAreNeverGivenTwice) {
  Apply({Spec("a", 0_B, 1_MiB)});
  table_.Remove("a");
  Apply({Spec("a", 0_B, 1_MiB)});
  EXPECT_EQ(table_.Find("a")->id, TenantId(8));
}

TEST_F(TenantTableTest, AnImpossibleSumIsShown) {
  std::vector<TenantSpec> specs = {Spec("chat", 16_MiB, 16_MiB), Spec("batch", 8_MiB, 8_MiB)};
  for (const char* name : {"c", "d", "e", "f"}) specs.push_back(Spec(name, 1_MiB, 1_MiB));
  specs.push_back(Spec("none", 0_B, 1_MiB));
  EXPECT_TRUE(table_.PlanApply(specs, Pool(28_MiB)).ok());
  const auto refused = table_.PlanApply(specs, Pool(27_MiB));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(refused.status()),
              HasSubstr("chat 16 MiB + batch 8 MiB + f 1 MiB + e 1 MiB + 2 others 2 MiB = 28 MiB, "
                        "but the agents' pools hold 27 MiB"));
}

TEST_F(TenantTableTest, GuaranteesCanBeLoweredAfterAnAgentWasLost) {
  Apply({Spec("a", 8_MiB, 8_MiB), Spec("b", 8_MiB, 8_MiB)});
  EXPECT_TRUE(table_.PlanApply({Spec("a", 6_MiB, 8_MiB)}, Pool(4_MiB)).ok());
  EXPECT_TRUE(table_.PlanApply({Spec("b", 7_MiB, 8_MiB)}, Pool(4_MiB)).ok());
  EXPECT_FALSE(table_.PlanApply({Spec("c", 1_MiB, 8_MiB)}, Pool(4_MiB)).ok());
}

TEST_F(TenantTableTest, FloorsMustFitTheirAgent) {
  TenantSpec a = Spec("a", 6_MiB, 6_MiB), b = Spec("b", 6_MiB, 6_MiB);
  a.floors = {{"gpu-0", 3_MiB}, {"gpu-1", 3_MiB}};
  b.floors = {{"gpu-0", 2_MiB}};
  const Pools pools{.agents = {{"gpu-0", 4_MiB}, {"gpu-1", 8_MiB}}};
  EXPECT_TRUE(table_.PlanApply({a}, pools).ok());
  const auto refused = table_.PlanApply({a, b}, pools);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(refused.status()),
              HasSubstr("the floors at agent \"gpu-0\" do not fit: a 3 MiB + b 2 MiB = 5 MiB, but "
                        "its pool holds 4 MiB"));
  Apply({a, b});
  b.floors = {{"gpu-0", 1_MiB}};
  EXPECT_TRUE(table_.PlanApply({b}, pools).ok()) << "a smaller sum passes";
}

TEST_F(TenantTableTest, LimitsMayBeOversubscribedSoFar) {
  Pools pools = Pool(4_MiB);
  pools.oversubscription_percent = 250;
  const std::vector<TenantSpec> specs = {Spec("a", 1_MiB, 6_MiB), Spec("b", 1_MiB, 4_MiB)};
  EXPECT_TRUE(table_.PlanApply(specs, pools).ok());
  pools.oversubscription_percent = 249;
  const auto refused = table_.PlanApply(specs, pools);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(refused.status()), HasSubstr("a 6 MiB + b 4 MiB = 10 MiB, but the agents' "
                                                   "pools hold 4 MiB, and an oversubscription of "
                                                   "249 % allows"));
  Apply(specs);
  EXPECT_TRUE(table_.PlanApply({Spec("a", 0_B, 5_MiB)}, pools).ok()) << "a smaller sum passes";
}

TEST_F(TenantTableTest, OneBadTenantSpoilsAll) {
  EXPECT_FALSE(table_.PlanApply({Spec("a", 0_B, 1_MiB), Spec("b", 2_MiB, 1_MiB)}, {}).ok());
  EXPECT_FALSE(table_.PlanApply({Spec("a", 0_B, 1_MiB), Spec("a", 0_B, 1_MiB)}, {}).ok());
  EXPECT_FALSE(table_.PlanApply({Spec("A", 0_B, 1_MiB)}, {}).ok());
}

TEST_F(TenantTableTest, TooManyTenants) {
  std::vector<TenantSpec> specs;
  for (uint32_t i = 0; i < limits::kTenants; ++i) {
    specs.push_back(Spec("t" + std::to_string(i), 0_B, 1_MiB));
  }
  Apply(specs);
  const auto refused = table_.PlanApply({Spec("more", 0_B, 1_MiB)}, {});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(TenantTableTest, Revisions) {
  Apply({Spec("a", 0_B, 1_MiB)});
  EXPECT_TRUE(table_.CheckRevision("a", 1).ok());
  EXPECT_TRUE(table_.CheckRevision("new", 0).ok());
  EXPECT_EQ(table_.CheckRevision("a", 0).code(), absl::StatusCode::kAborted);
  const absl::Status stale = table_.CheckRevision("a", 2);
  EXPECT_THAT(Message(stale), HasSubstr("is at revision 1, the change was made for revision 2"));
}

TEST_F(TenantTableTest, LeavingTakesTheBudgetAndCanBeTakenBack) {
  TenantSpec spec = Spec("a", 1_MiB, 2_MiB);
  spec.floors = {{"gpu-0", 1_MiB}};
  Apply({spec});
  const Tenant leaving = *table_.PlanLeave("a");
  EXPECT_TRUE(leaving.leaving);
  EXPECT_EQ(leaving.spec, Spec("a", 0_B, 0_B));
  EXPECT_EQ(leaving.revision, 2u);
  table_.Commit({leaving});
  EXPECT_EQ(table_.PlanLeave("a")->revision, 2u) << "once is enough";
  const absl::Status refused = table_.PlanAddToken("a", Sha256("t")).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(refused), HasSubstr("being deleted"));
  Apply({Spec("a", 0_B, 0_B)});
  EXPECT_FALSE(table_.Find("a")->leaving) << "even where nothing else differs";
  EXPECT_EQ(table_.Find("a")->revision, 3u);
  EXPECT_EQ(table_.PlanLeave("none").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(TenantTableTest, Tokens) {
  Apply({Spec("a", 0_B, 1_MiB)});
  EXPECT_EQ(table_.PlanAddToken("b", {}).status().code(), absl::StatusCode::kNotFound);
  for (uint32_t i = 0; i < limits::kTokensPerTenant; ++i) {
    const auto tenant = table_.PlanAddToken("a", Sha256(std::to_string(i)));
    ASSERT_TRUE(tenant.ok());
    table_.Commit({*tenant});
  }
  EXPECT_EQ(table_.PlanAddToken("a", Sha256("more")).status().code(),
            absl::StatusCode::kResourceExhausted);

  const auto less = table_.PlanRevokeToken("a", TokenId(Sha256("3")));
  ASSERT_TRUE(less.ok());
  EXPECT_THAT(less->tokens, SizeIs(limits::kTokensPerTenant - 1));
  EXPECT_EQ(less->revision, 1u) << "a token is no change of the budget";
  EXPECT_EQ(table_.PlanRevokeToken("a", "").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace kvpool
