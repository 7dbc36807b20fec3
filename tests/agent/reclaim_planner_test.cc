// What a reclaim plan promises: by example, for random tenants, and carried out to its end.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/reclaim_planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <tuple>
#include <vector>

namespace kvpool {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Magazines = ReclaimPlan::Magazines;
using Where = ReclaimSession::Where;

constexpr uint32_t kPagesPerSlab = 8;

SlabUsage Leased(uint32_t slab, uint32_t owned, uint32_t granted = 0, uint32_t group = 0) {
  return {.slab = SlabIndex(slab),
          .state = SlabState::kLeased,
          .group = group,
          .owned_pages = owned,
          .granted_pages = granted,
          .free_pages = kPagesPerSlab - owned - granted};
}
SlabUsage Evacuating(uint32_t slab, uint32_t owned) {
  SlabUsage usage = Leased(slab, owned);
  usage.state = SlabState::kEvacuating;
  return usage;
}
ReclaimSession Session(uint64_t id, uint64_t pages, uint64_t frees, Where where = Where::kIdle,
                       std::vector<SlabIndex> slabs = {}) {
  return {
      .id = SessionId(id), .where = where, .pages = pages, .frees_pages = frees, .slabs = slabs};
}
ReclaimInput Tenant(uint32_t lease, std::vector<SlabUsage> slabs,
                    std::vector<ReclaimSession> sessions = {}) {
  const uint32_t held = static_cast<uint32_t>(slabs.size());
  return {.lease_slabs = lease, .held_slabs = held, .slabs = slabs, .sessions = sessions};
}

// --- By example ----------------------------------------------------------------------------------

TEST(ReclaimPlanner, WithinItsLeaseATenantIsLeftAlone) {
  EXPECT_TRUE(PlanReclaim(Tenant(2, {Leased(0, 0, 3), Leased(1, 8)}, {Session(1, 8, 8)})).empty());
}

TEST(ReclaimPlanner, SlabsThatNobodyCanUseGoWhateverTheLeaseSays) {
  SlabUsage abandoned = Leased(1, 0, 0, 1);
  abandoned.abandoned = true;
  const ReclaimPlan within = PlanReclaim(Tenant(8, {Leased(0, 0), abandoned, Leased(2, 3)}));
  EXPECT_THAT(within.evacuate, ElementsAre(SlabIndex(1)));
  // On its way it is not called back, and it counts as one of those that must go.
  abandoned.state = SlabState::kEvacuating;
  EXPECT_TRUE(PlanReclaim(Tenant(8, {Leased(0, 0), abandoned})).empty());
  EXPECT_TRUE(PlanReclaim(Tenant(1, {Leased(0, 0), abandoned})).empty());
}

TEST(ReclaimPlanner, TheEmptiestSlabsGo) {
  const ReclaimPlan plan =
      PlanReclaim(Tenant(2, {Leased(3, 0), Leased(1, 2), Leased(0, 3), Leased(2, 4)}));
  EXPECT_THAT(plan.evacuate, ElementsAre(SlabIndex(3), SlabIndex(1)));
  EXPECT_EQ(plan.magazines, Magazines::kKeep);
}

// A slab with pages of prompts: parked ones, and such that `shared` sessions hold together.
SlabUsage WithFrozen(uint32_t slab, uint32_t owned, uint32_t parked, uint32_t shared = 0) {
  SlabUsage usage = Leased(slab, owned);
  usage.frozen_pages = parked + shared;
  usage.parked_pages = parked;
  usage.shared_pages = shared;
  usage.free_pages -= usage.frozen_pages;
  return usage;
}

TEST(ReclaimPlanner, ParkedPagesGoBeforeAnySessionLosesARow) {
  // Sixteen pages of sessions and eight parked ones in three slabs, and a lease of two.
  const ReclaimPlan plan = PlanReclaim(
      Tenant(2, {WithFrozen(0, 4, 4), WithFrozen(1, 6, 2), WithFrozen(2, 6, 2)},
             {Session(1, 4, 3, Where::kIdle, {SlabIndex(0)}), Session(2, 12, 9, Where::kIdle)}));
  EXPECT_THAT(plan.evacuate, ElementsAre(SlabIndex(0)));
  EXPECT_EQ(plan.drop, (std::map<uint32_t, uint64_t>{{0, 8}})) << "its own, and room for the rest";
  EXPECT_THAT(plan.drop_in, ElementsAre(SlabIndex(0)));
  EXPECT_THAT(plan.take, ElementsAre(SessionId(1))) << "it moves; nobody is compacted";
}

TEST(ReclaimPlanner, NothingParkedIsDroppedWithoutNeed) {
  EXPECT_TRUE(PlanReclaim(Tenant(2, {WithFrozen(0, 0, 8), WithFrozen(1, 0, 8)})).empty());
  // One of two slabs with nothing else in them: the fewer pages.
  const ReclaimPlan plan = PlanReclaim(Tenant(1, {WithFrozen(1, 0, 2), WithFrozen(0, 0, 8)}));
  EXPECT_THAT(plan.evacuate, ElementsAre(SlabIndex(1)));
  EXPECT_EQ(plan.drop, (std::map<uint32_t, uint64_t>{{0, 2}}));
}

TEST(ReclaimPlanner, AllThatIsParkedGoesBeforeACompaction) {
  const ReclaimPlan plan =
      PlanReclaim(Tenant(1, {WithFrozen(0, 7, 1), WithFrozen(1, 7, 1)},
                         {Session(1, 7, 4), Session(2, 7, 5, Where::kRunning)}));
  EXPECT_EQ(plan.drop, (std::map<uint32_t, uint64_t>{{0, 2}}));
  EXPECT_THAT(plan.evacuate, IsEmpty());
  EXPECT_THAT(plan.take, ElementsAre(SessionId(1))) << "six are missing, one comes from what parks";
}

TEST(ReclaimPlanner, ASlabWithPagesThatSeveralSessionsHoldStays) {
  const ReclaimPlan plan = PlanReclaim(Tenant(1, {WithFrozen(0, 0, 0, 1), WithFrozen(1, 2, 0)}));
  EXPECT_THAT(plan.evacuate, ElementsAre(SlabIndex(1)));
  EXPECT_TRUE(PlanReclaim(Tenant(1, {WithFrozen(0, 0, 0, 1), WithFrozen(1, 0, 0, 1)})).empty());
  // One that was to go comes back, so that another can go into its free places.
  SlabUsage going = WithFrozen(0, 0, 0, 2);
  going.state = SlabState::kEvacuating;
  const ReclaimPlan other = PlanReclaim(Tenant(1, {going, WithFrozen(1, 2, 0)}));
  EXPECT_THAT(other.cancel, ElementsAre(SlabIndex(0)));
  EXPECT_THAT(other.evacuate, IsEmpty()) << "in the next plan";
}

TEST(ReclaimPlanner, SlabsOnTheirWayCount) {
  ReclaimInput input = Tenant(1, {Evacuating(2, 1), Leased(0, 2), Leased(1, 2)});
  input.held_slabs = 4;
  input.draining_slabs = 1;
  EXPECT_THAT(PlanReclaim(input).evacuate, ElementsAre(SlabIndex(0)));
  input.lease_slabs = 2;
  EXPECT_TRUE(PlanReclaim(input).empty());
  input.lease_slabs = 3;
  EXPECT_THAT(PlanReclaim(input).cancel, ElementsAre(SlabIndex(2)));
}

TEST(ReclaimPlanner, MagazinesOfVictimsComeBack) {
  EXPECT_EQ(PlanReclaim(Tenant(1, {Leased(0, 1, 1), Leased(1, 4)})).magazines, Magazines::kReturn);
  EXPECT_EQ(PlanReclaim(Tenant(1, {Leased(0, 1), Leased(1, 4, 1)})).magazines, Magazines::kKeep);
}

TEST(ReclaimPlanner, SessionsInVictimsMove) {
  const ReclaimPlan plan =
      PlanReclaim(Tenant(1, {Leased(0, 2), Leased(1, 4)},
                         {Session(1, 1, 0, Where::kIdle, {SlabIndex(0)}),
                          Session(2, 2, 0, Where::kRunning, {SlabIndex(0), SlabIndex(1)}),
                          Session(3, 3, 3, Where::kIdle, {SlabIndex(1)})}));
  EXPECT_THAT(plan.take, ElementsAre(SessionId(1)));
  EXPECT_THAT(plan.ask, ElementsAre(SessionId(2)));
}

TEST(ReclaimPlanner, CompactsOnlyWhenRoomIsMissingIdleFirstLeastLossFirst) {
  // One slab must go: 13 pages in 8 places, 5 too many.
  const std::vector<SlabUsage> slabs = {Leased(0, 6), Leased(1, 7)};
  const ReclaimSession half = Session(1, 4, 2), quarter = Session(2, 8, 2);
  const ReclaimSession running = Session(3, 40, 3, Where::kRunning), more = Session(4, 9, 9);
  ReclaimPlan plan = PlanReclaim(Tenant(1, slabs, {half, quarter, running}));
  EXPECT_THAT(plan.evacuate, IsEmpty());
  EXPECT_THAT(plan.take, ElementsAre(SessionId(2)));  // idle ones alone free 4 pages only, and
  EXPECT_THAT(plan.ask, ElementsAre(SessionId(3)));   // with this one the half is not needed
  plan = PlanReclaim(Tenant(1, slabs, {half, quarter, running, more}));
  EXPECT_THAT(plan.take, ElementsAre(SessionId(4)));  // enough by itself, so the others stay
  EXPECT_THAT(plan.ask, IsEmpty());
  plan = PlanReclaim(Tenant(1, slabs, {half, quarter}));
  EXPECT_THAT(plan.take, IsEmpty());  // 4 pages would not be enough
}

TEST(ReclaimPlanner, SealsOnlyWhatCompactionLeavesMissing) {
  // One slab must go: 13 pages in 8 places, 5 too many.
  const std::vector<SlabUsage> slabs = {Leased(0, 6), Leased(1, 7)};
  const auto sealable = [](uint64_t id, uint64_t seals, Where where = Where::kIdle) {
    ReclaimSession session = Session(id, 8, 0, where);
    session.seals_pages = seals;
    return session;
  };
  const ReclaimSession compacts = Session(1, 8, 5);
  ReclaimPlan plan = PlanReclaim(Tenant(1, slabs, {sealable(2, 5), compacts}));
  EXPECT_THAT(plan.take, ElementsAre(SessionId(1)));  // compaction is enough
  const ReclaimSession little = Session(3, 8, 2);
  plan = PlanReclaim(Tenant(1, slabs, {sealable(2, 1), sealable(4, 3), little}));
  EXPECT_THAT(plan.take, ElementsAre(SessionId(3), SessionId(4)));  // the largest gain is enough
  plan = PlanReclaim(Tenant(1, slabs, {sealable(2, 5, Where::kRunning), sealable(4, 3)}));
  EXPECT_THAT(plan.ask, ElementsAre(SessionId(2)));
  EXPECT_THAT(plan.take, IsEmpty());  // not needed with that one
  plan = PlanReclaim(Tenant(1, slabs, {sealable(2, 4)}));
  EXPECT_TRUE(plan.take.empty());  // not enough
}

TEST(ReclaimPlanner, PagesMoveOnlyInsideTheirGroup) {
  const ReclaimPlan plan =
      PlanReclaim(Tenant(2, {Leased(0, 1, 0, 0), Leased(1, 7, 0, 1), Leased(2, 8, 0, 0)}));
  EXPECT_THAT(plan.evacuate, IsEmpty());  // a fuller slab of the other group is no room
}

// --- Preemption, by example ----------------------------------------------------------------------

// Three slabs of 8 pages in four sessions, the fourth of them IDLE.
ReclaimInput Crowd(uint32_t lease, Preemption preemption) {
  ReclaimInput input = Tenant(lease, {Leased(0, 8), Leased(1, 8), Leased(2, 8)},
                              {Session(1, 6, 0, Where::kRunning), Session(2, 6, 0, Where::kRunning),
                               Session(3, 6, 0, Where::kRunning), Session(4, 6, 0, Where::kIdle)});
  input.preemption = preemption;
  return input;
}

TEST(ReclaimPlanner, WithoutLeaveNobodyIsEnded) {
  for (uint32_t lease = 0; lease < 4; ++lease) {
    EXPECT_THAT(PlanReclaim(Crowd(lease, Preemption::kNone)).preempt, IsEmpty());
  }
  EXPECT_THAT(PlanReclaim(Crowd(3, Preemption::kAll)).preempt, IsEmpty()) << "it fits";
}

TEST(ReclaimPlanner, IdleSessionsEndFirstThenTheYoungestAndNoMoreThanNeeded) {
  // 24 pages in two slabs: 8 must go. The idle session is not enough, with the youngest it is.
  EXPECT_THAT(PlanReclaim(Crowd(2, Preemption::kAll)).preempt,
              ElementsAre(SessionId(4), SessionId(3)));
  EXPECT_THAT(PlanReclaim(Crowd(1, Preemption::kAll)).preempt,
              ElementsAre(SessionId(4), SessionId(3), SessionId(2)))
      << "the oldest fits alone";
  EXPECT_THAT(PlanReclaim(Crowd(0, Preemption::kAll)).preempt,
              ElementsAre(SessionId(4), SessionId(3), SessionId(2), SessionId(1)));
}

TEST(ReclaimPlanner, WhileOnlyColdBytesAreDueRunningSessionsStay) {
  ReclaimInput input = Crowd(1, Preemption::kIdle);
  EXPECT_THAT(PlanReclaim(input).preempt, IsEmpty()) << "18 pages take three slabs as 24 do";
  input.sessions[3].pages = 9;
  input.sessions[0].pages = 3;
  EXPECT_THAT(PlanReclaim(input).preempt, ElementsAre(SessionId(4))) << "one slab of two";
}

TEST(ReclaimPlanner, OneThatIsEndingAlreadyCountsAsGone) {
  ReclaimInput input = Crowd(2, Preemption::kAll);
  input.sessions[3].pages = 8;
  input.sessions[0].pages = 4;
  input.sessions[1].ending = true;
  input.sessions[1].pages = 8;
  input.sessions[2].pages = 4;
  EXPECT_THAT(PlanReclaim(input).preempt, ElementsAre(SessionId(2)));
  input.lease_slabs = 3;
  EXPECT_THAT(PlanReclaim(input).preempt, IsEmpty()) << "and goes on when it need not end";
}

TEST(ReclaimPlanner, WhoMakesNoSlabFreeIsNotEndedInVain) {
  // A small young session in another group, whose slab is needed anyway.
  ReclaimInput input = Tenant(2, {Leased(0, 8, 0, 0), Leased(1, 8, 0, 0), Leased(2, 7, 0, 1)},
                              {Session(1, 8, 0, Where::kRunning), Session(2, 8, 0, Where::kRunning),
                               Session(3, 6, 0, Where::kRunning), Session(4, 1, 0, Where::kIdle)});
  input.sessions[2].group = input.sessions[3].group = 1;
  input.sessions[2].where = Where::kBusy;
  input.sessions[2].id = SessionId(0);
  input.preemption = Preemption::kAll;
  EXPECT_THAT(PlanReclaim(input).preempt, ElementsAre(SessionId(2)));
}

TEST(ReclaimPlanner, WhoIsEndedIsNotCompactedNorAnybodyForItsRoom) {
  // Nine pages too many; compaction of the first could free them.
  ReclaimInput input = Tenant(1, {Leased(0, 8), Leased(1, 8), Leased(2, 1)},
                              {Session(1, 8, 8, Where::kIdle), Session(2, 9, 9, Where::kRunning)});
  input.preemption = Preemption::kAll;
  input.sessions[0].where = Where::kRunning;
  const ReclaimPlan plan = PlanReclaim(input);
  EXPECT_THAT(plan.preempt, ElementsAre(SessionId(2)));
  EXPECT_THAT(plan.take, IsEmpty());
  EXPECT_THAT(plan.ask, IsEmpty());
}

TEST(ReclaimPlanner, ABusySessionIsLeftToItsJob) {
  ReclaimInput input = Crowd(1, Preemption::kNone);
  for (ReclaimSession& session : input.sessions) {
    session.where = Where::kBusy;
    session.slabs = {SlabIndex(0)};
  }
  const ReclaimPlan plan = PlanReclaim(input);
  EXPECT_THAT(plan.take, IsEmpty());
  EXPECT_THAT(plan.ask, IsEmpty());
  input.preemption = Preemption::kAll;
  EXPECT_THAT(PlanReclaim(input).preempt, ElementsAre(SessionId(4), SessionId(3), SessionId(2)));
}

// --- Random tenants ------------------------------------------------------------------------------

// A tenant whose plans are carried out as well as its sessions allow.
class Simulation {
 public:
  // Some slabs are EVACUATING already, chosen by nobody, in kMidway.
  enum class Start { kFresh, kMidway };
  Simulation(uint64_t seed, Start start) : random_(seed) {
    const uint32_t slabs = 1 + Draw(12);
    lease_ = Draw(slabs + 2);
    for (uint32_t i = 0; i < slabs; ++i) {
      const bool midway = start == Start::kMidway && Draw(5) == 0;
      slabs_[SlabIndex(i)] = {.state = midway ? SlabState::kEvacuating : SlabState::kLeased,
                              .group = Draw(3) == 0};
    }
    const uint32_t sessions = Draw(9);
    for (uint32_t i = 0; i < sessions; ++i) sessions_[SessionId(i + 1)] = {.group = Draw(3) == 0};
    for (auto& [index, slab] : slabs_) {
      for (uint32_t i = 0; i < kPagesPerSlab; ++i) {
        const uint32_t kind = Draw(4);
        if (kind == 0) ++slab.granted;
        if (kind < 2 || sessions_.empty()) continue;
        const auto session = std::next(sessions_.begin(), Draw(sessions));
        if (session->second.group == slab.group) ++session->second.pages[index];
      }
    }
    for (auto& [id, session] : sessions_) {
      session.where = Draw(2) == 0 ? Where::kIdle : Where::kRunning;
      session.keeps = Draw(2) == 0 ? session.size() : Draw(session.size() + 1);
      session.sealed = Draw(2) == 0 ? session.keeps : Draw(session.keeps + 1);
    }
  }

