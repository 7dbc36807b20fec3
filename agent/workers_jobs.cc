// Drains and compactions: begun here, run on the kernel pool, ended here; and the end of sessions.
// See workers.h.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/agent_metrics.h"
#include "agent/reclaim_records.h"
#include "agent/workers.h"
#include "common/kj_asio.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

// Between two logs of failed sealings of one tenant.
constexpr std::chrono::minutes kSealingLogPause(1);
// How soon a session that waits for room is looked at again.
constexpr auto kRoomBeat = 20 * kj::MILLISECONDS;
// How long a hand-over waits for it: much less than workers have patience.
constexpr std::chrono::seconds kRoomWait(1);

RungCounters CountsOf(const CompactionOutcome& outcome) {
  RungCounters counts;
  if (outcome.floor == CompactionOutcome::Floor::kHeld) counts.floor_stops = 1;
  if (outcome.effect != CompactionOutcome::Effect::kCompacted) return counts;
  counts.compactions = 1;
  if (outcome.recovery.measured()) {
    counts.cumulative_sum = double{outcome.cumulative.mean};
    counts.cumulative_count = 1;
  }
  return counts;
}

}  // namespace

kj::Promise<absl::Status> Workers::Drain(WorkerId id, DrainArgs args) {
  const Turn turn(deps_.metrics);
  Worker* worker = Find(id);
  if (worker == nullptr) return absl::Status(absl::FailedPreconditionError("detached"));
  absl::StatusOr<DrainJob> job =
      worker->attachment->BeginDrain(args.slot, args.window, args.first, args.count);
  if (!job.ok()) return job.status();
  return Offload(*deps_.pool,
                 [job = kj::heap<DrainJob>(*std::move(job))]() mutable {
                   job->Run();
                   return kj::mv(job);
                 })
      .then([this, id, slot = args.slot](kj::Own<DrainJob> job) -> absl::Status {
        const Turn turn(deps_.metrics);
        // The worker is still there: RemoveIfDone waits for sessions with jobs.
        workers_.at(id).attachment->EndDrain(slot, std::move(*job));
        RemoveIfDone(id);
        return absl::OkStatus();
      });
}

kj::Promise<CompactionOutcome> Workers::RunCompaction(WorkerId id, uint32_t slot,
                                                      shm::State resting) {
  using MaybeHold = kj::Maybe<kj::Own<SealingReserve::Hold>>;
  Attachment& attachment = *workers_.at(id).attachment;
  const uint32_t pages = attachment.ReservePages(slot);
  const Attachment::Copies copies = attachment.PagesToCopy(slot, resting);
  if (pages + copies.wanted == 0) return CompactThrough(id, slot, resting, nullptr);
  if (absl::Status waits = attachment.BeginWait(slot); !waits.ok()) {
    return CompactionOutcome{.status = std::move(waits)};
  }
  const uint32_t slabs = CeilDiv(pages, attachment.layout().pages_per_slab());
  return MakeRoom(id, copies)
      .then([this, slabs]() -> kj::Promise<MaybeHold> {
        if (slabs == 0) return MaybeHold();
        return deps_.reserve->Take(slabs).then(
            [](kj::Own<SealingReserve::Hold> hold) { return MaybeHold(kj::mv(hold)); });
      })
      .then([this, id, slot, resting](MaybeHold hold) -> kj::Promise<CompactionOutcome> {
        // The worker is still there: RemoveIfDone waits for sessions with jobs.
        Attachment& attachment = *workers_.at(id).attachment;
        if (!attachment.EndWait(slot)) {
          RemoveIfDone(id);
          return CompactionOutcome{.status = absl::FailedPreconditionError("closed meanwhile")};
        }
        if (resting == shm::State::kRunning && ShallEnd(attachment, slot)) {
          return attachment.End(slot);
        }
        return CompactThrough(id, slot, resting, kj::mv(hold));
      });
}

kj::Promise<CompactionOutcome> Workers::CompactThrough(
    WorkerId id, uint32_t slot, shm::State resting, kj::Maybe<kj::Own<SealingReserve::Hold>> hold) {
  const Turn turn(deps_.metrics);
  Attachment& attachment = *workers_.at(id).attachment;
  std::vector<PageId> reserve;
  KJ_IF_MAYBE (held, hold) {
    reserve = (*held)->Pages(attachment.layout(), attachment.ReservePages(slot));
  }
  absl::StatusOr<std::optional<CompactionJob>> job =
      attachment.BeginCompaction(slot, resting, std::move(reserve));
  if (!job.ok()) return CompactionOutcome{.status = job.status()};
  if (!job->has_value()) return CompactionOutcome{};
  return Offload(*deps_.pool,
                 [job = kj::heap<CompactionJob>(**std::move(job))]() mutable {
                   job->Run();
                   return kj::mv(job);
                 })
      .then([this, id, slot, resting, hold = kj::mv(hold)](kj::Own<CompactionJob> job) mutable {
        const Turn turn(deps_.metrics);
        Attachment& attachment = *workers_.at(id).attachment;
        CompactionOutcome outcome = attachment.EndCompaction(slot, std::move(*job), resting);
        hold = nullptr;
        if (outcome.room == CompactionOutcome::Room::kAwaited) {
          return BeginAwaitingRoom(id, slot, resting, std::move(outcome));
        }
        RemoveIfDone(id);
        return kj::Promise<CompactionOutcome>(std::move(outcome));
      })
      // At once, not when the whole batch is ready: the rest of it may wait for the reserve.
      .eagerlyEvaluate(nullptr);
}

