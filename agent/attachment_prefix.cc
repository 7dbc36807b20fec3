// Prompts that begin alike: what a session takes of those before it, and leaves to those after it.
// See attachment.h.
//
// A page of a prompt is frozen when it is full and committed: nobody writes it from then on. A
// session that is compacted or moved leaves no more of its pages to others.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "agent/attachment.h"

namespace kvpool {

std::vector<SlabIndex> Attachment::SlabsOfPrefix(std::span<const PageKey> keys) const {
  std::vector<SlabIndex> slabs;
  if (setup_.prefixes == nullptr) return slabs;
  for (const PageId page : setup_.prefixes->Find(keys)) {
    const SlabIndex slab = setup_.layout.SlabOf(page);
    if (ledger_->Slab(slab)->state != SlabState::kLeased) break;
    if (ledger_->HasMapped(setup_.id, slab)) continue;
    if (std::find(slabs.begin(), slabs.end(), slab) == slabs.end()) slabs.push_back(slab);
  }
  return slabs;
}

std::vector<PageId> Attachment::FindPrefix(std::span<const PageKey> keys,
                                           uint32_t shareable) const {
  if (setup_.prefixes == nullptr) return {};
  std::vector<PageId> pages =
      setup_.prefixes->Find(keys.first(std::min<size_t>(keys.size(), shareable / kPageTokens)));
  // What is on its way out, or has not been mapped, ends it.
  const auto end = std::find_if(pages.begin(), pages.end(), [this](PageId page) {
    const SlabIndex slab = setup_.layout.SlabOf(page);
    return ledger_->Slab(slab)->state != SlabState::kLeased || !ledger_->HasMapped(setup_.id, slab);
  });
  pages.erase(end, pages.end());
  return pages;
}

void Attachment::ChangeCharge(AgentSession* session, int64_t pages) {
  if (session->copies) return;
  session->charge.pages += pages;
  charge_.pages += pages;
}

void Attachment::TakePrefix(AgentSession* session, std::vector<PageKey> keys, uint32_t shareable) {
  if (setup_.prefixes == nullptr || shareable == 0) return;
  session->keys = std::move(keys);
  std::vector<PageId> pages = FindPrefix(session->keys, shareable);
  if (!ledger_->Share(session->id, pages).ok()) {  // its journal is full
    ChangeCharge(session, static_cast<int64_t>(pages.size()));
    pages.clear();
  }
  setup_.prefixes->Hold(std::span(session->keys).first(pages.size()));
  if (pages.empty()) return;
  session->frozen = session->fresh_pages = pages;
  session->indexed = pages.size();
  session->committed = static_cast<uint32_t>(pages.size()) * kPageTokens;
  session->planes.Append(0, session->committed);
  regions_->BeginList(session->slot, pages, session->committed);
}

void Attachment::FreezeAll() {
  for (auto& [slot, session] : sessions_) {
    if (session.job != AgentSession::Job::kNone || session.failed || session.closed) continue;
    if (session.epoch != 0 || session.frozen.size() >= session.keys.size()) continue;
    (void)Snapshot(&session);  // a bad list fails its session, which is all there is to do
  }
}

void Attachment::FreezePrefix(AgentSession* session) {
  if (session->epoch != 0 || session->indexed < session->frozen.size()) return;
  const size_t full = std::min<size_t>(session->committed / kPageTokens, session->keys.size());
  const size_t had = session->frozen.size();
  std::vector<PageId> pages;
  for (size_t i = had; i < full; ++i) {
    const PageId page = session->fresh_pages[i];
    if (InEvacuatedSlab(page)) break;
    if (setup_.prefixes->full()) (void)ledger_->StopKeeping(setup_.prefixes->Drop(1));
    if (!setup_.prefixes->Add(std::span(session->keys).first(i + 1), page)) {
      session->keys.resize(i);  // another session was first, or there is no room: not again
      break;
    }
    pages.push_back(page);
  }
  if (pages.empty()) return;
  if (!ledger_->Freeze(session->id, pages, Keep::kForReuse).ok()) {  // its journal is full
    setup_.prefixes->TakeOut(session->keys, had);
    session->keys.resize(had);
    return;
  }
  session->frozen.insert(session->frozen.end(), pages.begin(), pages.end());
  session->indexed = session->frozen.size();
  ChangeCharge(session, -static_cast<int64_t>(pages.size()));
}

void Attachment::ThawFrom(AgentSession* session, size_t first) {
  const std::vector<PageId> own(session->frozen.begin() + static_cast<std::ptrdiff_t>(first),
                                session->frozen.end());
  if (own.empty()) return;
  if (first < session->indexed) {
    (void)ledger_->StopKeeping(
        setup_.prefixes->TakeOut(std::span(session->keys).first(session->indexed), first));
    session->keys.resize(first);
    session->indexed = first;
  }
  (void)ledger_->Thaw(session->id, own);
  session->frozen.resize(first);
  ChangeCharge(session, static_cast<int64_t>(own.size()));
}

void Attachment::ThawEvacuated(AgentSession* session) {
  const auto first = std::find_if(
      session->frozen.begin(), session->frozen.end(),
      [this](PageId page) { return InEvacuatedSlab(page) && ledger_->HoldersOf(page) == 1; });
  ThawFrom(session, static_cast<size_t>(first - session->frozen.begin()));
}

size_t Attachment::SharedPages(const AgentSession& session) const {
  // Nobody holds a page without those before it: so those that it holds alone are the last ones.
  return std::partition_point(session.frozen.begin(), session.frozen.end(),
                              [this](PageId page) { return ledger_->HoldersOf(page) > 1; }) -
         session.frozen.begin();
}

Attachment::Copies Attachment::PagesToCopy(uint32_t slot, shm::State resting) const {
  const auto found = sessions_.find(slot);
  if (found == sessions_.end() || !found->second.copies || found->second.epoch != 0) return {};
  const auto needed = static_cast<uint32_t>(SharedPages(found->second));
  const bool pressed = resting == shm::State::kIdle ||
                       regions_->table(slot).hand_over.load(std::memory_order_relaxed) != 0;
  return {.needed = needed,
          .wanted = pressed ? needed
                            : std::max(needed, static_cast<uint32_t>(found->second.keys.size()))};
}

void Attachment::ThawAlone(AgentSession* session) { ThawFrom(session, SharedPages(*session)); }

std::optional<std::vector<PageId>> Attachment::CopiesFor(AgentSession* session, Pressure pressure) {
  if (pressure == Pressure::kNo && session->epoch == 0) {
    // What is whole of the prompt stays for others, where there is room for it.
    const size_t full = std::min<size_t>(session->committed / kPageTokens, session->keys.size());
    std::vector<PageId> copies = GrantReplacements(session, std::max(full, session->frozen.size()));
    if (!copies.empty()) {
      FreezePrefix(session);
      const auto used = static_cast<std::ptrdiff_t>(session->frozen.size());
      (void)ledger_->Release(session->id, std::vector<PageId>(copies.begin() + used, copies.end()));
      copies.resize(session->frozen.size());
      return copies;
    }
  }
  ThawAlone(session);
  if (session->frozen.empty()) return std::vector<PageId>();
  // Of a session that was moved its tables name shared pages: it waits for the others to leave.
  if (session->epoch != 0) return std::nullopt;
  std::vector<PageId> copies = GrantReplacements(session, session->frozen.size());
  if (copies.empty()) return std::nullopt;
  return copies;
}

std::optional<Selection> Attachment::Choose(AgentSession* session, Pressure pressure) {
  session->policy_asked = PolicyTurn(*session, pressure);
  const bool due = DueByPolicy(*session);
  if (!session->policy_asked || !(MayCompact(*session) || due)) return std::nullopt;
  // Pressure alone is no reason to copy, unless pages come free by it.
  if (!due && SharedPages(*session) > 0 && PagesFreedByCompaction(*session) == 0) {
    return std::nullopt;
  }
  return session->policy->Compact(session->State(setup_.layout.geometry()));
}

// Its rows lie in copies now.
void Attachment::LeavePrefix(AgentSession* session) {
  (void)ledger_->Unshare(session->id, session->frozen);
  LetGoOfPrefix(session);
}

void Attachment::LetGoOfPrefix(AgentSession* session) {
  if (session->indexed > 0) {
    setup_.prefixes->LetGo(std::span(session->keys).first(session->indexed), BootClock::now());
  }
  session->indexed = 0;
  session->frozen.clear();
  session->keys.clear();
}

// ---- Forks --------------------------------------------------------------------------------------

absl::StatusOr<const AgentSession*> Attachment::CheckFork(uint32_t parent) {
  AgentSession* const session = Find(parent);
  if (session == nullptr || session->failed || session->closed ||
      session->job != AgentSession::Job::kNone) {
    return absl::FailedPreconditionError(
        absl::StrCat("session slot ", parent, " is not open for a fork"));
  }
  if (absl::Status status = Snapshot(session); !status.ok()) return status;
  if (session->epoch != 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "session slot ", parent, " has been compacted or moved, its rows are its own: ",
        "open a session and feed it the tokens instead, or fork earlier"));
  }
  if (session->needs.profile.has_value() || setup_.prefixes == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        "a session under ", session->policy_text,
        " must see its whole prompt: open a session and feed it the tokens instead of a fork"));
  }
  return session;
}

