// Pacing rule by rule, and the whole loop on random clusters: allocate, pace, order, give back,
// acknowledge, until nothing changes.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/lease_pacing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>

#include "manager/lease_ledger.h"
#include "tests/manager/random_budgets.h"

namespace kvpool {
namespace {

using ::testing::ElementsAre;
using Row = std::vector<int64_t>;
using Table = std::vector<Row>;

int64_t Sum(const Row& row) { return std::accumulate(row.begin(), row.end(), int64_t{0}); }

// A tenant at one agent; nothing of it is on its way back.
PacingInput::Tenant AtOneAgent(int64_t demand, int64_t allocated, int64_t leased) {
  return {.limit = 1000,
          .demand = {demand},
          .allocated = {allocated},
          .ordered = {leased},
          .committed = {leased},
          .held = {0}};
}

TEST(LeasePacingTest, NobodyAndNothing) {
  EXPECT_THAT(PaceLeases({}), ElementsAre());
  EXPECT_THAT(PaceLeases({.capacity = {9}, .tenants = {AtOneAgent(0, 0, 0)}}),
              ElementsAre(ElementsAre(0)));
}

TEST(LeasePacingTest, GrowsAtOnceAsFarAsThereIsRoom) {
  EXPECT_THAT(PaceLeases({.capacity = {100}, .tenants = {AtOneAgent(80, 88, 3)}}),
              ElementsAre(ElementsAre(88)));
  EXPECT_THAT(PaceLeases({.capacity = {50}, .tenants = {AtOneAgent(80, 50, 3)}}),
              ElementsAre(ElementsAre(50)));
  PacingInput limited{.capacity = {100}, .tenants = {AtOneAgent(80, 88, 3)}};
  limited.tenants[0].limit = 40;
  EXPECT_THAT(PaceLeases(limited), ElementsAre(ElementsAre(40)));
}

TEST(LeasePacingTest, GuaranteesThenPrioritiesThenHeadRoomGetTheRoom) {
  PacingInput input{.capacity = {20},
                    .tenants = {AtOneAgent(0, 5, 0), AtOneAgent(8, 8, 0), AtOneAgent(6, 6, 0),
                                AtOneAgent(8, 8, 0)}};
  input.tenants[2].priority = 1;
  input.tenants[3].guaranteed = 7;
  EXPECT_THAT(PaceLeases(input),
              ElementsAre(ElementsAre(0), ElementsAre(7), ElementsAre(6), ElementsAre(7)));
}

TEST(LeasePacingTest, AShrinkByATrifleThatNobodyWaitsForStays) {
  EXPECT_THAT(
      PaceLeases({.capacity = {1000},
                  .tenants = {AtOneAgent(9, 9, 10), AtOneAgent(8, 8, 10), AtOneAgent(91, 91, 95),
                              AtOneAgent(90, 90, 95), AtOneAgent(9, 10, 9)}}),
      ElementsAre(ElementsAre(10), ElementsAre(8), ElementsAre(95), ElementsAre(90),
                  ElementsAre(10)));
}

TEST(LeasePacingTest, ATrifleThatSomebodyWaitsForGoes) {
  EXPECT_THAT(
      PaceLeases({.capacity = {20}, .tenants = {AtOneAgent(9, 9, 10), AtOneAgent(11, 11, 10)}}),
      ElementsAre(ElementsAre(9), ElementsAre(10)));
  // The tenant itself, which is at its limit.
  PacingInput input{.capacity = {20, 20}, .tenants = {{.limit = 10}}};
  input.tenants[0].demand = input.tenants[0].allocated = {9, 1};
  input.tenants[0].ordered = input.tenants[0].committed = {10, 0};
  input.tenants[0].held = {0, 0};
  EXPECT_THAT(PaceLeases(input), ElementsAre(ElementsAre(9, 0)));
}

TEST(LeasePacingTest, WhatIsHeldStaysWhileNobodyWaitsForIt) {
  PacingInput input{.capacity = {100}, .tenants = {AtOneAgent(0, 3, 50), AtOneAgent(9, 9, 9)}};
  EXPECT_THAT(PaceLeases(input), ElementsAre(ElementsAre(40), ElementsAre(9)));
  input.tenants[0].held = {45};
  EXPECT_THAT(PaceLeases(input), ElementsAre(ElementsAre(45), ElementsAre(9)));
  input.tenants[0].held = {49};
  EXPECT_THAT(PaceLeases(input), ElementsAre(ElementsAre(50), ElementsAre(9))) << "a trifle";
  input.tenants[0].held = {60};
  EXPECT_THAT(PaceLeases(input), ElementsAre(ElementsAre(50), ElementsAre(9)))
      << "an older order has not been followed yet";
  input.tenants.push_back(AtOneAgent(60, 60, 0));
  EXPECT_THAT(PaceLeases(input), ElementsAre(ElementsAre(40), ElementsAre(9), ElementsAre(41)));
}

TEST(LeasePacingTest, ShrinksKeepThePace) {
  PacingInput input{.capacity = {100}, .tenants = {AtOneAgent(50, 50, 100), AtOneAgent(50, 50, 0)}};
  EXPECT_THAT(PaceLeases(input), ElementsAre(ElementsAre(90), ElementsAre(0)));
  // What is on its way back counts.
  input.tenants[0].ordered = {90};
  EXPECT_THAT(PaceLeases(input), ElementsAre(ElementsAre(90), ElementsAre(0)));
  input.tenants[0].committed = {94};
  EXPECT_THAT(PaceLeases(input), ElementsAre(ElementsAre(84), ElementsAre(6)));
}

TEST(LeasePacingTest, UnusedLeasesThenLowPrioritiesThenLargeOnesShrinkFirst) {
  PacingInput input{.capacity = {100},
                    .tenants = {AtOneAgent(30, 20, 30), AtOneAgent(40, 16, 40),
                                AtOneAgent(30, 10, 24), AtOneAgent(2, 2, 6)}};
  input.tenants[0].priority = 1;
  input.tenants[3].priority = 9;
  EXPECT_THAT(PaceLeases(input),
              ElementsAre(ElementsAre(30), ElementsAre(34), ElementsAre(24), ElementsAre(2)));
}

TEST(LeasePacingTest, AGuaranteeDoesNotWaitForThePace) {
  PacingInput input{.capacity = {100}, .tenants = {AtOneAgent(50, 50, 100), AtOneAgent(50, 50, 0)}};
  input.tenants[1].guaranteed = 30;
  EXPECT_THAT(PaceLeases(input), ElementsAre(ElementsAre(70), ElementsAre(0)));
}

TEST(LeasePacingTest, WhatIsAboveTheLimitDoesNotWaitForThePace) {
  PacingInput input{.capacity = {100}, .tenants = {AtOneAgent(100, 40, 100)}};
  input.tenants[0].limit = 40;
  EXPECT_THAT(PaceLeases(input), ElementsAre(ElementsAre(40)));
}

TEST(LeasePacingTest, AGuaranteeThatMovesToAnotherAgentDoesNotWaitForThePace) {
  PacingInput input{.capacity = {100, 100}, .tenants = {{.guaranteed = 50, .limit = 50}}};
  input.tenants[0].demand = input.tenants[0].allocated = {10, 40};
  input.tenants[0].ordered = input.tenants[0].committed = {50, 0};
  EXPECT_THAT(PaceLeases(input), ElementsAre(ElementsAre(10, 0)));
}

// ---------------------------------------------------------------------------------------------

// Agents that follow their orders, use what they want of it, and give back a part at a time.
class Loop {
 public:
  Loop(const AllocatorInput& input, unsigned seed)
      : input_(input), random_(seed), used_(EmptyTable()) {
    for (size_t a = 0; a < input.capacity.size(); ++a) {
      ledger_.Connect(Name(a), 1, input.capacity[a]);
      ledger_.Report(Name(a), ++report_seq_, {});
    }
  }

