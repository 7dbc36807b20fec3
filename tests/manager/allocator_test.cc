// The allocator on small instances whose answer is plain, and its promises on random ones: against
// an oracle that places slab by slab, and against the words of the header.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/allocator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "tests/manager/random_budgets.h"

namespace kvpool {
namespace {

using ::testing::ElementsAre;
using Table = std::vector<std::vector<int64_t>>;

int64_t Sum(const std::vector<int64_t>& row) {
  return std::accumulate(row.begin(), row.end(), int64_t{0});
}

TEST(AllocatorTest, NobodyAndNothing) {
  EXPECT_TRUE(Allocate({}).empty());
  EXPECT_TRUE(Allocate({.capacity = {4, 4}}).empty());
  EXPECT_THAT(Allocate({.tenants = {{.limit = 4}}}), ElementsAre(ElementsAre()));
}

TEST(AllocatorTest, IdleTenantsHaveAStartingCredit) {
  const Table leases = Allocate({.capacity = {100, 100},
                                 .tenants = {{.limit = 50, .demand = {0, 0}},
                                             {.limit = 3, .demand = {0, 0}},
                                             {.limit = 0, .demand = {0, 0}}}});
  EXPECT_THAT(leases[0], ElementsAre(2, 2));
  EXPECT_EQ(Sum(leases[1]), 3);
  EXPECT_THAT(leases[2], ElementsAre(0, 0));
}

TEST(AllocatorTest, HeadRoomIsAQuarterButAtMostEightSlabs) {
  const Table leases = Allocate({.capacity = {1000},
                                 .tenants = {{.limit = 1000, .demand = {9}},
                                             {.limit = 1000, .demand = {400}},
                                             {.limit = 401, .demand = {400}}}});
  EXPECT_THAT(leases, ElementsAre(ElementsAre(12), ElementsAre(408), ElementsAre(401)));
}

TEST(AllocatorTest, UnusedGuaranteeIsLentAndComesBack) {
  AllocatorInput input{.capacity = {20},
                       .tenants = {{.guaranteed = 10, .limit = 20, .demand = {0}},
                                   {.guaranteed = 0, .limit = 20, .demand = {20}}}};
  EXPECT_THAT(Allocate(input), ElementsAre(ElementsAre(0), ElementsAre(20)));
  input.tenants[0].demand = {10};
  EXPECT_THAT(Allocate(input), ElementsAre(ElementsAre(10), ElementsAre(10)));
  input.tenants[0].demand = {20};
  EXPECT_THAT(Allocate(input), ElementsAre(ElementsAre(15), ElementsAre(5)));
}

TEST(AllocatorTest, GuaranteesMoveOutOfEachOthersWay) {
  // The first can use either agent, the second only agent 0: both fit only if the first makes room.
  const Table leases = Allocate({.capacity = {10, 10},
                                 .tenants = {{.guaranteed = 10, .limit = 10, .demand = {10, 10}},
                                             {.guaranteed = 10, .limit = 10, .demand = {10, 0}}}});
  EXPECT_THAT(leases, ElementsAre(ElementsAre(0, 10), ElementsAre(10, 0)));
}

TEST(AllocatorTest, AShortAgentIsSharedEqually) {
  const Table leases = Allocate({.capacity = {11, 100},
                                 .tenants = {{.guaranteed = 8, .limit = 8, .demand = {8, 0}},
                                             {.guaranteed = 8, .limit = 8, .demand = {8, 0}},
                                             {.guaranteed = 2, .limit = 2, .demand = {2, 0}}}});
  EXPECT_THAT(leases, ElementsAre(ElementsAre(5, 2), ElementsAre(4, 2), ElementsAre(2, 0)));
}

TEST(AllocatorTest, BorrowingIsByWeight) {
  const Table leases = Allocate({.capacity = {40},
                                 .tenants = {{.limit = 40, .weight = 3, .demand = {40}},
                                             {.limit = 40, .weight = 1, .demand = {40}},
                                             {.limit = 40, .weight = 4, .demand = {8}}}});
  EXPECT_THAT(leases, ElementsAre(ElementsAre(24), ElementsAre(8), ElementsAre(8)));
}

TEST(AllocatorTest, AHigherPriorityBorrowsFirstButGuaranteesStay) {
  const Table leases =
      Allocate({.capacity = {20},
                .tenants = {{.guaranteed = 4, .limit = 20, .demand = {20}},
                            {.guaranteed = 2, .limit = 20, .priority = 5, .demand = {9}},
                            {.limit = 20, .weight = 9, .priority = 1, .demand = {20}}}});
  EXPECT_THAT(leases, ElementsAre(ElementsAre(4), ElementsAre(9), ElementsAre(7)));
}

TEST(AllocatorTest, WithoutBorrowingTheGuaranteeIsTheLimit) {
  const Table leases =
      Allocate({.capacity = {20},
                .tenants = {
                    {.guaranteed = 5, .limit = 20, .borrowing = Borrowing::kOff, .demand = {9}},
                    {.guaranteed = 5, .limit = 20, .borrowing = Borrowing::kOff, .demand = {4}},
                    {.guaranteed = 0, .limit = 20, .borrowing = Borrowing::kOff, .demand = {4}},
                }});
  EXPECT_THAT(leases, ElementsAre(ElementsAre(5), ElementsAre(5), ElementsAre(0)));
}

TEST(AllocatorTest, AFloorComesBeforeOthersGuarantees) {
  AllocatorInput input{.capacity = {10, 10},
                       .tenants = {{.guaranteed = 10, .limit = 10, .demand = {10, 0}},
                                   {.guaranteed = 10, .limit = 10, .demand = {10, 10}}}};
  EXPECT_THAT(Allocate(input), ElementsAre(ElementsAre(10, 0), ElementsAre(0, 10)));
  input.tenants[1].floors = {6, 0};
  EXPECT_THAT(Allocate(input), ElementsAre(ElementsAre(4, 2), ElementsAre(6, 4)));  // 2: credit
}

TEST(AllocatorTest, AnUnusedFloorIsLentAndItsGuaranteeCountsElsewhere) {
  const Table leases =
      Allocate({.capacity = {10, 10},
                .tenants = {{.guaranteed = 8, .floors = {8, 0}, .limit = 8, .demand = {0, 10}},
                            {.limit = 20, .priority = kMaxPriority, .demand = {10, 10}}}});
  EXPECT_THAT(leases, ElementsAre(ElementsAre(0, 8), ElementsAre(10, 2)));
}

TEST(AllocatorTest, FloorsThatAnAgentCannotHoldAreMetMaxMin) {
  const Table leases =
      Allocate({.capacity = {9, 9},
                .tenants = {{.guaranteed = 8, .floors = {8, 0}, .limit = 8, .demand = {8, 0}},
                            {.guaranteed = 3, .floors = {3, 0}, .limit = 3, .demand = {3, 0}}}});
  EXPECT_EQ(leases[0][0], 6);
  EXPECT_EQ(leases[1][0], 3);
}

TEST(AllocatorTest, FloorsBeyondTheGuaranteeDoNotCount) {
  const Table leases =
      Allocate({.capacity = {9, 9},
                .tenants = {{.guaranteed = 6, .floors = {4, 4}, .limit = 6, .demand = {9, 9}},
                            {.guaranteed = 9, .limit = 9, .demand = {0, 9}}}});
  EXPECT_THAT(leases, ElementsAre(ElementsAre(4, 2), ElementsAre(2, 7)));
}

TEST(AllocatorTest, WhatOneCannotPlaceGoesToTheOthers) {
  // By weight the first would get nearly everything, but it can use agent 0 only.
  const Table leases = Allocate({.capacity = {10, 30},
                                 .tenants = {{.limit = 40, .weight = 100, .demand = {40, 0}},
                                             {.limit = 40, .weight = 2, .demand = {0, 40}},
                                             {.limit = 40, .weight = 1, .demand = {40, 40}}}});
  EXPECT_THAT(leases, ElementsAre(ElementsAre(10, 0), ElementsAre(0, 20), ElementsAre(0, 10)));
}

TEST(AllocatorTest, ASumIsSplitOverAgentsAsItsDemandIs) {
  const Table leases =
      Allocate({.capacity = {100, 100, 100}, .tenants = {{.limit = 12, .demand = {30, 10, 20}}}});
  EXPECT_THAT(leases, ElementsAre(ElementsAre(6, 2, 4)));
}

// The header's steps 1 to 3 read word by word: one slab at a time to the poorest, each with a
// search for any placement that has room for it. Floors must fit.
class SlabBySlab {
 public:
  explicit SlabBySlab(const AllocatorInput& input)
      : input_(input),
        floors_(input.tenants.size(), std::vector<int64_t>(input.capacity.size())),
        placed_(floors_),
        free_(input.capacity) {
    std::vector<int64_t> wants(placed_.size());
    for (size_t t = 0; t < placed_.size(); ++t) {
      const AllocatorInput::Tenant& tenant = input.tenants[t];
      for (size_t a = 0; a < tenant.floors.size(); ++a) {
        floors_[t][a] = std::min(tenant.floors[a], tenant.demand[a]);
        free_[a] -= floors_[t][a];
      }
      wants[t] = tenant.guaranteed - Sum(floors_[t]);
    }
    Raise(wants, std::vector<int64_t>(placed_.size(), 1));
    for (size_t t = 0; t < placed_.size(); ++t) guaranteed_.push_back(Served(t));
    for (int64_t priority = kMaxPriority; priority >= 0; --priority) {
      std::vector<int64_t> weights;
      for (size_t t = 0; t < placed_.size(); ++t) {
        const AllocatorInput::Tenant& tenant = input.tenants[t];
        const bool borrows = tenant.borrowing == Borrowing::kOn && tenant.priority == priority;
        wants[t] = borrows ? tenant.limit - Served(t) : 0;
        weights.push_back(tenant.weight);
      }
      Raise(wants, weights);
    }
  }

