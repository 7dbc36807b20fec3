// Checks on what a worker wrote, and the sessions' bookkeeping. See attachment.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/attachment.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/admission.h"
#include "kernels/places.h"

namespace kvpool {
namespace {

// Rows of a head that are sealed together at least, when nothing presses: a hand-over rewrites a
// head's last blocks, and costs the worker a call.
constexpr uint32_t kSealBatch = 64;
// After each sealing in a row that failed a session waits for twice as many rows, so often at most.
constexpr uint32_t kSealDoublings = 5;

RecoveryFloor FloorOf(const AgentSession& session) {
  if (!session.ladder) return {};
  return {.min_recovery = session.ladder.ladder->said.min_recovery,
          .product = session.recovery_product};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Attachment>> Attachment::Make(AttachmentSetup setup,
                                                             PoolLedger* ledger) {
  absl::StatusOr<std::unique_ptr<SharedRegions>> regions = SharedRegions::Make(setup.sizes);
  if (!regions.ok()) return regions.status();
  return std::unique_ptr<Attachment>(new Attachment(std::move(setup), ledger, *std::move(regions)));
}

Attachment::Attachment(AttachmentSetup setup, PoolLedger* ledger,
                       std::unique_ptr<SharedRegions> regions)
    : setup_(std::move(setup)), ledger_(ledger), regions_(std::move(regions)) {
  for (uint32_t slot = setup_.sizes.sessions; slot > 0; --slot) free_slots_.push_back(slot - 1);
  SetTarget(target_);
}

// ---- Magazine ---------------------------------------------------------------------------------

void Attachment::SetTarget(uint32_t pages) {
  target_ = std::clamp(pages, 2u, shm::kRingSlots);
  regions_->header().low_watermark.store(target_ / 2, std::memory_order_relaxed);
}

void Attachment::Collect() {
  shm::PageRing& ring = regions_->returns();
  const uint64_t produced = ring.produced.load(std::memory_order_acquire);
  // More than the ring holds, or fewer than were there: a torn index. What it says is not taken.
  if (produced < collected_ || produced - collected_ > shm::kRingSlots) {
    ++bad_returns_;
    return;
  }
  scratch_.clear();
  while (collected_ != produced) {
    scratch_.push_back(
        PageId(ring.slots[collected_ % shm::kRingSlots].load(std::memory_order_relaxed)));
    ++collected_;
  }
  ring.consumed.store(collected_, std::memory_order_release);
  const absl::StatusOr<size_t> returned = ledger_->Return(setup_.id, scratch_);
  if (returned.ok()) bad_returns_ += scratch_.size() - *returned;
}

uint32_t Attachment::waiting() {
  const uint64_t consumed = regions_->grants().consumed.load(std::memory_order_acquire);
  if (consumed >= consumed_ && consumed <= granted_) {
    consumed_ = consumed;
  } else {
    ++bad_returns_;
  }
  return static_cast<uint32_t>(granted_ - consumed_);
}

uint32_t Attachment::Fill(uint32_t pages) {
  shm::PageRing& ring = regions_->grants();
  const uint32_t waiting = this->waiting();
  const uint32_t wanted = std::min(pages, shm::kRingSlots);
  if (waiting >= wanted) return waiting;
  scratch_.resize(wanted - waiting);
  const size_t fresh = ledger_->Grant(setup_.id, scratch_).value_or(0);
  for (size_t i = 0; i < fresh; ++i) {
    ring.slots[granted_ % shm::kRingSlots].store(scratch_[i].value(), std::memory_order_relaxed);
    ++granted_;
  }
  ring.produced.store(granted_, std::memory_order_release);
  return waiting + static_cast<uint32_t>(fresh);
}

// ---- Sessions ---------------------------------------------------------------------------------

absl::StatusOr<AgentSession*> Attachment::Open(const TenantState& tenant, const SessionPlan& plan,
                                               SessionTerms terms) {
  if (free_slots_.empty()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "all ", setup_.sizes.sessions, " session slots of this attachment are in use"));
  }
  absl::StatusOr<SessionId> id = ledger_->OpenSession(setup_.id);
  if (!id.ok()) return id.status();
  const uint32_t slot = free_slots_.back();
  free_slots_.pop_back();
  AgentSession session;
  session.id = *id;
  session.slot = slot;
  session.plan = plan;
  session.policy = tenant.policy;
  session.policy_text = ToString(tenant.spec);
  session.needs = terms.ladder ? terms.ladder.ladder->needs : tenant.policy->Needs();
  session.seal = terms.ladder ? terms.ladder.rungs[tenant.rung].seal : tenant.seal;
  if (setup_.queries == QueryOffer::kNone) session.needs.queries = QueryNeed::kNone;
  session.copies = terms.copies;
  session.planes = Planes(setup_.layout.geometry(), session.needs.planes);
  SetCharge(&session, terms.charge);
  session.rung = session.wanted_rung = tenant.rung;
  session.ladder = std::move(terms.ladder);
  session.policy_asked = true;
  regions_->ResetSlot(slot);
  SetCompactAt(&session);
  return &sessions_.emplace(slot, std::move(session)).first->second;
}

void Attachment::SnapshotAll() {
  for (auto& [slot, session] : sessions_) {
    if (session.job != AgentSession::Job::kNone || session.failed || session.closed) continue;
    (void)Snapshot(&session);  // a bad list fails its session, which is all there is to do
  }
}

AgentSession* Attachment::Find(uint32_t slot) {
  const auto found = sessions_.find(slot);
  return found == sessions_.end() ? nullptr : &found->second;
}

void Attachment::Close(uint32_t slot) {
  AgentSession* session = Find(slot);
  if (session == nullptr || session->closed) return;
  session->closed = true;
  if (session->job == AgentSession::Job::kNone) Free(session);
}

void Attachment::GiveBack(AgentSession* session) {
  LetGoOfPrefix(session);
  if (session->needs.profile.has_value()) regions_->DropProfile(session->slot);
  (void)ledger_->CloseSession(session->id);  // the ledger has every session that has not ended
  SetCharge(session, {});
  session->ladder = {};
}

void Attachment::Free(AgentSession* session) {
  // Pages the worker took for it since the last snapshot become the session's, then free with it.
  // When the list does not check out they stay granted to the worker until it detaches.
  if (!session->failed) (void)Snapshot(session);
  if (!session->ended) GiveBack(session);
  const uint32_t slot = session->slot;
  regions_->SetState(slot, shm::State::kFree);
  free_slots_.push_back(slot);
  sessions_.erase(slot);
}

void Attachment::Fail(AgentSession* session, shm::Failure why) {
  session->failed = true;
  regions_->table(session->slot)
      .failed.store(static_cast<uint32_t>(why), std::memory_order_release);
  regions_->SetState(session->slot, shm::State::kFailed);
}

absl::Status Attachment::FailForPageList(AgentSession* session, const std::string& why) {
  ++bad_page_lists_;
  Fail(session, shm::Failure::kBadPageList);
  return absl::DataLossError(why);
}

// Whether the worker's words fit what is known of the session, and its pages are its own.
absl::Status Attachment::CheckWords(AgentSession* session, const SlotWords& words) {
  const uint64_t room = session->fresh_start + uint64_t{kPageTokens} * words.fresh_pages.size();
  if (words.committed < session->committed || words.committed > room ||
      words.committed > session->plan.max_tokens) {
    return FailForPageList(
        session,
        absl::StrCat("committed went from ", session->committed, " to ", words.committed,
                     " with room for ", room, " of at most ", session->plan.max_tokens, " tokens"));
  }
  std::span<const PageId> pages = words.fresh_pages;
  if (session->epoch == 0) {
    const std::vector<PageId>& frozen = session->frozen;
    if (pages.size() < frozen.size() || !std::equal(frozen.begin(), frozen.end(), pages.begin())) {
      return FailForPageList(session, "the page list does not begin with the shared pages");
    }
    pages = pages.subspan(frozen.size());
  }
  if (absl::Status adopted = ledger_->Adopt(session->id, pages); !adopted.ok()) {
    return FailForPageList(session, std::string(adopted.message()));
  }
  for (PageId page : pages) {
    if (std::binary_search(session->compacted_pages.begin(), session->compacted_pages.end(),
                           page)) {
      return FailForPageList(session,
                             "the page list names a page of the session's compacted segment");
    }
  }
  return absl::OkStatus();
}

absl::Status Attachment::Snapshot(AgentSession* session) {
  SlotWords words = regions_->ReadSlot(session->slot);
  if (absl::Status status = CheckWords(session, words); !status.ok()) return status;
  const auto committed = static_cast<uint32_t>(words.committed);
  const uint32_t appended = committed - session->committed;
  session->planes.Append(session->committed, appended);
  if (session->needs.planes.flags) {
    session->planes.SetNewestFlags(
        regions_->ReadTokenFlags(session->slot, session->committed, appended));
  }
  session->committed = committed;
  session->fresh_pages = std::move(words.fresh_pages);
  session->profiled = words.profiled;
  if (!session->copies || session->closed) FreezePrefix(session);
  return absl::OkStatus();
}

// A profile that is not what was asked for is refused for good: its session stays full. One that is
// not there when the prompt has ended will not come: `profiled` is read after `committed`, and
// written before it.
bool Attachment::TakeProfile(AgentSession* session) {
  if (!session->needs.profile.has_value() || !session->head_classes.empty()) return false;
  if (session->profiled == 0) {
    if (session->committed >= session->plan.prompt_tokens && !session->missing_profile) {
      session->missing_profile = true;
      ++missing_profiles_;
    }
    return false;
  }
  if (session->bad_profile) return false;
  std::vector<uint8_t> classes = regions_->ReadProfileClasses(session->slot);
  const bool known = std::all_of(classes.begin(), classes.end(), [](uint8_t c) {
    return c <= static_cast<uint8_t>(HeadClass::kFull);
  });
  if (!known || session->profiled != session->plan.prompt_tokens ||
      session->profiled > session->committed) {
    session->bad_profile = true;
    ++bad_profiles_;
    return false;
  }
  session->head_classes = std::move(classes);
  return true;
}

SessionRows Attachment::Rows(const AgentSession& session) {
  return {.compacted = regions_->View(session.slot, session.epoch),
          .fresh_pages = session.fresh_pages,
          .fresh_start = session.fresh_start,
          .fresh_tokens = session.committed - session.fresh_start};
}

std::optional<uint32_t> Attachment::SealAt(const AgentSession& session) const {
  if (session.seal.format == SealedFormat::kNone) return std::nullopt;
  const uint32_t frees = RowsThatFreeAPage(setup_.layout, session.seal.format);
  if (frees == 0) return std::nullopt;
  const uint32_t wanted = session.seal.open_rows + std::max(kSealBatch, frees);
  const uint32_t missing = wanted - std::min(wanted, session.open_now());
  // When nothing could be sealed, because no page would have come free, not before every step.
  const uint32_t pause = kSealedRows << std::min(session.failed_sealings, kSealDoublings);
  return session.cache_tokens() + std::max(missing, pause);
}

void Attachment::SetCompactAt(AgentSession* session) {
  if (session->policy_asked) {
    session->policy_at = session->policy->NextCompactAt(session->State(setup_.layout.geometry()));
    session->policy_asked = false;
  }
  if (session->whole) session->policy_at.reset();
  std::optional<uint32_t> at = session->policy_at;
  // Only where the step after it cannot pass what the policy waits for: else both in one hand-over.
  if (const std::optional<uint32_t> seal_at = SealAt(*session);
      seal_at.has_value() && (!at.has_value() || *seal_at + session->plan.chunk <= *at)) {
    at = seal_at;
  }
  regions_->table(session->slot).compact_at.store(at.value_or(0), std::memory_order_relaxed);
}

// Whether the policy has its say in a hand-over at this length. Without a format it always has.
bool Attachment::PolicyTurn(const AgentSession& session, Pressure pressure) {
  if (session.seal.format == SealedFormat::kNone || pressure == Pressure::kYes) return true;
  return DueByPolicy(session);
}

// ---- Drain ------------------------------------------------------------------------------------

absl::StatusOr<DrainJob> Attachment::BeginDrain(uint32_t slot, uint32_t window, uint64_t first,
                                                uint32_t count) {
  AgentSession* session = Find(slot);
  if (session == nullptr || session->failed || session->closed ||
      session->job != AgentSession::Job::kNone) {
    return absl::FailedPreconditionError(
        absl::StrCat("session slot ", slot, " is not open for a drain"));
  }
  if (window >= setup_.sizes.windows || count == 0 || count > shm::kWindowQueries ||
      first < session->drained) {
    return absl::InvalidArgumentError(absl::StrCat(
        "queries ", first, " + ", count, " of window ", window, ": number ", session->drained,
        " is next, a window holds ", shm::kWindowQueries, ", there are ", setup_.sizes.windows));
  }
  if (absl::Status status = Snapshot(session); !status.ok()) return status;
  // A token has one query: so numbers cannot run ahead, and the next one never wraps.
  if (count > session->committed || first > session->committed - count) {
    return absl::InvalidArgumentError(absl::StrCat("queries ", first, " + ", count, " of only ",
                                                   session->committed, " committed tokens"));
  }
  unscored_ += first - session->drained;
  session->drained = first + count;
  session->job = AgentSession::Job::kDrain;
  (void)ledger_->Pin(session->id);
  WindowQueries queries = regions_->CopyQueries(window, first, count);
  return DrainJob{.layout = &setup_.layout,
                  .base = setup_.base,
                  .rows = Rows(*session),
                  .planes = std::move(session->planes),
                  .positions = std::move(queries.positions),
                  .queries = std::move(queries.vectors),
                  .lses = std::move(queries.lses)};
}

void Attachment::EndDrain(uint32_t slot, DrainJob job) {
  AgentSession* session = Find(slot);
  session->planes = std::move(job.planes);
  session->job = AgentSession::Job::kNone;
  (void)ledger_->Unpin(session->id);
  if (session->closed) return Free(session);
  ClimbNow(session);
}

// ---- Compaction and moves -----------------------------------------------------------------------

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