  void SetDemand(const AllocatorInput& other) {
    for (size_t t = 0; t < input_.tenants.size(); ++t) {
      input_.tenants[t].demand = other.tenants[t].demand;
    }
  }

  Table Ordered() const {
    Table table = EmptyTable();
    for (size_t t = 0; t < table.size(); ++t) {
      for (size_t a = 0; a < table[t].size(); ++a) table[t][a] = ledger_.Ordered(Id(t), Name(a));
    }
    return table;
  }
  Table Committed() const {
    Table table = EmptyTable();
    for (size_t t = 0; t < table.size(); ++t) {
      for (size_t a = 0; a < table[t].size(); ++a) table[t][a] = ledger_.Committed(Id(t), Name(a));
    }
    return table;
  }

  // One plan, and every agent's answer to it.
  void Round() {
    const Table allocated = Allocate(input_), ordered = Ordered(), committed = Committed();
    PacingInput pacing{.capacity = input_.capacity};
    std::vector<LeaseTarget> targets;
    for (size_t t = 0; t < allocated.size(); ++t) {
      const AllocatorInput::Tenant& tenant = input_.tenants[t];
      pacing.tenants.push_back({.guaranteed = tenant.guaranteed,
                                .limit = tenant.limit,
                                .priority = tenant.priority,
                                .demand = tenant.demand,
                                .allocated = allocated[t],
                                .ordered = ordered[t],
                                .committed = committed[t],
                                .held = used_[t]});
      targets.push_back({.tenant = Id(t), .limit = tenant.limit});
    }
    const Table leases = PaceLeases(pacing);
    for (size_t t = 0; t < targets.size(); ++t) targets[t].slabs = leases[t];
    ledger_.Plan(targets);
    for (size_t a = 0; a < input_.capacity.size(); ++a) {
      ledger_.BoundsRecorded(Name(a), ledger_.PrepareBounds(Name(a)));
    }
    EXPECT_EQ(Ordered(), leases) << "what is paced fits";
    CheckRound(allocated, ordered, leases);
    for (size_t a = 0; a < input_.capacity.size(); ++a) Answer(a);
  }

