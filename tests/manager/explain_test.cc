// Why a tenant has what it has: each reason, in its sentence and in its numbers.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/explain.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvpool {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr Bytes kSlab = 2_MiB;
constexpr TimePoint kNow{std::chrono::seconds(1000)};

class ExplainTest : public ::testing::Test {
 protected:
  ExplainTest()
      : cluster_({.epoch = 1,
                  .tenants = TenantTable({}, TenantId(1)),
                  .known_agents = {},
                  .learn_until = kNow}) {
    link_ = cluster_.Connect({.name = "gpu-0",
                              .incarnation = 1,
                              .pool_bytes = kSlab * 10,
                              .slab_bytes = kSlab,
                              .device = "host"});
  }

  void Set(const std::string& name, Bytes guaranteed, Bytes limit) {
    cluster_.CommitTenants(*cluster_.tenants().PlanApply(
        {{.name = name, .guaranteed = guaranteed, .limit = limit}}, cluster_.AgentPools()));
  }

  // Every tenant wants so many slabs; the orders are followed at once.
  void Exchange(int64_t wanted, std::vector<ReclaimEntry> reclaims = {}) {
    for (int i = 0; i < 3; ++i) {
      AgentReport report{.seq = ++seq_, .reclaims = reclaims};
      reclaims.clear();
      for (const auto& [name, tenant] : cluster_.tenants().by_name()) {
        TenantUse& use = use_[tenant.id];
        use.lease.tenant = tenant.id;
        use.wanted_slabs = wanted;
        report.tenants.push_back(use);
      }
      const AgentOrders orders =
          cluster_.Exchange("gpu-0", report, kNow + std::chrono::seconds(seq_));
      cluster_.BoundsRecorded("gpu-0", cluster_.PrepareBounds("gpu-0"));
      for (const TenantOrders& order : cluster_.OrdersFor("gpu-0").tenants) {
        use_[order.tenant->id].lease = {order.tenant->id, orders.epoch, order.lease.seq,
                                        order.lease.slabs};
      }
    }
  }

  std::string Why(const std::string& name) {
    const auto view =
        ExplainView(cluster_, *cluster_.tenants().Find(name), kNow + std::chrono::seconds(seq_));
    return boost::json::serialize(view.at("why"));
  }

  Cluster cluster_;
  uint64_t link_ = 0;
  uint64_t seq_ = 0;
  std::map<TenantId, TenantUse> use_;
};

TEST_F(ExplainTest, NothingIsMissing) {
  Set("a", 2_MiB, 20_MiB);
  Exchange(3);
  EXPECT_THAT(Why("a"), HasSubstr("guaranteed 2 MiB and may hold 20 MiB; it wants 6 MiB"));
  EXPECT_THAT(Why("a"), HasSubstr("It has all that it wants"));
  EXPECT_THAT(Why("a"), Not(HasSubstr("At agent")));
}

TEST_F(ExplainTest, TheLimitIsInTheWay) {
  Set("a", 0_B, 5_MiB);
  Exchange(6);
  EXPECT_THAT(Why("a"), HasSubstr("limit 5 MiB is 2 slabs of 2 MiB = 4 MiB."));
  EXPECT_THAT(Why("a"), HasSubstr("It wants 8 MiB more than its limit"));
  EXPECT_THAT(Why("a"), HasSubstr("wants 12 MiB and is given 4 MiB: its own budget"));
}

TEST_F(ExplainTest, OthersHaveTheRest) {
  Set("a", 0_B, 20_MiB);
  Set("b", 12_MiB, 20_MiB);
  Exchange(10);
  const auto view = ExplainView(cluster_, *cluster_.tenants().Find("a"), kNow);
  EXPECT_EQ(
      boost::json::serialize(view.at("short")),
      R"([{"agent":"gpu-0","wanted":20971520,"ordered":4194304,"others":[{"tenant":"b","ordered":16777216}]}])");
  EXPECT_THAT(Why("a"), HasSubstr("of the pool of 20 MiB others have: b 16 MiB."));
}

TEST_F(ExplainTest, WhatIsTakenBackIsSaid) {
  Set("a", 0_B, 20_MiB);
  Exchange(10, {{.tenant = cluster_.tenants().Find("a")->id,
                 .agent = "gpu-0",
                 .first = kNow,
                 .last = kNow,
                 .step = "compaction",
                 .reason = "lease-shrink",
                 .policy = "streaming",
                 .sessions = 2,
                 .bytes = 3_MiB}});
  EXPECT_THAT(Why("a"), HasSubstr("The last reclaim was compaction (lease-shrink) at agent gpu-0"));
  Set("a", 0_B, 4_MiB);
  AgentReport report{.seq = ++seq_};
  for (const auto& [id, use] : use_) report.tenants.push_back(use);
  cluster_.Exchange("gpu-0", report, kNow + std::chrono::seconds(seq_));
  EXPECT_THAT(Why("a"), HasSubstr("16 MiB more than it is given still count"));
  cluster_.CommitTenants({*cluster_.tenants().PlanLeave("a")});
  EXPECT_THAT(Why("a"), HasSubstr("being deleted: it gets nothing new, and goes once the 20 MiB"));
}

TEST_F(ExplainTest, AnAgentIsDrainingOrAway) {
  Set("a", 0_B, 20_MiB);
  cluster_.CommitSettings("gpu-0", {.draining = true, .revision = 1});
  Exchange(4);
  EXPECT_THAT(Why("a"), HasSubstr("wants 8 MiB and is given 0 B: the agent is draining"));
  cluster_.Disconnect("gpu-0", link_);
  EXPECT_THAT(Why("a"), HasSubstr("the agent is away"));
}

TEST_F(ExplainTest, AMoveOfALeaseSaysWhyAndForWhom) {
  Set("a", 0_B, 20_MiB);
  Exchange(10);
  EXPECT_THAT(Why("a"), HasSubstr("Its lease at agent gpu-0 went from 0 B to 20 MiB"));
  EXPECT_THAT(Why("a"), HasSubstr("s ago: it wanted that."));
  Set("b", 16_MiB, 20_MiB);
  Exchange(10);
  EXPECT_THAT(Why("a"), HasSubstr("others had a better claim; waiting: b."));
  const auto view =
      ExplainView(cluster_, *cluster_.tenants().Find("a"), kNow + std::chrono::seconds(seq_));
  const auto& newest = view.at("decisions").as_array().at(0).as_object();
  EXPECT_EQ(newest.at("reason").as_string(), "others");
  EXPECT_EQ(newest.at("from").as_int64(), (20_MiB).value());
  EXPECT_EQ(newest.at("waiting"), (boost::json::array{"b"}));
  // What the agent then does to follow was for b.
  Exchange(10, {{.tenant = cluster_.tenants().Find("a")->id,
                 .agent = "gpu-0",
                 .first = kNow + std::chrono::seconds(seq_),
                 .last = kNow + std::chrono::seconds(seq_),
                 .step = "compaction",
                 .reason = "lease-shrink",
                 .policy = "corm",
                 .sessions = 2,
                 .bytes = 4_MiB}});
  EXPECT_THAT(Why("a"), HasSubstr("4 MiB of 2 sessions, for b."));
}

}  // namespace
}  // namespace kvpool
