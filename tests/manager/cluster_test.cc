// The manager's whole state without any I/O: who may register, what a report is answered with, what
// is learned after a restart, what is kept.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/limits.h"

namespace kvpool {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr Bytes kSlab = 2_MiB;

AgentInfo Agent(const std::string& name, int64_t slabs, uint64_t incarnation = 1) {
  return {.name = name,
          .incarnation = incarnation,
          .pool_bytes = kSlab * slabs,
          .slab_bytes = kSlab,
          .device = "host"};
}

// The agent's side: applies orders at once and reports what it was told to want.
struct ModelAgent {
  AgentInfo info;
  uint64_t link = 0;
  uint64_t seq = 0;
  std::map<TenantId, TenantUse> use;

  AgentReport Report() {
    AgentReport report{.seq = ++seq};
    for (const auto& [id, line] : use) report.tenants.push_back(line);
    return report;
  }
  void Apply(const AgentOrders& orders) {
    for (const TenantOrders& order : orders.tenants) {
      LeaseReport& lease = use[order.tenant->id].lease;
      lease = {order.tenant->id, orders.epoch, order.lease.seq, order.lease.slabs};
    }
  }
};

class ClusterTest : public ::testing::Test {
 protected:
  ClusterTest() { Restart({}); }

  void Restart(std::vector<AgentInfo> known) {
    std::vector<Tenant> tenants;
    if (cluster_.has_value()) {
      for (const auto& [name, tenant] : cluster_->tenants().by_name()) tenants.push_back(tenant);
    }
    cluster_.emplace(Cluster::Start{.epoch = ++epoch_,
                                    .tenants = TenantTable(std::move(tenants), TenantId(100)),
                                    .known_agents = std::move(known),
                                    .learn_until = now_ + seconds(5)});
  }

  ModelAgent Connect(const AgentInfo& info) {
    EXPECT_EQ(cluster_->CheckAgent(info, 0), RegisterOutcome::kOk);
    return {.info = info, .link = cluster_->Connect(info)};
  }

  AgentOrders Exchange(ModelAgent& agent) {
    now_ += milliseconds(250);
    const AgentOrders orders = cluster_->Exchange(agent.info.name, agent.Report(), now_);
    agent.Apply(orders);
    return orders;
  }

  TenantId Set(const std::string& name, Bytes guaranteed, Bytes limit) {
    const auto changed = cluster_->tenants().PlanApply(
        {{.name = name, .guaranteed = guaranteed, .limit = limit}}, cluster_->AgentPools());
    EXPECT_TRUE(changed.ok()) << changed.status();
    cluster_->CommitTenants(*changed);
    return cluster_->tenants().Find(name)->id;
  }

