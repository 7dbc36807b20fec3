// Commands and questions of the pool ledger. How records change the state, checkpoints and replay
// are in pool_replay.cc.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/pool.h"

#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"

namespace kvpool {
namespace {

template <typename Id>
absl::Status Unknown(const char* kind, Id id) {
  return absl::NotFoundError(absl::StrCat("no ", kind, " ", id.value(), " in this pool"));
}

absl::Status BadPage(PageId page, const char* why) {
  return absl::InvalidArgumentError(absl::StrCat("page ", page.value(), " ", why));
}

constexpr const char* Name(SlabState state) {
  constexpr const char* kNames[] = {"free", "leased", "evacuating", "draining", "stuck"};
  return kNames[static_cast<int>(state)];
}

// The lowest `count` bits that are set in `mask`.
uint64_t LowestBits(uint64_t mask, size_t count) {
  if (count >= static_cast<size_t>(std::popcount(mask))) return mask;
  uint64_t rest = mask;
  for (; count > 0; --count) rest &= rest - 1;
  return mask ^ rest;
}

}  // namespace

// --- Tenants and workers -------------------------------------------------------------------------

absl::Status PoolLedger::CheckTenant(TenantId tenant) const {
  if (tenant == TenantId(0)) return absl::InvalidArgumentError("tenant 0 is nobody");
  if (tenants_.contains(tenant) || tenants_.size() < limits::kTenants) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the agent serves at most ", limits::kTenants, " tenants"));
}

absl::Status PoolLedger::SetLease(TenantId tenant, uint32_t slabs) {
  if (slabs == 0 && tenant != TenantId(0) && !tenants_.contains(tenant)) return absl::OkStatus();
  if (absl::Status status = CheckTenant(tenant); !status.ok()) return status;
  if (!tenants_.contains(tenant)) {
    if (absl::Status status = ExpectRoom(1); !status.ok()) return status;
  }
  Commit({.type = Record::Type::kLease, .id = tenant.value(), .count = slabs});
  return absl::OkStatus();
}

absl::StatusOr<WorkerId> PoolLedger::AddWorker(TenantId tenant, const Layout& layout) {
  if (absl::Status status = CheckTenant(tenant); !status.ok()) return status;
  if (layout.slab_bytes() != config_.slab_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the layout is for slabs of ", layout.slab_bytes().value(),
                     " bytes; this pool's have ", config_.slab_bytes.value()));
  }
  const auto unused = std::find(workers_.begin(), workers_.end(), nullptr);
  if (unused == workers_.end()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the agent serves at most ", limits::kWorkers, " workers"));
  }
  const uint32_t group = FindGroup(tenant, layout);
  if (group >= kGroups) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the pool has at most ", kGroups, " pairs of a tenant and a layout"));
  }
  std::vector<Record> records;
  if (group == groups_.size() || groups_[group] == nullptr) {
    records = GroupRecords(group, tenant, layout);
  }
  const WorkerId worker(next_worker_);
  records.push_back({.type = Record::Type::kAddWorker,
                     .slot = static_cast<uint8_t>(unused - workers_.begin()),
                     .word = static_cast<uint16_t>(group),
                     .count = worker.value()});
  if (absl::Status status = ExpectRoom(records.size()); !status.ok()) return status;
  Reserve(records.size());
  for (const Record& record : records) Commit(record);
  return worker;
}

absl::Status PoolLedger::RemoveWorker(WorkerId worker) {
  const uint8_t slot = WorkerSlot(worker);
  if (slot == Record::kNoSlot) return Unknown("worker", worker);
  Commit({.type = Record::Type::kRemoveWorker, .slot = slot});
  return absl::OkStatus();
}

// --- Slabs ---------------------------------------------------------------------------------------

absl::StatusOr<SlabIndex> PoolLedger::AssignSlab(WorkerId worker) {
  const uint8_t slot = WorkerSlot(worker);
  if (slot == Record::kNoSlot) return Unknown("worker", worker);
  const uint32_t group = workers_[slot]->group;
  const Tenant& tenant = tenants_.at(groups_[group]->tenant);
  if (tenant.held() >= tenant.lease) {
    return absl::ResourceExhaustedError(absl::StrCat("tenant ", groups_[group]->tenant.value(),
                                                     " holds ", tenant.held(),
                                                     " slabs of its lease of ", tenant.lease));
  }
  if (free_slabs_ <= config_.reserve_slabs) {
    return absl::ResourceExhaustedError(absl::StrCat("the pool has ", free_slabs_,
                                                     " free slabs and keeps ",
                                                     config_.reserve_slabs, " of them in reserve"));
  }
  if (absl::Status status = ExpectRoom(2 + groups_[group]->layout.pages_per_slab()); !status.ok()) {
    return status;
  }
  uint32_t slab = 0;  // the first free one, so the pool's last reserve_slabs are never assigned
  while (slabs_[slab].state != SlabState::kFree) ++slab;
  CommitSlab(SlabIndex(slab), SlabState::kLeased, group);
  return SlabIndex(slab);
}

