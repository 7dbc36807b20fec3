// Pages, slabs and jobs. See agent/workers_pages.cc, workers_jobs.cc and attachment.cc.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iterator>
#include <utility>

#include "proto/limits.h"
#include "tests/sim/agent_workers.h"
#include "tests/sim/sim_worker.h"

namespace kvpool::sim {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr uint32_t kRing = 256;

}  // namespace

// ---- Magazines ---------------------------------------------------------------------------------

void AgentWorkers::Collect(WorkerId id, AgentWorker* worker) {
  const std::vector<PageId> returned = std::exchange(worker->shared->returns, {});
  (void)deps_.ledger->Return(id, returned);
}

uint32_t AgentWorkers::Fill(WorkerId id, AgentWorker* worker, uint32_t pages) {
  const auto waiting = static_cast<uint32_t>(worker->shared->grants.size());
  const uint32_t wanted = std::min(pages, kRing);
  if (waiting >= wanted) return waiting;
  std::vector<PageId> granted(wanted - waiting);
  granted.resize(deps_.ledger->Grant(id, granted).value_or(0));
  for (PageId page : granted) worker->shared->grants.push_back(page);
  return waiting + static_cast<uint32_t>(granted.size());
}

uint32_t AgentWorkers::FillInTime(WorkerId id, AgentWorker* worker, uint32_t pages) {
  if (!PastDeadline(worker->tenant)) return Fill(id, worker, pages);
  return static_cast<uint32_t>(worker->shared->grants.size());
}

void AgentWorkers::TopUp(WorkerId id) {
  AgentWorker* worker = Find(id);
  if (worker == nullptr) return;
  const TenantState* tenant = deps_.book->Find(worker->tenant);
  const uint64_t leased =
      tenant == nullptr ? 0 : uint64_t{tenant->lease_slabs} * worker->layout->pages_per_slab();
  worker->target =
      static_cast<uint32_t>(std::clamp<uint64_t>(leased / limits::kMagazineShare, 2, kRing));
  Collect(id, worker);
  const TenantUsage usage = deps_.ledger->Usage(worker->tenant);
  if (usage.held_slabs <= usage.lease_slabs) Fill(id, worker, worker->target);
}

void AgentWorkers::Reserve(WorkerId id, uint32_t pages,
                           std::function<void(const absl::Status&)> done) {
  AgentWorker* worker = Find(id);
  if (worker == nullptr) return done(absl::FailedPreconditionError("detached"));
  Collect(id, worker);
  if (FillInTime(id, worker, std::max(pages, worker->target)) >= pages)
    return done(absl::OkStatus());
  Grow(id, pages, [this, id, pages, done = std::move(done)](bool grown) {
    AgentWorker* worker = Find(id);
    if (worker == nullptr) return done(absl::FailedPreconditionError("detached"));
    if (FillInTime(id, worker, pages) >= pages) return done(absl::OkStatus());
    if (grown) return Reserve(id, pages, done);
    Refuse(id, pages, done);
  });
}

void AgentWorkers::Refuse(WorkerId id, uint32_t pages,
                          std::function<void(const absl::Status&)> done) {
  ReturnMagazines(Find(id)->tenant, [this, id, pages, done = std::move(done)] {
    AgentWorker* worker = Find(id);
    if (worker == nullptr) return done(absl::FailedPreconditionError("detached"));
    const uint32_t got = FillInTime(id, worker, pages);
    if (got >= pages) return done(absl::OkStatus());
    const TenantState* tenant = deps_.book->Find(worker->tenant);
    deps_.book->Record({.tenant = worker->tenant,
                        .time = deps_.process->Now(),
                        .step = ReclaimStep::kRefusal,
                        .reason = PastDeadline(worker->tenant) ? ReclaimReason::kLeaseShrink
                                                               : ReclaimReason::kNoPages,
                        .policy = ToString(tenant->spec),
                        .bytes = uint64_t{pages - got} *
                                 static_cast<uint64_t>(worker->layout->page_bytes().value())});
    Changed(worker->tenant);
    done(absl::ResourceExhaustedError("no pages left"));
  });
}