  // From now on; a few RUNNING sessions never reach a safe point.
  void Allow(Preemption preemption) {
    preemption_ = preemption;
    for (auto& [id, session] : sessions_) session.stuck = Draw(8) == 0;
  }

  ReclaimInput Input() const {
    ReclaimInput input{.lease_slabs = lease_,
                       .held_slabs = static_cast<uint32_t>(slabs_.size()),
                       .preemption = preemption_};
    for (const auto& [index, slab] : slabs_) {
      SlabUsage usage = Leased(index.value(), Owned(index), slab.granted, slab.group);
      usage.state = slab.state;
      input.slabs.push_back(usage);
    }
    std::stable_sort(input.slabs.begin(), input.slabs.end(), [](const auto& a, const auto& b) {
      return a.owned_pages + a.granted_pages < b.owned_pages + b.granted_pages;
    });
    for (const auto& [id, session] : sessions_) {
      ReclaimSession known = Session(id.value(), session.size(), session.frees(), session.where);
      known.group = session.group;
      known.seals_pages = session.seals();
      known.ending = session.ending;
      for (const auto& [slab, pages] : session.pages) known.slabs.push_back(slab);
      input.sessions.push_back(known);
    }
    return input;
  }

  void CarryOut(const ReclaimPlan& plan) {
    for (const SlabIndex slab : plan.cancel) slabs_.at(slab).state = SlabState::kLeased;
    for (const SlabIndex slab : plan.evacuate) slabs_.at(slab).state = SlabState::kEvacuating;
    if (plan.magazines == Magazines::kReturn) {
      for (auto& [index, slab] : slabs_) slab.granted = 0;
    }
    for (const auto& list : {plan.take, plan.ask}) {
      for (const SessionId id : list) {
        SimulatedSession& session = sessions_.at(id);
        if (session.steps()) CompactAndMove(&session);
      }
    }
    for (auto& [id, session] : sessions_) session.ending = false;
    for (const SessionId id : plan.preempt) {
      SimulatedSession& session = sessions_.at(id);
      if (session.steps()) {
        sessions_.erase(id);
      } else {
        session.ending = true;
      }
    }
    std::erase_if(slabs_, [&](const auto& entry) {
      return entry.second.state == SlabState::kEvacuating && entry.second.granted == 0 &&
             Owned(entry.first) == 0;
    });
  }