  int64_t Floor(size_t t, size_t a) const { return floors_[t][a]; }
  int64_t Guaranteed(size_t t) const { return guaranteed_[t]; }  // after step 2
  int64_t Served(size_t t) const { return Sum(floors_[t]) + Sum(placed_[t]); }

 private:
  void Raise(std::vector<int64_t> wants, const std::vector<int64_t>& weights) {
    std::vector<int64_t> gains(wants.size());
    while (Sum(wants) > 0) {
      size_t poorest = wants.size();
      for (size_t t = 0; t < wants.size(); ++t) {
        if (wants[t] == 0) continue;
        if (poorest == wants.size() || gains[t] * weights[poorest] < gains[poorest] * weights[t]) {
          poorest = t;
        }
      }
      visited_.assign(free_.size(), 0);
      if (Place(poorest)) {
        ++gains[poorest];
        --wants[poorest];
      } else {
        wants[poorest] = 0;
      }
    }
  }

  bool Place(size_t t) {
    for (size_t a = 0; a < free_.size(); ++a) {
      if (visited_[a] || floors_[t][a] + placed_[t][a] >= input_.tenants[t].demand[a]) continue;
      visited_[a] = 1;
      bool room = free_[a] > 0;
      if (room) --free_[a];
      for (size_t u = 0; u < placed_.size() && !room; ++u) {
        if (placed_[u][a] > 0 && Place(u)) {
          --placed_[u][a];
          room = true;
        }
      }
      if (room) {
        ++placed_[t][a];
        return true;
      }
    }
    return false;
  }