void AgentWorkers::ReturnMagazines(TenantId tenant, Done done) {
  auto open = std::make_shared<uint32_t>(1);
  const auto one_less = [open, done = std::move(done)] {
    if (--*open == 0) done();
  };
  for (auto& [id, worker] : workers_) {
    if (worker.tenant != tenant || worker.detached) continue;
    ++*open;
    CallWorker(
        &worker, [](SimWorker& peer, const Done& answer) { peer.OnPressure(answer); },
        [this, id = id, one_less] {
          if (AgentWorker* answered = Find(id)) Collect(id, answered);
          one_less();
        },
        one_less);
  }
  deps_.process->After(Duration(0), one_less);
}

// ---- Slabs -------------------------------------------------------------------------------------

std::vector<SlabIndex> AgentWorkers::MakeSlabs(WorkerId id, const TenantState& tenant,
                                               size_t count) {
  std::vector<SlabIndex> made;
  while (made.size() < count && deps_.ledger->Usage(tenant.id).held_slabs < UsableSlabs(tenant)) {
    const absl::StatusOr<SlabIndex> slab = deps_.ledger->AssignSlab(id);
    if (!slab.ok()) break;
    if (!deps_.device->CreateSlab(*slab, tenant.id).ok()) {
      (void)deps_.ledger->BeginEvacuate(*slab);
      (void)deps_.ledger->BeginDrain(*slab);
      (void)deps_.ledger->FreeSlab(*slab);
      break;
    }
    made.push_back(*slab);
  }
  return made;
}

void AgentWorkers::Grow(WorkerId id, uint32_t pages, std::function<void(bool)> done) {
  AgentWorker* worker = Find(id);
  const TenantState* tenant = deps_.book->Find(worker->tenant);
  if (worker->growing || tenant == nullptr || PastDeadline(tenant->id)) return done(false);
  std::vector<SlabIndex> slabs = deps_.ledger->SlabsToOffer(id, limits::kSlabsPerCall);
  const size_t wanted =
      std::min<size_t>(CeilDiv(pages, worker->layout->pages_per_slab()), limits::kSlabsPerCall);
  if (slabs.size() < wanted) {
    const std::vector<SlabIndex> made = MakeSlabs(id, *tenant, wanted - slabs.size());
    slabs.insert(slabs.end(), made.begin(), made.end());
  }
  if (slabs.empty()) return done(false);
  worker->growing = true;
  populating_.insert(slabs.begin(), slabs.end());
  for (SlabIndex slab : slabs) deps_.device->BeginPopulate(slab);
  const Duration populating = deps_.world->DrawBetween(microseconds(100), milliseconds(10));
  deps_.process->After(populating, [this, id, slabs, done = std::move(done)] {
    for (SlabIndex slab : slabs) {
      deps_.device->EndPopulate(slab);
      populating_.erase(populating_.find(slab));
    }
    Offer(id, slabs, done);
  });
}

void AgentWorkers::Offer(WorkerId id, std::vector<SlabIndex> slabs,
                         std::function<void(bool)> done) {
  AgentWorker* worker = Find(id);
  if (worker == nullptr) {
    workers_.at(id).growing = false;
    RemoveIfDone(id);
    return done(false);
  }
  std::erase_if(slabs, [&](SlabIndex slab) { return !deps_.ledger->MarkOffered(id, slab).ok(); });
  if (slabs.empty()) {
    worker->growing = false;
    return done(false);
  }
  std::vector<SlabMemory> memory;
  for (SlabIndex slab : slabs) memory.push_back(deps_.device->Export(slab, worker->tenant));
  const auto finish = [this, id, done = std::move(done)](bool mapped) {
    const auto found = workers_.find(id);
    if (found != workers_.end()) found->second.growing = false;
    RemoveIfDone(id);
    done(mapped && found != workers_.end());
  };
  CallWorker(
      worker,
      [memory, device = deps_.device](SimWorker& peer, const Done& answer) {
        peer.OnSlabsGranted(*device, memory, answer);
      },
      [this, id, slabs, finish] {
        if (workers_.contains(id)) {
          for (SlabIndex slab : slabs) (void)deps_.ledger->MarkMapped(id, slab);
        }
        finish(true);
      },
      [finish] { finish(false); });
}