  uint32_t held() const { return static_cast<uint32_t>(slabs_.size()); }
  uint32_t lease() const { return lease_; }
  uint32_t sessions() const { return static_cast<uint32_t>(sessions_.size()); }
  // Slabs that sessions fill which cannot be ended.
  uint32_t StuckSlabs() const {
    std::map<uint32_t, uint64_t> pages;
    for (const auto& [id, session] : sessions_) {
      if (!session.steps()) pages[session.group] += session.size();
    }
    uint64_t slabs = 0;
    for (const auto& [group, count] : pages) slabs += CeilDiv<uint64_t>(count, kPagesPerSlab);
    return static_cast<uint32_t>(slabs);
  }
  // Slabs that a group's sessions fill when all are compacted and sealed.
  uint32_t LeastSlabs() const {
    std::map<uint32_t, uint64_t> pages;
    for (const auto& [id, session] : sessions_) {
      pages[session.group] += std::min(session.sealed, session.size());
    }
    uint64_t slabs = 0;
    for (const auto& [group, count] : pages) slabs += CeilDiv<uint64_t>(count, kPagesPerSlab);
    return static_cast<uint32_t>(slabs);
  }

 private:
  struct SimulatedSlab {
    SlabState state;
    uint32_t group;
    uint32_t granted = 0;
  };
  struct SimulatedSession {
    uint32_t group = 0;
    Where where = Where::kIdle;
    uint64_t keeps = 0;   // pages that its policy needs
    uint64_t sealed = 0;  // pages that those need when they are sealed
    bool stuck = false;   // never at a safe point
    bool ending = false;
    std::map<SlabIndex, uint64_t> pages;

