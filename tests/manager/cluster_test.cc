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
using ::testing::ElementsAre;
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
    std::vector<KnownAgent> agents;
    for (AgentInfo& info : known) {
      agents.push_back({.info = info, .bounds = on_record_[info.name]});
    }
    cluster_.emplace(Cluster::Start{.epoch = ++epoch_,
                                    .tenants = TenantTable(std::move(tenants), TenantId(100)),
                                    .known_agents = std::move(agents),
                                    .learn_until = now_ + seconds(5)});
  }

  ModelAgent Connect(const AgentInfo& info) {
    EXPECT_EQ(cluster_->CheckAgent(info, 0), RegisterOutcome::kOk);
    return {.info = info, .link = cluster_->Connect(info)};
  }

  AgentOrders Exchange(ModelAgent& agent) {
    now_ += milliseconds(250);
    const std::string& name = agent.info.name;
    AgentOrders orders = cluster_->Exchange(name, agent.Report(), now_);
    if (cluster_->AwaitsBounds(name)) {
      on_record_[name] = cluster_->PrepareBounds(name);
      cluster_->BoundsRecorded(name, on_record_[name]);
      orders = cluster_->OrdersFor(name);
    }
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
  std::map<std::string, LeaseBounds> on_record_;  // survives a restart
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
  for (int i = 0; i < 6; ++i) {
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

TEST_F(ClusterTest, BorrowedSlabsComeBackAtAPaceAndAGuaranteeAtOnce) {
  const TenantId borrower = Set("borrower", 0_B, 200_MiB), tenant = Set("tenant", 40_MiB, 200_MiB);
  ModelAgent a = Connect(Agent("a", 100));
  a.use[borrower] = {.lease = {.tenant = borrower}, .wanted_slabs = 100};
  Exchange(a);
  Exchange(a);
  ASSERT_EQ(a.use[borrower].lease.slabs, 100);
  a.use[tenant].wanted_slabs = 50;
  Exchange(a);
  EXPECT_EQ(a.use[borrower].lease.slabs, 80) << "room for the guarantee";
  Exchange(a);
  EXPECT_EQ(a.use[tenant].lease.slabs, 20);
  EXPECT_EQ(a.use[borrower].lease.slabs, 70);
  for (int i = 0; i < 5; ++i) Exchange(a);
  EXPECT_EQ(a.use[tenant].lease.slabs, 50);
  EXPECT_EQ(a.use[borrower].lease.slabs, 50);
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

// Two tenants that want more than the agent has.
class ContendedClusterTest : public ClusterTest {
 protected:
  // Slabs of each once nothing moves any more, of 20.
  std::vector<int64_t> Share(const TenantSpec& first, const TenantSpec& second) {
    ModelAgent agent = Connect(Agent("gpu-0", 20));
    const auto changed = cluster_->tenants().PlanApply({first, second}, {});
    EXPECT_TRUE(changed.ok()) << changed.status();
    cluster_->CommitTenants(*changed);
    const TenantId a = cluster_->tenants().Find(first.name)->id;
    const TenantId b = cluster_->tenants().Find(second.name)->id;
    Exchange(agent);
    agent.use[a].wanted_slabs = agent.use[b].wanted_slabs = 30;
    for (int round = 0; round < 20; ++round) Exchange(agent);
    return {agent.use[a].lease.slabs, agent.use[b].lease.slabs};
  }
};

TEST_F(ContendedClusterTest, WeightDividesWhatIsBorrowed) {
  EXPECT_THAT(Share({.name = "a", .limit = kSlab * 30, .weight = 3},
                    {.name = "b", .limit = kSlab * 30, .weight = 1}),
              ElementsAre(15, 5));
}

TEST_F(ContendedClusterTest, PriorityBorrowsFirstAndGuaranteesKnowNone) {
  EXPECT_THAT(Share({.name = "a", .limit = kSlab * 30, .priority = 6},
                    {.name = "b", .guaranteed = kSlab * 4, .limit = kSlab * 30}),
              ElementsAre(16, 4));
}

TEST_F(ContendedClusterTest, WhoMayNotBorrowKeepsToItsGuarantee) {
  EXPECT_THAT(
      Share(
          {.name = "a", .guaranteed = kSlab * 4, .limit = kSlab * 30, .borrowing = Borrowing::kOff},
          {.name = "b", .limit = kSlab * 30}),
      ElementsAre(4, 16));
}

TEST_F(ContendedClusterTest, FloorsComeBeforeOtherGuarantees) {
  EXPECT_THAT(Share({.name = "a",
                     .guaranteed = kSlab * 12,
                     .limit = kSlab * 12,
                     .floors = {{"gpu-0", kSlab * 12}, {"gpu-1", 0_B}}},
                    {.name = "b", .guaranteed = kSlab * 16, .limit = kSlab * 16}),
              ElementsAre(12, 8));
}

TEST_F(ClusterTest, AnAgentThatStaysAwayAfterARestartKeepsItsLeases) {
  const TenantId tenant = Set("t", 0_B, 40_MiB);
  ModelAgent lost = Connect(Agent("lost", 20)), a = Connect(Agent("a", 20));
  Exchange(lost);
  Exchange(a);
  lost.use[tenant].wanted_slabs = 12;
  Exchange(lost);
  a.use[tenant].wanted_slabs = 20;
  Restart({lost.info, a.info});
  a.link = cluster_->Connect(a.info);
  Exchange(a);
  now_ += seconds(10);
  Exchange(a);
  EXPECT_EQ(on_record_["lost"][tenant], 16);
  EXPECT_LE(a.use[tenant].lease.slabs, 20 - lost.use[tenant].lease.slabs);
  EXPECT_EQ(a.use[tenant].lease.slabs, 20 - 16) << "its bound counts";
  cluster_->Forget("lost");
  Exchange(a);
  EXPECT_EQ(a.use[tenant].lease.slabs, 20);
}

TEST_F(ClusterTest, KnownAgentsAreCapacityWhileTheyAreAway) {
  EXPECT_EQ(cluster_->Capacity(), 0_B);
  Restart({Agent("a", 20), Agent("lost", 20)});
  EXPECT_EQ(cluster_->Capacity(), kSlab * 40);
}

TEST_F(ClusterTest, ATenantThatLeavesGivesAllBackAndIsNoMore) {
  const TenantId tenant = Set("t", 0_B, 20_MiB);
  ModelAgent a = Connect(Agent("a", 20));
  Exchange(a);
  EXPECT_EQ(cluster_->ledger().Committed(tenant), 2);
  cluster_->CommitTenants({*cluster_->tenants().PlanLeave("t")});
  Exchange(a);
  Exchange(a);
  EXPECT_EQ(cluster_->ledger().Committed(tenant), 0);
  cluster_->RemoveTenant("t");
  const AgentOrders orders = Exchange(a);
  EXPECT_TRUE(orders.complete);
  EXPECT_THAT(orders.tenants, IsEmpty());
  EXPECT_EQ(cluster_->ledger().Committed(tenant), 0);
}

TEST_F(ClusterTest, ADrainedAgentGivesAllBackAndGetsNothing) {
  const TenantId t = Set("t", kSlab * 4, kSlab * 100);
  ModelAgent a = Connect(Agent("a", 10)), b = Connect(Agent("b", 10));
  const auto exchange = [&] {
    for (ModelAgent* agent : {&a, &b, &a, &b}) {
      agent->use[t].lease.tenant = t;
      agent->use[t].wanted_slabs = 6;
      Exchange(*agent);
    }
  };
  exchange();
  EXPECT_GE(cluster_->ledger().Committed(t, "a"), 6);
  cluster_->CommitSettings("a", {.draining = true, .revision = 1});
  exchange();
  EXPECT_EQ(cluster_->ledger().Committed(t, "a"), 0);
  EXPECT_GE(cluster_->ledger().Committed(t, "b"), 6);

  cluster_->Disconnect("a", a.link);
  a.link = cluster_->Connect(a.info);
  a.seq = 0;
  exchange();
  EXPECT_TRUE(cluster_->agents().at("a").settings.draining) << "after it has come back";
  EXPECT_EQ(cluster_->ledger().Committed(t, "a"), 0);
  cluster_->CommitSettings("a", {.draining = false, .revision = 2});
  exchange();
  EXPECT_GE(cluster_->ledger().Committed(t, "a"), 6);
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

TEST_F(ClusterTest, AnOutlookIsWhatLeasesComeTo) {
  const TenantId a = Set("a", 0_B, kSlab * 100), b = Set("b", kSlab * 4, kSlab * 100);
  ModelAgent here = Connect(Agent("here", 10)), away = Connect(Agent("away", 10));
  for (ModelAgent* agent : {&here, &away}) {
    agent->use[a].lease.tenant = a;
    agent->use[a].wanted_slabs = 10;
  }
  for (int i = 0; i < 3; ++i) {
    Exchange(here);
    Exchange(away);
  }
  ASSERT_EQ(cluster_->ledger().Committed(a), 20);
  EXPECT_EQ(cluster_->Outlook().at(a), 20) << "all is as it should be";
  cluster_->Disconnect("away", away.link);

  Cluster copy = *cluster_;
  here.use[b].lease.tenant = b;
  here.use[b].wanted_slabs = 4;
  AgentReport report = here.Report();
  copy.Exchange("here", report, now_ + seconds(1));
  EXPECT_EQ(copy.Outlook().at(a), 16) << "6 here, and 10 at an agent that is away";
  EXPECT_EQ(copy.Outlook().at(b), 4);
  copy.Forget("away");
  EXPECT_EQ(copy.Outlook().at(a), 6);
  copy.Disconnect("here", here.link);
  copy.Forget("here");
  EXPECT_THAT(copy.Outlook(), IsEmpty());
  EXPECT_EQ(cluster_->ledger().Committed(a), 20) << "a copy is a copy";
}

TEST_F(ClusterTest, AnOutlookTakesNothingThatNobodyWaitsFor) {
  const TenantId a = Set("a", 0_B, kSlab * 100);
  ModelAgent agent = Connect(Agent("x", 10));
  agent.use[a].lease.tenant = a;
  agent.use[a].wanted_slabs = 10;
  for (int i = 0; i < 3; ++i) Exchange(agent);
  ASSERT_EQ(cluster_->ledger().Committed(a), 10);
  // It wants nothing any more, but holds what it had.
  agent.use[a].wanted_slabs = 0;
  agent.use[a].held_slabs = 10;
  for (int i = 0; i < 3; ++i) Exchange(agent);
  EXPECT_EQ(cluster_->ledger().Committed(a), 10);
  EXPECT_EQ(cluster_->Outlook().at(a), 10);
  agent.use[a].held_slabs = 0;
  for (int i = 0; i < 12; ++i) Exchange(agent);
  EXPECT_LE(cluster_->ledger().Committed(a), 3) << "head-room";
  EXPECT_EQ(cluster_->Outlook().at(a), cluster_->ledger().Committed(a));
}

// A tenant with a ladder of four rungs, and its agent.
class LadderClusterTest : public ClusterTest {
 protected:
  LadderClusterTest() : agent_(Connect(Agent("a", 20))) { SetLadderOf(0.9, 4); }

  void SetLadderOf(double min_recovery, size_t rungs) {
    TenantSpec spec{.name = "t", .limit = 20_MiB};
    std::vector<PolicySpec> all = DefaultRungs();
    all.resize(rungs);
    SetLadder({.min_recovery = min_recovery, .rungs = std::move(all)}, &spec);
    const auto changed = cluster_->tenants().PlanApply({spec}, cluster_->AgentPools());
    ASSERT_TRUE(changed.ok()) << changed.status();
    cluster_->CommitTenants(*changed);
  }
  const Tenant& Now() { return *cluster_->tenants().Find("t"); }
  TenantUse& use() { return agent_.use[Now().id]; }

  // A report, and what comes of it; the reason when the tenant changed its rung.
  std::string Tick() {
    Exchange(agent_);
    std::string reason;
    for (const RungMove& move : cluster_->RungsDue(now_)) {
      std::optional<Tenant> moved = cluster_->Moved(move);
      EXPECT_TRUE(moved.has_value());
      cluster_->CommitTenants({*moved});
      reason = moved->rung.reason;
    }
    return reason;
  }
  // The reasons of all changes in this time.
  std::vector<std::string> Pass(Duration time) {
    std::vector<std::string> reasons;
    for (const TimePoint end = now_ + time; now_ < end;) {
      if (std::string reason = Tick(); !reason.empty()) reasons.push_back(std::move(reason));
    }
    return reasons;
  }

  ModelAgent agent_;
};

TEST_F(LadderClusterTest, ClimbsForDemandThatIsNotServedAndComesDownAfterIt) {
  EXPECT_THAT(Pass(seconds(10)), IsEmpty());
  use().wanted_slabs = 4;
  EXPECT_THAT(Pass(seconds(10)), IsEmpty()) << "it gets what it wants";
  use().wanted_slabs = 13;
  const auto reasons = Pass(seconds(5));
  ASSERT_THAT(reasons, SizeIs(2));
  EXPECT_EQ(reasons[0], "it wants 26 MiB where it is given 20 MiB");
  EXPECT_EQ(Now().rung.index, 2u);
  EXPECT_EQ(Now().policy(), DefaultRungs()[2]);
  EXPECT_EQ(Exchange(agent_).tenants[0].tenant->rung.index, 2u);
  EXPECT_EQ(cluster_->RungChangesOf(Now().id).climbs, 2u);
  use().wanted_slabs = 4;
  EXPECT_THAT(Pass(seconds(29)), IsEmpty());
  EXPECT_THAT(Pass(seconds(40)),
              ElementsAre("there was no pressure for 30 s", "there was no pressure for 30 s"));
  EXPECT_EQ(Now().rung.index, 0u);
  EXPECT_EQ(cluster_->RungChangesOf(Now().id).descents, 2u);
  EXPECT_EQ(Now().revision, 1u) << "nobody changed what the operator set";
}

TEST_F(LadderClusterTest, ClimbsWhileItHoldsMoreThanItsLeaseAndWhenWorkersAreRefused) {
  (void)Tick();
  use().over = seconds(1);
  EXPECT_THAT(Pass(seconds(4)), ElementsAre("it holds more than its lease"));
  use().over = {};
  for (int i = 0; i < 12; ++i) {
    use().refusals += 2;
    (void)Tick();
  }
  EXPECT_EQ(Now().rung.reason, "sessions or pages were refused");
}

TEST_F(LadderClusterTest, LeavesARungWhoseCompactionsTheFloorHolds) {
  use().wanted_slabs = 13;
  use().rungs.resize(4);
  (void)Pass(seconds(12));
  ASSERT_EQ(Now().rung.index, 3u);
  use().rungs[3] = {.compactions = 1, .floor_stops = 4, .cumulative_sum = 1, .cumulative_count = 1};
  EXPECT_EQ(Tick(),
            "4 of 5 compactions on this rung would have lost more than min_recovery 0.900 "
            "allows");
  EXPECT_THAT(Pass(std::chrono::minutes(4)), IsEmpty()) << "barred";
  use().rungs[2] = {.compactions = 2, .cumulative_sum = 1.5, .cumulative_count = 2};
  EXPECT_EQ(Tick(),
            "the cumulative recovery of its sessions on this rung is 0.750, below "
            "min_recovery 0.900");
}

TEST_F(LadderClusterTest, WhatAnAgentCountedBeforeIsNothingNew) {
  use().wanted_slabs = 13;
  (void)Pass(seconds(4));
  ASSERT_EQ(Now().rung.index, 1u);
  use().wanted_slabs = 4;
  cluster_->Disconnect("a", agent_.link);
  agent_.link = cluster_->Connect(agent_.info);
  agent_.seq = 0;
  use().refusals = 1000;
  use().rungs.resize(4);
  use().rungs[1] = {.compactions = 1, .floor_stops = 1000};
  EXPECT_THAT(Pass(seconds(5)), IsEmpty());
}

TEST_F(LadderClusterTest, WithoutReportsAndAfterARestartItStaysWhereItIs) {
  use().wanted_slabs = 13;
  (void)Pass(seconds(4));
  ASSERT_EQ(Now().rung.index, 1u);
  use().wanted_slabs = 4;
  Restart({agent_.info});
  EXPECT_EQ(Now().rung.index, 1u);
  now_ += std::chrono::minutes(10);
  EXPECT_THAT(cluster_->RungsDue(now_), IsEmpty()) << "nobody says anything";
  agent_ = Connect(Agent("a", 20));
  EXPECT_THAT(Pass(seconds(29)), IsEmpty());
  EXPECT_THAT(Pass(seconds(5)), SizeIs(1)) << "then as before";
}

TEST_F(LadderClusterTest, AnotherLadderKeepsThePolicyThatTheTenantIsOn) {
  use().wanted_slabs = 13;
  (void)Pass(seconds(6));
  ASSERT_EQ(Now().rung.index, 2u);
  SetLadderOf(0.8, 3);
  EXPECT_EQ(Now().rung.index, 2u);
  SetLadderOf(0.8, 2);
  EXPECT_EQ(Now().rung, TenantRung()) << "it is not there any more";
  TenantSpec fixed{.name = "t", .limit = 20_MiB};
  cluster_->CommitTenants(*cluster_->tenants().PlanApply({fixed}, cluster_->AgentPools()));
  EXPECT_THAT(Pass(seconds(10)), IsEmpty());
  const RungMove late{.tenant = "t", .from = 0, .step = {.to = 1}};
  EXPECT_FALSE(cluster_->Moved(late).has_value());
  SetLadderOf(0.8, 2);
  EXPECT_TRUE(cluster_->Moved(late).has_value());
  EXPECT_FALSE(cluster_->Moved({.tenant = "t", .from = 1, .step = {.to = 0}}).has_value());
  EXPECT_FALSE(cluster_->Moved({.tenant = "t", .from = 0, .step = {.to = 2}}).has_value());
  EXPECT_FALSE(cluster_->Moved({.tenant = "u", .from = 0, .step = {.to = 1}}).has_value());
}

}  // namespace
}  // namespace kvpool