absl::StatusOr<AgentSession*> Attachment::Fork(uint32_t parent, const TenantState& tenant,
                                               const SessionPlan& plan, SessionTerms terms) {
  AgentSession& from = *Find(parent);
  const size_t full = from.committed / kPageTokens, had = from.frozen.size();
  const std::vector<PageId> more(from.fresh_pages.begin() + static_cast<std::ptrdiff_t>(had),
                                 from.fresh_pages.begin() + static_cast<std::ptrdiff_t>(full));
  absl::StatusOr<AgentSession*> opened = Open(tenant, plan, std::move(terms));
  if (!opened.ok()) return opened;
  AgentSession& fork = **opened;
  const bool partial = from.committed % kPageTokens != 0;
  std::vector<PageId> last = GrantReplacements(&fork, partial ? 1 : 0);
  absl::Status shared =
      partial && last.empty()
          ? absl::ResourceExhaustedError("no page is free for the fork's last one")
          : ledger_->Freeze(from.id, more, Keep::kNo);
  if (shared.ok()) {
    from.frozen.insert(from.frozen.end(), more.begin(), more.end());
    ChangeCharge(&from, -static_cast<int64_t>(more.size()));
    shared = ledger_->Share(fork.id, from.frozen);
  }
  if (!shared.ok()) {
    Close(fork.slot);
    return shared;
  }
  if (!fork.ladder) {  // under a ladder it is on its tenant's rung, with the planes of all
    fork.policy = from.policy;
    fork.policy_text = from.policy_text;
    fork.needs = from.needs;
    fork.seal = from.seal;
  }
  fork.planes = from.planes;
  fork.frozen = fork.fresh_pages = from.frozen;
  fork.keys = from.keys;
  fork.indexed = from.indexed;
  setup_.prefixes->Hold(std::span(fork.keys).first(fork.indexed));
  if (partial) {
    CopyPage(setup_.layout, setup_.base, from.fresh_pages[full], last.front());
    fork.fresh_pages.push_back(last.front());
  }
  fork.committed = from.committed;
  fork.policy_asked = true;
  SetCompactAt(&fork);
  regions_->BeginList(fork.slot, fork.fresh_pages, fork.committed);
  return &fork;
}

}  // namespace kvpool