    uint64_t size() const {
      uint64_t sum = 0;
      for (const auto& [slab, count] : pages) sum += count;
      return sum;
    }
    bool steps() const { return where == Where::kIdle || !stuck; }
    uint64_t frees() const { return size() > keeps ? size() - keeps : 0; }
    uint64_t seals() const { return std::min(size(), keeps) - std::min(size(), sealed); }
  };

  uint32_t Draw(uint32_t n) { return static_cast<uint32_t>(random_() % n); }
  uint32_t Owned(SlabIndex index) const {
    uint64_t sum = 0;
    for (const auto& [id, session] : sessions_) {
      const auto found = session.pages.find(index);
      if (found != session.pages.end()) sum += found->second;
    }
    return static_cast<uint32_t>(sum);
  }

  void CompactAndMove(SimulatedSession* session) {
    while (session->frees() + session->seals() > 0) {
      const auto from = std::next(session->pages.begin(), Draw(session->pages.size()));
      if (--from->second == 0) session->pages.erase(from);
    }
    for (auto& [to, slab] : slabs_) {
      if (slab.state != SlabState::kLeased || slab.group != session->group) continue;
      while (Owned(to) + slab.granted < kPagesPerSlab) {
        const auto from =
            std::find_if(session->pages.begin(), session->pages.end(), [&](const auto& entry) {
              return slabs_.at(entry.first).state == SlabState::kEvacuating;
            });
        if (from == session->pages.end()) return;
        if (--from->second == 0) session->pages.erase(from);
        ++session->pages[to];
      }
    }
  }

