// The ledger's rule step by step, and against a model of agents and network that lose, double,
// delay and reorder messages, restart and reconnect.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/lease_ledger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>

namespace kvpool {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr TenantId kTenant(1);

// Plans, with every bound on record at once.
void PlanAndRecord(LeaseLedger& ledger, const std::vector<LeaseTarget>& targets) {
  ledger.Plan(targets);
  for (const std::string& agent : ledger.ReadyAgents()) {
    ledger.BoundsRecorded(agent, ledger.PrepareBounds(agent));
  }
}

// One manager and one agent "a" with 10 slabs, connected and heard.
class LeaseLedgerTest : public ::testing::Test {
 protected:
  LeaseLedgerTest() {
    ledger_.Connect("a", 77, 10);
    ledger_.Report("a", ++report_, {});
  }

  void Target(int64_t slabs, int64_t limit = 100) {
    Plan({{.tenant = kTenant, .limit = limit, .slabs = {slabs}}});
  }
  void Plan(const std::vector<LeaseTarget>& targets) { PlanAndRecord(ledger_, targets); }
  LeaseOrder Order() { return ledger_.Orders("a").at(0); }
  void Acknowledge(const LeaseOrder& order, int64_t promise) {
    ledger_.Report("a", ++report_, {{kTenant, 5, order.seq, promise}});
  }
  int64_t Committed() { return ledger_.Committed(kTenant); }