  const AllocatorInput& input_;
  Table floors_;  // met by demand
  Table placed_;  // besides
  std::vector<int64_t> free_;
  std::vector<int64_t> guaranteed_;
  std::vector<char> visited_;
};

int64_t Ceiling(const AllocatorInput::Tenant& tenant) {
  return tenant.borrowing == Borrowing::kOn ? tenant.limit : tenant.guaranteed;
}

// Of the tenant's demand, what its leases serve; the rest of them is head-room.
int64_t Served(const AllocatorInput& input, const Table& leases, size_t t) {
  int64_t sum = 0;
  for (size_t a = 0; a < input.capacity.size(); ++a) {
    sum += std::min(leases[t][a], input.tenants[t].demand[a]);
  }
  return sum;
}

TEST(AllocatorPropertyTest, EveryoneGetsWhatTheOracleGives) {
  for (unsigned seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const AllocatorInput input = RandomBudgets(random);
    const Table leases = Allocate(input);
    const SlabBySlab oracle(input);
    for (size_t t = 0; t < leases.size(); ++t) {
      ASSERT_EQ(Served(input, leases, t), oracle.Served(t)) << t;
      for (size_t a = 0; a < input.capacity.size(); ++a) {
        ASSERT_GE(leases[t][a], oracle.Floor(t, a)) << t << " " << a;
      }
    }
  }
}

TEST(AllocatorPropertyTest, SumsLimitsAndNoIdleSlabs) {
  for (unsigned seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const AllocatorInput input = RandomBudgets(random);
    const Table leases = Allocate(input);
    ASSERT_EQ(leases.size(), input.tenants.size());
    ASSERT_EQ(leases, Allocate(input));

    std::vector<int64_t> free = input.capacity;
    for (size_t t = 0; t < leases.size(); ++t) {
      const AllocatorInput::Tenant& tenant = input.tenants[t];
      ASSERT_EQ(leases[t].size(), input.capacity.size());
      ASSERT_LE(Sum(leases[t]), Ceiling(tenant));
      for (size_t a = 0; a < free.size(); ++a) {
        ASSERT_GE(leases[t][a], 0);
        ASSERT_LE(leases[t][a], tenant.demand[a] + kMostHeadRoomSlabs);
        free[a] -= leases[t][a];
      }
    }
    for (size_t a = 0; a < free.size(); ++a) {
      ASSERT_GE(free[a], 0);
      for (size_t t = 0; t < leases.size() && free[a] > 0; ++t) {
        const bool at_ceiling = Sum(leases[t]) == Ceiling(input.tenants[t]);
        ASSERT_TRUE(at_ceiling || leases[t][a] >= input.tenants[t].demand[a]);
      }
    }
  }
}

// Everyone whose borrowed slabs the tenant could have, if others moved between agents.
std::vector<size_t> Reachable(const AllocatorInput& input, const Table& leases,
                              const SlabBySlab& oracle, size_t from) {
  std::vector<size_t> reached{from};
  for (size_t next = 0; next < reached.size(); ++next) {
    for (size_t a = 0; a < input.capacity.size(); ++a) {
      if (leases[reached[next]][a] >= input.tenants[reached[next]].demand[a]) continue;
      for (size_t u = 0; u < leases.size(); ++u) {
        const bool known = std::find(reached.begin(), reached.end(), u) != reached.end();
        if (!known && leases[u][a] > oracle.Floor(u, a)) reached.push_back(u);
      }
    }
  }
  return reached;
}

// The definition: who could do with more cannot have it but from someone of a higher priority, or
// of the same, who would then have borrowed less per weight.
TEST(AllocatorPropertyTest, NobodyGainsButFromAPoorerOne) {
  for (unsigned seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const AllocatorInput input = RandomBudgets(random);
    const Table leases = Allocate(input);
    const SlabBySlab oracle(input);
    const auto borrowed = [&](size_t t) { return Served(input, leases, t) - oracle.Guaranteed(t); };
    for (size_t t = 0; t < leases.size(); ++t) {
      const AllocatorInput::Tenant& tenant = input.tenants[t];
      ASSERT_GE(borrowed(t), 0);
      if (Served(input, leases, t) >= std::min(Ceiling(tenant), Sum(tenant.demand))) continue;
      for (const size_t u : Reachable(input, leases, oracle, t)) {
        const AllocatorInput::Tenant& other = input.tenants[u];
        if (u == t || borrowed(u) == 0) continue;
        ASSERT_GE(other.priority, tenant.priority) << t << " " << u;
        if (other.priority > tenant.priority) continue;
        ASSERT_LE((borrowed(u) - 1) * tenant.weight, borrowed(t) * other.weight) << t << " " << u;
      }
    }
  }
}

// Without borrowing, what is served is what is guaranteed.
TEST(AllocatorPropertyTest, MoreCapacityOrGuaranteeNeverLowersGuaranteedService) {
  for (unsigned seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    AllocatorInput input = RandomBudgets(random);
    if (input.tenants.empty()) continue;
    for (AllocatorInput::Tenant& tenant : input.tenants) tenant.borrowing = Borrowing::kOff;
    const Table leases = Allocate(input);

    AllocatorInput more_capacity = input;
    more_capacity.capacity[random() % input.capacity.size()] += 1 + random() % 20;
    const Table with_capacity = Allocate(more_capacity);
    for (size_t t = 0; t < leases.size(); ++t) {
      ASSERT_GE(Served(input, with_capacity, t), Served(input, leases, t)) << t;
    }
    AllocatorInput more_guaranteed = input;
    const size_t t = random() % input.tenants.size();
    more_guaranteed.tenants[t].guaranteed += 1 + random() % 20;
    more_guaranteed.tenants[t].limit += 20;
    ASSERT_GE(Served(input, Allocate(more_guaranteed), t), Served(input, leases, t)) << t;
  }
}

// More demand or a higher limit never costs the tenant itself anything (on one agent, where there
// is no placement to choose).
TEST(AllocatorPropertyTest, AskingForMoreNeverGivesLess) {
  for (unsigned seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    AllocatorInput input = RandomBudgets(random);
    if (input.tenants.empty()) continue;
    input.capacity.resize(1);
    for (AllocatorInput::Tenant& tenant : input.tenants) {
      tenant.demand.resize(1);
      tenant.floors.resize(1);
    }
    const size_t t = random() % input.tenants.size();
    const int64_t before = Allocate(input)[t][0];
    AllocatorInput more_demand = input;
    more_demand.tenants[t].demand[0] += 1 + random() % 8;
    EXPECT_GE(Allocate(more_demand)[t][0], before);
    AllocatorInput more_limit = input;
    more_limit.tenants[t].limit += 1 + random() % 8;
    EXPECT_GE(Allocate(more_limit)[t][0], before);
  }
}

// Once everybody uses what was granted and asks for no more, all of it stays granted.
TEST(AllocatorPropertyTest, WhatIsInUseStaysGranted) {
  for (unsigned seed = 0; seed < 1000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    AllocatorInput input = RandomBudgets(random);
    const Table leases = Allocate(input);
    for (size_t t = 0; t < leases.size(); ++t) input.tenants[t].demand = leases[t];
    const Table again = Allocate(input);
    for (size_t t = 0; t < leases.size(); ++t) {
      for (size_t a = 0; a < leases[t].size(); ++a) ASSERT_GE(again[t][a], leases[t][a]);
    }
  }
}

TEST(AllocatorTest, AThousandTenantsUseAFullClusterUp) {
  std::mt19937 random(7);
  AllocatorInput input{.capacity = std::vector<int64_t>(64, 4000)};
  for (int t = 0; t < 1000; ++t) {
    AllocatorInput::Tenant tenant{.guaranteed = 250, .limit = 1000};
    for (size_t a = 0; a < input.capacity.size(); ++a) {
      tenant.demand.push_back(random() % 8 == 0 ? random() % 200 : 0);
    }
    input.tenants.push_back(tenant);
  }
  const Table leases = Allocate(input);
  int64_t leased = 0;
  for (const auto& row : leases) leased += Sum(row);
  EXPECT_EQ(leased, 64 * 4000);
}

}  // namespace
}  // namespace kvpool
