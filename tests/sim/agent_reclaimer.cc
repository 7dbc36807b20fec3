// Passes, drains, and slabs that come back or do not. See agent/reclaimer.cc.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/reclaim_planner.h"
#include "tests/sim/sim_agent.h"

namespace kvpool::sim {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr milliseconds kBeat(20);
constexpr std::chrono::seconds kStuckPause(5);

}  // namespace

void AgentReclaimer::Look(TenantId tenant) {
  const TenantUsage usage = deps_.ledger->Usage(tenant);
  deps_.book->SeeHeld(tenant, usage.held_slabs - usage.stuck_slabs, deps_.process->Now());
  bool& pending = pending_[tenant];
  if (pending) return;
  if (usage.held_slabs <= usage.lease_slabs && usage.evacuating_slabs == 0 &&
      usage.draining_slabs == 0 && usage.abandoned_slabs == 0) {
    return;
  }
  pending = true;
  deps_.process->After(Duration(0), [this, tenant] { Pass(tenant); });
}

void AgentReclaimer::Pass(TenantId tenant) {
  deps_.workers->Snapshot(tenant);
  const ReclaimPlan plan = PlanReclaim(Input(tenant));
  for (SlabIndex slab : plan.cancel) (void)deps_.ledger->CancelEvacuate(slab);
  for (SlabIndex slab : plan.evacuate) (void)deps_.ledger->BeginEvacuate(slab);
  deps_.workers->Preempt(tenant, plan.preempt);
  deps_.workers->AskHandOver(tenant, plan.ask);
  const auto rest = [this, tenant, take = plan.take] {
    deps_.workers->CompactIdle(tenant, take, [this, tenant] {
      DrainEmpty(tenant);
      deps_.process->After(kBeat, [this, tenant] {
        pending_[tenant] = false;
        Look(tenant);
      });
    });
  };
  if (plan.magazines == ReclaimPlan::Magazines::kReturn) {
    deps_.workers->ReturnMagazines(tenant, rest);
  } else {
    rest();
  }
}

ReclaimInput AgentReclaimer::Input(TenantId tenant) const {
  const TenantUsage usage = deps_.ledger->Usage(tenant);
  ReclaimInput input{.lease_slabs = usage.lease_slabs,
                     .held_slabs = usage.held_slabs - usage.stuck_slabs,
                     .draining_slabs = usage.draining_slabs,
                     .slabs = deps_.ledger->EmptiestSlabs(tenant, usage.held_slabs)};
  if (const TenantState* state = deps_.book->Find(tenant)) {
    input.preemption = state->MayPreempt(deps_.process->Now());
  }
  deps_.workers->AddReclaimSessions(tenant, &input);
  return input;
}

void AgentReclaimer::DrainEmpty(TenantId tenant) {
  const uint32_t held = deps_.ledger->Usage(tenant).held_slabs;
  for (const SlabUsage& slab : deps_.ledger->EmptiestSlabs(tenant, held)) {
    if (slab.state != SlabState::kEvacuating) continue;
    if (slab.owned_pages + slab.granted_pages > 0 || deps_.workers->Populating(slab.slab)) continue;
    if (deps_.ledger->BeginDrain(slab.slab).ok()) Drain(slab.slab);
  }
}

void AgentReclaimer::Drain(SlabIndex slab) {
  deps_.workers->Revoke(slab, [this, slab] {
    if (!deps_.ledger->WorkersOf(slab).empty()) {
      return deps_.process->After(kBeat, [this, slab] { Drain(slab); });
    }
    Destroy(slab);
  });
}

void AgentReclaimer::Destroy(SlabIndex slab) {
  deps_.process->After(deps_.world->DrawBetween(microseconds(50), milliseconds(2)), [this, slab] {
    const ReturnProof emptied = deps_.device->EmptySlab(slab);
    deps_.process->After(kReturnWatch, [this, slab, emptied] { Settle(slab, emptied); });
  });
}

void AgentReclaimer::Settle(SlabIndex slab, ReturnProof emptied) {
  if (emptied == ReturnProof::kReturned &&
      deps_.device->DestroySlab(slab) == ReturnProof::kReturned) {
    deps_.world->Note("slab", "slab % of agent process % is free",
                      {slab.value(), deps_.process->id()});
    (void)deps_.ledger->FreeSlab(slab);
    return on_progress_();
  }
  if (deps_.ledger->MarkStuck(slab).ok()) {
    deps_.world->Note("slab", "slab % of agent process % is STUCK",
                      {slab.value(), deps_.process->id()});
  }
  deps_.process->After(kStuckPause, [this, slab] { Destroy(slab); });
}

}  // namespace kvpool::sim