kj::Promise<CompactionOutcome> Workers::BeginAwaitingRoom(WorkerId id, uint32_t slot,
                                                          shm::State resting,
                                                          CompactionOutcome outcome) {
  const Attachment& attachment = *workers_.at(id).attachment;
  const TenantId tenant = attachment.setup().tenant;
  // What was done and what was not is known now; the rest may take long.
  RecordCompactions(tenant, attachment.layout(), {outcome});
  const bool moved = outcome.effect == CompactionOutcome::Effect::kMoved;
  Changed(tenant);
  return AwaitRoom({.worker = id,
                    .slot = slot,
                    .resting = resting,
                    .moved = moved ? RoomWait::Moved::kYes : RoomWait::Moved::kNo,
                    .end = BootClock::now() + kRoomWait});
}

bool Workers::HasRoom(const Attachment& attachment, const AgentSession& session) const {
  const TenantId tenant = attachment.setup().tenant;
  const TenantState* state = deps_.book->Find(tenant);
  const auto& [oldest, asked] = *awaiting_room_.at(tenant).begin();
  if (state == nullptr || session.id != oldest) return false;
  TenantCharges charges = Charges(tenant);
  charges.Add(attachment.layout(), session.Growth());
  return charges.Slabs() <= state->lease_slabs;
}

kj::Promise<CompactionOutcome> Workers::AwaitRoom(RoomWait wait) {
  const Turn turn(deps_.metrics);
  const TimePoint now = BootClock::now();
  // The worker is still there: RemoveIfDone waits for sessions with jobs.
  Attachment& attachment = *workers_.at(wait.worker).attachment;
  const AgentSession& session = attachment.sessions().at(wait.slot);
  const TenantId tenant = attachment.setup().tenant;
  std::map<SessionId, TimePoint>& waiting = awaiting_room_[tenant];
  waiting[session.id] = now;
  std::erase_if(waiting, [&](const auto& other) { return now - other.second > kWaitingCounts; });
  const bool ends = ShallEnd(attachment, wait.slot);
  const bool room = HasRoom(attachment, session);
  if (!session.closed && !ends && !room && now < wait.end) {
    return deps_.timer->afterDelay(kRoomBeat).then([this, wait] { return AwaitRoom(wait); });
  }
  // One that gives up keeps its place for a while: its worker will ask again.
  if (session.closed || ends || room) waiting.erase(session.id);
  CompactionOutcome outcome;
  if (wait.moved == RoomWait::Moved::kYes) outcome.effect = CompactionOutcome::Effect::kMoved;
  if (ends && !session.closed) {
    if (attachment.EndWait(wait.slot)) outcome = attachment.End(wait.slot);
  } else if (!attachment.GoOn(wait.slot, wait.resting,
                              room ? Attachment::Going::kWhole : Attachment::Going::kAsItWas)) {
    outcome.status = absl::FailedPreconditionError("closed meanwhile");
    RemoveIfDone(wait.worker);
  } else if (!room) {
    outcome.status = absl::ResourceExhaustedError(
        "min_recovery lets nothing of this session go, and there is no room for its whole length: "
        "ask again");
  }
  Changed(tenant);
  return outcome;
}

void Workers::RecordCompactions(TenantId tenant_id, const Layout& layout,
                                const std::vector<CompactionOutcome>& outcomes) {
  const TenantUsage usage = deps_.ledger->Usage(tenant_id);
  const ReclaimRecord common{.tenant = tenant_id,
                             .time = BootClock::now(),
                             .reason = usage.held_slabs > usage.lease_slabs
                                           ? ReclaimReason::kLeaseShrink
                                           : ReclaimReason::kScheduled};
  for (const ReclaimRecord& record : RecordsOf(common, layout.page_bytes(), outcomes)) {
    deps_.book->Record(record);
  }
  const TenantState* tenant = deps_.book->Find(tenant_id);
  if (tenant == nullptr) return;
  for (const CompactionOutcome& outcome : outcomes) {
    deps_.book->CountRung(tenant_id, outcome.ladder.get(), outcome.rung, CountsOf(outcome));
    deps_.metrics->ObserveRecovery(*tenant, outcome.recovery, outcome.cumulative);
    if (!outcome.sealed.ok()) SealingFailed(*tenant, outcome.sealed);
  }
}

