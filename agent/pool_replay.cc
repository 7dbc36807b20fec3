// The pool ledger and its journal: what is written, the checkpoint that makes a state, and replay.
// How a record changes the state is in pool_apply.cc. See pool.h.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "agent/pool.h"

namespace kvpool {
namespace {

using Type = Record::Type;

constexpr uint64_t kJournalRecords = 131072;  // least capacity of a recommended journal
constexpr int64_t kJournalPageBytes = 256 << 10;
// A journal takes at least as many records between two checkpoints as a checkpoint has.
constexpr uint64_t kJournalSlack = 2;

constexpr uint64_t Pack(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
  return a | b << 16 | c << 32 | d << 48;
}
constexpr uint16_t Unpack(uint64_t word, uint32_t index) {
  return static_cast<uint16_t>(word >> (16 * index));
}

absl::Status BadRecord(const Record& record) {
  return absl::DataLossError(
      absl::StrCat("the journal has an impossible record of type ", static_cast<int>(record.type)));
}

}  // namespace

// --- Making --------------------------------------------------------------------------------------

size_t PoolLedger::JournalBytes(const PoolConfig& config) {
  const uint64_t pages = config.slabs * (config.slab_bytes.value() / kJournalPageBytes + 2);
  return Journal::BytesFor(kJournalRecords + kJournalSlack * pages);
}

PoolLedger::PoolLedger(const PoolConfig& config, Journal journal)
    : config_(config),
      journal_(std::move(journal)),
      slab_granules_(static_cast<uint32_t>(config.slab_bytes.value() / kGranuleBytes)),
      slab_stride_(slab_granules_),
      slab_words_(CeilDiv(config.slabs, 64u)),
      slabs_(config.slabs),
      free_slabs_(config.slabs) {}

absl::StatusOr<PoolLedger> PoolLedger::Make(const PoolConfig& config,
                                            std::span<std::byte> journal) {
  const int64_t slab_granules = config.slab_bytes.value() / kGranuleBytes;
  if (slab_granules <= 0 || config.slab_bytes.value() % kGranuleBytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat("slab_bytes = ", config.slab_bytes.value(),
                                                   " must be a positive multiple of ",
                                                   kGranuleBytes));
  }
  // Ids of granules are 32 bits wide.
  if (config.slabs == 0 || config.slabs > (int64_t{1} << 32) / slab_granules) {
    return absl::InvalidArgumentError(
        absl::StrCat("slabs = ", config.slabs, " must be between 1 and ",
                     (int64_t{1} << 32) / slab_granules, " for slabs of this size"));
  }
  if (config.reserve_slabs >= config.slabs) {
    return absl::InvalidArgumentError(absl::StrCat("reserve_slabs = ", config.reserve_slabs,
                                                   " must be less than the pool's ", config.slabs));
  }
  const Record first[] = {PoolRecord(config), {.type = Type::kNextIds, .id = 1, .count = 1}};
  absl::StatusOr<Journal> made = Journal::Format(journal, first);
  if (!made.ok()) return made.status();
  PoolLedger ledger(config, *std::move(made));
  if (absl::Status status = ledger.ExpectRoom(0); !status.ok()) return status;
  return ledger;
}

absl::StatusOr<PoolLedger> PoolLedger::Rebuild(const PoolConfig& config,
                                               std::span<std::byte> journal) {
  absl::StatusOr<Journal> opened = Journal::Open(journal);
  if (!opened.ok()) return opened.status();
  const std::span<const Record> records = opened->records();
  if (records.empty() || records[0].type != Type::kPool) {
    return absl::DataLossError("the journal does not begin with a pool");
  }
  Record expected = PoolRecord(config);
  expected.check = records[0].check;
  if (records[0] != expected) {
    return absl::FailedPreconditionError(
        absl::StrCat("the journal is of a pool of ", records[0].slab, " slabs of ", records[0].mask,
                     " bytes with a reserve of ", records[0].count,
                     "; start with that configuration, or with a new pool"));
  }
  PoolLedger ledger(config, *std::move(opened));
  if (absl::Status status = ledger.Replay(records.subspan(1)); !status.ok()) return status;
  if (absl::Status status = ledger.CheckInvariants(); !status.ok()) {
    return absl::DataLossError(
        absl::StrCat("the journal makes no valid pool: ", std::string(status.message())));
  }
  return ledger;
}

// --- Journal -------------------------------------------------------------------------------------

