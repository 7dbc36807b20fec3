// Who must end, if anybody; victims; then room for them. See reclaim_planner.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/reclaim_planner.h"

#include <algorithm>
#include <map>
#include <set>

namespace kvpool {
namespace {

// Frozen pages that sessions hold count as theirs; parked ones are nobody's.
int64_t HeldPages(const SlabUsage& slab) {
  return int64_t{slab.owned_pages} + slab.frozen_pages - slab.parked_pages;
}
// Of those, what can move: each has one session.
int64_t MovingPages(const SlabUsage& slab) { return HeldPages(slab) - slab.shared_pages; }

// Whole slabs that pages take, group by group.
class Needs {
 public:
  explicit Needs(const ReclaimInput& input) {
    for (const SlabUsage& slab : input.slabs) {
      Group& group = groups_[slab.group];
      group.pages += HeldPages(slab);
      group.pages_per_slab =
          slab.owned_pages + slab.granted_pages + slab.frozen_pages + slab.free_pages;
    }
  }

  void Leave(const ReclaimSession& session) {
    groups_[session.group].pages -= static_cast<int64_t>(session.pages);
  }
  void Stay(const ReclaimSession& session) {
    groups_[session.group].pages += static_cast<int64_t>(session.pages);
  }
  int64_t slabs() const {
    int64_t slabs = 0;
    for (const auto& [index, group] : groups_) {
      if (group.pages > 0) slabs += CeilDiv(group.pages, group.pages_per_slab);
    }
    return slabs;
  }