  std::mt19937_64 random_;
  uint32_t lease_;
  Preemption preemption_ = Preemption::kNone;
  std::map<SlabIndex, SimulatedSlab> slabs_;
  std::map<SessionId, SimulatedSession> sessions_;
};

void CheckPlan(const ReclaimInput& input, const ReclaimPlan& plan) {
  EXPECT_EQ(plan, PlanReclaim(input));
  const int64_t wanted = std::max<int64_t>(0, int64_t{input.held_slabs} - input.lease_slabs);
  std::set<SlabIndex> going(plan.evacuate.begin(), plan.evacuate.end());
  for (const SlabUsage& slab : input.slabs) {
    if (slab.state == SlabState::kEvacuating) going.insert(slab.slab);
  }
  for (const SlabIndex slab : plan.cancel) EXPECT_EQ(going.erase(slab), 1u);
  EXPECT_TRUE(plan.evacuate.empty() || plan.cancel.empty());
  if (!plan.cancel.empty()) {
    EXPECT_EQ(static_cast<int64_t>(going.size()), wanted) << "cancelled too much";
  }
  EXPECT_LE(static_cast<int64_t>(going.size()), wanted);
  if (wanted == 0) {
    EXPECT_TRUE(going.empty() && plan.take.empty() && plan.ask.empty());
  }

  std::map<uint32_t, int64_t> room, moving, new_pages;
  for (const SlabUsage& slab : input.slabs) {
    if (going.contains(slab.slab)) {
      moving[slab.group] += slab.owned_pages;
      if (slab.state == SlabState::kLeased) new_pages[slab.group] += slab.owned_pages;
    } else if (slab.state == SlabState::kLeased) {
      room[slab.group] += slab.free_pages;
    }
  }
  for (const auto& [group, pages] : new_pages) {
    if (pages > 0) {
      EXPECT_LE(moving[group], room[group]) << "no room in group " << group;
    }
  }

  const std::set<SessionId> ended(plan.preempt.begin(), plan.preempt.end());
  // Without need nobody is compacted: a session moves, or frees what another victim needs.
  const bool enough = static_cast<int64_t>(going.size()) >= wanted;
  for (const ReclaimSession& session : input.sessions) {
    const bool chosen = std::count(plan.take.begin(), plan.take.end(), session.id) +
                            std::count(plan.ask.begin(), plan.ask.end(), session.id) >
                        0;
    const bool moves = std::any_of(session.slabs.begin(), session.slabs.end(),
                                   [&](SlabIndex slab) { return going.contains(slab); });
    if (ended.contains(session.id)) {
      EXPECT_FALSE(chosen) << "ended and compacted";
      continue;
    }
    if (moves) {
      EXPECT_TRUE(chosen);
    }
    if (chosen && !moves) {
      EXPECT_TRUE(!enough && session.frees_pages + session.seals_pages > 0);
    }
  }
}

// Whole slabs that the pages in sessions fill when those of `gone` are there no more.
uint32_t SlabsWithout(const ReclaimInput& input, const std::set<SessionId>& gone) {
  std::map<uint32_t, uint64_t> pages;
  for (const SlabUsage& slab : input.slabs) pages[slab.group] += slab.owned_pages;
  for (const ReclaimSession& session : input.sessions) {
    if (gone.contains(session.id)) pages[session.group] -= session.pages;
  }
  uint64_t slabs = 0;
  for (const auto& [group, count] : pages) slabs += CeilDiv<uint64_t>(count, kPagesPerSlab);
  return static_cast<uint32_t>(slabs);
}

// Idle before the others, young before old; those that are ending already before all.
std::vector<ReclaimSession> InOrder(const ReclaimInput& input) {
  std::vector<ReclaimSession> order;
  for (const ReclaimSession& session : input.sessions) {
    if (session.where == Where::kIdle || input.preemption == Preemption::kAll) {
      order.push_back(session);
    }
  }
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::tuple(!a.ending, a.where != Where::kIdle, b.id) <
           std::tuple(!b.ending, b.where != Where::kIdle, a.id);
  });
  return order;
}