  LeaseLedger ledger_{5, {}};
  uint64_t report_ = 0;
};

TEST_F(LeaseLedgerTest, AGrowCountsFromTheOrderOn) {
  Target(6);
  EXPECT_EQ(Order().slabs, 6);
  EXPECT_EQ(Committed(), 6);
}

TEST_F(LeaseLedgerTest, AShrinkCountsFromTheAcknowledgementOn) {
  Target(6);
  Acknowledge(Order(), 6);
  Target(2);
  EXPECT_EQ(Order().slabs, 2);
  EXPECT_EQ(Committed(), 6);
  Acknowledge(Order(), 4);  // still giving back
  EXPECT_EQ(Committed(), 4);
  Acknowledge(Order(), 2);
  EXPECT_EQ(Committed(), 2);
}

TEST_F(LeaseLedgerTest, AnOldOrderCountsUntilANewerIsAcknowledged) {
  Target(6);
  const LeaseOrder grow = Order();
  Target(1);
  const LeaseOrder shrink = Order();
  Acknowledge(grow, 6);
  EXPECT_EQ(Committed(), 6);
  Acknowledge(shrink, 1);
  EXPECT_EQ(Committed(), 1);
}

TEST_F(LeaseLedgerTest, WhatAnAgentCouldStillTakeCountsThoughItHoldsLess) {
  Target(6);
  Acknowledge(Order(), 3);
  EXPECT_EQ(Committed(), 6);
}

TEST_F(LeaseLedgerTest, RepeatedAndOlderReportsAreIgnored) {
  Target(6);
  const LeaseOrder order = Order();
  Acknowledge(order, 6);
  EXPECT_FALSE(ledger_.Report("a", report_, {{kTenant, 5, order.seq, 1}}));
  EXPECT_FALSE(ledger_.Report("a", report_ - 1, {{kTenant, 5, order.seq, 1}}));
  EXPECT_EQ(Committed(), 6);
}

TEST_F(LeaseLedgerTest, AnAcknowledgementOfWhatWasNeverOrderedIsIgnored) {
  Target(6);
  Acknowledge({.tenant = kTenant, .seq = 1000}, 0);
  EXPECT_EQ(Committed(), 6);
}

TEST_F(LeaseLedgerTest, AGrowWaitsForRoomUnderTheLimitAndAtTheAgent) {
  ledger_.Connect("b", 78, 10);
  ledger_.Report("b", 1, {});
  Plan({{.tenant = kTenant, .limit = 10, .slabs = {10, 0}}});
  Plan({{.tenant = kTenant, .limit = 10, .slabs = {4, 6}}});
  EXPECT_EQ(ledger_.Orders("b").at(0).slabs, 0);
  Acknowledge(Order(), 7);
  Plan({{.tenant = kTenant, .limit = 10, .slabs = {4, 6}}});
  EXPECT_EQ(ledger_.Orders("b").at(0).slabs, 3);
  EXPECT_EQ(Committed(), 10);

  Plan({{.tenant = kTenant, .limit = 10, .slabs = {4, 6}},
        {.tenant = TenantId(2), .limit = 10, .slabs = {9, 0}}});
  EXPECT_EQ(ledger_.Committed(TenantId(2), "a"), 3);  // 10 slabs less the promise of 7
}

TEST_F(LeaseLedgerTest, ANewIncarnationHasWhatItSays) {
  Target(6);
  ledger_.Disconnect("a");
  EXPECT_EQ(Committed(), 6);
  ledger_.Connect("a", 77, 10);
  EXPECT_EQ(Committed(), 6);
  ledger_.Disconnect("a");
  ledger_.Connect("a", 78, 10);
  EXPECT_EQ(Committed(), 6) << "it may have kept a part, and nobody else may have that";
  ledger_.Report("a", 1, {{.tenant = kTenant, .epoch = 0, .seq = 0, .slabs = 2}});
  EXPECT_EQ(Committed(), 2);
  ledger_.Disconnect("a");
  ledger_.Connect("a", 79, 10);
  ledger_.Report("a", 1, {});
  EXPECT_EQ(Committed(), 0);
}

TEST_F(LeaseLedgerTest, AnUnreachableAgentIsLeftAloneUntilItIsForgotten) {
  Target(6);
  ledger_.Disconnect("a");
  EXPECT_THAT(ledger_.ReadyAgents(), IsEmpty());
  ledger_.Connect("b", 78, 10);
  ledger_.Report("b", 1, {});
  Plan({{.tenant = kTenant, .limit = 10, .slabs = {10}}});
  EXPECT_EQ(ledger_.Committed(kTenant, "b"), 4);
  ledger_.Forget("a");
  Plan({{.tenant = kTenant, .limit = 10, .slabs = {10}}});
  EXPECT_EQ(ledger_.Committed(kTenant, "b"), 10);
}

TEST_F(LeaseLedgerTest, AnOrderWaitsForItsBoundAndNothingElseDoes) {
  const auto target = [](int64_t slabs) -> std::vector<LeaseTarget> {
    return {{.tenant = kTenant, .limit = 100, .slabs = {slabs}}};
  };
  ledger_.Plan(target(9));
  EXPECT_TRUE(ledger_.AwaitsBounds("a"));
  EXPECT_THAT(ledger_.Orders("a"), IsEmpty());
  EXPECT_EQ(Committed(), 9) << "it may be on its way as soon as the bound is written";
  const LeaseBounds bounds = ledger_.PrepareBounds("a");
  EXPECT_EQ(bounds, (LeaseBounds{{kTenant, 16}}));
  EXPECT_THAT(ledger_.Orders("a"), IsEmpty()) << "not written yet";
  ledger_.BoundsRecorded("a", bounds);
  EXPECT_EQ(Order().slabs, 9);
  ledger_.Plan(target(10));
  EXPECT_FALSE(ledger_.AwaitsBounds("a")) << "within the bound";
  EXPECT_EQ(Order().slabs, 10);
}

TEST_F(LeaseLedgerTest, WhileALowerBoundIsWrittenOrdersKeepWithinIt) {
  Target(9);
  Acknowledge(Order(), 9);
  ledger_.Plan({{.tenant = kTenant, .limit = 100, .slabs = {2}},
                {.tenant = TenantId(2), .limit = 100, .slabs = {1}}});
  Acknowledge(Order(), 2);
  const LeaseBounds lower = ledger_.PrepareBounds("a");
  EXPECT_EQ(lower.at(kTenant), 8);
  ledger_.Plan({{.tenant = kTenant, .limit = 100, .slabs = {9}}});
  for (const LeaseOrder& order : ledger_.Orders("a")) EXPECT_LE(order.slabs, 8);
  ledger_.BoundsRecorded("a", lower);
  EXPECT_TRUE(ledger_.AwaitsBounds("a"));
}

TEST(LeaseLedgerLearningTest, ABoundCountsUntilItsAgentReports) {
  LeaseLedger ledger(6,
                     {{.agent = "a"}, {.agent = "b", .incarnation = 5, .bounds = {{kTenant, 8}}}});
  ledger.Connect("a", 77, 20);
  ledger.Report("a", 1, {});
  ledger.StopLearning();
  PlanAndRecord(ledger, {{.tenant = kTenant, .limit = 10, .slabs = {10}}});
  EXPECT_EQ(ledger.Orders("a").at(0).slabs, 2);
  ledger.Connect("b", 5, 20);
  EXPECT_EQ(ledger.Committed(kTenant), 10) << "connected, but not heard";
  ledger.Report("b", 1, {{kTenant, 5, 1, 3}});
  PlanAndRecord(ledger, {{.tenant = kTenant, .limit = 10, .slabs = {10, 3}}});
  EXPECT_EQ(ledger.Orders("a").at(0).slabs, 7);
}

TEST(LeaseLedgerLearningTest, ANewManagerChangesNothingBeforeItHasHeardAllKnownAgents) {
  LeaseLedger ledger(6, {{.agent = "a"}, {.agent = "b"}});
  ledger.Connect("a", 77, 10);
  ledger.Report("a", 1, {{kTenant, 5, 812, 8}});
  EXPECT_TRUE(ledger.Learning());
  PlanAndRecord(ledger, {{.tenant = kTenant, .limit = 10, .slabs = {10}}});
  EXPECT_THAT(ledger.Orders("a"), IsEmpty());

  ledger.Connect("b", 78, 10);
  EXPECT_TRUE(ledger.Learning());
  ledger.Report("b", 1, {{kTenant, 5, 813, 2}});
  EXPECT_FALSE(ledger.Learning());
  PlanAndRecord(ledger, {{.tenant = kTenant, .limit = 10, .slabs = {10, 2}}});
  EXPECT_EQ(ledger.Orders("a").at(0).slabs, 8);  // confirmed; b's two must come back first
  EXPECT_EQ(ledger.Orders("b").at(0).slabs, 2);
}

TEST(LeaseLedgerLearningTest, AnAgentThatComesLateIsLearnedBeforeAnythingIsOrderedFromIt) {
  LeaseLedger ledger(6, {{.agent = "a"}, {.agent = "b"}});
  ledger.Connect("a", 77, 10);
  ledger.Report("a", 1, {});
  ledger.StopLearning();
  PlanAndRecord(ledger, {{.tenant = kTenant, .limit = 10, .slabs = {10}}});
  ledger.Connect("b", 78, 10);
  EXPECT_THAT(ledger.ReadyAgents(), ElementsAre("a"));
  ledger.Report("b", 1, {{kTenant, 5, 813, 7}});
  PlanAndRecord(ledger, {{.tenant = kTenant, .limit = 10, .slabs = {5, 5}}});
  EXPECT_EQ(ledger.Orders("a").at(0).slabs, 5);
  EXPECT_EQ(ledger.Orders("b").at(0).slabs, 5);
  EXPECT_EQ(ledger.Committed(kTenant), 17);
}

// ---------------------------------------------------------------------------------------------

constexpr size_t kAgentCount = 3;
constexpr size_t kTenantCount = 3;

struct ReportMessage {
  size_t agent;
  uint64_t link;
  uint64_t seq;
  std::vector<LeaseReport> tenants;
};

struct OrdersMessage {
  size_t agent;
  uint64_t link;
  uint64_t epoch;
  std::vector<LeaseOrder> tenants;
};

// An agent as the schema describes it: it follows newer orders only, promises what it still needs
// and never takes a promise back but by a newer order.
struct ModelAgent {
  struct Lease {
    uint64_t epoch = 0, seq = 0;
    int64_t ordered = 0, promise = 0, used = 0;
  };