void AgentWorkers::Revoke(SlabIndex slab, Done done) {
  auto open = std::make_shared<uint32_t>(1);
  const auto one_less = [open, done = std::move(done)] {
    if (--*open == 0) done();
  };
  for (WorkerId id : deps_.ledger->WorkersOf(slab)) {
    AgentWorker* worker = Find(id);
    if (worker == nullptr) continue;
    ++*open;
    CallWorker(
        worker,
        [slab, device = deps_.device](SimWorker& peer, const Done& answer) {
          peer.OnSlabRevoked(*device, slab, answer);
        },
        [this, id, slab, one_less] {
          (void)deps_.ledger->MarkUnmapped(id, slab);
          one_less();
        },
        one_less);
  }
  deps_.process->After(Duration(0), one_less);
}

// ---- Sessions and jobs -------------------------------------------------------------------------

bool AgentWorkers::Snapshot(AgentWorker* worker, uint32_t slot, AgentSession* session) {
  SharedMemory::Slot& shared = worker->shared->slots[slot];
  bool good = deps_.ledger->Adopt(session->id, shared.pages).ok();
  for (PageId page : shared.pages) {
    good = good && !std::binary_search(session->compacted.begin(), session->compacted.end(), page);
  }
  if (good) return true;
  session->failed = true;
  shared.state = SharedMemory::State::kFailed;
  deps_.world->Note("session", "session % failed: its page list is rubbish",
                    {static_cast<int64_t>(session->id.value())});
  return false;
}

void AgentWorkers::Snapshot(TenantId tenant) {
  for (auto& [id, worker] : workers_) {
    if (worker.tenant != tenant || worker.detached) continue;
    for (auto& [slot, session] : worker.sessions) {
      if (!session.job && !session.failed && !session.closed) Snapshot(&worker, slot, &session);
    }
  }
}

void AgentWorkers::Free(WorkerId id, uint32_t slot) {
  AgentWorker& worker = workers_.at(id);
  AgentSession& session = worker.sessions.at(slot);
  if (!session.failed) Snapshot(&worker, slot, &session);
  if (!session.ended) GiveBack(&worker, &session);
  worker.shared->slots.erase(slot);
  worker.sessions.erase(slot);
}

void AgentWorkers::GiveBack(AgentWorker* worker, AgentSession* session) {
  (void)deps_.ledger->CloseSession(session->id);
  worker->charge -= session->charge;
  session->charge = {};
}

// ---- Ends --------------------------------------------------------------------------------------

bool AgentWorkers::ShallEnd(const AgentWorker& worker, const AgentSession& session) const {
  const TenantState* tenant = deps_.book->Find(worker.tenant);
  return session.ending && tenant != nullptr &&
         tenant->MayPreempt(deps_.process->Now()) == Preemption::kAll;
}

// Of a BUSY session without a job.
void AgentWorkers::End(AgentWorker* worker, uint32_t slot, AgentSession* session) {
  if (!Snapshot(worker, slot, session)) return;
  GiveBack(worker, session);
  session->ended = session->failed = true;
  session->compacted.clear();
  worker->shared->slots[slot].state = SharedMemory::State::kFailed;
  deps_.world->Note("preempt", "session % is ended", {static_cast<int64_t>(session->id.value())});
}

void AgentWorkers::Preempt(TenantId tenant, const std::vector<SessionId>& sessions) {
  for (auto& [id, worker] : workers_) {
    if (worker.tenant != tenant || worker.detached) continue;
    bool ended = false;
    for (auto& [slot, session] : worker.sessions) {
      if (session.failed) continue;
      session.ending = std::find(sessions.begin(), sessions.end(), session.id) != sessions.end();
      if (!session.ending) continue;
      SharedMemory::Slot& shared = worker.shared->slots[slot];
      shared.hand_over = SharedMemory::Slot::HandOver::kAsked;
      if (session.job || shared.state != SharedMemory::State::kIdle) continue;
      shared.state = SharedMemory::State::kBusy;
      End(&worker, slot, &session);
      ended = true;
    }
    if (ended) Changed(tenant);
  }
}