std::vector<SlabIndex> PoolLedger::SlabsToOffer(WorkerId worker, size_t max) const {
  std::vector<SlabIndex> slabs;
  const uint8_t slot = WorkerSlot(worker);
  if (slot == Record::kNoSlot) return slabs;
  for (uint32_t i = 0; i < config_.slabs && slabs.size() < max; ++i) {
    const SlabEntry& slab = slabs_[i];
    if (slab.state == SlabState::kLeased && slab.group == workers_[slot]->group &&
        (slab.offered >> slot & 1) == 0) {
      slabs.push_back(SlabIndex(i));
    }
  }
  return slabs;
}

absl::Status PoolLedger::MarkOffered(WorkerId worker, SlabIndex slab) {
  const uint8_t slot = WorkerSlot(worker);
  if (slot == Record::kNoSlot) return Unknown("worker", worker);
  if (absl::Status status = ExpectState(slab, {SlabState::kLeased}); !status.ok()) return status;
  const SlabEntry& entry = slabs_[slab.value()];
  if (entry.group != workers_[slot]->group || (entry.offered >> slot & 1) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("slab ", slab.value(), " is of another tenant or layout than worker ",
                     worker.value(), ", or was offered to it before"));
  }
  CommitMappings(slab, entry.offered | uint64_t{1} << slot, entry.mapped);
  return absl::OkStatus();
}

absl::Status PoolLedger::MarkMapped(WorkerId worker, SlabIndex slab) {
  const uint8_t slot = WorkerSlot(worker);
  if (slot == Record::kNoSlot) return Unknown("worker", worker);
  if (slab.value() >= config_.slabs) return Unknown("slab", slab);
  const SlabEntry& entry = slabs_[slab.value()];
  if ((entry.offered >> slot & 1) == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("slab ", slab.value(), " was not offered to worker ", worker.value()));
  }
  CommitMappings(slab, entry.offered, entry.mapped | uint64_t{1} << slot);
  return absl::OkStatus();
}

absl::Status PoolLedger::MarkUnmapped(WorkerId worker, SlabIndex slab) {
  const uint8_t slot = WorkerSlot(worker);
  if (slot == Record::kNoSlot) return Unknown("worker", worker);
  if (absl::Status status = ExpectState(slab, {SlabState::kDraining, SlabState::kStuck});
      !status.ok()) {
    return status;
  }
  const SlabEntry& entry = slabs_[slab.value()];
  const uint64_t others = ~(uint64_t{1} << slot);
  CommitMappings(slab, entry.offered & others, entry.mapped & others);
  return absl::OkStatus();
}

std::vector<WorkerId> PoolLedger::WorkersOf(SlabIndex slab) const {
  std::vector<WorkerId> workers;
  if (slab.value() >= config_.slabs) return workers;
  for (uint64_t rest = slabs_[slab.value()].offered; rest != 0; rest &= rest - 1) {
    workers.push_back(workers_[std::countr_zero(rest)]->id);
  }
  return workers;
}

absl::Status PoolLedger::BeginEvacuate(SlabIndex slab) {
  return ChangeState(slab, {SlabState::kLeased}, SlabState::kEvacuating);
}

absl::Status PoolLedger::CancelEvacuate(SlabIndex slab) {
  return ChangeState(slab, {SlabState::kEvacuating}, SlabState::kLeased);
}

absl::Status PoolLedger::BeginDrain(SlabIndex slab) {
  if (slab.value() < config_.slabs && slabs_[slab.value()].used() != 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "slab ", slab.value(), " still has ", slabs_[slab.value()].used(), " pages in use"));
  }
  return ChangeState(slab, {SlabState::kEvacuating}, SlabState::kDraining);
}

absl::Status PoolLedger::FreeSlab(SlabIndex slab) {
  if (slab.value() < config_.slabs && slabs_[slab.value()].offered != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("slab ", slab.value(), " may still be mapped by ",
                     std::popcount(slabs_[slab.value()].offered), " workers"));
  }
  return ChangeState(slab, {SlabState::kDraining, SlabState::kStuck}, SlabState::kFree);
}