  int64_t capacity = 0;
  uint64_t incarnation = 1, link = 0, report_seq = 0, highest_epoch = 0;
  std::vector<Lease> leases = std::vector<Lease>(kTenantCount);

  void Apply(const OrdersMessage& message) {
    if (message.link != link || message.epoch < highest_epoch) return;
    highest_epoch = message.epoch;
    for (const LeaseOrder& order : message.tenants) {
      Lease& lease = leases[order.tenant.value()];
      if (std::pair(message.epoch, order.seq) <= std::pair(lease.epoch, lease.seq)) continue;
      lease.epoch = message.epoch;
      lease.seq = order.seq;
      lease.ordered = order.slabs;
      lease.promise = std::max(order.slabs, lease.used);
    }
  }

  void UseUpTo(size_t tenant, int64_t slabs) {
    Lease& lease = leases[tenant];
    lease.used = std::min(slabs, lease.used > lease.ordered ? lease.used : lease.ordered);
    lease.promise = std::min(lease.promise, std::max(lease.ordered, lease.used));
  }

  ReportMessage MakeReport(size_t self) {
    ReportMessage message{self, link, ++report_seq, {}};
    for (size_t t = 0; t < kTenantCount; ++t) {
      const Lease& lease = leases[t];
      if (lease.epoch == 0) continue;
      message.tenants.push_back(
          {TenantId(static_cast<uint32_t>(t)), lease.epoch, lease.seq, lease.promise});
    }
    return message;
  }
};

class Simulation {
 public:
  explicit Simulation(unsigned seed) : random_(seed) {
    for (ModelAgent& agent : agents_) agent.capacity = 1 + Below(12);
    for (int64_t& limit : limits_) limit = Below(20);
    RestartManager();
  }

