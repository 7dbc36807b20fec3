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

}  // namespace kvpool