absl::Status PoolLedger::MarkStuck(SlabIndex slab) {
  return ChangeState(slab, {SlabState::kDraining}, SlabState::kStuck);
}

// --- Pages ---------------------------------------------------------------------------------------

absl::StatusOr<size_t> PoolLedger::Grant(WorkerId worker, std::span<PageId> pages) {
  const uint8_t slot = WorkerSlot(worker);
  if (slot == Record::kNoSlot) return Unknown("worker", worker);
  const Group& group = *groups_[workers_[slot]->group];
  size_t count = 0;
  while (count < pages.size()) {
    const std::optional<SlabIndex> slab = FullestSlab(group, *workers_[slot]);
    if (!slab.has_value()) break;
    const std::vector<uint64_t>& free = slabs_[slab->value()].free;
    for (uint32_t word = 0; word < free.size() && count < pages.size(); ++word) {
      const uint64_t mask = LowestBits(free[word], pages.size() - count);
      if (mask == 0) continue;
      CommitPages(slab->value(), word, mask, PageState::kGranted, slot);
      for (uint64_t rest = mask; rest != 0; rest &= rest - 1) {
        pages[count++] = group.layout.Page(*slab, word * 64 + std::countr_zero(rest));
      }
    }
  }
  return count;
}

absl::StatusOr<size_t> PoolLedger::Return(WorkerId worker, std::span<const PageId> pages) {
  const uint8_t slot = WorkerSlot(worker);
  if (slot == Record::kNoSlot) return Unknown("worker", worker);
  return Move(pages, GrantedTo(slot), PageState::kFree, 0);
}

absl::StatusOr<SessionId> PoolLedger::OpenSession(WorkerId worker) {
  const uint8_t slot = WorkerSlot(worker);
  if (slot == Record::kNoSlot) return Unknown("worker", worker);
  if (workers_[slot]->sessions >= limits::kSessionsPerWorker) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a worker has at most ", limits::kSessionsPerWorker, " open sessions"));
  }
  if (absl::Status status = ExpectRoom(2); !status.ok()) return status;
  const SessionId session(next_session_);
  Commit({.type = Record::Type::kOpenSession, .slot = slot, .id = session.value()});
  return session;
}

absl::Status PoolLedger::Adopt(SessionId session, std::span<const PageId> pages) {
  const Session* entry = FindSession(session);
  if (entry == nullptr || entry->worker == Record::kNoSlot) return Unknown("session", session);
  const Owner worker = GrantedTo(entry->worker);
  if (absl::Status status = CheckList(pages, worker, OwnedBy(session)); !status.ok()) return status;
  Move(pages, worker, PageState::kOwned, session.value());
  return absl::OkStatus();
}

absl::Status PoolLedger::Release(SessionId session, std::span<const PageId> pages) {
  if (FindSession(session) == nullptr) return Unknown("session", session);
  const Owner owner = OwnedBy(session);
  if (absl::Status status = CheckList(pages, owner, owner); !status.ok()) return status;
  Move(pages, owner, PageState::kFree, 0);
  return absl::OkStatus();
}

absl::Status PoolLedger::CloseSession(SessionId session) {
  const Session* entry = FindSession(session);
  if (entry == nullptr || entry->worker == Record::kNoSlot) return Unknown("session", session);
  Commit({.type = Record::Type::kCloseSession, .id = session.value()});
  return absl::OkStatus();
}

absl::Status PoolLedger::Pin(SessionId session) {
  const Session* entry = FindSession(session);
  if (entry == nullptr || entry->worker == Record::kNoSlot) return Unknown("session", session);
  Commit({.type = Record::Type::kPins, .id = session.value(), .count = entry->pins + 1});
  return absl::OkStatus();
}

absl::Status PoolLedger::Unpin(SessionId session) {
  const Session* entry = FindSession(session);
  if (entry == nullptr) return Unknown("session", session);
  if (entry->pins == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("session ", session.value(), " is not pinned"));
  }
  Commit({.type = Record::Type::kPins, .id = session.value(), .count = entry->pins - 1});
  return absl::OkStatus();
}

absl::StatusOr<std::span<const PageId>> PoolLedger::PagesOf(SessionId session) const {
  const Session* entry = FindSession(session);
  if (entry == nullptr) return Unknown("session", session);
  return std::span<const PageId>(entry->pages);
}