 private:
  struct Group {
    int64_t pages = 0;
    int64_t pages_per_slab = 0;  // the same for all slabs of a group
  };
  std::map<uint32_t, Group> groups_;
};

bool EndsSooner(const ReclaimSession* a, const ReclaimSession* b) {
  if (a->ending != b->ending) return a->ending;
  const bool a_idle = a->where == ReclaimSession::Where::kIdle;
  const bool b_idle = b->where == ReclaimSession::Where::kIdle;
  return a_idle != b_idle ? a_idle : a->id > b->id;
}

std::vector<const ReclaimSession*> ChoosePreempted(const ReclaimInput& input) {
  std::vector<const ReclaimSession*> candidates, chosen;
  if (input.preemption == Preemption::kNone) return chosen;
  for (const ReclaimSession& session : input.sessions) {
    const bool idle = session.where == ReclaimSession::Where::kIdle;
    if (idle || input.preemption == Preemption::kAll) candidates.push_back(&session);
  }
  std::sort(candidates.begin(), candidates.end(), EndsSooner);
  Needs needs(input), least(input);
  for (const ReclaimSession* session : candidates) least.Leave(*session);
  const int64_t target = std::max<int64_t>(input.lease_slabs, least.slabs());
  for (const ReclaimSession* session : candidates) {
    if (needs.slabs() <= target) break;
    needs.Leave(*session);
    chosen.push_back(session);
  }
  // The last one may have made earlier ones unnecessary.
  for (size_t i = chosen.size(); i-- > 0;) {
    needs.Stay(*chosen[i]);
    if (needs.slabs() <= target) {
      chosen.erase(chosen.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      needs.Leave(*chosen[i]);
    }
  }
  return chosen;
}

// Slabs of one group: pages move only inside.
struct GroupRoom {
  int64_t free = 0;     // pages in LEASED slabs that stay
  int64_t parked = 0;   // pages there that can be dropped
  int64_t moving = 0;   // pages in sessions, in slabs that go
  int64_t missing = 0;  // pages that must come free besides before enough slabs can go

  int64_t lacking() const { return moving - free - parked; }
};

struct Victims {
  int64_t wanted = 0;  // slabs that must go and are not draining yet
  std::set<SlabIndex> going;
  std::map<uint32_t, GroupRoom> rooms;

  bool enough() const { return static_cast<int64_t>(going.size()) >= wanted; }
};

// Slabs that nobody can use, then those that are on their way already: these go first, so that no
// plan undoes the last one without need.
Victims KeepEvacuating(const ReclaimInput& input, ReclaimPlan* plan) {
  Victims victims{.wanted = int64_t{input.held_slabs} - input.draining_slabs -
                            int64_t{input.lease_slabs}};
  for (const SlabUsage& slab : input.slabs) {
    if (!slab.abandoned) continue;
    victims.going.insert(slab.slab);
    if (slab.state == SlabState::kLeased) plan->evacuate.push_back(slab.slab);
  }
  for (const SlabUsage& slab : input.slabs) {
    if (slab.abandoned) continue;
    GroupRoom& room = victims.rooms[slab.group];
    if (slab.state == SlabState::kLeased) {
      room.free += slab.free_pages;
      room.parked += slab.parked_pages;
    } else if (!victims.enough() && slab.shared_pages == 0) {
      victims.going.insert(slab.slab);
      room.moving += MovingPages(slab);
    } else {
      plan->cancel.push_back(slab.slab);
    }
  }
  return victims;
}

// Takes those of the slabs still wanted whose pages have room elsewhere.
void ChooseVictims(const ReclaimInput& input, Victims* victims, ReclaimPlan* plan) {
  for (const SlabUsage& slab : input.slabs) {
    if (victims->enough()) return;
    if (slab.state != SlabState::kLeased || slab.abandoned || slab.shared_pages > 0) continue;
    GroupRoom room = victims->rooms[slab.group];
    room.free -= slab.free_pages;
    room.parked -= slab.parked_pages;
    room.moving += MovingPages(slab);
    if (room.lacking() > 0 && room.moving > 0) continue;
    victims->rooms[slab.group] = room;
    victims->going.insert(slab.slab);
    plan->evacuate.push_back(slab.slab);
  }
}

// What a job on the session frees: it compacts and then seals.
int64_t Frees(const ReclaimSession& session) {
  return static_cast<int64_t>(session.frees_pages + session.seals_pages);
}

// Counts what is missing for the others besides the pages of sessions that end, where compaction
// and sealing can free that much.
void CountMissing(const ReclaimInput& input, const std::set<SessionId>& ending, Victims* victims) {
  std::map<uint32_t, int64_t> freeable;
  std::map<uint32_t, GroupRoom> rooms = victims->rooms;
  for (const ReclaimSession& session : input.sessions) {
    if (ending.contains(session.id)) {
      rooms[session.group].free += static_cast<int64_t>(session.pages);
    } else if (session.where != ReclaimSession::Where::kBusy) {
      freeable[session.group] += Frees(session);
    }
  }
  int64_t more = victims->wanted - static_cast<int64_t>(victims->going.size());
  for (const SlabUsage& slab : input.slabs) {
    if (more <= 0) return;
    if (slab.state != SlabState::kLeased || victims->going.contains(slab.slab)) continue;
    if (slab.shared_pages > 0) continue;
    GroupRoom& room = rooms[slab.group];
    room.free -= slab.free_pages;
    room.parked -= slab.parked_pages;
    room.moving += MovingPages(slab);
    if (room.lacking() > freeable[slab.group]) continue;
    victims->rooms[slab.group].missing = std::max<int64_t>(0, room.lacking());
    --more;
  }
}

// What is parked in slabs that go, and what makes room for their other pages; all of it before
// sessions must make room.
void ChooseDropped(const ReclaimInput& input, const Victims& victims, ReclaimPlan* plan) {
  std::map<uint32_t, int64_t> parked, drop;
  for (const SlabUsage& slab : input.slabs) {
    if (slab.parked_pages == 0) continue;
    parked[slab.group] += slab.parked_pages;
    if (!victims.going.contains(slab.slab)) continue;
    plan->drop_in.push_back(slab.slab);
    drop[slab.group] += slab.parked_pages;
  }
  for (const auto& [group, room] : victims.rooms) {
    drop[group] += std::max<int64_t>(0, room.moving - room.free);
    if (!victims.enough()) drop[group] = parked[group];
  }
  for (const auto& [group, pages] : drop) {
    const int64_t most = std::min(pages, parked[group]);
    if (most > 0) plan->drop[group] = static_cast<uint64_t>(most);
  }
}

// Granted pages of a slab that goes must come back; those of others may make the room.
bool NeedsMagazines(const ReclaimInput& input, const Victims& victims) {
  return std::any_of(input.slabs.begin(), input.slabs.end(), [&](const SlabUsage& slab) {
    return slab.granted_pages > 0 && (victims.going.contains(slab.slab) || !victims.enough());
  });
}

bool LosesLess(const ReclaimSession* a, const ReclaimSession* b) {
  if (a->where != b->where) return a->where == ReclaimSession::Where::kIdle;
  const uint64_t share_a = a->frees_pages * b->pages, share_b = b->frees_pages * a->pages;
  if (share_a != share_b) return share_a < share_b;
  return a->frees_pages > b->frees_pages;
}

bool GainsMore(const ReclaimSession* a, const ReclaimSession* b) {
  if (a->where != b->where) return a->where == ReclaimSession::Where::kIdle;
  return a->seals_pages > b->seals_pages;
}

// Enough of `candidates`, which are in order of preference, to free `missing` pages; or all.
std::vector<const ReclaimSession*> Enough(const std::vector<const ReclaimSession*>& candidates,
                                          int64_t missing) {
  std::vector<const ReclaimSession*> chosen;
  for (const ReclaimSession* session : candidates) {
    if (missing <= 0) break;
    chosen.push_back(session);
    missing -= Frees(*session);
  }
  // A large one at the end may make earlier ones unnecessary.
  for (size_t i = chosen.size(); i-- > 0;) {
    const int64_t without = missing + Frees(*chosen[i]);
    if (without > 0) continue;
    missing = without;
    chosen.erase(chosen.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return chosen;
}

}  // namespace

ReclaimPlan PlanReclaim(const ReclaimInput& input) {
  ReclaimPlan plan;
  for (const ReclaimSession* session : ChoosePreempted(input)) plan.preempt.push_back(session->id);
  const std::set<SessionId> ending(plan.preempt.begin(), plan.preempt.end());
  Victims victims = KeepEvacuating(input, &plan);
  ChooseVictims(input, &victims, &plan);
  CountMissing(input, ending, &victims);
  ChooseDropped(input, victims, &plan);
  if (NeedsMagazines(input, victims)) plan.magazines = ReclaimPlan::Magazines::kReturn;

  // By group: what compaction shrinks, and what only sealing does.
  std::map<uint32_t, std::vector<const ReclaimSession*>> candidates, sealable;
  std::vector<const ReclaimSession*> chosen;
  for (const ReclaimSession& session : input.sessions) {
    if (session.where == ReclaimSession::Where::kBusy || ending.contains(session.id)) continue;
    const bool moves = std::any_of(session.slabs.begin(), session.slabs.end(),
                                   [&](SlabIndex slab) { return victims.going.contains(slab); });
    if (moves) {
      chosen.push_back(&session);  // and is compacted on the way
      victims.rooms[session.group].missing -= Frees(session);
    } else if (session.frees_pages > 0) {
      candidates[session.group].push_back(&session);
    } else if (session.seals_pages > 0) {
      sealable[session.group].push_back(&session);
    }
  }
  for (auto& [group, sessions] : candidates) {
    std::stable_sort(sessions.begin(), sessions.end(), LosesLess);
    const auto enough = Enough(sessions, victims.rooms[group].missing);
    chosen.insert(chosen.end(), enough.begin(), enough.end());
    for (const ReclaimSession* session : enough) victims.rooms[group].missing -= Frees(*session);
  }
  for (auto& [group, sessions] : sealable) {
    std::stable_sort(sessions.begin(), sessions.end(), GainsMore);
    const auto enough = Enough(sessions, victims.rooms[group].missing);
    chosen.insert(chosen.end(), enough.begin(), enough.end());
  }
  for (const ReclaimSession* session : chosen) {
    const bool idle = session->where == ReclaimSession::Where::kIdle;
    (idle ? plan.take : plan.ask).push_back(session->id);
  }
  return plan;
}

}  // namespace kvpool
