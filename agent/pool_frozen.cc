// Frozen pages of the pool ledger: commands on them, what their records change, and what must hold.
// See pool.h.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <map>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "agent/pool.h"

namespace kvpool {

using Type = Record::Type;

// --- Commands ------------------------------------------------------------------------------------

absl::StatusOr<const PoolLedger::Session*> PoolLedger::OpenSessionOf(SessionId session) const {
  const Session* entry = FindSession(session);
  if (entry != nullptr && entry->worker != Record::kNoSlot) return entry;
  return absl::NotFoundError(absl::StrCat("no open session ", session.value(), " in this pool"));
}

template <typename Good>
absl::Status PoolLedger::CheckFrozen(std::span<const PageId> pages, const char* why,
                                     Good good) const {
  absl::flat_hash_set<PageId> seen;
  for (const PageId page : pages) {
    const Place place = Locate(page);
    if (!place.found() || !good(page, place)) {
      return absl::InvalidArgumentError(absl::StrCat("page ", page.value(), " ", why));
    }
    if (!seen.insert(page).second) {
      return absl::InvalidArgumentError(absl::StrCat("page ", page.value(), " is listed twice"));
    }
  }
  return absl::OkStatus();
}

void PoolLedger::CommitRuns(std::span<const PageId> pages, Record record) {
  for (const PageId page : pages) {
    const Place place = Locate(page);
    const auto word = static_cast<uint16_t>(place.index / 64);
    if (record.mask != 0 && (record.slab != place.slab || record.word != word)) {
      Commit(record);
      record.mask = 0;
    }
    record.slab = place.slab;
    record.word = word;
    record.mask |= uint64_t{1} << place.index % 64;
  }
  if (record.mask != 0) Commit(record);
}

absl::Status PoolLedger::Freeze(SessionId session, std::span<const PageId> pages, Keep keep) {
  const absl::StatusOr<const Session*> entry = OpenSessionOf(session);
  if (!entry.ok()) return entry.status();
  const Owner owner = OwnedBy(session);
  if (absl::Status status = CheckList(pages, owner, owner); !status.ok()) return status;
  if (absl::Status status = ExpectRoom(pages.size()); !status.ok()) return status;
  CommitRuns(pages, {.type = Type::kPages,
                     .slot = static_cast<uint8_t>(PageState::kFrozen),
                     .id = session.value(),
                     .count = static_cast<uint32_t>(keep)});
  return absl::OkStatus();
}

absl::Status PoolLedger::Share(SessionId session, std::span<const PageId> pages) {
  const absl::StatusOr<const Session*> entry = OpenSessionOf(session);
  if (!entry.ok()) return entry.status();
  const uint8_t worker = (*entry)->worker;
  const absl::flat_hash_set<PageId> held((*entry)->frozen.begin(), (*entry)->frozen.end());
  absl::Status status = CheckFrozen(
      pages, "is not frozen, not mapped by the session's worker, or held by the session already",
      [&](PageId page, const Place& place) {
        const SlabEntry& slab = slabs_[place.slab];
        return slab.pages[place.index].owner == kFrozen && (slab.mapped >> worker & 1) != 0 &&
               !held.contains(page);
      });
  if (!status.ok()) return status;
  if (status = ExpectRoom(pages.size()); !status.ok()) return status;
  CommitRuns(pages, {.type = Type::kHold, .slot = 1, .id = session.value()});
  return absl::OkStatus();
}

absl::Status PoolLedger::Unshare(SessionId session, std::span<const PageId> pages) {
  const absl::StatusOr<const Session*> entry = OpenSessionOf(session);
  if (!entry.ok()) return entry.status();
  const absl::flat_hash_set<PageId> held((*entry)->frozen.begin(), (*entry)->frozen.end());
  absl::Status status = CheckFrozen(pages, "is not held by the session",
                                    [&](PageId page, const Place&) { return held.contains(page); });
  if (!status.ok()) return status;
  CommitRuns(pages, {.type = Type::kHold, .slot = 0, .id = session.value()});
  return absl::OkStatus();
}

absl::Status PoolLedger::StopKeeping(std::span<const PageId> pages) {
  absl::Status status = CheckFrozen(
      pages, "is not kept for reuse",
      [&](PageId, const Place& place) { return slabs_[place.slab].pages[place.index].kept(); });
  if (!status.ok()) return status;
  CommitRuns(pages, {.type = Type::kStopKeeping});
  return absl::OkStatus();
}

absl::Status PoolLedger::Thaw(SessionId session, std::span<const PageId> pages) {
  const absl::StatusOr<const Session*> entry = OpenSessionOf(session);
  if (!entry.ok()) return entry.status();
  const absl::flat_hash_set<PageId> held((*entry)->frozen.begin(), (*entry)->frozen.end());
  absl::Status status = CheckFrozen(
      pages, "is kept, or not held by the session alone", [&](PageId page, const Place& place) {
        return held.contains(page) && slabs_[place.slab].pages[place.index].place == 1;
      });
  if (!status.ok()) return status;
  CommitRuns(pages, {.type = Type::kPages,
                     .slot = static_cast<uint8_t>(PageState::kOwned),
                     .id = session.value()});
  return absl::OkStatus();
}

absl::StatusOr<std::span<const PageId>> PoolLedger::FrozenOf(SessionId session) const {
  const Session* entry = FindSession(session);
  if (entry == nullptr) {
    return absl::NotFoundError(absl::StrCat("no session ", session.value(), " in this pool"));
  }
  return std::span<const PageId>(entry->frozen);
}

uint32_t PoolLedger::HoldersOf(PageId page) const {
  const Place place = Locate(page);
  return place.found() ? slabs_[place.slab].pages[place.index].holders() : 0;
}

bool PoolLedger::HasMapped(WorkerId worker, SlabIndex slab) const {
  const uint8_t slot = WorkerSlot(worker);
  return slot != Record::kNoSlot && slab.value() < config_.slabs &&
         (slabs_[slab.value()].mapped >> slot & 1) != 0;
}

// --- Changes -------------------------------------------------------------------------------------

void PoolLedger::CountFrozen(uint32_t slab, const Page& page, int change) {
  if (page.owner != kFrozen) return;
  const int parked = page.holders() == 0 ? change : 0;
  slabs_[slab].parked += parked;
  slabs_[slab].shared += page.holders() > 1 ? change : 0;
  groups_[slabs_[slab].group]->parked += parked;
}

// The page is FREE when that leaves nobody.
void PoolLedger::SetHolders(uint32_t slab, uint32_t index, uint32_t place) {
  if (place == 0) return SetOwner(slab, index / 64, uint64_t{1} << index % 64, kNobody);
  Page& page = slabs_[slab].pages[index];
  CountFrozen(slab, page, -1);
  page.place = place;
  CountFrozen(slab, page, 1);
}

void PoolLedger::ApplyFreeze(const Record& record) {
  SetOwner(record.slab, record.word, record.mask, kFrozen);
  Session* const session =
      record.id == 0 ? nullptr : &sessions_[session_slots_.at(SessionId(record.id))];
  const SlabEntry& slab = slabs_[record.slab];
  const uint32_t place = (record.count != 0 ? kKept : 0) + (session != nullptr ? 1 : 0);
  for (uint64_t rest = record.mask; rest != 0; rest &= rest - 1) {
    const uint32_t index = record.word * 64 + std::countr_zero(rest);
    // A checkpoint's page without either is held by sessions that follow.
    if (place != 0) SetHolders(record.slab, index, place);
    if (session == nullptr) continue;
    session->frozen.push_back(groups_[slab.group]->layout.Page(SlabIndex(record.slab), index));
    ++holds_;
  }
}

void PoolLedger::ApplyHold(const Record& record) {
  Session& session = sessions_[session_slots_.at(SessionId(record.id))];
  if (record.slot == 0) {
    ForgetHolds(&session, record);
    for (uint64_t rest = record.mask; rest != 0; rest &= rest - 1) {
      const uint32_t index = record.word * 64 + std::countr_zero(rest);
      SetHolders(record.slab, index, slabs_[record.slab].pages[index].place - 1);
    }
    return;
  }
  for (uint64_t rest = record.mask; rest != 0; rest &= rest - 1) {
    const uint32_t index = record.word * 64 + std::countr_zero(rest);
    SetHolders(record.slab, index, slabs_[record.slab].pages[index].place + 1);
    session.frozen.push_back(
        groups_[slabs_[record.slab].group]->layout.Page(SlabIndex(record.slab), index));
    ++holds_;
  }
}

void PoolLedger::ForgetHolds(Session* session, const Record& record) {
  holds_ -= std::erase_if(session->frozen, [&](PageId page) {
    const Place place = Locate(page);
    return place.slab == record.slab && place.index / 64 == record.word &&
           (record.mask >> place.index % 64 & 1) != 0;
  });
}

void PoolLedger::ApplyStopKeeping(const Record& record) {
  for (uint64_t rest = record.mask; rest != 0; rest &= rest - 1) {
    const uint32_t index = record.word * 64 + std::countr_zero(rest);
    SetHolders(record.slab, index, slabs_[record.slab].pages[index].place & ~kKept);
  }
}

// --- Journal and invariants ----------------------------------------------------------------------

void PoolLedger::CheckpointHolds(const Session& session, std::vector<Record>* out) const {
  std::map<std::pair<uint32_t, uint32_t>, uint64_t> masks;  // by slab and word
  for (const PageId page : session.frozen) {
    const Place place = Locate(page);
    masks[{place.slab, place.index / 64}] |= uint64_t{1} << place.index % 64;
  }
  for (const auto& [place, mask] : masks) {
    out->push_back({.type = Type::kHold,
                    .slot = 1,
                    .word = static_cast<uint16_t>(place.second),
                    .slab = place.first,
                    .id = session.id.value(),
                    .mask = mask});
  }
}

absl::Status PoolLedger::CheckHolders() const {
  absl::flat_hash_map<PageId, uint32_t> holders;
  uint64_t holds = 0;
  for (const auto& [id, slot] : session_slots_) {
    const Session& session = sessions_[slot];
    holds += session.frozen.size();
    for (const PageId page : session.frozen) {
      const Place place = Locate(page);
      const auto broken = [&](const char* what) {
        return absl::InternalError(
            absl::StrCat(what, " (page ", page.value(), ", session ", session.id.value(), ")"));
      };
      if (!place.found() || slabs_[place.slab].pages[place.index].owner != kFrozen) {
        return broken("I1: a session holds a page that is not frozen");
      }
      if (session.worker != Record::kNoSlot &&
          (slabs_[place.slab].mapped >> session.worker & 1) == 0) {
        return broken("I2: a session holds a page that its worker has not mapped");
      }
      ++holders[page];
    }
  }
  if (holds != holds_) return absl::InternalError("I1: the sums of holds do not match");
  for (uint32_t i = 0; i < config_.slabs; ++i) {
    const SlabEntry& slab = slabs_[i];
    for (uint32_t index = 0; slab.pages_in[3] > 0 && index < slab.pages.size(); ++index) {
      if (slab.pages[index].owner != kFrozen) continue;
      const auto found = holders.find(groups_[slab.group]->layout.Page(SlabIndex(i), index));
      if (slab.pages[index].holders() != (found == holders.end() ? 0 : found->second)) {
        return absl::InternalError(
            absl::StrCat("I1: a frozen page counts other sessions than hold it (slab ", i, ")"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace kvpool
