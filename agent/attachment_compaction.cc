// What frees pages: compaction, sealing and moves, from what they would free to what they left. See
// attachment.h.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/attachment.h"
#include "kernels/places.h"

namespace kvpool {
namespace {

RecoveryFloor FloorOf(const AgentSession& session) {
  if (!session.ladder) return {};
  return {.min_recovery = session.ladder.ladder->said.min_recovery,
          .product = session.recovery_product};
}

}  // namespace

bool Attachment::IsIdle(uint32_t slot) const {
  return regions_->slot(slot).state.load(std::memory_order_acquire) ==
         static_cast<uint32_t>(shm::State::kIdle);
}

uint32_t Attachment::PagesFreedByCompaction(const AgentSession& session) const {
  if (!MayCompact(session)) return 0;
  const std::optional<Selection> selection =
      session.policy->Compact(session.State(setup_.layout.geometry()));
  const uint64_t rows = session.cache_tokens();
  if (!selection.has_value() || rows == 0) return 0;
  const uint64_t now =
      session.compacted_pages.size() + session.fresh_pages.size() - SharedPages(session);
  // Of what stays as large a share is sealed as of what is there: which rows go is not known yet.
  const uint64_t sealed = uint64_t{selection->expected} * session.sealed_tokens() / rows;
  uint64_t then = CeilDiv<uint64_t>(selection->expected - sealed, kPageTokens);
  if (sealed > 0) {
    then += CeilDiv(sealed * setup_.layout.geometry().planes(),
                    RowsPerPage(setup_.layout, session.sealed_format));
  }
  return static_cast<uint32_t>(now > then ? now - then : 0);
}

uint32_t Attachment::PagesFreedBySealing(const AgentSession& session) const {
  return PagesFreedBySealing(session,
                             session.policy->Compact(session.State(setup_.layout.geometry())));
}

uint32_t Attachment::PagesFreedBySealing(const AgentSession& session,
                                         const std::optional<Selection>& selection) const {
  const uint32_t planes = setup_.layout.geometry().planes();
  const uint32_t places = PagePlaces(setup_.layout, session.seal.format).per_page();
  // Rows that are sealed in another format are sealed anew.
  const uint32_t anew = session.other_format_tokens();
  if (session.sealable_tokens() + anew == 0 || places == 0) return 0;
  // What the policy drops first is not there to be sealed.
  uint32_t sealed = session.sealable_tokens();
  if (selection.has_value()) {
    const uint32_t rows = session.cache_tokens();
    sealed -= std::min(sealed, rows - std::min(rows, selection->expected));
  }
  uint32_t now = sealed / kPageTokens;
  uint32_t then = CeilDiv(sealed / kSealedRows * planes, places);
  if (anew > 0) {
    now += static_cast<uint32_t>(CeilDiv<uint64_t>(
        uint64_t{anew} * planes, RowsPerPage(setup_.layout, session.sealed_format)));
    then += CeilDiv(CeilDiv(anew, kSealedRows) * planes, places);
  }
  return now > then ? now - then : 0;
}

void Attachment::AskHandOver(uint32_t slot) {
  regions_->table(slot).hand_over.store(1, std::memory_order_release);
}

void Attachment::SetFate(uint32_t slot, Fate fate) {
  AgentSession* const session = Find(slot);
  if (session == nullptr || session->failed) return;
  session->ending = fate == Fate::kEnds;
  if (session->ending) AskHandOver(slot);
}

CompactionOutcome Attachment::End(uint32_t slot) {
  const absl::StatusOr<AgentSession*> busy = FindBusy(slot);
  if (!busy.ok()) return {.status = busy.status()};
  AgentSession* const session = *busy;
  if (absl::Status status = Snapshot(session); !status.ok()) return {.status = status};
  const size_t pages = ledger_->PagesOf(session->id).value_or(std::span<const PageId>()).size();
  GiveBack(session);
  session->ended = true;
  session->planes = {};
  Fail(session, shm::Failure::kPreempted);
  return {.status = absl::CancelledError(
              "the session was ended: its tenant held more than its lease for longer than its "
              "grace allows. Open another when there is room, and feed it again"),
          .policy = session->policy_text,
          .pages_before = static_cast<uint32_t>(pages),
          .freed_pages = static_cast<uint32_t>(pages),
          .effect = CompactionOutcome::Effect::kEnded};
}

std::vector<PageId> Attachment::GrantReplacements(AgentSession* session, size_t count) {
  std::vector<PageId> pages(count);
  pages.resize(ledger_->Grant(setup_.id, pages).value_or(0));
  if (pages.size() < count) {
    (void)ledger_->Return(setup_.id, pages);
    return {};
  }
  // Just granted to this worker, so the session may have them.
  (void)ledger_->Adopt(session->id, pages);
  return pages;
}

bool Attachment::InEvacuatedSlab(PageId page) const {
  const std::optional<SlabUsage> slab = ledger_->Slab(setup_.layout.SlabOf(page));
  return slab.has_value() && slab->state == SlabState::kEvacuating;
}

uint32_t Attachment::ReservePages(uint32_t slot) const {
  const auto found = sessions_.find(slot);
  if (found == sessions_.end() || found->second.seal.format == SealedFormat::kNone) return 0;
  return kvpool::ReservePages(setup_.layout, found->second.seal.format);
}

absl::StatusOr<AgentSession*> Attachment::FindBusy(uint32_t slot) {
  AgentSession* session = Find(slot);
  if (session == nullptr || session->failed || session->closed ||
      session->job != AgentSession::Job::kNone) {
    return absl::FailedPreconditionError(
        absl::StrCat("session slot ", slot, " is not open for a hand-over"));
  }
  if (regions_->slot(slot).state.load(std::memory_order_acquire) !=
      static_cast<uint32_t>(shm::State::kBusy)) {
    return absl::FailedPreconditionError(absl::StrCat("session slot ", slot, " is not BUSY"));
  }
  return session;
}

absl::Status Attachment::BeginWait(uint32_t slot) {
  const absl::StatusOr<AgentSession*> busy = FindBusy(slot);
  if (busy.ok()) (*busy)->job = AgentSession::Job::kWaiting;
  return busy.status();
}

bool Attachment::EndWait(uint32_t slot) {
  AgentSession* session = Find(slot);
  session->job = AgentSession::Job::kNone;
  if (session->closed) {
    Free(session);
    return false;
  }
  ClimbNow(session);
  return true;
}

absl::StatusOr<std::optional<CompactionJob>> Attachment::BeginCompaction(
    uint32_t slot, shm::State resting, std::vector<PageId> reserve) {
  const absl::StatusOr<AgentSession*> busy = FindBusy(slot);
  if (!busy.ok()) return busy.status();
  AgentSession* const session = *busy;
  const bool asked = regions_->table(slot).hand_over.exchange(0, std::memory_order_relaxed) != 0;
  if (absl::Status status = Snapshot(session); !status.ok()) return status;

  ThawEvacuated(session);
  const bool profile = TakeProfile(session);
  const Pressure pressure = asked || resting == shm::State::kIdle ? Pressure::kYes : Pressure::kNo;
  std::optional<Selection> selection = Choose(session, pressure);
  if (PagesFreedBySealing(*session, selection) == 0) reserve.clear();
  std::vector<PageId> copies;
  if (selection.has_value() || !reserve.empty()) {
    std::optional<std::vector<PageId>> made = CopiesFor(session, pressure);
    if (made.has_value()) {
      copies = *std::move(made);
    } else {
      selection.reset();
      reserve.clear();
    }
  }
  const std::span<const PageId> owned =
      ledger_->PagesOf(session->id).value_or(std::span<const PageId>());
  std::vector<PageId> pages(owned.begin(), owned.end());
  std::vector<PageId> evacuate, replacements;
  std::copy_if(pages.begin(), pages.end(), std::back_inserter(evacuate),
               [this](PageId page) { return InEvacuatedSlab(page); });
  // Those that it shares stay where they are; whole as they are, no row or block moves into them.
  if (copies.empty()) pages.insert(pages.end(), session->frozen.begin(), session->frozen.end());
  if (!evacuate.empty()) {
    replacements = GrantReplacements(session, evacuate.size());
    if (replacements.empty()) evacuate.clear();
  }
  if (!selection.has_value() && evacuate.empty() && reserve.empty()) {
    if (profile) regions_->DropProfile(slot);
    SetCompactAt(session);
    SettleCharge(session);
    regions_->SetState(slot, resting);
    return std::nullopt;
  }
  SessionRows rows = Rows(*session);
  std::copy(copies.begin(), copies.end(), rows.fresh_pages.begin());
  session->job = AgentSession::Job::kCompaction;
  (void)ledger_->Pin(session->id);
  return CompactionJob{.layout = &setup_.layout,
                       .base = setup_.base,
                       .rows = std::move(rows),
                       .planes = std::move(session->planes),
                       .session_pages = std::move(pages),
                       .selection = std::move(selection),
                       .selected_step = session->selected_step,
                       .floor = FloorOf(*session),
                       .profile = profile ? ProfileSource{regions_.get(), slot,
                                                          session->head_classes, session->profiled}
                                          : ProfileSource{},
                       .evacuate = std::move(evacuate),
                       .replacements = std::move(replacements),
                       .shared = copies.empty() ? std::vector<PageId>() : session->frozen,
                       .copies = std::move(copies),
                       .seal = session->seal,
                       .reserve = std::move(reserve)};
}

void Attachment::TakeResult(AgentSession* session, const CompactionJob& job,
                            CompactionOutcome* outcome) {
  const std::vector<PageId>& kept = job.result.pages;
  const auto pages_before = static_cast<uint32_t>(job.session_pages.size() - job.copies.size());
  const auto pages = static_cast<uint32_t>(kept.size());
  const auto less = [](uint32_t from, uint32_t to) { return from > to ? from - to : 0; };
  outcome->effect = job.selection.has_value() ? CompactionOutcome::Effect::kCompacted
                                              : CompactionOutcome::Effect::kMoved;
  outcome->pages_before = pages_before;
  outcome->freed_pages = less(pages_before, job.pages_before_sealing);
  outcome->sealing_freed = less(job.pages_before_sealing, pages);
  if (outcome->sealing_freed > 0) outcome->sealing = CompactionOutcome::Sealing::kSealed;
  session->fresh_pages.clear();
  session->compacted_pages = kept;
  std::sort(session->compacted_pages.begin(), session->compacted_pages.end());
  session->fresh_start = session->committed;
  session->compacted_tokens = session->open_tokens = 0;
  for (size_t plane = 0; plane < job.result.lengths.size(); ++plane) {
    const uint32_t length = job.result.lengths[plane];
    session->compacted_tokens = std::max(session->compacted_tokens, length);
    session->open_tokens =
        std::max(session->open_tokens, length - job.result.sealed_lengths[plane]);
  }
  session->sealed_format = job.result.format;
  ++session->epoch;
}

CompactionOutcome Attachment::EndCompaction(uint32_t slot, CompactionJob job, shm::State resting) {
  AgentSession* session = Find(slot);
  session->job = AgentSession::Job::kNone;
  session->planes = std::move(job.planes);
  (void)ledger_->Unpin(session->id);
  CompactionOutcome outcome{.status = job.status,
                            .sealed = job.sealed,
                            .policy = session->policy_text,
                            .recovery = StatsOf(job.recovery),
                            .ladder = session->ladder.ladder,
                            .rung = session->rung};
  if (job.verdict == CompactionJob::Verdict::kUntouched) {
    (void)ledger_->Release(session->id, job.copies);
    TakeHeld(session, resting, &outcome);
    return outcome;
  }
  std::vector<PageId> unused = job.replacements;
  if (!job.status.ok()) unused.insert(unused.end(), job.copies.begin(), job.copies.end());
  if (job.status.ok()) {
    if (!job.copies.empty()) LeavePrefix(session);
    TakeResult(session, job, &outcome);
    unused.insert(unused.end(), job.session_pages.begin(), job.session_pages.end());
    std::erase_if(unused, [&](PageId page) {
      return std::binary_search(session->compacted_pages.begin(), session->compacted_pages.end(),
                                page);
    });
    if (job.selection.has_value()) {
      MultiplyRecovery(job.recovery, &session->recovery_product);
      outcome.cumulative = StatsOf(session->recovery_product);
      session->selected_step = session->committed;
      session->selected_tokens = session->compacted_tokens;
      session->selected_observed = session->planes.observed();
    }
    session->failed_sealings = job.sealed.ok() ? 0 : session->failed_sealings + 1;
    SetCompactAt(session);
    regions_->Publish(slot, session->epoch, session->fresh_start, job.result, session->planes);
  }
  (void)ledger_->Release(session->id, unused);
  if (job.status.ok() && job.verdict == CompactionJob::Verdict::kHeld) {
    TakeHeld(session, resting, &outcome);
    return outcome;
  }
  regions_->SetState(slot, resting);
  if (session->closed) {
    Free(session);
    return outcome;
  }
  SettleCharge(session);
  ClimbNow(session);
  return outcome;
}

}  // namespace kvpool
