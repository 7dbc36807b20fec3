// Why leases move: each move of a plan with its reason, and the last moves of one tenant, as runs.
// What agents do to follow is in the reclaim log. Pure: knows no messages and no clock. One thread
// at a time.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "common/clock.h"
#include "manager/lease_pacing.h"

namespace kvpool {

enum class MoveReason : uint8_t {
  kDemand,    // grows: it wants as much
  kHeadRoom,  // grows: ahead of its demand
  kLimit,     // shrinks: all its leases together are above its limit
  kDraining,  // shrinks: the agent is to be empty
  kUnused,    // shrinks: it does not want as much any more
  kOthers,    // shrinks: others have a better claim
};

std::string ToString(MoveReason reason);  // "head_room"

// One lease that a plan moves.
struct LeaseMove {
  size_t tenant = 0, agent = 0;  // as in PacingInput
  int64_t from = 0, to = 0;      // slabs
  MoveReason reason = MoveReason::kDemand;
  std::vector<size_t> others;  // of a shrink: tenants that wait for slabs there, most first
};

// The moves from `input.ordered` to `leases`, tenant by tenant, at most limits::kDecisionsKept of
// each. An agent without capacity is one that drains.
std::vector<LeaseMove> LeaseMoves(const PacingInput& input,
                                  const std::vector<std::vector<int64_t>>& leases);

// A move, or a run of moves at one agent for one reason.
struct LeaseDecision {
  std::string agent;
  TimePoint first, last;  // equal for one
  int64_t from = 0, to = 0;
  MoveReason reason = MoveReason::kDemand;
  std::vector<std::string> others;  // of the last one
  uint64_t count = 1;
};

class DecisionLog {
 public:
  // Joins the run of the same agent and reason, when that is the agent's newest and was touched
  // within the last ten seconds. Else it begins a run, and the one above limits::kDecisionsKept
  // that was not touched for longest goes.
  void Add(LeaseDecision decision);

  // Newest first, by their last move.
  const std::deque<LeaseDecision>& runs() const { return runs_; }

 private:
  std::deque<LeaseDecision> runs_;
};

}  // namespace kvpool