size_t PoolLedger::Move(std::span<const PageId> pages, Owner from, PageState to, uint64_t id) {
  size_t moved = 0;
  uint32_t slab = 0, word = 0;  // the run that goes into one record
  uint64_t mask = 0;
  for (const PageId page : pages) {
    const Place place = Locate(page);
    if (!place.found() || slabs_[place.slab].pages[place.index].owner != from) continue;
    const uint64_t bit = uint64_t{1} << place.index % 64;
    if (place.slab != slab || place.index / 64 != word) {
      if (mask != 0) CommitPages(slab, word, mask, to, id);
      slab = place.slab;
      word = place.index / 64;
      mask = 0;
    }
    moved += (mask & bit) == 0;
    mask |= bit;
  }
  if (mask != 0) CommitPages(slab, word, mask, to, id);
  return moved;
}

absl::Status PoolLedger::CheckList(std::span<const PageId> pages, Owner owner, Owner other) {
  absl::Status status;
  size_t checked = 0;
  for (; checked < pages.size(); ++checked) {
    const Place place = Locate(pages[checked]);
    if (!place.found()) {
      status = BadPage(pages[checked], "is not a page of a slab in use");
      break;
    }
    Owner& now = slabs_[place.slab].pages[place.index].owner;
    if (now != owner && now != other) {
      status = BadPage(pages[checked],
                       (now & kListed) != 0 ? "is listed twice" : "is neither granted nor owned");
      break;
    }
    now |= kListed;
  }
  for (const PageId page : pages.first(checked)) {
    const Place place = Locate(page);
    slabs_[place.slab].pages[place.index].owner &= ~kListed;
  }
  return status;
}

// --- Questions -----------------------------------------------------------------------------------

std::vector<TenantId> PoolLedger::Tenants() const {
  std::vector<TenantId> tenants;
  for (const auto& [tenant, entry] : tenants_) tenants.push_back(tenant);
  return tenants;
}

TenantUsage PoolLedger::Usage(TenantId tenant) const {
  const auto found = tenants_.find(tenant);
  if (found == tenants_.end()) return {};
  const Tenant& entry = found->second;
  TenantUsage usage{.lease_slabs = entry.lease,
                    .held_slabs = entry.held(),
                    .evacuating_slabs = entry.in(SlabState::kEvacuating),
                    .draining_slabs = entry.in(SlabState::kDraining),
                    .stuck_slabs = entry.in(SlabState::kStuck)};
  for (const auto& group : groups_) {
    if (group == nullptr || group->tenant != tenant) continue;
    const auto [free, granted, owned, frozen] = group->pages_in;
    if (group->workers == 0) usage.abandoned_slabs += group->slabs;
    usage.free_pages += free;
    usage.granted_pages += granted;
    usage.owned_pages += owned;
    usage.granted_bytes += group->layout.page_bytes() * static_cast<int64_t>(granted);
    usage.owned_bytes += group->layout.page_bytes() * static_cast<int64_t>(owned);
    usage.frozen_pages += frozen;
    usage.parked_pages += group->parked;
    usage.frozen_bytes += group->layout.page_bytes() * static_cast<int64_t>(frozen);
    usage.parked_bytes += group->layout.page_bytes() * static_cast<int64_t>(group->parked);
  }
  return usage;
}

std::optional<SlabUsage> PoolLedger::Slab(SlabIndex slab) const {
  if (slab.value() >= config_.slabs) return std::nullopt;
  const SlabEntry& entry = slabs_[slab.value()];
  if (entry.state == SlabState::kFree) return SlabUsage{.slab = slab};
  const auto [free, granted, owned, frozen] = entry.pages_in;
  return SlabUsage{.slab = slab,
                   .state = entry.state,
                   .tenant = groups_[entry.group]->tenant,
                   .group = entry.group,
                   .owned_pages = owned,
                   .granted_pages = granted,
                   .frozen_pages = frozen,
                   .parked_pages = entry.parked,
                   .shared_pages = entry.shared,
                   .free_pages = free,
                   .workers = static_cast<uint32_t>(std::popcount(entry.offered)),
                   .abandoned = groups_[entry.group]->workers == 0};
}

