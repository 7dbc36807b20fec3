// See reclaim_planner.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/reclaim_planner.h"

#include <algorithm>
#include <map>
#include <set>

namespace kvpool {
namespace {

// Free pages by group in the slabs that stay, less what evacuated slabs still have to move there.
using Room = std::map<uint32_t, int64_t>;

void ChooseVictims(const ReclaimInput& input, int64_t surplus, Room* room, ReclaimPlan* plan,
                   std::set<SlabIndex>* going) {
  for (const SlabUsage& slab : input.slabs) {
    if (static_cast<int64_t>(going->size()) >= surplus) return;
    if (slab.state != SlabState::kLeased) continue;
    int64_t& free = (*room)[slab.group];
    // Its own free pages leave with it, its owned pages need places elsewhere.
    const int64_t after = free - slab.free_pages - slab.owned_pages;
    if (slab.owned_pages > 0 && after < 0) continue;
    free = after;
    plan->evacuate.push_back(slab.slab);
    going->insert(slab.slab);
  }
}

void Choose(const ReclaimSession& session, ReclaimPlan* plan) {
  (session.where == ReclaimSession::Where::kIdle ? plan->take : plan->ask).push_back(session.id);
}

}  // namespace

ReclaimPlan PlanReclaim(const ReclaimInput& input) {
  ReclaimPlan plan;
  // Slabs that must go and are not draining yet.
  const int64_t surplus =
      std::max<int64_t>(0, int64_t{input.held_slabs} - input.draining_slabs - input.lease_slabs);
  Room room;
  std::set<SlabIndex> going;
  for (const SlabUsage& slab : input.slabs) {
    if (slab.state == SlabState::kLeased) room[slab.group] += slab.free_pages;
    if (slab.state != SlabState::kEvacuating) continue;
    if (static_cast<int64_t>(going.size()) < surplus) {
      going.insert(slab.slab);
      room[slab.group] -= slab.owned_pages;
    } else {
      plan.cancel.push_back(slab.slab);
    }
  }
  ChooseVictims(input, surplus, &room, &plan, &going);

  for (const SlabUsage& slab : input.slabs) {
    const bool goes = going.contains(slab.slab);
    // Granted pages of a slab that goes must come back; those of others may make the room.
    if (slab.granted_pages > 0 && (goes || static_cast<int64_t>(going.size()) < surplus)) {
      plan.magazines = ReclaimPlan::Magazines::kReturn;
    }
  }

  const bool short_of_room = static_cast<int64_t>(going.size()) < surplus;
  std::vector<const ReclaimSession*> order;
  for (const ReclaimSession& session : input.sessions) order.push_back(&session);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    if (a->where != b->where) return a->where == ReclaimSession::Where::kIdle;
    return a->frees_pages > b->frees_pages;
  });
  for (const ReclaimSession* session : order) {
    const bool moves = std::any_of(session->slabs.begin(), session->slabs.end(),
                                   [&](SlabIndex slab) { return going.contains(slab); });
    if (moves || (short_of_room && session->frees_pages > 0)) Choose(*session, &plan);
  }
  return plan;
}

}  // namespace kvpool