Record PoolLedger::PoolRecord(const PoolConfig& config) {
  return {.type = Type::kPool,
          .slab = config.slabs,
          .mask = static_cast<uint64_t>(config.slab_bytes.value()),
          .count = config.reserve_slabs};
}

std::vector<Record> PoolLedger::GroupRecords(uint32_t slot, TenantId tenant, const Layout& layout) {
  const Geometry& shape = layout.geometry();
  std::vector<Record> records;
  for (uint32_t first = 0; first < shape.model_layers(); first += kMapEntries) {
    uint64_t words[2] = {0, 0};
    for (uint32_t i = 0; i < kMapEntries && first + i < shape.model_layers(); ++i) {
      const uint64_t masked = shape.MasksSelf(first + i) ? kMasksSelf : 0;
      words[i / 4] |= (shape.kv_of_layer[first + i] | masked) << i % 4 * 16;
    }
    records.push_back({.type = Type::kLayerMap,
                       .word = static_cast<uint16_t>(first),
                       .id = words[0],
                       .mask = words[1]});
  }
  records.push_back(
      {.type = Type::kGroup,
       .word = static_cast<uint16_t>(slot),
       .slab = tenant.value(),
       .id = Pack(shape.layers, shape.query_heads, shape.kv_heads, shape.key_dim),
       .mask = Pack(shape.value_dim, static_cast<uint64_t>(shape.dtype), shape.model_layers(), 0)});
  return records;
}

uint16_t PoolLedger::MapEntry(const Record& record, uint32_t index) {
  return Unpack(index < 4 ? record.id : record.mask, index % 4);
}

// Upper bound: every page of every slab in use, and every hold, with a record of its own.
uint64_t PoolLedger::CheckpointBound() const {
  return 2 + tenants_.size() + groups_.size() * kGroupRecords + limits::kWorkers +
         2 * session_slots_.size() + 2 * uint64_t{config_.slabs - free_slabs_} + paged_ + holds_;
}

absl::Status PoolLedger::ExpectRoom(uint64_t more_records) const {
  const uint64_t needed = kJournalSlack * (CheckpointBound() + more_records);
  if (needed <= journal_.capacity()) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the journal has room for ", journal_.capacity(), " records and would need ",
                   needed, ": give it more memory, or use a geometry with larger pages"));
}

void PoolLedger::Reserve(uint64_t records) {
  if (journal_.room() < records) journal_.Restart(Checkpoint());
}

void PoolLedger::Commit(const Record& record) {
  Reserve(1);
  journal_.Append(record);
  Apply(record);
}

void PoolLedger::CommitSlab(SlabIndex slab, SlabState state, uint32_t group) {
  Commit({.type = Type::kSlab,
          .slot = static_cast<uint8_t>(state),
          .word = static_cast<uint16_t>(group),
          .slab = slab.value()});
}

void PoolLedger::CommitMappings(SlabIndex slab, uint64_t offered, uint64_t mapped) {
  Commit({.type = Type::kMappings, .slab = slab.value(), .id = offered, .mask = mapped});
}

void PoolLedger::CommitPages(uint32_t slab, uint32_t word, uint64_t mask, PageState to,
                             uint64_t id) {
  Commit({.type = Type::kPages,
          .slot = static_cast<uint8_t>(to),
          .word = static_cast<uint16_t>(word),
          .slab = slab,
          .id = id,
          .mask = mask});
}

std::vector<Record> PoolLedger::Checkpoint() const {
  std::vector<Record> out = {PoolRecord(config_),
                             {.type = Type::kNextIds, .id = next_session_, .count = next_worker_}};
  for (const auto& [tenant, entry] : tenants_) {
    out.push_back({.type = Type::kLease, .id = tenant.value(), .count = entry.lease});
  }
  for (uint32_t i = 0; i < groups_.size(); ++i) {
    if (groups_[i] == nullptr) continue;
    const auto records = GroupRecords(i, groups_[i]->tenant, groups_[i]->layout);
    out.insert(out.end(), records.begin(), records.end());
  }
  for (uint8_t slot = 0; slot < limits::kWorkers; ++slot) {
    if (workers_[slot] == nullptr) continue;
    out.push_back({.type = Type::kAddWorker,
                   .slot = slot,
                   .word = static_cast<uint16_t>(workers_[slot]->group),
                   .count = workers_[slot]->id.value()});
  }
  std::vector<const Session*> sessions;
  for (const auto& [id, slot] : session_slots_) sessions.push_back(&sessions_[slot]);
  std::sort(sessions.begin(), sessions.end(),
            [](const Session* a, const Session* b) { return a->id < b->id; });
  for (const Session* session : sessions) {
    const uint64_t id = session->id.value();
    out.push_back({.type = Type::kOpenSession, .slot = session->worker, .id = id});
    if (session->pins > 0) out.push_back({.type = Type::kPins, .id = id, .count = session->pins});
  }
  for (uint32_t i = 0; i < config_.slabs; ++i) {
    if (slabs_[i].state != SlabState::kFree) CheckpointSlab(i, &out);
  }
  for (const Session* session : sessions) CheckpointHolds(*session, &out);
  return out;
}

