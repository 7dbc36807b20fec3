// The allocator on small instances whose answer is plain, and its promises on random ones.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/allocator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

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

AllocatorInput RandomInput(std::mt19937& random) {
  const auto below = [&](int64_t n) {
    return std::uniform_int_distribution<int64_t>(0, n)(random);
  };
  AllocatorInput input;
  input.capacity.resize(1 + below(6));
  for (int64_t& slabs : input.capacity) slabs = below(3) == 0 ? below(4) : below(60);
  const int64_t capacity = Sum(input.capacity);
  int64_t unpromised = capacity;
  input.tenants.resize(below(8));
  for (AllocatorInput::Tenant& tenant : input.tenants) {
    // Guarantees exceed the capacity only when an agent was lost: seldom.
    tenant.guaranteed = below(10) == 0 ? below(capacity) : below(unpromised);
    unpromised = std::max<int64_t>(unpromised - tenant.guaranteed, 0);
    tenant.limit = tenant.guaranteed + below(2 * capacity);
    for (size_t a = 0; a < input.capacity.size(); ++a) {
      tenant.demand.push_back(below(2) == 0 ? 0 : below(80));
    }
  }
  return input;
}

// The most demand within the guarantees that any placement can serve: a maximum flow, slab by slab.
class GuaranteeFlow {
 public:
  explicit GuaranteeFlow(const AllocatorInput& input)
      : input_(input),
        placed_(input.tenants.size(), std::vector<int64_t>(input.capacity.size())),
        free_(input.capacity) {}

  int64_t Maximum() {
    int64_t flow = 0;
    for (size_t t = 0; t < placed_.size(); ++t) {
      for (int64_t i = 0; i < input_.tenants[t].guaranteed; ++i) {
        visited_.assign(free_.size(), 0);
        if (!Place(t)) break;
        ++flow;
      }
    }
    return flow;
  }

 private:
  bool Place(size_t t) {
    for (size_t a = 0; a < free_.size(); ++a) {
      if (visited_[a] || placed_[t][a] >= input_.tenants[t].demand[a]) continue;
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
  Table placed_;
  std::vector<int64_t> free_;
  std::vector<char> visited_;
};

TEST(AllocatorPropertyTest, SumsLimitsGuaranteesAndNoIdleSlabs) {
  for (unsigned seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const AllocatorInput input = RandomInput(random);
    const Table leases = Allocate(input);
    ASSERT_EQ(leases.size(), input.tenants.size());

    std::vector<int64_t> free = input.capacity;
    int64_t guaranteed = 0;
    for (size_t t = 0; t < leases.size(); ++t) {
      const AllocatorInput::Tenant& tenant = input.tenants[t];
      ASSERT_EQ(leases[t].size(), input.capacity.size());
      ASSERT_LE(Sum(leases[t]), tenant.limit);
      int64_t useful = 0;
      for (size_t a = 0; a < free.size(); ++a) {
        ASSERT_GE(leases[t][a], 0);
        ASSERT_LE(leases[t][a], tenant.demand[a] + kMostHeadRoomSlabs);
        free[a] -= leases[t][a];
        useful += std::min(leases[t][a], tenant.demand[a]);
      }
      guaranteed += std::min(useful, tenant.guaranteed);
    }
    ASSERT_EQ(guaranteed, GuaranteeFlow(input).Maximum());
    for (size_t a = 0; a < free.size(); ++a) {
      ASSERT_GE(free[a], 0);
      for (size_t t = 0; t < leases.size() && free[a] > 0; ++t) {
        const bool at_limit = Sum(leases[t]) == input.tenants[t].limit;
        ASSERT_TRUE(at_limit || leases[t][a] >= input.tenants[t].demand[a]);
      }
    }
  }
}

// On one agent: guarantees whole, and beyond them nobody who wants more has less than another.
TEST(AllocatorPropertyTest, MaxMinOnOneAgent) {
  for (unsigned seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    AllocatorInput input = RandomInput(random);
    input.capacity.resize(1);
    int64_t guarantees = 0;
    for (AllocatorInput::Tenant& tenant : input.tenants) {
      tenant.demand.resize(1);
      guarantees += std::min(tenant.guaranteed, tenant.demand[0]);
    }
    if (guarantees > input.capacity[0]) continue;
    const Table leases = Allocate(input);
    const auto borrowed = [&](size_t t) {
      const AllocatorInput::Tenant& tenant = input.tenants[t];
      return std::min(leases[t][0], tenant.demand[0]) -
             std::min(tenant.guaranteed, tenant.demand[0]);
    };
    for (size_t t = 0; t < leases.size(); ++t) {
      ASSERT_GE(borrowed(t), 0);
      if (leases[t][0] >= std::min(input.tenants[t].demand[0], input.tenants[t].limit)) continue;
      for (size_t u = 0; u < leases.size(); ++u) ASSERT_LE(borrowed(u), borrowed(t) + 1);
    }
  }
}

// More demand or a higher limit never costs the tenant itself anything (on one agent, where there
// is no placement to choose).
TEST(AllocatorPropertyTest, AskingForMoreNeverGivesLess) {
  for (unsigned seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    AllocatorInput input = RandomInput(random);
    if (input.tenants.empty()) continue;
    input.capacity.resize(1);
    for (AllocatorInput::Tenant& tenant : input.tenants) tenant.demand.resize(1);
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
    AllocatorInput input = RandomInput(random);
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