void CheckPreemption(const ReclaimInput& input, const ReclaimPlan& plan) {
  const std::set<SessionId> ended(plan.preempt.begin(), plan.preempt.end());
  EXPECT_EQ(ended.size(), plan.preempt.size()) << "one twice";
  if (input.preemption == Preemption::kNone) {
    EXPECT_TRUE(ended.empty());
    return;
  }
  const std::vector<ReclaimSession> order = InOrder(input);
  std::set<SessionId> all;
  for (const ReclaimSession& session : order) all.insert(session.id);
  for (const SessionId id : ended) EXPECT_TRUE(all.contains(id)) << "one that is not allowed";
  // Enough, as far as it can be.
  const uint32_t target = std::max(input.lease_slabs, SlabsWithout(input, all));
  EXPECT_LE(SlabsWithout(input, ended), target);
  std::set<SessionId> before;
  for (const ReclaimSession& session : order) {
    if (ended.contains(session.id)) {
      // Nobody in vain, and nobody whom those before could have spared.
      std::set<SessionId> others = ended;
      others.erase(session.id);
      EXPECT_GT(SlabsWithout(input, others), target) << "one too many";
      EXPECT_GT(SlabsWithout(input, before), target) << "out of turn";
    }
    before.insert(session.id);
  }
  // Who fits alone, and is the last whose turn it would be, survives.
  if (!order.empty() && input.preemption == Preemption::kAll) {
    std::set<SessionId> others = all;
    others.erase(order.back().id);
    if (SlabsWithout(input, others) <= input.lease_slabs) {
      EXPECT_FALSE(ended.contains(order.back().id)) << "the oldest";
    }
  }
}

