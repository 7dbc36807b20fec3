// How the pool ledger's records change its state, and the invariants that hold after each. The only
// code that changes the ledger, live and in replay. See pool.h.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "agent/pool.h"

namespace kvpool {

using Type = Record::Type;

// --- Changes -------------------------------------------------------------------------------------

void PoolLedger::Apply(const Record& record) {
  switch (record.type) {
    case Type::kPages:
      return ApplyPages(record);
    case Type::kNextIds:
      next_session_ = record.id;
      next_worker_ = record.count;
      return;
    case Type::kLease: {
      const TenantId tenant(static_cast<uint32_t>(record.id));
      tenants_[tenant].lease = record.count;
      return DropTenantIfUnused(tenant);
    }
    case Type::kLayerMap:
      layer_map_.resize(record.word + kMapEntries);
      for (uint32_t i = 0; i < kMapEntries; ++i) {
        layer_map_[record.word + i] = MapEntry(record, i);
      }
      return;
    case Type::kGroup:
      return ApplyGroup(record);
    case Type::kAddWorker:
      return ApplyAddWorker(record);
    case Type::kRemoveWorker:
      return ApplyRemoveWorker(record.slot);
    case Type::kOpenSession:
      return ApplyOpenSession(record);
    case Type::kCloseSession:
      return Close(&sessions_[session_slots_.at(SessionId(record.id))]);
    case Type::kPins: {
      Session& session = sessions_[session_slots_.at(SessionId(record.id))];
      session.pins = record.count;
      if (session.worker == Record::kNoSlot) Close(&session);
      return;
    }
    case Type::kSlab:
      return ApplySlab(record);
    case Type::kMappings:
      return SetMappings(record.slab, record.id, record.mask);
    case Type::kHold:
      return ApplyHold(record);
    case Type::kStopKeeping:
      return ApplyStopKeeping(record);
    case Type::kCheckpoint:
    case Type::kPool:
      return;
  }
}

void PoolLedger::ApplyPages(const Record& record) {
  const PageState to = static_cast<PageState>(record.slot);
  if (to == PageState::kFrozen) return ApplyFreeze(record);
  if (to == PageState::kOwned && slabs_[record.slab].pages_in[3] > 0) {  // it may be a thaw
    ForgetHolds(&sessions_[session_slots_.at(SessionId(record.id))], record);
  }
  const Owner owner = to == PageState::kFree      ? kNobody
                      : to == PageState::kGranted ? GrantedTo(static_cast<uint8_t>(record.id))
                                                  : OwnedBy(SessionId(record.id));
  SetOwner(record.slab, record.word, record.mask, owner);
}

void PoolLedger::ApplyGroup(const Record& record) {
  if (record.word >= groups_.size()) groups_.resize(record.word + 1);
  groups_[record.word] = std::make_unique<Group>();
  Group& group = *groups_[record.word];
  group.tenant = TenantId(record.slab);
  tenants_.try_emplace(group.tenant);  // it may have no lease
  group.layout = *GroupLayout(record);
  group.page_stride = Divisor(group.layout.Page(SlabIndex(0), 1).value());
  group.listed.resize(kBuckets * slab_words_);
  // The fewest free pages come first: page counts are cut into kBuckets or fewer steps.
  const int bits = static_cast<int>(std::bit_width(group.layout.pages_per_slab() - 1));
  group.bucket_shift = std::max(0, bits - 6);
}

void PoolLedger::ApplyAddWorker(const Record& record) {
  auto worker = std::make_unique<Worker>();
  worker->id = WorkerId(record.count);
  worker->group = record.word;
  worker->mapped.resize(slab_words_);
  workers_[record.slot] = std::move(worker);
  ++groups_[record.word]->workers;
  next_worker_ = std::max(next_worker_, record.count + 1);
}

void PoolLedger::ApplyRemoveWorker(uint8_t slot) {
  for (Session& session : sessions_) {
    if (session.id != SessionId(0) && session.worker == slot) Close(&session);
  }
  const uint64_t others = ~(uint64_t{1} << slot);
  for (uint32_t index = 0; index < config_.slabs; ++index) {
    SlabEntry& slab = slabs_[index];
    if ((slab.offered & ~others) == 0) continue;
    for (uint32_t word = 0; word < slab.free.size(); ++word) {
      uint64_t mask = 0;
      for (uint64_t rest = slab.PageMask(word); rest != 0; rest &= rest - 1) {
        const int bit = std::countr_zero(rest);
        if (slab.pages[word * 64 + bit].owner == GrantedTo(slot)) mask |= uint64_t{1} << bit;
      }
      if (mask != 0) SetOwner(index, word, mask, kNobody);
    }
    SetMappings(index, slab.offered & others, slab.mapped & others);
  }
  const uint32_t group = workers_[slot]->group;
  workers_[slot] = nullptr;
  --groups_[group]->workers;
  DropGroupIfUnused(group);
}

void PoolLedger::ApplyOpenSession(const Record& record) {
  uint32_t slot = static_cast<uint32_t>(sessions_.size());
  if (unused_sessions_.empty()) {
    sessions_.emplace_back();
  } else {
    slot = unused_sessions_.back();
    unused_sessions_.pop_back();
  }
  sessions_[slot].id = SessionId(record.id);
  sessions_[slot].worker = record.slot;
  session_slots_[SessionId(record.id)] = slot;
  if (record.slot != Record::kNoSlot) ++workers_[record.slot]->sessions;
  next_session_ = std::max(next_session_, record.id + 1);
}

void PoolLedger::Close(Session* session) {
  if (session->worker != Record::kNoSlot) --workers_[session->worker]->sessions;
  session->worker = Record::kNoSlot;
  if (session->pins > 0) return;
  while (!session->pages.empty()) {
    const Place place = Locate(session->pages.back());
    SetOwner(place.slab, place.index / 64, uint64_t{1} << place.index % 64, kNobody);
  }
  for (const PageId page : session->frozen) {
    const Place place = Locate(page);
    SetHolders(place.slab, place.index, slabs_[place.slab].pages[place.index].place - 1);
  }
  holds_ -= session->frozen.size();
  const auto found = session_slots_.find(session->id);
  unused_sessions_.push_back(found->second);
  session_slots_.erase(found);
  *session = Session();
}

void PoolLedger::ApplySlab(const Record& record) {
  SlabEntry& slab = slabs_[record.slab];
  const SlabState from = slab.state;
  const SlabState to = static_cast<SlabState>(record.slot);
  Group& group = *groups_[record.word];
  if (from == SlabState::kFree) {
    const uint32_t pages = group.layout.pages_per_slab();
    slab.group = record.word;
    slab.pages.resize(pages);
    slab.pages_in = {pages, 0, 0, 0};
    for (uint32_t word = 0; word < CeilDiv(pages, 64u); ++word) {
      slab.free.push_back(slab.PageMask(word));
    }
    ++group.slabs;
    --free_slabs_;
    paged_ += pages;
  }
  const int64_t free = slab.pages_in[0];
  group.pages_in[0] += free * ((to == SlabState::kLeased) - (from == SlabState::kLeased));
  std::array<uint32_t, 5>& slabs_in = tenants_.at(group.tenant).slabs_in;
  if (from != SlabState::kFree) --slabs_in[static_cast<int>(from)];
  if (to != SlabState::kFree) ++slabs_in[static_cast<int>(to)];
  stuck_slabs_ += (to == SlabState::kStuck) - (from == SlabState::kStuck);
  slab.state = to;
  Relist(record.slab);
  if (to == SlabState::kFree) {
    paged_ -= slab.pages.size();
    slab = SlabEntry();
    --group.slabs;
    ++free_slabs_;
    DropGroupIfUnused(record.word);
  }
}

void PoolLedger::SetMappings(uint32_t slab, uint64_t offered, uint64_t mapped) {
  for (uint64_t rest = slabs_[slab].mapped ^ mapped; rest != 0; rest &= rest - 1) {
    workers_[std::countr_zero(rest)]->mapped[slab / 64] ^= uint64_t{1} << slab % 64;
  }
  slabs_[slab].offered = offered;
  slabs_[slab].mapped = mapped;
}

void PoolLedger::SetOwner(uint32_t index, uint32_t word, uint64_t mask, Owner owner) {
  SlabEntry& slab = slabs_[index];
  Page* const pages = &slab.pages[size_t{word} * 64];
  for (uint64_t rest = mask; rest != 0;) {
    // Those that have the owner of the first: nearly always all.
    const Owner from = pages[std::countr_zero(rest)].owner;
    uint32_t count = 0;
    uint64_t others = 0;
    for (; rest != 0; rest &= rest - 1) {
      Page& page = pages[std::countr_zero(rest)];
      if (page.owner != from) {
        others |= rest & -rest;
        continue;
      }
      if (IsSession(from)) RemoveFromSession(page);
      if (from == kFrozen) CountFrozen(index, page, -1);
      page = {.owner = owner};
      if (owner == kFrozen) CountFrozen(index, page, 1);
      ++count;
    }
    CountPages(index, from, -int64_t{count});
    CountPages(index, owner, int64_t{count});
    rest = others;
  }
  if (IsSession(owner)) {
    std::vector<PageId>& list = sessions_[owner - kFirstSession].pages;
    const Layout& layout = groups_[slab.group]->layout;
    for (uint64_t rest = mask; rest != 0; rest &= rest - 1) {
      const uint32_t bit = std::countr_zero(rest);
      pages[bit].place = static_cast<uint32_t>(list.size());
      list.push_back(layout.Page(SlabIndex(index), word * 64 + bit));
    }
  }
  slab.free[word] = owner == kNobody ? slab.free[word] | mask : slab.free[word] & ~mask;
  Relist(index);
}

void PoolLedger::CountPages(uint32_t index, Owner owner, int64_t change) {
  SlabEntry& slab = slabs_[index];
  const int state = static_cast<int>(StateOf(owner));
  slab.pages_in[state] += change;
  if (state > 0 || slab.state == SlabState::kLeased) groups_[slab.group]->pages_in[state] += change;
  if (owner != kNobody && owner < kFirstSession) {
    workers_[owner - GrantedTo(0)]->granted_pages += change;
  }
}

// The session's last page takes the place of the one that goes.
void PoolLedger::RemoveFromSession(const Page& page) {
  std::vector<PageId>& pages = sessions_[page.owner - kFirstSession].pages;
  const Place last = Locate(pages.back());
  slabs_[last.slab].pages[last.index].place = page.place;
  pages[page.place] = pages.back();
  pages.pop_back();
}

void PoolLedger::Relist(uint32_t index) {
  SlabEntry& slab = slabs_[index];
  Group& group = *groups_[slab.group];
  const uint32_t free = slab.pages_in[0];
  const uint32_t bucket =
      slab.state != SlabState::kLeased || free == 0 ? kUnlisted : (free - 1) >> group.bucket_shift;
  if (bucket == slab.bucket) return;
  const uint64_t bit = uint64_t{1} << index % 64;
  if (slab.bucket != kUnlisted) {
    group.listed[slab.bucket * slab_words_ + index / 64] &= ~bit;
    --group.slabs_in[slab.bucket];
  }
  if (bucket != kUnlisted) {
    group.listed[bucket * slab_words_ + index / 64] |= bit;
    ++group.slabs_in[bucket];
  }
  slab.bucket = bucket;
}

void PoolLedger::DropGroupIfUnused(uint32_t group) {
  if (groups_[group]->slabs > 0 || groups_[group]->workers > 0) return;
  const TenantId tenant = groups_[group]->tenant;
  groups_[group] = nullptr;
  DropTenantIfUnused(tenant);
}

void PoolLedger::DropTenantIfUnused(TenantId tenant) {
  const bool has_group = std::any_of(groups_.begin(), groups_.end(), [&](const auto& group) {
    return group != nullptr && group->tenant == tenant;
  });
  if (!has_group && tenants_.at(tenant).lease == 0) tenants_.erase(tenant);
}

// --- Invariants ----------------------------------------------------------------------------------

absl::Status PoolLedger::CheckInvariants() const {
  std::map<TenantId, std::array<uint32_t, 5>> slabs_in;
  std::vector<Group> groups(groups_.size());
  uint64_t paged = 0;
  uint32_t free = 0, stuck = 0;
  for (uint32_t i = 0; i < config_.slabs; ++i) {
    const SlabEntry& slab = slabs_[i];
    free += slab.state == SlabState::kFree;
    stuck += slab.state == SlabState::kStuck;
    if (absl::Status status = CheckSlab(i); !status.ok()) return status;
    if (slab.state == SlabState::kFree) continue;
    ++slabs_in[groups_[slab.group]->tenant][static_cast<int>(slab.state)];
    ++groups[slab.group].slabs;
    for (int state = 0; state < 4; ++state) {
      if (state == 0 && slab.state != SlabState::kLeased) continue;
      groups[slab.group].pages_in[state] += slab.pages_in[state];
    }
    groups[slab.group].parked += slab.parked;
    if (slab.bucket != kUnlisted) ++groups[slab.group].slabs_in[slab.bucket];
    paged += slab.pages.size();
  }
  if (free != free_slabs_ || stuck != stuck_slabs_ || paged != paged_) {
    return absl::InternalError("I1: the pool's sums do not match its slabs");
  }
  for (uint8_t slot = 0; slot < limits::kWorkers; ++slot) {
    if (absl::Status status = CheckWorker(slot); !status.ok()) return status;
    if (workers_[slot] != nullptr) ++groups[workers_[slot]->group].workers;
  }
  for (uint32_t i = 0; i < groups_.size(); ++i) {
    if (groups_[i] == nullptr) continue;
    const Group& group = *groups_[i];
    if (!tenants_.contains(group.tenant) || group.slabs + group.workers == 0) {
      return absl::InternalError(absl::StrCat("I5: group ", i, " belongs to nobody"));
    }
    if (group.slabs != groups[i].slabs || group.workers != groups[i].workers ||
        group.pages_in != groups[i].pages_in || group.slabs_in != groups[i].slabs_in ||
        group.parked != groups[i].parked) {
      return absl::InternalError(absl::StrCat("I1: the sums of group ", i, " do not match"));
    }
  }
  for (const auto& [tenant, entry] : tenants_) {
    if (entry.slabs_in != slabs_in[tenant]) {
      return absl::InternalError(
          absl::StrCat("I1: tenant ", tenant.value(), " is charged wrongly"));
    }
  }
  if (absl::Status status = CheckSessions(); !status.ok()) return status;
  return CheckHolders();
}

absl::Status PoolLedger::CheckSlab(uint32_t index) const {
  const SlabEntry& slab = slabs_[index];
  const auto broken = [&](const char* what) {
    return absl::InternalError(absl::StrCat(what, " (slab ", index, ")"));
  };
  if (slab.state == SlabState::kFree) {
    const bool empty = slab.pages.empty() && slab.offered == 0 && slab.bucket == kUnlisted;
    return empty ? absl::OkStatus() : broken("I3: a FREE slab is in use");
  }
  if (slab.group >= groups_.size() || groups_[slab.group] == nullptr) {
    return broken("I5: a slab belongs to no group");
  }
  if ((slab.mapped & ~slab.offered) != 0) return broken("I2: mapped without having been offered");
  for (uint64_t rest = slab.offered; rest != 0; rest &= rest - 1) {
    const auto& worker = workers_[std::countr_zero(rest)];
    if (worker == nullptr || worker->group != slab.group) {
      return broken("I2: mapped by a worker of another owner");
    }
  }
  std::array<uint32_t, 4> pages_in{};
  uint32_t parked = 0, shared = 0;
  for (uint32_t i = 0; i < slab.pages.size(); ++i) {
    const Owner owner = slab.pages[i].owner;
    ++pages_in[static_cast<int>(StateOf(owner))];
    parked += owner == kFrozen && slab.pages[i].holders() == 0;
    shared += slab.pages[i].holders() > 1;
    if (((slab.free[i / 64] >> i % 64 & 1) != 0) != (owner == kNobody)) {
      return broken("I1: a page is both FREE and not");
    }
    if (owner == kFrozen) {
      if (slab.pages[i].place == 0) return broken("I5: a frozen page is nobody's");
    } else if (owner >= kFirstSession) {
      const uint32_t session = owner - kFirstSession;
      if (session >= sessions_.size() || slab.pages[i].place >= sessions_[session].pages.size() ||
          sessions_[session].pages[slab.pages[i].place] !=
              groups_[slab.group]->layout.Page(SlabIndex(index), i)) {
        return broken("I1: a page is not in its session's list");
      }
    } else if (owner != kNobody && (slab.mapped >> (owner - GrantedTo(0)) & 1) == 0) {
      return broken("I2: a page is granted to a worker that has not mapped it");
    }
  }
  if (pages_in != slab.pages_in || parked != slab.parked || shared != slab.shared) {
    return broken("I1: the sums of pages do not match");
  }
  const bool lists = slab.state == SlabState::kLeased && slab.pages_in[0] > 0;
  if (lists != (slab.bucket != kUnlisted)) return broken("I1: listed in the wrong place");
  if (slab.state >= SlabState::kDraining && slab.used() != 0) {
    return broken("I3: a page of a draining slab is in use");
  }
  return absl::OkStatus();
}

absl::Status PoolLedger::CheckWorker(uint8_t slot) const {
  if (workers_[slot] == nullptr) return absl::OkStatus();
  const Worker& worker = *workers_[slot];
  uint64_t granted = 0;
  for (uint32_t i = 0; i < config_.slabs; ++i) {
    const SlabEntry& slab = slabs_[i];
    if ((slab.mapped >> slot & 1) != (worker.mapped[i / 64] >> i % 64 & 1)) {
      return absl::InternalError(absl::StrCat("I2: worker ", worker.id.value(), " and slab ", i,
                                              " do not agree on a mapping"));
    }
    if ((slab.mapped >> slot & 1) == 0) continue;
    granted += std::count_if(slab.pages.begin(), slab.pages.end(),
                             [&](const Page& page) { return page.owner == GrantedTo(slot); });
  }
  const auto sessions = std::count_if(sessions_.begin(), sessions_.end(), [&](const Session& s) {
    return s.id != SessionId(0) && s.worker == slot;
  });
  if (granted != worker.granted_pages || sessions != worker.sessions) {
    return absl::InternalError(
        absl::StrCat("I5: worker ", worker.id.value(), " is charged wrongly"));
  }
  return absl::OkStatus();
}

absl::Status PoolLedger::CheckSessions() const {
  for (const auto& entry : session_slots_) {
    const SessionId id = entry.first;
    const Session& session = sessions_[entry.second];
    const auto broken = [&](const char* what) {
      return absl::InternalError(absl::StrCat(what, " (session ", id.value(), ")"));
    };
    if (session.id != id) return broken("I1: two names for a session");
    if (session.worker == Record::kNoSlot && session.pins == 0) {
      return broken("I5: a closed session still holds pages");
    }
    for (const PageId page : session.pages) {
      const Place place = Locate(page);
      if (!place.found() || slabs_[place.slab].pages[place.index].owner != OwnedBy(id)) {
        return broken("I1: a page in a session's list is not its own");
      }
      if (session.worker != Record::kNoSlot &&
          slabs_[place.slab].group != workers_[session.worker]->group) {
        return broken("I5: a page of another tenant or layout");
      }
    }
  }
  if (session_slots_.size() + unused_sessions_.size() != sessions_.size()) {
    return absl::InternalError("I1: the sums of sessions do not match");
  }
  return absl::OkStatus();
}

}  // namespace kvpool