  TimePoint now_{seconds(1000)};
  uint64_t epoch_ = 0;
  std::optional<Cluster> cluster_;
};

TEST_F(ClusterTest, WhoMayRegister) {
  EXPECT_EQ(cluster_->CheckAgent(Agent("a", 4), 2), RegisterOutcome::kStaleEpoch);
  EXPECT_EQ(cluster_->CheckAgent(Agent("a", 0), 1), RegisterOutcome::kBadPool);
  EXPECT_EQ(cluster_->CheckAgent(Agent("a", limits::kSlabsPerAgent + 1), 1),
            RegisterOutcome::kBadPool);
  AgentInfo odd = Agent("a", 4);
  odd.pool_bytes += 1_B;
  EXPECT_EQ(cluster_->CheckAgent(odd, 1), RegisterOutcome::kBadPool);
  odd.slab_bytes = 0_B;
  EXPECT_EQ(cluster_->CheckAgent(odd, 1), RegisterOutcome::kBadPool);

  const ModelAgent a = Connect(Agent("a", 4));
  EXPECT_EQ(cluster_->CheckAgent(Agent("a", 4, 2), 1), RegisterOutcome::kNameTaken);
  EXPECT_EQ(cluster_->CheckAgent(Agent("a", 4, 1), 1), RegisterOutcome::kOk);
  cluster_->Disconnect("a", a.link);
  EXPECT_EQ(cluster_->CheckAgent(Agent("a", 4, 2), 1), RegisterOutcome::kOk);

  AgentInfo small = Agent("b", 8);
  small.slab_bytes = 1_MiB;
  EXPECT_EQ(cluster_->CheckAgent(small, 1), RegisterOutcome::kBadPool);
}

TEST_F(ClusterTest, TooManyAgents) {
  for (uint32_t i = 0; i < limits::kAgents; ++i) Connect(Agent("a" + std::to_string(i), 1));
  EXPECT_EQ(cluster_->CheckAgent(Agent("more", 1), 1), RegisterOutcome::kTooMany);
}

TEST_F(ClusterTest, ANewConnectionEndsTheOldOne) {
  const ModelAgent old = Connect(Agent("a", 4));
  const ModelAgent now = Connect(Agent("a", 4));
  EXPECT_FALSE(cluster_->IsLive("a", old.link));
  cluster_->Disconnect("a", old.link);
  EXPECT_TRUE(cluster_->IsLive("a", now.link));
}

TEST_F(ClusterTest, DemandIsAnsweredWithALease) {
  const TenantId tenant = Set("t", 2_MiB, 20_MiB);
  ModelAgent a = Connect(Agent("a", 20));
  AgentOrders orders = Exchange(a);
  ASSERT_THAT(orders.tenants, SizeIs(1));
  EXPECT_TRUE(orders.complete);
  EXPECT_EQ(orders.tenants[0].tenant->id, tenant);
  EXPECT_EQ(orders.tenants[0].lease.slabs, 2) << "a starting credit";
  EXPECT_EQ(orders.tenants[0].limit_slabs, 10);

  a.use[tenant].wanted_slabs = 50;
  EXPECT_EQ(Exchange(a).tenants[0].lease.slabs, 10) << "the limit";
}

TEST_F(ClusterTest, ATenantAcrossAgentsStaysBelowItsLimit) {
  const TenantId tenant = Set("t", 0_B, 21_MiB);
  ModelAgent a = Connect(Agent("a", 20)), b = Connect(Agent("b", 20));
  a.use[tenant].wanted_slabs = 20;
  a.use[tenant].lease.tenant = tenant;
  Exchange(b);
  Exchange(a);
  Exchange(b);
  EXPECT_EQ(cluster_->ledger().Committed(tenant), 10);
  b.use[tenant].wanted_slabs = 20;
  for (int i = 0; i < 3; ++i) {
    Exchange(b);
    Exchange(a);
    EXPECT_LE(cluster_->ledger().Committed(tenant), 10);
  }
  EXPECT_EQ(a.use[tenant].lease.slabs, 5);
  EXPECT_EQ(b.use[tenant].lease.slabs, 5);

  // Gone, but its lease still counts.
  cluster_->Disconnect("b", b.link);
  EXPECT_EQ(Exchange(a).tenants[0].lease.slabs, 5);
  EXPECT_FALSE(cluster_->CheckForget("a").ok());
  EXPECT_TRUE(cluster_->CheckForget("b").ok());
  cluster_->Forget("b");
  EXPECT_EQ(Exchange(a).tenants[0].lease.slabs, 10);
}

TEST_F(ClusterTest, OrdersOfARestartedManagerAreIncompleteUntilItHasLearned) {
  const TenantId tenant = Set("t", 0_B, 20_MiB);
  ModelAgent a = Connect(Agent("a", 20)), b = Connect(Agent("b", 20));
  b.use[tenant] = {.lease = {.tenant = tenant}, .wanted_slabs = 8};
  for (int i = 0; i < 4; ++i) {
    Exchange(a);
    Exchange(b);
  }
  const int64_t leased = b.use[tenant].lease.slabs;
  ASSERT_GE(leased, 8);

  Restart({a.info, b.info});
  EXPECT_TRUE(cluster_->Learning(now_));
  b.link = cluster_->Connect(b.info);
  AgentOrders orders = Exchange(b);
  EXPECT_FALSE(orders.complete);
  EXPECT_THAT(orders.tenants, IsEmpty());

  a.link = cluster_->Connect(a.info);
  EXPECT_TRUE(Exchange(a).complete);
  orders = Exchange(b);
  EXPECT_TRUE(orders.complete);
  EXPECT_EQ(orders.tenants[0].lease.slabs, leased);
}

TEST_F(ClusterTest, LearningEndsAtItsDeadline) {
  Restart({Agent("a", 20), Agent("lost", 20)});
  Set("t", 0_B, 20_MiB);
  ModelAgent a = Connect(Agent("a", 20));
  EXPECT_FALSE(Exchange(a).complete);
  now_ += seconds(5);
  EXPECT_FALSE(cluster_->Learning(now_));
  EXPECT_TRUE(Exchange(a).complete);
}

TEST_F(ClusterTest, KnownAgentsAreCapacityWhileTheyAreAway) {
  EXPECT_EQ(cluster_->Capacity(), 0_B);
  Restart({Agent("a", 20), Agent("lost", 20)});
  EXPECT_EQ(cluster_->Capacity(), kSlab * 40);
}

TEST_F(ClusterTest, ATenantIsRemovedOnlyWithoutLeases) {
  const TenantId tenant = Set("t", 0_B, 20_MiB);
  ModelAgent a = Connect(Agent("a", 20));
  Exchange(a);
  const absl::Status refused = cluster_->CheckRemove("t");
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("still has leases of 4 MiB"));
  Set("t", 0_B, 0_B);
  Exchange(a);
  Exchange(a);
  EXPECT_TRUE(cluster_->CheckRemove("t").ok());
  cluster_->RemoveTenant("t");
  EXPECT_EQ(cluster_->CheckRemove("t").code(), absl::StatusCode::kNotFound);
  const AgentOrders orders = Exchange(a);
  EXPECT_TRUE(orders.complete);
  EXPECT_THAT(orders.tenants, IsEmpty());
  EXPECT_EQ(cluster_->ledger().Committed(tenant), 0);
}