  void Step() {
    const size_t a = Below(kAgentCount - 1), t = Below(kTenantCount - 1);
    switch (const int64_t dice = Below(99); dice) {
      case 0:
        return RestartManager();
      case 1:
        return Connect(a);
      case 2:
        return RestartAgent(a);
      case 3:
        return ledger_->StopLearning();
      case 4:
        limits_[t] = Below(20);
        return;
      default:
        if (dice < 25) return agents_[a].UseUpTo(t, Below(12));
        if (dice < 45) return reports_.push_back(agents_[a].MakeReport(a));
        if (dice < 55) return ChangeTargets();
        if (dice < 78) return DeliverReport();
        return DeliverOrders();
    }
  }

  void Check() {
    for (size_t a = 0; a < kAgentCount; ++a) {
      int64_t committed = 0;
      for (size_t t = 0; t < kTenantCount; ++t) {
        const int64_t slabs = ledger_->Committed(Id(t), Name(a));
        committed += slabs;
        if (heard_[a]) {
          ASSERT_LE(agents_[a].leases[t].promise, slabs);
        }
      }
      if (heard_[a]) {
        ASSERT_LE(committed, agents_[a].capacity);
      }
    }
    // Above the limit only where it was lowered, and then never upwards: what agents promise in all
    // through every restart, what the ledger counts once it has learned.
    const bool learning = ledger_->Learning();
    for (size_t t = 0; t < kTenantCount; ++t) {
      int64_t promised = 0;
      for (const ModelAgent& agent : agents_) promised += agent.leases[t].promise;
      const int64_t committed = ledger_->Committed(Id(t));
      ASSERT_LE(promised, std::max(limits_[t], bound_[t]));
      if (!was_learning_) {
        ASSERT_LE(committed, std::max(limits_[t], bound_[t]));
      }
      bound_[t] = std::max(promised, committed);
    }
    was_learning_ = learning;
  }

  // No more faults: everything is reported and answered until nothing changes.
  void Heal() {
    healing_ = true;
    reports_.clear();
    orders_.clear();
    ChangeTargets();
    for (size_t a = 0; a < kAgentCount; ++a) Connect(a);
    for (int round = 0; round < 8; ++round) {
      for (size_t a = 0; a < kAgentCount; ++a) {
        for (size_t t = 0; t < kTenantCount; ++t) {
          agents_[a].UseUpTo(t, agents_[a].leases[t].ordered);
        }
        reports_.push_back(agents_[a].MakeReport(a));
        TakeReport(0);
        reports_.clear();
        agents_[a].Apply(orders_.back());
        orders_.clear();
        Check();
      }
    }
    for (size_t t = 0; t < kTenantCount; ++t) {
      for (size_t a = 0; a < kAgentCount; ++a) {
        ASSERT_EQ(agents_[a].leases[t].promise, Targets()[t].slabs[a]);
        ASSERT_EQ(ledger_->Committed(Id(t), Name(a)), Targets()[t].slabs[a]);
      }
    }
  }