TEST(ReclaimPlanner, EndsNobodyBeforeItsTimeOutOfTurnOrInVain) {
  int ended = 0, none = 0;
  for (uint64_t seed = 0; seed < 20'000; ++seed) {
    Simulation tenant(seed, Simulation::Start::kMidway);
    for (const Preemption preemption :
         {Preemption::kNone, Preemption::kIdle, Preemption::kAll, Preemption::kAll}) {
      tenant.Allow(preemption);
      const ReclaimInput input = tenant.Input();
      const ReclaimPlan plan = PlanReclaim(input);
      CheckPreemption(input, plan);
      CheckPlan(input, plan);
      ended += !plan.preempt.empty();
      none += plan.preempt.empty();
      tenant.CarryOut(plan);
    }
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
  EXPECT_GT(ended, 5'000);
  EXPECT_GT(none, 5'000);
}

TEST(ReclaimPlanner, WithPreemptionATenantEndsWithinItsLeaseButForTheStuck) {
  int held_up = 0, some_left = 0;
  for (uint64_t seed = 0; seed < 5'000; ++seed) {
    Simulation tenant(seed, Simulation::Start::kFresh);
    tenant.Allow(Preemption::kAll);
    for (int round = 0; round < 30; ++round) {
      const ReclaimInput input = tenant.Input();
      const ReclaimPlan plan = PlanReclaim(input);
      CheckPreemption(input, plan);
      tenant.CarryOut(plan);
    }
    const uint32_t stuck = tenant.StuckSlabs();
    if (stuck == 0) {
      ASSERT_LE(tenant.held(), tenant.lease()) << "seed " << seed;
    }
    held_up += stuck > tenant.lease();
    some_left += tenant.sessions() > 0;
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
  EXPECT_GT(held_up, 50);
  EXPECT_GT(some_left, 1'000);
}

TEST(ReclaimPlanner, KeepsItsPromisesForRandomTenants) {
  for (uint64_t seed = 0; seed < 20'000; ++seed) {
    const ReclaimInput input = Simulation(seed, Simulation::Start::kMidway).Input();
    CheckPlan(input, PlanReclaim(input));
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

TEST(ReclaimPlanner, RunToItsEndATenantIsWithinItsLeaseOrCannotBe) {
  int shrunk = 0;
  for (uint64_t seed = 0; seed < 5'000; ++seed) {
    Simulation tenant(seed, Simulation::Start::kFresh);
    for (int round = 0; round < 30; ++round) {
      const ReclaimInput input = tenant.Input();
      const ReclaimPlan plan = PlanReclaim(input);
      CheckPlan(input, plan);
      tenant.CarryOut(plan);
    }
    ASSERT_LE(tenant.held(), std::max(tenant.lease(), tenant.LeastSlabs())) << "seed " << seed;
    shrunk += tenant.held() == tenant.lease();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
  EXPECT_GT(shrunk, 1'000);
}

}  // namespace
}  // namespace kvpool