  // All demand that the allocator grants has a lease.
  bool Served() const {
    const Table allocated = Allocate(input_), ordered = Ordered();
    for (size_t t = 0; t < allocated.size(); ++t) {
      for (size_t a = 0; a < allocated[t].size(); ++a) {
        if (ordered[t][a] < std::min(allocated[t][a], input_.tenants[t].demand[a])) return false;
      }
    }
    return true;
  }

 private:
  static TenantId Id(size_t t) { return TenantId(static_cast<uint32_t>(t + 1)); }
  static std::string Name(size_t a) { return std::string(1, static_cast<char>('a' + a)); }
  Table EmptyTable() const { return Table(input_.tenants.size(), Row(input_.capacity.size())); }

  bool AllIsBorrowed() const {
    return std::all_of(input_.tenants.begin(), input_.tenants.end(),
                       [](const AllocatorInput::Tenant& tenant) { return tenant.guaranteed == 0; });
  }

  void CheckRound(const Table& allocated, const Table& before, const Table& after) {
    const Table committed = Committed();
    for (size_t t = 0; t < after.size(); ++t) {
      EXPECT_LE(Sum(committed[t]), input_.tenants[t].limit);
      for (size_t a = 0; a < after[t].size(); ++a) {
        EXPECT_GE(after[t][a], std::min(allocated[t][a], before[t][a]));
        EXPECT_LE(after[t][a], std::max(allocated[t][a], before[t][a]));
      }
    }
    for (size_t a = 0; a < input_.capacity.size(); ++a) {
      EXPECT_LE(ledger_.CommittedAt(Name(a)), input_.capacity[a]);
      int64_t returning = 0;
      for (size_t t = 0; t < after.size(); ++t) returning += committed[t][a] - after[t][a];
      if (AllIsBorrowed()) {
        EXPECT_LE(returning, std::max(kTrifleSlabs, input_.capacity[a] / kPaceDivisor));
      }
    }
  }

  void Answer(size_t a) {
    std::vector<LeaseReport> report;
    for (const LeaseOrder& order : ledger_.Orders(Name(a))) {
      const size_t t = order.tenant.value() - 1;
      const int64_t wanted = std::min(order.slabs, input_.tenants[t].demand[a]);
      int64_t& used = used_[t][a];
      used = used > wanted ? used - std::min<int64_t>(used - wanted, 1 + random_() % 8) : wanted;
      report.push_back({order.tenant, kEpoch, order.seq, std::max(used, order.slabs)});
    }
    if (random_() % 4 > 0) ledger_.Report(Name(a), ++report_seq_, report);  // some are lost
  }

  static constexpr uint64_t kEpoch = 1;

  AllocatorInput input_;
  std::mt19937 random_;
  Table used_;  // by workers
  uint64_t report_seq_ = 0;
  LeaseLedger ledger_{kEpoch, {}};
};

TEST(LeasePacingPropertyTest, ConstantDemandIsServedAndThenNothingChanges) {
  for (unsigned seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    AllocatorInput input = RandomBudgets(random);
    for (AllocatorInput::Tenant& tenant : input.tenants) {
      if (seed % 3 > 0) continue;
      tenant.guaranteed = 0;
      tenant.floors.clear();
    }
    Loop loop(input, seed);
    for (int phase = 0; phase < 3; ++phase) {
      AllocatorInput other = input;
      for (AllocatorInput::Tenant& tenant : other.tenants) {
        for (int64_t& slabs : tenant.demand) slabs = random() % 3 == 0 ? 0 : random() % 60;
      }
      loop.SetDemand(other);
      for (int round = 0; round < 80; ++round) loop.Round();
      ASSERT_TRUE(loop.Served());
      const Table fixed = loop.Ordered();
      ASSERT_EQ(loop.Committed(), fixed);
      for (int round = 0; round < 5; ++round) loop.Round();
      ASSERT_EQ(loop.Ordered(), fixed);
      ASSERT_FALSE(HasFailure());
    }
  }
}

}  // namespace
}  // namespace kvpool