void PoolLedger::CheckpointSlab(uint32_t index, std::vector<Record>* out) const {
  const SlabEntry& slab = slabs_[index];
  out->push_back({.type = Type::kSlab,
                  .slot = static_cast<uint8_t>(slab.state),
                  .word = static_cast<uint16_t>(slab.group),
                  .slab = index});
  if (slab.offered != 0) {
    out->push_back(
        {.type = Type::kMappings, .slab = index, .id = slab.offered, .mask = slab.mapped});
  }
  for (uint32_t word = 0; word < slab.free.size(); ++word) {
    uint64_t rest = ~slab.free[word] & slab.PageMask(word);
    while (rest != 0) {
      const Page& first = slab.pages[word * 64 + std::countr_zero(rest)];
      const Owner owner = first.owner;
      uint64_t mask = 0;
      for (uint64_t left = rest; left != 0; left &= left - 1) {
        const int bit = std::countr_zero(left);
        const Page& page = slab.pages[word * 64 + bit];
        if (page.owner == owner && page.kept() == first.kept()) mask |= uint64_t{1} << bit;
      }
      const PageState state = StateOf(owner);
      // Who holds frozen pages is written behind all slabs.
      const uint64_t id = state == PageState::kOwned ? sessions_[owner - kFirstSession].id.value()
                          : state == PageState::kGranted ? owner - GrantedTo(0)
                                                         : 0;
      out->push_back({.type = Type::kPages,
                      .slot = static_cast<uint8_t>(state),
                      .word = static_cast<uint16_t>(word),
                      .slab = index,
                      .id = id,
                      .mask = mask,
                      .count = first.kept()});
      rest &= ~mask;
    }
  }
}

// --- Replay --------------------------------------------------------------------------------------

absl::Status PoolLedger::Replay(std::span<const Record> records) {
  for (const Record& record : records) {
    if (absl::Status status = CheckRecord(record); !status.ok()) return status;
    Apply(record);
  }
  for (uint32_t group = 0; group < groups_.size(); ++group) {
    if (groups_[group] != nullptr) DropGroupIfUnused(group);  // its first worker was not written
  }
  layer_map_.clear();
  return absl::OkStatus();
}

// Whether Apply can take the record: everything that it uses as an index exists.
absl::Status PoolLedger::CheckRecord(const Record& record) const {
  const auto is_worker = [&](uint64_t slot) {
    return slot < limits::kWorkers && workers_[slot] != nullptr;
  };
  const auto is_group = [&](uint32_t slot) {
    return slot < groups_.size() && groups_[slot] != nullptr;
  };
  bool good = false;
  switch (record.type) {
    case Type::kNextIds:
    case Type::kLease:
      good = true;
      break;
    case Type::kLayerMap:
      good = record.word < limits::kLayers && record.word % kMapEntries == 0;
      break;
    case Type::kGroup:
      good = !is_group(record.word) && CheckTenant(TenantId(record.slab)).ok() &&
             GroupLayout(record).ok();
      break;
    case Type::kAddWorker:
      good = record.slot < limits::kWorkers && !is_worker(record.slot) && is_group(record.word) &&
             WorkerSlot(WorkerId(record.count)) == Record::kNoSlot;
      break;
    case Type::kRemoveWorker:
      good = is_worker(record.slot);
      break;
    case Type::kOpenSession:
      good = (record.slot == Record::kNoSlot || is_worker(record.slot)) && record.id != 0 &&
             FindSession(SessionId(record.id)) == nullptr;
      break;
    case Type::kCloseSession:
    case Type::kPins:
      good = FindSession(SessionId(record.id)) != nullptr;
      break;
    case Type::kSlab:
    case Type::kMappings:
    case Type::kPages:
    case Type::kHold:
    case Type::kStopKeeping:
      good = record.slab < config_.slabs && CanApplyToSlab(record);
      break;
    case Type::kCheckpoint:
    case Type::kPool:
      break;
  }
  return good ? absl::OkStatus() : BadRecord(record);
}

