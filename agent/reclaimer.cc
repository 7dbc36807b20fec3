// See reclaimer.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/reclaimer.h"

#include <algorithm>
#include <set>
#include <utility>

#include "common/kj_asio.h"

namespace kvpool {
namespace {

// How soon a tenant that is still over its lease is looked at again without an event.
constexpr auto kBeat = 20 * kj::MILLISECONDS;
// How soon the memory of a STUCK slab is looked for again.
constexpr auto kStuckPause = 5 * kj::SECONDS;

// Between two looks for parked pages that nobody asks for.
constexpr Duration kFirstLook = std::chrono::milliseconds(100), kLastLook = std::chrono::minutes(1);

}  // namespace

Reclaimer::Reclaimer(const Deps& deps) : deps_(deps), log_("reclaimer"), tasks_(*this) {
  tasks_.add(DropUnused());
}

kj::Promise<void> Reclaimer::DropUnused() {
  const auto pause = std::clamp<Duration>(deps_.parked_ttl / 8, kFirstLook, kLastLook);
  return deps_.timer->afterDelay(pause / std::chrono::milliseconds(1) * kj::MILLISECONDS)
      .then([this] {
        deps_.workers->DropParkedBefore(BootClock::now() - deps_.parked_ttl);
        return DropUnused();
      });
}

void Reclaimer::taskFailed(kj::Exception&& error) {
  log_.Error("a reclaim stopped", {{"error", error.getDescription().cStr()}});
}

void Reclaimer::Look(TenantId tenant) {
  const TenantUsage usage = deps_.ledger->Usage(tenant);
  deps_.book->SeeHeld(tenant, usage.held_slabs - usage.stuck_slabs, BootClock::now());
  Pending& pending = pending_[tenant];
  if (pending != Pending::kNone) return;  // looks again when it is done
  if (usage.held_slabs <= usage.lease_slabs && usage.evacuating_slabs == 0 &&
      usage.draining_slabs == 0 && usage.abandoned_slabs == 0) {
    return;
  }
  pending = Pending::kRunning;
  // Later, not within the caller's change.
  tasks_.add(kj::evalLater([this, tenant] { return Pass(tenant); }));
}

kj::Promise<void> Reclaimer::Pass(TenantId tenant) {
  deps_.workers->Snapshot(tenant);
  ReclaimPlan plan = PlanReclaim(Input(tenant));
  if (!plan.drop.empty()) {
    // What is worth least may empty other slabs than would have gone.
    deps_.workers->DropParked(tenant, {}, plan.drop);
    plan = PlanReclaim(Input(tenant));
  }
  deps_.workers->DropParked(tenant, plan.drop_in, {});
  for (SlabIndex slab : plan.cancel) (void)deps_.ledger->CancelEvacuate(slab);
  for (SlabIndex slab : plan.evacuate) (void)deps_.ledger->BeginEvacuate(slab);
  deps_.workers->Preempt(tenant, plan.preempt);
  deps_.workers->AskHandOver(tenant, plan.ask);
  kj::Promise<void> magazines = plan.magazines == ReclaimPlan::Magazines::kReturn
                                    ? deps_.workers->ReturnMagazines(tenant)
                                    : kj::Promise<void>(kj::READY_NOW);
  return magazines
      .then([this, tenant, take = plan.take] { return deps_.workers->CompactIdle(tenant, take); })
      .then([this, tenant](uint32_t) {
        DrainEmpty(tenant);
        return deps_.timer->afterDelay(kBeat);
      })
      .then([this, tenant] {
        pending_[tenant] = Pending::kNone;
        Look(tenant);
      });
}

ReclaimInput Reclaimer::Input(TenantId tenant) const {
  const TenantUsage usage = deps_.ledger->Usage(tenant);
  ReclaimInput input{.lease_slabs = usage.lease_slabs,
                     .held_slabs = usage.held_slabs - usage.stuck_slabs,
                     .draining_slabs = usage.draining_slabs,
                     .slabs = deps_.ledger->EmptiestSlabs(tenant, usage.held_slabs)};
  if (const TenantState* state = deps_.book->Find(tenant)) {
    input.preemption = state->MayPreempt(BootClock::now());
  }
  std::map<SlabIndex, uint32_t> groups;
  for (const SlabUsage& slab : input.slabs) groups[slab.slab] = slab.group;
  for (const auto& [id, worker] : deps_.workers->all()) {
    const Attachment& attachment = *worker.attachment;
    if (attachment.setup().tenant != tenant) continue;
    for (const auto& [slot, session] : attachment.sessions()) {
      if (session.failed) continue;
      // One whose capability is gone goes as soon as its job is done.
      const bool leaving = session.closed || worker.detached;
      ReclaimSession known{.id = session.id,
                           .where = attachment.IsIdle(slot) ? ReclaimSession::Where::kIdle
                                                            : ReclaimSession::Where::kRunning,
                           .ending = leaving || session.ending};
      if (leaving || session.job != AgentSession::Job::kNone) {
        known.where = ReclaimSession::Where::kBusy;
      } else {
        known.frees_pages = attachment.PagesFreedByCompaction(session);
        known.seals_pages = attachment.PagesFreedBySealing(session);
      }
      std::set<SlabIndex> slabs;
      const auto add = [&](PageId page) {
        ++known.pages;
        slabs.insert(attachment.layout().SlabOf(page));
      };
      const auto owned = deps_.ledger->PagesOf(session.id).value_or(std::span<const PageId>());
      std::for_each(owned.begin(), owned.end(), add);
      for (PageId page : session.frozen) {
        if (deps_.ledger->HoldersOf(page) == 1) add(page);
      }
      known.slabs.assign(slabs.begin(), slabs.end());
      if (!known.slabs.empty()) known.group = groups[known.slabs.front()];
      input.sessions.push_back(std::move(known));
    }
  }
  return input;
}

void Reclaimer::TakeFromOtherLayouts(WorkerId worker, uint32_t slabs) {
  const auto group = deps_.ledger->GroupOf(worker);
  if (!group.has_value()) return;
  const TenantId tenant = deps_.workers->all().at(worker).attachment->setup().tenant;
  const TenantUsage usage = deps_.ledger->Usage(tenant);
  slabs -= std::min(slabs, usage.draining_slabs);  // asked for a moment ago
  for (const SlabUsage& slab : deps_.ledger->EmptiestSlabs(tenant, usage.held_slabs)) {
    if (slabs == 0) return;
    const bool other = slab.group != *group && slab.state == SlabState::kLeased;
    if (!other || slab.owned_pages + slab.granted_pages > 0) continue;
    if (deps_.workers->Populating(slab.slab)) continue;
    if (slab.frozen_pages > 0) deps_.workers->DropParked(tenant, {slab.slab}, {});
    if (!deps_.ledger->BeginEvacuate(slab.slab).ok()) continue;
    if (!deps_.ledger->BeginDrain(slab.slab).ok()) {  // sessions share what is left in it
      (void)deps_.ledger->CancelEvacuate(slab.slab);
      continue;
    }
    tasks_.add(Drain(slab.slab));
    --slabs;
  }
}

void Reclaimer::DrainEmpty(TenantId tenant) {
  const uint32_t held = deps_.ledger->Usage(tenant).held_slabs;
  for (const SlabUsage& slab : deps_.ledger->EmptiestSlabs(tenant, held)) {
    if (slab.state != SlabState::kEvacuating) continue;
    if (slab.owned_pages + slab.granted_pages + slab.frozen_pages > 0 ||
        deps_.workers->Populating(slab.slab))
      continue;
    if (deps_.ledger->BeginDrain(slab.slab).ok()) tasks_.add(Drain(slab.slab));
  }
}

kj::Promise<void> Reclaimer::Drain(SlabIndex slab) {
  return deps_.workers->Revoke(slab).then([this, slab]() -> kj::Promise<void> {
    if (!deps_.ledger->WorkersOf(slab).empty()) {
      // Somebody has not unmapped it. It stays charged, and is tried again.
      return deps_.timer->afterDelay(kBeat).then([this, slab] { return Drain(slab); });
    }
    return Destroy(slab);
  });
}

kj::Promise<void> Reclaimer::Destroy(SlabIndex slab) {
  return Offload(*deps_.pool, [device = deps_.device, slab] { return device->EmptySlab(slab); })
      .then([this, slab](ReturnProof emptied) {
        // The watch holds up no kernel thread, and slabs are watched together.
        return deps_.timer->afterDelay(kReturnWatch.count() * kj::MILLISECONDS)
            .then([this, slab, emptied] { return Settle(slab, emptied); });
      });
}

kj::Promise<void> Reclaimer::Settle(SlabIndex slab, ReturnProof emptied) {
  const TenantId tenant = deps_.ledger->Slab(slab)->tenant;
  if (emptied == ReturnProof::kReturned &&
      deps_.device->DestroySlab(slab) == ReturnProof::kReturned) {
    (void)deps_.ledger->FreeSlab(slab);
    Look(tenant);
    if (on_progress_) on_progress_();
    return kj::READY_NOW;
  }
  // The first time only: a slab that is STUCK already is not marked again.
  if (deps_.ledger->MarkStuck(slab).ok()) {
    Look(tenant);
    log_.Error("a slab's memory did not come back; it stays charged to its tenant",
               {{"slab", slab.value()}});
  }
  return deps_.timer->afterDelay(kStuckPause).then([this, slab] { return Destroy(slab); });
}

}  // namespace kvpool