uint64_t AgentWorkers::PagesFreed(const AgentWorker& worker, uint32_t slot,
                                  const AgentSession& session) const {
  const auto shared = worker.shared->slots.find(slot);
  if (shared == worker.shared->slots.end()) return 0;
  const uint32_t peak = session.policy->PeakTokens(session.plan);
  if (peak >= session.plan.max_tokens) return 0;  // it drops nothing
  const uint64_t keeps = CeilDiv(peak - std::min(peak, session.plan.chunk), kPageTokens);
  const uint64_t has = session.compacted.size() + shared->second.pages.size();
  return has > keeps ? has - keeps : 0;
}

std::vector<PageId> AgentWorkers::GrantReplacements(WorkerId id, const AgentSession& session,
                                                    size_t count) {
  std::vector<PageId> pages(count);
  pages.resize(deps_.ledger->Grant(id, pages).value_or(0));
  if (pages.size() < count) {
    (void)deps_.ledger->Return(id, pages);
    return {};
  }
  (void)deps_.ledger->Adopt(session.id, pages);
  return pages;
}

bool AgentWorkers::BeginJob(WorkerId id, uint32_t slot, SharedMemory::State resting, Done done) {
  AgentWorker& worker = workers_.at(id);
  const auto found = worker.sessions.find(slot);
  if (found == worker.sessions.end()) return false;
  AgentSession& session = found->second;
  if (session.failed || session.closed || session.job) return false;
  if (worker.shared->slots[slot].state != SharedMemory::State::kBusy) return false;
  worker.shared->slots[slot].hand_over = SharedMemory::Slot::HandOver::kNo;
  if (resting == SharedMemory::State::kRunning && ShallEnd(worker, session)) {
    End(&worker, slot, &session);
    return false;
  }
  if (!Snapshot(&worker, slot, &session)) return false;

  const auto owned = deps_.ledger->PagesOf(session.id).value_or(std::span<const PageId>());
  std::vector<PageId> kept(owned.begin(), owned.end()), evacuated, replacements;
  std::copy_if(kept.begin(), kept.end(), std::back_inserter(evacuated), [&](PageId page) {
    const auto usage = deps_.ledger->Slab(worker.layout->SlabOf(page));
    return usage.has_value() && usage->state == SlabState::kEvacuating;
  });
  if (!evacuated.empty()) replacements = GrantReplacements(id, session, evacuated.size());
  if (replacements.empty()) evacuated.clear();
  const uint64_t freed = PagesFreed(worker, slot, session);
  if (evacuated.empty() && freed == 0) {
    worker.shared->slots[slot].state = resting;
    return false;
  }
  kept.insert(kept.end(), replacements.begin(), replacements.end());
  Job job{.dropped = evacuated};
  std::erase_if(kept, [&](PageId page) {
    return std::find(evacuated.begin(), evacuated.end(), page) != evacuated.end();
  });
  for (uint64_t i = 0; i < freed && !kept.empty(); ++i) {
    job.dropped.push_back(kept.back());
    kept.pop_back();
  }
  std::sort(kept.begin(), kept.end());
  job.kept = std::move(kept);
  session.job = true;
  ++jobs_begun_;
  (void)deps_.ledger->Pin(session.id);
  const Duration running = deps_.world->DrawBetween(microseconds(200), milliseconds(20));
  deps_.process->After(running,
                       [this, id, slot, job = std::move(job), resting, done = std::move(done)] {
                         EndJob(id, slot, job, resting);
                         done();
                       });
  return true;
}