bool PoolLedger::CanApplyToSlab(const Record& record) const {
  const SlabEntry& slab = slabs_[record.slab];
  const bool in_use = slab.state != SlabState::kFree;
  if (record.type == Type::kSlab) {
    const SlabState to = static_cast<SlabState>(record.slot);
    if (to > SlabState::kStuck || record.word >= groups_.size() || !groups_[record.word]) {
      return false;
    }
    if (!in_use) return to != SlabState::kFree;
    const bool empties = to == SlabState::kFree || to >= SlabState::kDraining;
    return slab.group == record.word && !(empties && slab.used() != 0) &&
           !(to == SlabState::kFree && slab.offered != 0);
  }
  if (record.type == Type::kMappings) {
    for (uint64_t rest = record.id; rest != 0; rest &= rest - 1) {
      if (workers_[std::countr_zero(rest)] == nullptr) return false;
    }
    // Nobody who holds pages of a slab stops to map it.
    return in_use && (record.mask & ~record.id) == 0 &&
           ((slab.mapped & ~record.mask) == 0 || slab.used() == 0);
  }
  return in_use && (record.mask & ~slab.PageMask(record.word)) == 0 && CanApplyToPages(record);
}

bool PoolLedger::CanApplyToPages(const Record& record) const {
  const SlabEntry& slab = slabs_[record.slab];
  const auto all = [&](auto good) {
    for (uint64_t rest = record.mask; rest != 0; rest &= rest - 1) {
      if (!good(slab.pages[size_t{record.word} * 64 + std::countr_zero(rest)])) return false;
    }
    return true;
  };
  const auto frozen = [](const Page& page) { return page.owner == kFrozen; };
  const auto not_frozen = [](const Page& page) { return page.owner != kFrozen; };
  const Session* session = FindSession(SessionId(record.id));
  const auto holds = [&](const Page& page) {
    const auto index = static_cast<uint32_t>(&page - slab.pages.data());
    return session != nullptr &&
           std::find(session->frozen.begin(), session->frozen.end(),
                     groups_[slab.group]->layout.Page(SlabIndex(record.slab), index)) !=
               session->frozen.end();
  };
  if (record.type == Type::kStopKeeping) return all([](const Page& page) { return page.kept(); });
  if (record.type == Type::kHold) {
    return session != nullptr && record.slot <= 1 &&
           all([&](const Page& page) { return frozen(page) && holds(page) == (record.slot == 0); });
  }
  switch (static_cast<PageState>(record.slot)) {
    case PageState::kFree:
      return all(not_frozen);
    case PageState::kGranted:
      return record.id < limits::kWorkers && (slab.mapped >> record.id & 1) != 0 && all(not_frozen);
    case PageState::kOwned:
      return session != nullptr && all([&](const Page& page) {
               return !frozen(page) || (page.place == 1 && holds(page));
             });
    case PageState::kFrozen:
      return (session != nullptr || record.id == 0) && record.count <= 1 && all(not_frozen);
  }
  return false;
}

absl::StatusOr<Layout> PoolLedger::GroupLayout(const Record& record) const {
  const uint32_t model_layers = Unpack(record.mask, 2);
  if (model_layers > layer_map_.size()) return BadRecord(record);
  Geometry shape{.layers = Unpack(record.id, 0),
                 .query_heads = Unpack(record.id, 1),
                 .kv_heads = Unpack(record.id, 2),
                 .key_dim = Unpack(record.id, 3),
                 .value_dim = Unpack(record.mask, 0),
                 .dtype = static_cast<Dtype>(Unpack(record.mask, 1))};
  for (uint32_t layer = 0; layer < model_layers; ++layer) {
    shape.kv_of_layer.push_back(layer_map_[layer] & ~kMasksSelf);
    if ((layer_map_[layer] & kMasksSelf) != 0) {
      shape.self_masked.push_back(static_cast<uint16_t>(layer));
    }
  }
  return Layout::Make(shape, config_.slab_bytes);
}

}  // namespace kvpool
