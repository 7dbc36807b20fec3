// Decides what to do for a tenant that holds more slabs than its lease: pure, no ledger, no clock.
//
// Of the reclaim order the steps that exist are 1 (parked prefixes), 2 (compaction), 3
// (requantisation), 5 (refusal, which needs no plan: no page is granted above the lease) and 6
// (preemption, where and when it is allowed: see overage.h). Before all come the ways that cost
// nobody anything: unused pages in magazines go back, and the emptiest slabs move into free places
// of the others. Parked pages are dropped as far as their place is needed, before any session loses
// a row. A slab with pages that several sessions share stays, because nobody can move them: until
// all but one have ended. Sessions are compacted only as far as room is missing for that, and those
// that compaction cannot shrink are sealed only as far as room is missing after it. A plan holds
// only what is worth doing now; it is made anew whenever something has changed.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "agent/overage.h"
#include "agent/pool.h"
#include "common/ids.h"

namespace kvpool {

// A session that could be moved, compacted or ended.
struct ReclaimSession {
  SessionId id;        // a higher one is younger
  uint32_t group = 0;  // as SlabUsage::group
  // kBusy: the agent has a job on it, and can only mark it to be ended after that.
  enum class Where : uint8_t { kIdle, kRunning, kBusy } where = Where::kIdle;
  bool ending = false;           // marked by an earlier plan to be ended when it is handed over
  uint64_t pages = 0;            // that it owns, or holds alone
  uint64_t frees_pages = 0;      // that compaction by its policy would free now; 0: it cannot
  uint64_t seals_pages = 0;      // that sealing would free besides; 0: it cannot
  std::vector<SlabIndex> slabs;  // where it has these
};

struct ReclaimInput {
  uint32_t lease_slabs = 0;
  uint32_t held_slabs = 0;       // in any state but FREE
  uint32_t draining_slabs = 0;   // of those, on their way out
  std::vector<SlabUsage> slabs;  // the LEASED and EVACUATING ones, fewest pages in use first
  std::vector<ReclaimSession> sessions;
  Preemption preemption = Preemption::kNone;  // what is allowed by now
};

struct ReclaimPlan {
  enum class Magazines : uint8_t { kKeep, kReturn } magazines = Magazines::kKeep;
  std::vector<SlabIndex> cancel;    // EVACUATING slabs that need not go any more
  std::vector<SlabIndex> evacuate;  // LEASED slabs that shall go, emptiest first
  // Parked pages to drop: so many of a group, those worth least; then, when the plan is made anew,
  // those in these slabs.
  std::map<uint32_t, uint64_t> drop;
  std::vector<SlabIndex> drop_in;
  std::vector<SessionId> take;     // IDLE sessions to compact, seal or move now
  std::vector<SessionId> ask;      // RUNNING sessions to be handed over
  std::vector<SessionId> preempt;  // all to be ended: now if IDLE, else when handed over

  bool empty() const {
    return magazines == Magazines::kKeep && cancel.empty() && evacuate.empty() && drop.empty() &&
           drop_in.empty() && take.empty() && ask.empty() && preempt.empty();
  }
  bool operator==(const ReclaimPlan&) const = default;
};

// Deterministic. Abandoned slabs go whatever the lease says: they are of no use, and another layout
// of the tenant may need their place. Sends away no more of the others than the lease demands, nor
// a slab with pages in sessions for which there is no room in the LEASED slabs of its group that
// stay. Compacts IDLE sessions before RUNNING ones, those that lose the smallest share first, and
// none without need; seals others only when that is not enough, those that gain the most first.
//
// Ends no more sessions than needed for the pages of those that stay to fit the lease in whole
// slabs of their groups, or, where that cannot be reached, as few slabs as can: first those that
// are marked already, then IDLE ones, then the others, the youngest first of each. None of them is
// in `take` or `ask`, and nobody is compacted for room that they will leave.
ReclaimPlan PlanReclaim(const ReclaimInput& input);

}  // namespace kvpool