void AgentWorkers::EndJob(WorkerId id, uint32_t slot, const Job& job, SharedMemory::State resting) {
  AgentWorker& worker = workers_.at(id);
  AgentSession& session = worker.sessions.at(slot);
  session.job = false;
  ++jobs_ended_;
  (void)deps_.ledger->Unpin(session.id);
  session.compacted = job.kept;
  SharedMemory::Slot& shared = worker.shared->slots[slot];
  shared.pages.clear();
  shared.tokens = static_cast<uint32_t>(job.kept.size()) * kPageTokens;
  (void)deps_.ledger->Release(session.id, job.dropped);
  shared.state = resting;
  deps_.world->Note(
      "job", "session % gave % pages back",
      {static_cast<int64_t>(session.id.value()), static_cast<int64_t>(job.dropped.size())});
  if (session.closed) Free(id, slot);
  RemoveIfDone(id);
}

void AgentWorkers::HandOver(WorkerId id, uint32_t slot, Done done) {
  if (Find(id) == nullptr) return done();
  const auto finish = [this, id, done = std::move(done)] {
    if (AgentWorker* worker = Find(id)) {
      TopUp(id);
      Changed(worker->tenant);
    }
    done();
  };
  if (!BeginJob(id, slot, SharedMemory::State::kRunning, finish)) finish();
}

void AgentWorkers::CompactIdle(TenantId tenant, const std::vector<SessionId>& sessions,
                               const Done& done) {
  auto open = std::make_shared<uint32_t>(1);
  const auto one_less = [open, done] {
    if (--*open == 0) done();
  };
  for (auto& [id, worker] : workers_) {
    if (worker.tenant != tenant || worker.detached) continue;
    std::vector<uint32_t> slots;
    for (const auto& [slot, session] : worker.sessions) {
      const bool named = std::find(sessions.begin(), sessions.end(), session.id) != sessions.end();
      if (named && !session.job && !session.failed) slots.push_back(slot);
    }
    for (uint32_t slot : slots) {
      SharedMemory::State& state = worker.shared->slots[slot].state;
      if (state != SharedMemory::State::kIdle) continue;
      state = SharedMemory::State::kBusy;
      ++*open;
      if (!BeginJob(id, slot, SharedMemory::State::kIdle, one_less)) one_less();
    }
  }
  deps_.process->After(Duration(0), one_less);
}

void AgentWorkers::AskHandOver(TenantId tenant, const std::vector<SessionId>& sessions) {
  for (auto& [id, worker] : workers_) {
    if (worker.tenant != tenant || worker.detached) continue;
    for (const auto& [slot, session] : worker.sessions) {
      if (std::find(sessions.begin(), sessions.end(), session.id) != sessions.end()) {
        worker.shared->slots[slot].hand_over = SharedMemory::Slot::HandOver::kAsked;
      }
    }
  }
}

void AgentWorkers::AddReclaimSessions(TenantId tenant, ReclaimInput* input) const {
  std::map<SlabIndex, uint32_t> groups;
  for (const SlabUsage& slab : input->slabs) groups[slab.slab] = slab.group;
  for (const auto& [id, worker] : workers_) {
    if (worker.tenant != tenant || worker.detached) continue;
    for (const auto& [slot, session] : worker.sessions) {
      if (session.failed) continue;
      const auto shared = worker.shared->slots.find(slot);
      const bool idle = shared != worker.shared->slots.end() &&
                        shared->second.state == SharedMemory::State::kIdle;
      ReclaimSession known{
          .id = session.id,
          .where = idle ? ReclaimSession::Where::kIdle : ReclaimSession::Where::kRunning,
          .ending = session.closed || session.ending};
      if (session.closed || session.job) {
        known.where = ReclaimSession::Where::kBusy;
      } else {
        known.frees_pages = PagesFreed(worker, slot, session);
      }
      for (PageId page : deps_.ledger->PagesOf(session.id).value_or(std::span<const PageId>())) {
        ++known.pages;
        known.slabs.push_back(worker.layout->SlabOf(page));
      }
      std::sort(known.slabs.begin(), known.slabs.end());
      known.slabs.erase(std::unique(known.slabs.begin(), known.slabs.end()), known.slabs.end());
      if (!known.slabs.empty()) known.group = groups[known.slabs.front()];
      input->sessions.push_back(std::move(known));
    }
  }
}

}  // namespace kvpool::sim
