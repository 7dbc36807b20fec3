// Who moves, why, and for whom.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/decision_log.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "proto/limits.h"

namespace kvpool {
namespace {

constexpr std::chrono::seconds kRunGap(10);
constexpr size_t kOthersNamed = 3;

MoveReason ReasonOf(const PacingInput& input, const LeaseMove& move) {
  const PacingInput::Tenant& tenant = input.tenants[move.tenant];
  const int64_t demand = tenant.demand[move.agent];
  if (move.to > move.from) {
    return move.from < demand ? MoveReason::kDemand : MoveReason::kHeadRoom;
  }
  if (input.capacity[move.agent] == 0) return MoveReason::kDraining;
  const int64_t all = std::accumulate(tenant.ordered.begin(), tenant.ordered.end(), int64_t{0});
  if (all > tenant.limit) return MoveReason::kLimit;
  return demand < move.from ? MoveReason::kUnused : MoveReason::kOthers;
}

// Tenants whose allocation at the agent is above their lease there, those that lack most first.
std::vector<size_t> WaitingAt(const PacingInput& input, size_t agent) {
  const auto lack = [&](size_t t) {
    return input.tenants[t].allocated[agent] - input.tenants[t].ordered[agent];
  };
  std::vector<size_t> waiting;
  for (size_t t = 0; t < input.tenants.size(); ++t) {
    if (lack(t) > 0) waiting.push_back(t);
  }
  std::stable_sort(waiting.begin(), waiting.end(),
                   [&](size_t a, size_t b) { return lack(a) > lack(b); });
  if (waiting.size() > kOthersNamed) waiting.resize(kOthersNamed);
  return waiting;
}

bool SameKind(const LeaseDecision& a, const LeaseDecision& b) {
  return a.agent == b.agent && a.reason == b.reason;
}

}  // namespace

std::string ToString(MoveReason reason) {
  switch (reason) {
    case MoveReason::kDemand:
      return "demand";
    case MoveReason::kHeadRoom:
      return "head_room";
    case MoveReason::kLimit:
      return "limit";
    case MoveReason::kDraining:
      return "draining";
    case MoveReason::kUnused:
      return "unused";
    case MoveReason::kOthers:
      break;
  }
  return "others";
}

std::vector<LeaseMove> LeaseMoves(const PacingInput& input,
                                  const std::vector<std::vector<int64_t>>& leases) {
  std::vector<LeaseMove> moves;
  std::vector<std::optional<std::vector<size_t>>> waiting(input.capacity.size());
  for (size_t t = 0; t < leases.size(); ++t) {
    size_t moved = 0;
    for (size_t a = 0; a < leases[t].size() && moved < limits::kDecisionsKept; ++a) {
      LeaseMove move{
          .tenant = t, .agent = a, .from = input.tenants[t].ordered[a], .to = leases[t][a]};
      if (move.to == move.from) continue;
      ++moved;
      move.reason = ReasonOf(input, move);
      if (move.to < move.from) {
        if (!waiting[a].has_value()) waiting[a] = WaitingAt(input, a);
        move.others = *waiting[a];
      }
      moves.push_back(std::move(move));
    }
  }
  return moves;
}

void DecisionLog::Add(LeaseDecision decision) {
  const auto newest = std::find_if(runs_.begin(), runs_.end(), [&](const LeaseDecision& run) {
    return run.agent == decision.agent;
  });
  if (newest != runs_.end() && SameKind(*newest, decision) &&
      decision.first - newest->last <= kRunGap) {
    newest->last = decision.last;
    newest->to = decision.to;
    newest->others = std::move(decision.others);
    newest->count += decision.count;
    std::rotate(runs_.begin(), newest, newest + 1);
    return;
  }
  runs_.push_front(std::move(decision));
  if (runs_.size() > limits::kDecisionsKept) runs_.pop_back();
}

}  // namespace kvpool