 private:
  static TenantId Id(size_t t) { return TenantId(static_cast<uint32_t>(t)); }
  static std::string Name(size_t a) { return std::string(1, static_cast<char>('a' + a)); }
  int64_t Below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n)(random_); }

  void RestartManager() {
    std::vector<LeaseHolder> known;
    for (size_t a = 0; a < kAgentCount; ++a) {
      known.push_back({Name(a), registered_[a], on_record_[a]});
    }
    ledger_ = std::make_unique<LeaseLedger>(++epoch_, known);
    was_learning_ = true;
    heard_.assign(kAgentCount, false);
    for (size_t a = 0; a < kAgentCount; ++a) {
      ++agents_[a].link;
      connected_[a] = false;
      if (Below(3) > 0) Connect(a);
    }
    ChangeTargets();
  }

  void RestartAgent(size_t a) {
    ModelAgent& agent = agents_[a];
    agent = ModelAgent{.capacity = agent.capacity,
                       .incarnation = agent.incarnation + 1,
                       .link = agent.link,
                       .highest_epoch = agent.highest_epoch};
    Connect(a);
  }

  // What is under way on the old connection is lost: to the agent in Apply, to the manager in
  // DeliverReport.
  void Connect(size_t a) {
    ++agents_[a].link;
    agents_[a].report_seq = 0;
    connected_[a] = true;
    registered_[a] = agents_[a].incarnation;
    ledger_->Connect(Name(a), agents_[a].incarnation, agents_[a].capacity);
  }

  void ChangeTargets() {
    std::vector<int64_t> free;
    for (const ModelAgent& agent : agents_) free.push_back(agent.capacity);
    for (size_t t = 0; t < kTenantCount; ++t) {
      int64_t room = limits_[t];
      for (size_t a = 0; a < kAgentCount; ++a) {
        wanted_[t][a] = Below(std::min(room, free[a]));
        room -= wanted_[t][a];
        free[a] -= wanted_[t][a];
      }
    }
  }

  std::vector<LeaseTarget> Targets() {
    std::vector<LeaseTarget> targets;
    const std::vector<std::string> ready = ledger_->ReadyAgents();
    for (size_t t = 0; t < kTenantCount; ++t) {
      LeaseTarget target{.tenant = Id(t), .limit = limits_[t]};
      for (const std::string& name : ready) target.slabs.push_back(wanted_[t][name[0] - 'a']);
      targets.push_back(target);
    }
    return targets;
  }

  void DeliverReport() {
    if (reports_.empty()) return;
    const size_t i = Below(static_cast<int64_t>(reports_.size()) - 1);
    const size_t a = reports_[i].agent;
    if (Below(9) > 0 && connected_[a] && reports_[i].link == agents_[a].link) TakeReport(i);
    if (Below(9) > 1) reports_.erase(reports_.begin() + static_cast<ptrdiff_t>(i));
  }

  void TakeReport(size_t i) {
    const ReportMessage& report = reports_[i];
    if (ledger_->Report(Name(report.agent), report.seq, report.tenants)) {
      heard_[report.agent] = true;
    }
    ledger_->Plan(Targets());
    RecordBounds(report.agent);
    orders_.push_back({report.agent, report.link, epoch_, ledger_->Orders(Name(report.agent))});
  }

  // A write may fail, or not have been acknowledged when other orders go out.
  void RecordBounds(size_t a) {
    if (!ledger_->AwaitsBounds(Name(a))) return;
    const LeaseBounds bounds = ledger_->PrepareBounds(Name(a));
    if (!healing_ && Below(9) == 0) return;
    on_record_[a] = bounds;
    if (!healing_ && Below(9) == 0) return;
    ledger_->BoundsRecorded(Name(a), bounds);
  }

  void DeliverOrders() {
    if (orders_.empty()) return;
    const size_t i = Below(static_cast<int64_t>(orders_.size()) - 1);
    if (Below(9) > 0) agents_[orders_[i].agent].Apply(orders_[i]);
    if (Below(9) > 1) orders_.erase(orders_.begin() + static_cast<ptrdiff_t>(i));
  }

  std::mt19937 random_;
  uint64_t epoch_ = 0;
  std::unique_ptr<LeaseLedger> ledger_;
  bool healing_ = false;
  std::vector<bool> connected_ = std::vector<bool>(kAgentCount);
  // In the manager's store.
  std::vector<uint64_t> registered_ = std::vector<uint64_t>(kAgentCount);  // incarnations
  std::vector<LeaseBounds> on_record_ = std::vector<LeaseBounds>(kAgentCount);
  std::vector<bool> heard_;  // whether the ledger has learned the agent's leases
  std::vector<ModelAgent> agents_ = std::vector<ModelAgent>(kAgentCount);
  std::vector<int64_t> limits_ = std::vector<int64_t>(kTenantCount);
  // At the last Check.
  bool was_learning_ = true;
  std::vector<int64_t> bound_ = std::vector<int64_t>(kTenantCount);
  int64_t wanted_[kTenantCount][kAgentCount] = {};
  std::vector<ReportMessage> reports_;
  std::vector<OrdersMessage> orders_;
};

TEST(LeaseLedgerPropertyTest, NothingIsExceededAndItConverges) {
  for (unsigned seed = 0; seed < 10000; ++seed) {
    SCOPED_TRACE(seed);
    Simulation simulation(seed);
    for (int step = 0; step < 100; ++step) {
      simulation.Step();
      ASSERT_NO_FATAL_FAILURE(simulation.Check()) << "step " << step;
    }
    ASSERT_NO_FATAL_FAILURE(simulation.Heal());
  }
}

}  // namespace
}  // namespace kvpool