void Workers::SealingFailed(const TenantState& tenant, const absl::Status& why) {
  deps_.metrics->CountFailedSealing(tenant);
  const TimePoint now = BootClock::now();
  const auto [last, first] = sealing_failures_logged_.emplace(tenant.id, now);
  if (!first && now - last->second < kSealingLogPause) return;
  last->second = now;
  log_.Warn("a session could not be sealed",
            {{"tenant", tenant.name}, {"error", std::string(why.message())}});
}

kj::Promise<std::vector<CompactionOutcome>> Workers::HandOver(WorkerId id,
                                                              std::vector<uint32_t> slots) {
  kj::Vector<kj::Promise<CompactionOutcome>> running;
  for (uint32_t slot : slots) {
    Worker* worker = Find(id);
    if (worker == nullptr) {
      running.add(CompactionOutcome{.status = absl::FailedPreconditionError("detached")});
    } else if (ShallEnd(*worker->attachment, slot)) {
      running.add(worker->attachment->End(slot));
    } else {
      running.add(RunCompaction(id, slot, shm::State::kRunning));
    }
  }
  return kj::joinPromises(running.releaseAsArray())
      .then([this, id](kj::Array<CompactionOutcome> results) {
        std::vector<CompactionOutcome> outcomes(results.begin(), results.end());
        if (Worker* worker = Find(id)) {
          const AttachmentSetup& setup = worker->attachment->setup();
          RecordCompactions(setup.tenant, setup.layout, outcomes);
          TopUp(id);
          Changed(setup.tenant);
        }
        return outcomes;
      });
}

kj::Promise<uint32_t> Workers::CompactIdle(TenantId tenant,
                                           const std::vector<SessionId>& sessions) {
  kj::Vector<kj::Promise<void>> running;
  auto taken = std::make_shared<uint32_t>(0);
  for (auto& [id, worker] : workers_) {
    if (worker.attachment->setup().tenant != tenant || worker.detached) continue;
    for (const auto& [slot, session] : worker.attachment->sessions()) {
      if (std::find(sessions.begin(), sessions.end(), session.id) == sessions.end()) continue;
      if (session.job != AgentSession::Job::kNone || session.failed) continue;
      if (!worker.attachment->regions().TakeIdle(slot)) continue;
      running.add(RunCompaction(id, slot, shm::State::kIdle)
                      .then([this, taken, tenant, id = id](CompactionOutcome outcome) {
                        if (!outcome.status.ok()) return;
                        ++*taken;
                        if (Worker* owner = Find(id)) {
                          RecordCompactions(tenant, owner->attachment->layout(), {outcome});
                        }
                      }));
    }
  }
  return kj::joinPromises(running.releaseAsArray()).then([taken] { return *taken; });
}

bool Workers::ShallEnd(const Attachment& attachment, uint32_t slot) const {
  const auto found = attachment.sessions().find(slot);
  const TenantState* tenant = deps_.book->Find(attachment.setup().tenant);
  return found != attachment.sessions().end() && found->second.ending && tenant != nullptr &&
         tenant->MayPreempt(BootClock::now()) == Preemption::kAll;
}

void Workers::Preempt(TenantId tenant, const std::vector<SessionId>& sessions) {
  const Turn turn(deps_.metrics);
  for (auto& [id, worker] : workers_) {
    Attachment& attachment = *worker.attachment;
    if (attachment.setup().tenant != tenant || worker.detached) continue;
    std::vector<CompactionOutcome> ended;
    for (const auto& [slot, session] : attachment.sessions()) {
      const bool ends = std::find(sessions.begin(), sessions.end(), session.id) != sessions.end();
      attachment.SetFate(slot, ends ? Attachment::Fate::kEnds : Attachment::Fate::kGoesOn);
      if (!ends || session.failed || session.job != AgentSession::Job::kNone) continue;
      if (attachment.regions().TakeIdle(slot)) ended.push_back(attachment.End(slot));
    }
    if (ended.empty()) continue;
    RecordCompactions(tenant, attachment.layout(), ended);
    Changed(tenant);
  }
}

void Workers::AskHandOver(TenantId tenant, const std::vector<SessionId>& sessions) {
  for (auto& [id, worker] : workers_) {
    if (worker.attachment->setup().tenant != tenant || worker.detached) continue;
    for (const auto& [slot, session] : worker.attachment->sessions()) {
      if (std::find(sessions.begin(), sessions.end(), session.id) != sessions.end()) {
        worker.attachment->AskHandOver(slot);
      }
    }
  }
}

}  // namespace kvpool