// Else it would be gone with leases out that nobody counts.
TEST_F(ClusterTest, NoTenantIsRemovedBeforeTheAgentsHaveSaidWhatTheyHold) {
  Set("t", 0_B, 0_B);
  Restart({Agent("a", 20)});
  const absl::Status refused = cluster_->CheckRemove("t");
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("may still have leases"));
  ModelAgent a = Connect(Agent("a", 20));
  Exchange(a);
  EXPECT_TRUE(cluster_->CheckRemove("t").ok());
}

TEST_F(ClusterTest, WhatAnUnknownTenantHoldsIsNotGivenAway) {
  const TenantId tenant = Set("t", 0_B, 200_MiB);
  ModelAgent a = Connect(Agent("a", 20));
  a.use[TenantId(55)] = {.lease = {.tenant = TenantId(55), .slabs = 12}, .held_slabs = 12};
  a.use[tenant] = {.lease = {.tenant = tenant}, .wanted_slabs = 20};
  Exchange(a);
  EXPECT_EQ(a.use[tenant].lease.slabs, 8);
}

TEST_F(ClusterTest, TheLastReclaimsOfATenantAreKept) {
  const TenantId tenant = Set("t", 0_B, 20_MiB);
  ModelAgent a = Connect(Agent("a", 20));
  for (uint32_t i = 0; i < limits::kReclaimsKept + 3; ++i) {
    AgentReport report = a.Report();
    report.reclaims.push_back(
        {.tenant = tenant, .agent = "a", .policy = std::to_string(i), .sessions = i});
    report.reclaims.push_back({.tenant = TenantId(55), .agent = "a"});
    cluster_->Exchange("a", report, now_);
    cluster_->Exchange("a", report, now_);  // doubled
  }
  EXPECT_THAT(cluster_->ReclaimsOf(tenant), SizeIs(limits::kReclaimsKept));
  EXPECT_EQ(cluster_->ReclaimsOf(tenant).front().sessions, limits::kReclaimsKept + 2);
  EXPECT_EQ(cluster_->ReclaimsOf(tenant).front().count, 1u) << "the doubled report is ignored";
  EXPECT_THAT(cluster_->ReclaimsOf(TenantId(55)), IsEmpty());
}

}  // namespace
}  // namespace kvpool
