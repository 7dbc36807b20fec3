// The reason of each move, and what becomes one run of moves.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/decision_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "proto/limits.h"

namespace kvpool {
namespace {

using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// One tenant's numbers at one agent; the other tenant and agent make no difference.
struct At {
  int64_t demand = 0, allocated = 0, ordered = 0;
};

PacingInput Input(int64_t capacity, const std::vector<At>& tenants) {
  PacingInput input{.capacity = {capacity}};
  for (const At& at : tenants) {
    input.tenants.push_back({.limit = 10,
                             .demand = {at.demand},
                             .allocated = {at.allocated},
                             .ordered = {at.ordered},
                             .committed = {at.ordered}});
  }
  return input;
}

MoveReason ReasonOf(const PacingInput& input, int64_t to) {
  std::vector<std::vector<int64_t>> leases;
  for (const auto& tenant : input.tenants) leases.push_back(tenant.ordered);
  leases[0][0] = to;
  const std::vector<LeaseMove> moves = LeaseMoves(input, leases);
  EXPECT_THAT(moves, SizeIs(1));
  return moves.at(0).reason;
}

TEST(LeaseMovesTest, EachHasItsReason) {
  EXPECT_EQ(ReasonOf(Input(20, {{.demand = 5, .allocated = 6, .ordered = 4}}), 6),
            MoveReason::kDemand);
  EXPECT_EQ(ReasonOf(Input(20, {{.demand = 5, .allocated = 6, .ordered = 5}}), 6),
            MoveReason::kHeadRoom);
  EXPECT_EQ(ReasonOf(Input(20, {{.demand = 9, .allocated = 9, .ordered = 12}}), 9),
            MoveReason::kLimit);
  EXPECT_EQ(ReasonOf(Input(0, {{.demand = 9, .allocated = 0, .ordered = 9}}), 0),
            MoveReason::kDraining);
  EXPECT_EQ(ReasonOf(Input(20, {{.demand = 2, .allocated = 3, .ordered = 9}}), 3),
            MoveReason::kUnused);
  EXPECT_EQ(ReasonOf(Input(20, {{.demand = 9, .allocated = 3, .ordered = 9}}), 3),
            MoveReason::kOthers);
}

TEST(LeaseMovesTest, AShrinkNamesThoseWhoWaitMostFirst) {
  const PacingInput input = Input(20, {{.demand = 9, .allocated = 2, .ordered = 10},
                                       {.demand = 4, .allocated = 4, .ordered = 2},
                                       {.demand = 9, .allocated = 9, .ordered = 1},
                                       {.demand = 5, .allocated = 5, .ordered = 5}});
  const std::vector<LeaseMove> moves = LeaseMoves(input, {{2}, {4}, {9}, {5}});
  ASSERT_THAT(moves, SizeIs(3)) << "who has what it is to have is not moved";
  EXPECT_THAT(moves[0].others, ElementsAre(2, 1));
  EXPECT_THAT(moves[1].others, IsEmpty()) << "a grow is for itself";
}

// Whatever moves: what is told is what moves, from and to.
TEST(LeaseMovesTest, TellsAllMovesOfFewAgents) {
  std::mt19937 random(5);
  const auto draw = [&](int64_t most) { return static_cast<int64_t>(random() % (most + 1)); };
  for (int round = 0; round < 300; ++round) {
    PacingInput input{.capacity = {draw(9), draw(9), draw(9)}};
    std::vector<std::vector<int64_t>> leases;
    size_t changed = 0;
    for (int t = 0; t < 4; ++t) {
      PacingInput::Tenant tenant{.limit = draw(20)};
      std::vector<int64_t> to;
      for (int a = 0; a < 3; ++a) {
        tenant.demand.push_back(draw(9));
        tenant.allocated.push_back(draw(9));
        tenant.ordered.push_back(draw(9));
        to.push_back(draw(9));
        if (to.back() != tenant.ordered.back()) ++changed;
      }
      tenant.committed = tenant.ordered;
      input.tenants.push_back(tenant);
      leases.push_back(to);
    }
    const std::vector<LeaseMove> moves = LeaseMoves(input, leases);
    EXPECT_EQ(moves.size(), changed);
    for (const LeaseMove& move : moves) {
      EXPECT_EQ(move.from, input.tenants[move.tenant].ordered[move.agent]);
      EXPECT_EQ(move.to, leases[move.tenant][move.agent]);
      const bool grows = move.reason == MoveReason::kDemand || move.reason == MoveReason::kHeadRoom;
      EXPECT_EQ(grows, move.to > move.from);
    }
  }
}

TEST(LeaseMovesTest, OfManyAgentsAsManyAsAreKept) {
  PacingInput input;
  input.capacity.assign(100, 9);
  const std::vector<int64_t> none(100), all(100, 3);
  input.tenants.push_back(
      {.limit = 1000, .demand = all, .allocated = all, .ordered = none, .committed = none});
  EXPECT_THAT(LeaseMoves(input, {all}), SizeIs(limits::kDecisionsKept));
}

LeaseDecision Move(const std::string& agent, int64_t at, int64_t from, int64_t to,
                   MoveReason reason) {
  return {.agent = agent,
          .first = TimePoint(seconds(at)),
          .last = TimePoint(seconds(at)),
          .from = from,
          .to = to,
          .reason = reason};
}

TEST(DecisionLogTest, MovesOfOneKindAreARun) {
  DecisionLog log;
  log.Add(Move("a", 1, 0, 4, MoveReason::kDemand));
  log.Add(Move("b", 2, 0, 1, MoveReason::kDemand));
  log.Add(Move("a", 3, 4, 6, MoveReason::kDemand));
  ASSERT_THAT(log.runs(), SizeIs(2));
  EXPECT_EQ(log.runs()[0].agent, "a") << "touched last";
  EXPECT_EQ(log.runs()[0].from, 0);
  EXPECT_EQ(log.runs()[0].to, 6);
  EXPECT_EQ(log.runs()[0].count, 2u);
  EXPECT_EQ(log.runs()[0].first, TimePoint(seconds(1)));
  log.Add(Move("a", 4, 6, 5, MoveReason::kUnused));
  log.Add(Move("a", 5, 5, 6, MoveReason::kDemand));
  ASSERT_THAT(log.runs(), SizeIs(4)) << "a lease that went back and forth did not go one way";
  EXPECT_EQ(log.runs()[0].from, 5);
  log.Add(Move("a", 16, 6, 7, MoveReason::kDemand));
  EXPECT_THAT(log.runs(), SizeIs(5)) << "much later";
}

TEST(DecisionLogTest, TheOldestGoes) {
  DecisionLog log;
  for (uint32_t i = 0; i < limits::kDecisionsKept + 5; ++i) {
    log.Add(Move("agent-" + std::to_string(i), i, 0, 1, MoveReason::kDemand));
  }
  ASSERT_THAT(log.runs(), SizeIs(limits::kDecisionsKept));
  EXPECT_EQ(log.runs().back().agent, "agent-5");
}

}  // namespace
}  // namespace kvpool
