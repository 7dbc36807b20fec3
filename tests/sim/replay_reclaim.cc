// Pages, slabs, and how a tenant comes back to its lease: as agent/reclaimer.cc does it, with
// prefixes that nobody uses going first.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "tests/sim/replay_agent.h"

namespace kvpool::sim {
namespace {

constexpr std::chrono::milliseconds kBeat(100);

}  // namespace

// ---- Pages and slabs ----------------------------------------------------------------------------

std::span<const PageId> ReplayAgent::Owned(const Tenancy& tenancy) const {
  return ledger_->PagesOf(tenancy.pages).value_or(std::span<const PageId>());
}

bool ReplayAgent::AddSlab(Tenancy* tenancy) {
  if (ledger_->Usage(tenancy->id).held_slabs >= UsableSlabs(*tenancy)) return false;
  const absl::StatusOr<SlabIndex> slab = ledger_->AssignSlab(tenancy->worker);
  if (!slab.ok()) return false;
  (void)ledger_->MarkOffered(tenancy->worker, *slab);
  (void)ledger_->MarkMapped(tenancy->worker, *slab);
  deps_.holds_more(tenancy->id);
  return true;
}

// All or none; none past the grace. Room that is free in the lease first, then that of prefixes
// that nobody uses.
bool ReplayAgent::Take(Tenancy* tenancy, uint64_t pages) {
  if (book_.Find(tenancy->id)->PastDeadline(deps_.world->now())) return false;
  std::vector<PageId> taken(pages);
  size_t got = 0;
  while (true) {
    got += ledger_->Grant(tenancy->worker, std::span(taken).subspan(got)).value_or(0);
    if (got == pages) return ledger_->Adopt(tenancy->pages, taken).ok();
    if (AddSlab(tenancy) || DropBlock(tenancy)) continue;
    taken.resize(got);
    (void)ledger_->Return(tenancy->worker, taken);
    return false;
  }
}

void ReplayAgent::Give(Tenancy* tenancy, uint64_t pages) {
  const std::span<const PageId> owned = Owned(*tenancy);
  const std::vector<PageId> given(owned.end() - static_cast<std::ptrdiff_t>(pages), owned.end());
  (void)ledger_->Release(tenancy->pages, given);
}

bool ReplayAgent::DropBlock(Tenancy* tenancy) {
  if (!tenancy->cache.DropOne()) return false;
  Give(tenancy, kBlockPages);
  return true;
}

// ---- Reclaim ------------------------------------------------------------------------------------

void ReplayAgent::Look(Tenancy* tenancy) {
  const TenantUsage usage = ledger_->Usage(tenancy->id);
  book_.SeeHeld(tenancy->id, usage.held_slabs, deps_.world->now());
  if (tenancy->passing) return;
  if (usage.held_slabs <= UsableSlabs(*tenancy) && usage.evacuating_slabs == 0) return;
  tenancy->passing = true;
  deps_.world->At(deps_.world->now(), nullptr, [this, tenancy] { Pass(tenancy); });
}

ReclaimInput ReplayAgent::Input(const Tenancy& tenancy) const {
  const TenantUsage usage = ledger_->Usage(tenancy.id);
  ReclaimInput input{.lease_slabs = UsableSlabs(tenancy),
                     .held_slabs = usage.held_slabs,
                     .draining_slabs = usage.draining_slabs,
                     .slabs = ledger_->EmptiestSlabs(tenancy.id, usage.held_slabs)};
  if (const TenantState* state = book_.Find(tenancy.id)) {
    input.preemption = state->MayPreempt(deps_.world->now());
  }
  for (const auto& [id, session] : tenancy.sessions) {
    input.sessions.push_back({.id = id,
                              .group = input.slabs.empty() ? 0 : input.slabs.front().group,
                              .where = ReclaimSession::Where::kRunning,
                              .pages = session.pages,
                              .frees_pages = PagesFreed(session)});
  }
  return input;
}

void ReplayAgent::Pass(Tenancy* tenancy) {
  const uint64_t room = uint64_t{UsableSlabs(*tenancy)} * deps_.layout->pages_per_slab();
  while (Owned(*tenancy).size() > room && DropBlock(tenancy)) {
  }
  const ReclaimPlan plan = PlanReclaim(Input(*tenancy));
  for (SlabIndex slab : plan.cancel) (void)ledger_->CancelEvacuate(slab);
  for (SlabIndex slab : plan.evacuate) (void)ledger_->BeginEvacuate(slab);
  for (SessionId session : plan.ask) tenancy->sessions.at(session).asked = true;
  for (SessionId session : plan.preempt) Preempt(tenancy, session);
  MoveOut(tenancy);
  DrainEmpty(tenancy);
  deps_.world->At(deps_.world->now() + kBeat, nullptr, [this, tenancy] {
    tenancy->passing = false;
    Look(tenancy);
    Admit(tenancy);
  });
}

void ReplayAgent::MoveOut(Tenancy* tenancy) {
  std::vector<PageId> out;
  for (PageId page : Owned(*tenancy)) {
    const auto slab = ledger_->Slab(deps_.layout->SlabOf(page));
    if (slab->state == SlabState::kEvacuating) out.push_back(page);
  }
  std::vector<PageId> in(out.size());
  in.resize(ledger_->Grant(tenancy->worker, in).value_or(0));
  out.resize(in.size());
  (void)ledger_->Adopt(tenancy->pages, in);
  (void)ledger_->Release(tenancy->pages, out);
}

void ReplayAgent::DrainEmpty(Tenancy* tenancy) {
  const uint32_t held = ledger_->Usage(tenancy->id).held_slabs;
  for (const SlabUsage& usage : ledger_->EmptiestSlabs(tenancy->id, held)) {
    if (usage.state != SlabState::kEvacuating || usage.owned_pages > 0) continue;
    const SlabIndex slab = usage.slab;
    if (!ledger_->BeginDrain(slab).ok()) continue;
    deps_.world->At(deps_.world->now() + kSlabReturns, nullptr, [this, tenancy, slab] {
      (void)ledger_->MarkUnmapped(tenancy->worker, slab);
      (void)ledger_->FreeSlab(slab);
      Look(tenancy);
      Admit(tenancy);
    });
  }
}

}  // namespace kvpool::sim