std::vector<SlabUsage> PoolLedger::EmptiestSlabs(TenantId tenant, size_t max) const {
  std::vector<SlabUsage> slabs;
  for (uint32_t i = 0; i < config_.slabs; ++i) {
    const SlabState state = slabs_[i].state;
    if (state != SlabState::kLeased && state != SlabState::kEvacuating) continue;
    if (groups_[slabs_[i].group]->tenant == tenant) slabs.push_back(*Slab(SlabIndex(i)));
  }
  const auto place = [](const SlabUsage& slab) {
    return std::pair(slab.owned_pages + slab.granted_pages + slab.frozen_pages - slab.parked_pages,
                     slab.parked_pages);
  };
  std::stable_sort(slabs.begin(), slabs.end(),
                   [&](const SlabUsage& a, const SlabUsage& b) { return place(a) < place(b); });
  if (slabs.size() > max) slabs.resize(max);
  return slabs;
}

std::optional<uint32_t> PoolLedger::GroupOf(TenantId tenant, const Layout& layout) const {
  const uint32_t group = FindGroup(tenant, layout);
  if (group >= groups_.size() || groups_[group] == nullptr) return std::nullopt;
  return group;
}

uint64_t PoolLedger::HeldPages(TenantId tenant, const Layout& layout) const {
  const std::optional<uint32_t> group = GroupOf(tenant, layout);
  if (!group.has_value()) return 0;
  return groups_[*group]->pages_in[3] - groups_[*group]->parked;
}

std::optional<uint32_t> PoolLedger::GroupOf(WorkerId worker) const {
  const uint8_t slot = WorkerSlot(worker);
  if (slot == Record::kNoSlot) return std::nullopt;
  return workers_[slot]->group;
}

uint64_t PoolLedger::FreePagesFor(WorkerId worker) const {
  const uint8_t slot = WorkerSlot(worker);
  uint64_t pages = 0;
  for (const SlabEntry& slab : slabs_) {
    const bool mapped = slot != Record::kNoSlot && (slab.mapped >> slot & 1) != 0;
    if (mapped && slab.state == SlabState::kLeased) pages += slab.pages_in[0];
  }
  return pages;
}

uint64_t PoolLedger::GrantedPages(WorkerId worker) const {
  const uint8_t slot = WorkerSlot(worker);
  return slot == Record::kNoSlot ? 0 : workers_[slot]->granted_pages;
}

// --- Look-up -------------------------------------------------------------------------------------

uint8_t PoolLedger::WorkerSlot(WorkerId worker) const {
  for (uint8_t slot = 0; slot < limits::kWorkers; ++slot) {
    if (workers_[slot] != nullptr && workers_[slot]->id == worker) return slot;
  }
  return Record::kNoSlot;
}

const PoolLedger::Session* PoolLedger::FindSession(SessionId session) const {
  const auto found = session_slots_.find(session);
  return found == session_slots_.end() ? nullptr : &sessions_[found->second];
}

uint32_t PoolLedger::FindGroup(TenantId tenant, const Layout& layout) const {
  uint32_t unused = static_cast<uint32_t>(groups_.size());
  for (uint32_t i = 0; i < groups_.size(); ++i) {
    if (groups_[i] == nullptr) {
      unused = i;
    } else if (groups_[i]->tenant == tenant && groups_[i]->layout == layout) {
      return i;
    }
  }
  return unused;
}

std::optional<SlabIndex> PoolLedger::FullestSlab(const Group& group, const Worker& worker) const {
  for (uint32_t bucket = 0; bucket < kBuckets; ++bucket) {
    if (group.slabs_in[bucket] == 0) continue;
    const uint64_t* listed = &group.listed[bucket * slab_words_];
    for (uint32_t word = 0; word < slab_words_; ++word) {
      if (const uint64_t slabs = listed[word] & worker.mapped[word]; slabs != 0) {
        return SlabIndex(word * 64 + std::countr_zero(slabs));
      }
    }
  }
  return std::nullopt;
}

absl::Status PoolLedger::ExpectState(SlabIndex slab,
                                     std::initializer_list<SlabState> states) const {
  if (slab.value() >= config_.slabs) return Unknown("slab", slab);
  const SlabState state = slabs_[slab.value()].state;
  if (std::find(states.begin(), states.end(), state) != states.end()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("slab ", slab.value(), " is ", Name(state), ", not ", Name(*states.begin())));
}

absl::Status PoolLedger::ChangeState(SlabIndex slab, std::initializer_list<SlabState> from,
                                     SlabState to) {
  if (absl::Status status = ExpectState(slab, from); !status.ok()) return status;
  CommitSlab(slab, to, slabs_[slab.value()].group);
  return absl::OkStatus();
}

}  // namespace kvpool
