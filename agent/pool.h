// The pool ledger: who holds which slab and which page of one device, as a pure state machine.
//
// Each command checks its arguments, writes the journal, then changes the state: so the journal is
// never behind, and Rebuild makes the same ledger from it. Ids may come from a worker: any 32-bit
// value is accepted as an argument and refused with a status. The ledger owns no memory, fds,
// clocks or threads, and does not talk to workers: the shell around it does what it says.
//
//   slab  FREE -> LEASED(tenant, layout) <-> EVACUATING -> DRAINING -> FREE, or STUCK -> FREE
//   page  FREE -> GRANTED(worker) -> OWNED(session) -> FREE, GRANTED -> FREE
//         OWNED -> FROZEN -> OWNED, or FREE
//
// A FROZEN page is never written again. Any number of sessions hold it, and it may be kept for
// reuse besides; it is FREE when nobody holds it and it is not kept. In whose tenant it lies is
// what its slab says, so it is charged once. Sessions hold a chain of pages from its beginning, so
// that whoever holds a page holds all before it; the ledger does not know of chains.
//
// Status codes, unless said otherwise. NotFound: no such tenant, worker, session or slab.
// FailedPrecondition: not in the state that the command needs. ResourceExhausted: no room, the
// message says whose. After any error the ledger and the journal are as before.
//
// The agent's RPC thread is the only caller.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/journal.h"
#include "common/ids.h"
#include "common/units.h"
#include "kernels/layout.h"
#include "proto/limits.h"

namespace kvpool {

enum class SlabState : uint8_t {
  kFree = 0,
  kLeased = 1,      // its free pages may be granted
  kEvacuating = 2,  // no new grants; its pages move out
  kDraining = 3,    // no page in use; workers are unmapping it
  kStuck = 4,       // its memory could not be shown to be back; charged to its old tenant
};
enum class PageState : uint8_t { kFree = 0, kGranted = 1, kOwned = 2, kFrozen = 3 };
// Whether a FROZEN page stays when no session holds it any more.
enum class Keep : uint8_t { kNo = 0, kForReuse = 1 };

struct PoolConfig {
  uint32_t slabs = 0;
  uint32_t reserve_slabs = 0;  // the pool's last: stay FREE whatever the leases say
  Bytes slab_bytes;
  bool operator==(const PoolConfig&) const = default;
};

// What a tenant holds. Pages of evacuating slabs count as used, but never as free.
struct TenantUsage {
  uint32_t lease_slabs = 0;
  uint32_t held_slabs = 0;  // in any state but FREE
  uint32_t evacuating_slabs = 0;
  uint32_t draining_slabs = 0;
  uint32_t stuck_slabs = 0;
  uint32_t abandoned_slabs = 0;  // of layouts that no worker has any more
  uint64_t owned_pages = 0;      // in sessions
  uint64_t granted_pages = 0;    // in magazines
  uint64_t frozen_pages = 0;     // each once, however many sessions hold it
  uint64_t parked_pages = 0;     // of those, that no session holds: kept for reuse
  uint64_t free_pages = 0;       // of LEASED slabs
  Bytes owned_bytes;
  Bytes granted_bytes;
  Bytes frozen_bytes;
  Bytes parked_bytes;
};

struct SlabUsage {
  SlabIndex slab;
  SlabState state = SlabState::kFree;
  TenantId tenant;     // who is charged; 0 when FREE
  uint32_t group = 0;  // slabs of one tenant and one layout share a group; pages move only inside
  uint32_t owned_pages = 0;
  uint32_t granted_pages = 0;
  uint32_t frozen_pages = 0;
  uint32_t parked_pages = 0;  // of those, that no session holds
  uint32_t shared_pages = 0;  // of those, that several sessions hold
  uint32_t free_pages = 0;
  uint32_t workers = 0;    // that were offered it and have not unmapped it
  bool abandoned = false;  // no worker has its tenant and layout: nobody can use it
};

class PoolLedger {
 public:
  // --- Making ----------------------------------------------------------------------------------

  // Journal memory that is enough for pages of 256 KiB on average, or for 60,000 pages. A larger
  // one carries more; AssignSlab refuses what the journal could not describe.
  static size_t JournalBytes(const PoolConfig& config);

  // An empty ledger on a fresh journal. InvalidArgument names the field.
  static absl::StatusOr<PoolLedger> Make(const PoolConfig& config, std::span<std::byte> journal);

  // The ledger that another process left in its journal. DataLoss: corrupt. FailedPrecondition: of
  // a newer version, or made with another config.
  static absl::StatusOr<PoolLedger> Rebuild(const PoolConfig& config, std::span<std::byte> journal);

  // --- Tenants and workers ---------------------------------------------------------------------

  // Slabs that a tenant may hold from now on. A lower lease takes nothing away by itself; see
  // Usage() and BeginEvacuate(). A tenant exists while it has a lease, a slab or a worker.
  absl::Status SetLease(TenantId tenant, uint32_t slabs);

  // A tenant without a lease may have workers: their demand is what a lease comes from.
  // InvalidArgument: nobody's, or a layout for other slabs than the pool's. ResourceExhausted:
  // limits::kWorkers, limits::kTenants.
  absl::StatusOr<WorkerId> AddWorker(TenantId tenant, const Layout& layout);

  // The caller has proof that the process is gone: its mappings are, its pages become FREE, and its
  // sessions close.
  absl::Status RemoveWorker(WorkerId worker);

  // --- Slabs -----------------------------------------------------------------------------------

  // Takes a FREE slab for a worker's tenant and layout. No worker may use it yet.
  // ResourceExhausted: the tenant's lease, the pool less its reserve, or the journal is used up.
  absl::StatusOr<SlabIndex> AssignSlab(WorkerId worker);

  // LEASED slabs of the worker's tenant and layout that it was not offered yet, at most `max`.
  std::vector<SlabIndex> SlabsToOffer(WorkerId worker, size_t max) const;
  // Before the slab's fd is sent: from now on the worker may have it mapped.
  absl::Status MarkOffered(WorkerId worker, SlabIndex slab);
  // The worker said so: from now on Grant may take the slab's pages for this worker.
  absl::Status MarkMapped(WorkerId worker, SlabIndex slab);
  // The worker said so, and the slab is DRAINING.
  absl::Status MarkUnmapped(WorkerId worker, SlabIndex slab);
  // Workers that were offered the slab and have not unmapped it.
  std::vector<WorkerId> WorkersOf(SlabIndex slab) const;

  absl::Status BeginEvacuate(SlabIndex slab);   // LEASED -> EVACUATING
  absl::Status CancelEvacuate(SlabIndex slab);  // EVACUATING -> LEASED
  // EVACUATING -> DRAINING. FailedPrecondition while a page of it is granted, owned or frozen.
  absl::Status BeginDrain(SlabIndex slab);
  // DRAINING or STUCK -> FREE. The caller has the device's proof that the memory came back.
  // FailedPrecondition while a worker may have it mapped.
  absl::Status FreeSlab(SlabIndex slab);
  // DRAINING -> STUCK. The proof failed.
  absl::Status MarkStuck(SlabIndex slab);

  // --- Pages -----------------------------------------------------------------------------------

  // Takes FREE pages for a worker from the LEASED slabs that it has mapped, fullest slabs first.
  // Writes them to the front of `pages` and returns how many there were.
  absl::StatusOr<size_t> Grant(WorkerId worker, std::span<PageId> pages);

  // Takes back what the worker puts into its return ring: untrusted. Each page GRANTED to this
  // worker becomes FREE. Returns how many did; the others (rubbish, foreign, returned twice, owned
  // by a session) are not touched.
  absl::StatusOr<size_t> Return(WorkerId worker, std::span<const PageId> pages);

  // ResourceExhausted: limits::kSessionsPerWorker or the journal.
  absl::StatusOr<SessionId> OpenSession(WorkerId worker);

  // The page list of a session as the worker wrote it: untrusted. Each page must be GRANTED to the
  // session's worker, and becomes OWNED, or be OWNED by the session already. InvalidArgument
  // (badPageList) on any other page or on one that is listed twice: then nothing changes.
  absl::Status Adopt(SessionId session, std::span<const PageId> pages);

  // Pages that compaction emptied become FREE. InvalidArgument when the session does not own one.
  absl::Status Release(SessionId session, std::span<const PageId> pages);

  // Its pages become FREE, and it holds no frozen ones any more; of a pinned session when its last
  // pin goes.
  absl::Status CloseSession(SessionId session);

  // A running operation holds the session's pages: against close and the death of its worker.
  absl::Status Pin(SessionId session);
  absl::Status Unpin(SessionId session);

  // In no particular order. Valid until the next command.
  absl::StatusOr<std::span<const PageId>> PagesOf(SessionId session) const;

  // --- Frozen pages (pool_frozen.cc) -----------------------------------------------------------
  // InvalidArgument names the first page that is not as the command needs it, or is listed twice.
  // ResourceExhausted: the journal.

  // Pages that the session owns become FROZEN, and it holds them.
  absl::Status Freeze(SessionId session, std::span<const PageId> pages, Keep keep);
  // The session holds these FROZEN pages too. Its worker must have mapped their slabs.
  absl::Status Share(SessionId session, std::span<const PageId> pages);
  // It holds them no more.
  absl::Status Unshare(SessionId session, std::span<const PageId> pages);
  // FROZEN pages are not kept for reuse any more.
  absl::Status StopKeeping(std::span<const PageId> pages);
  // FROZEN pages that the session alone holds, and that are not kept, become its own again.
  absl::Status Thaw(SessionId session, std::span<const PageId> pages);

  // Those that the session holds, in no particular order. Valid until the next command.
  absl::StatusOr<std::span<const PageId>> FrozenOf(SessionId session) const;
  // Sessions that hold the page; 0 for one that is not frozen.
  uint32_t HoldersOf(PageId page) const;
  bool HasMapped(WorkerId worker, SlabIndex slab) const;

  // --- Questions -------------------------------------------------------------------------------

  const PoolConfig& config() const { return config_; }
  uint32_t free_slabs() const { return free_slabs_; }
  uint32_t stuck_slabs() const { return stuck_slabs_; }
  std::vector<TenantId> Tenants() const;                // ascending
  TenantUsage Usage(TenantId tenant) const;             // zeros for a tenant that is nobody
  std::optional<SlabUsage> Slab(SlabIndex slab) const;  // nullopt: not a slab of this pool
  // As in SlabUsage; nullopt: nobody has this pair.
  std::optional<uint32_t> GroupOf(TenantId tenant, const Layout& layout) const;
  // LEASED and EVACUATING slabs of a tenant, fewest pages in use first, of these fewest parked
  // ones, which are not counted as in use. At most `max`.
  std::vector<SlabUsage> EmptiestSlabs(TenantId tenant, size_t max) const;
  // Frozen pages of a tenant and a layout that sessions hold, each once.
  uint64_t HeldPages(TenantId tenant, const Layout& layout) const;
  // In the LEASED slabs that it has mapped.
  uint64_t FreePagesFor(WorkerId worker) const;
  // As SlabUsage::group; nullopt for a worker that is nobody.
  std::optional<uint32_t> GroupOf(WorkerId worker) const;
  uint64_t GrantedPages(WorkerId worker) const;  // 0 for a worker that is nobody

  // Walks everything. Internal says which invariant is broken: every slab in one state, sums match
  // (I1), no mapping of a slab by a worker of another owner (I2), nothing in use in a FREE slab
  // (I3), nothing charged to nobody (I5). For tests, and for a daemon that just rebuilt.
  absl::Status CheckInvariants() const;

  // Same state; the journals may differ.
  friend bool operator==(const PoolLedger& a, const PoolLedger& b) {
    return a.Checkpoint() == b.Checkpoint();
  }

 private:
  // Who holds a page, in one word: nobody, a worker slot, or a session slot.
  using Owner = uint32_t;
  static constexpr Owner kNobody = 0;
  static constexpr Owner kFirstSession = 1 + limits::kWorkers;
  static constexpr Owner kListed = 1u << 31;  // set while a page list is being checked
  static constexpr Owner kFrozen = kListed - 1;
  static constexpr uint32_t kKept = 1u << 31;
  static_assert(limits::kWorkers <= 64, "sets of workers are 64-bit masks");

  // Slabs of a group are indexed by how many free pages they have, in 64 steps: the fullest slab
  // with a free page is found in a few words, whatever the number of slabs.
  static constexpr uint32_t kBuckets = 64;
  static constexpr uint32_t kUnlisted = kBuckets;

  static constexpr uint32_t kGroups = 1 << 16;  // what Record::word can name
  static constexpr uint32_t kMapEntries = 8;    // of kv_of_layer in one kLayerMap
  static constexpr uint16_t kMasksSelf = 1 << 15;
  static_assert(limits::kLayers <= kMasksSelf, "the bit is not part of a cached layer's number");
  static constexpr uint32_t kGroupRecords = 1 + limits::kLayers / kMapEntries;

  // Division by a number that is known early, as a multiplication. Exact for divisors below 2^31.
  class Divisor {
   public:
    explicit Divisor(uint32_t divisor = 1) : factor_((uint64_t{1} << 63) / divisor + 1) {}
    uint32_t Divide(uint32_t n) const {
      // By 2^63, with n doubled so that the quotient is the product's upper half.
      return static_cast<uint32_t>(static_cast<unsigned __int128>(factor_) * (uint64_t{n} << 1) >>
                                   64);
    }

   private:
    uint64_t factor_;
  };

  struct Page {
    Owner owner = kNobody;
    // OWNED: index in its session's pages. FROZEN: sessions that hold it, and kKept.
    uint32_t place = 0;

    uint32_t holders() const { return owner == kFrozen ? place & ~kKept : 0; }
    bool kept() const { return owner == kFrozen && (place & kKept) != 0; }
  };
  struct SlabEntry {
    SlabState state = SlabState::kFree;
    uint32_t group = 0;
    uint32_t bucket = kUnlisted;
    uint64_t offered = 0;                // worker slots
    uint64_t mapped = 0;                 // worker slots; a subset of offered
    std::array<uint32_t, 4> pages_in{};  // by PageState
    uint32_t parked = 0;                 // FROZEN pages that nobody holds
    uint32_t shared = 0;                 // FROZEN pages that several sessions hold
    std::vector<uint64_t> free;          // bit i: page i is FREE
    std::vector<Page> pages;

    uint32_t used() const { return pages_in[1] + pages_in[2] + pages_in[3]; }
    // Bits of a word of `free` that stand for pages.
    uint64_t PageMask(uint32_t word) const {
      const size_t first = size_t{word} * 64;
      if (first >= pages.size()) return 0;
      const size_t bits = pages.size() - first;
      return bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1;
    }
  };
  // The slabs of one tenant and one layout.
  struct Group {
    TenantId tenant;
    Layout layout;
    Divisor page_stride;  // ids from a page to the next
    uint32_t slabs = 0;
    uint32_t workers = 0;
    uint32_t bucket_shift = 0;
    std::array<uint64_t, 4> pages_in{};         // by PageState; kFree: of LEASED slabs only
    uint64_t parked = 0;                        // FROZEN pages that nobody holds
    std::array<uint32_t, kBuckets> slabs_in{};  // by bucket
    std::vector<uint64_t> listed;               // [kBuckets][slab_words_]: bit per slab
  };
  struct Worker {
    WorkerId id;
    uint32_t group = 0;
    uint32_t sessions = 0;
    uint64_t granted_pages = 0;
    std::vector<uint64_t> mapped;  // [slab_words_]: bit per slab
  };
  struct Session {
    SessionId id;                      // 0: the slot is unused
    uint8_t worker = Record::kNoSlot;  // its slot; kNoSlot: closed, but pinned
    uint32_t pins = 0;
    std::vector<PageId> pages;
    std::vector<PageId> frozen;  // that it holds
  };
  struct Tenant {
    uint32_t lease = 0;
    std::array<uint32_t, 5> slabs_in{};  // by SlabState; kFree: always 0

    uint32_t in(SlabState state) const { return slabs_in[static_cast<int>(state)]; }
    uint32_t held() const { return std::accumulate(slabs_in.begin(), slabs_in.end(), 0u); }
  };
  struct Place {
    uint32_t slab = ~0u;  // nowhere
    uint32_t index = 0;

    bool found() const { return slab != ~0u; }
  };

  PoolLedger(const PoolConfig& config, Journal journal);

  static Owner GrantedTo(uint8_t worker_slot) { return 1 + worker_slot; }
  Owner OwnedBy(SessionId session) const { return kFirstSession + session_slots_.at(session); }
  static bool IsSession(Owner owner) { return owner >= kFirstSession && owner != kFrozen; }
  static PageState StateOf(Owner owner) {
    return owner == kNobody        ? PageState::kFree
           : owner < kFirstSession ? PageState::kGranted
           : owner == kFrozen      ? PageState::kFrozen
                                   : PageState::kOwned;
  }

  // Look-up. kNoSlot, nullptr, nullopt, !found(): there is none.
  uint8_t WorkerSlot(WorkerId worker) const;
  const Session* FindSession(SessionId session) const;
  uint32_t FindGroup(TenantId tenant, const Layout& layout) const;  // or the slot for a new one
  Place Locate(PageId page) const;                                  // in slabs in use only
  std::optional<SlabIndex> FullestSlab(const Group& group, const Worker& worker) const;

  // Checks and moves shared by commands.
  absl::Status CheckTenant(TenantId tenant) const;  // is there, or may be
  absl::Status ExpectState(SlabIndex slab, std::initializer_list<SlabState> states) const;
  absl::Status ChangeState(SlabIndex slab, std::initializer_list<SlabState> from, SlabState to);
  // Ok when each page's owner is one of the two, and no page is listed twice.
  absl::Status CheckList(std::span<const PageId> pages, Owner owner, Owner other);
  // Moves those of `pages` whose owner is `from`; returns how many.
  size_t Move(std::span<const PageId> pages, Owner from, PageState to, uint64_t id);
  // The pages in as few records as their order allows, each a copy of `record` with slab, word and
  // mask. Requires that all are found.
  void CommitRuns(std::span<const PageId> pages, Record record);
  // Ok when `good` says so of each page, and none is listed twice.
  template <typename Good>
  absl::Status CheckFrozen(std::span<const PageId> pages, const char* why, Good good) const;
  absl::StatusOr<const Session*> OpenSessionOf(SessionId session) const;

  // Journal (pool_replay.cc). No checkpoint comes between Reserve(n) and the n records after it.
  static Record PoolRecord(const PoolConfig& config);
  static std::vector<Record> GroupRecords(uint32_t slot, TenantId tenant, const Layout& layout);
  static uint16_t MapEntry(const Record& record, uint32_t index);
  void Reserve(uint64_t records);
  void Commit(const Record& record);
  void CommitSlab(SlabIndex slab, SlabState state, uint32_t group);
  void CommitMappings(SlabIndex slab, uint64_t offered, uint64_t mapped);
  void CommitPages(uint32_t slab, uint32_t word, uint64_t mask, PageState to, uint64_t id);
  uint64_t CheckpointBound() const;
  absl::Status ExpectRoom(uint64_t more_records) const;
  std::vector<Record> Checkpoint() const;
  void CheckpointSlab(uint32_t index, std::vector<Record>* out) const;
  absl::Status Replay(std::span<const Record> records);
  absl::Status CheckRecord(const Record& record) const;
  bool CanApplyToSlab(const Record& record) const;
  bool CanApplyToPages(const Record& record) const;
  void CheckpointHolds(const Session& session, std::vector<Record>* out) const;
  absl::StatusOr<Layout> GroupLayout(const Record& record) const;

  // Changes (pool_apply.cc): the only way in which the state changes, live and in replay.
  void Apply(const Record& record);
  void ApplyGroup(const Record& record);
  void ApplyAddWorker(const Record& record);
  void ApplyRemoveWorker(uint8_t slot);
  void ApplyOpenSession(const Record& record);
  void ApplySlab(const Record& record);
  void ApplyPages(const Record& record);
  void Close(Session* session);
  void SetMappings(uint32_t slab, uint64_t offered, uint64_t mapped);
  void SetOwner(uint32_t slab, uint32_t word, uint64_t mask, Owner owner);
  void CountPages(uint32_t slab, Owner owner, int64_t change);
  void RemoveFromSession(const Page& page);
  void ApplyFreeze(const Record& record);
  void ApplyHold(const Record& record);
  void ApplyStopKeeping(const Record& record);
  void ForgetHolds(Session* session, const Record& record);
  void SetHolders(uint32_t slab, uint32_t index, uint32_t place);
  void CountFrozen(uint32_t slab, const Page& page, int change);
  void Relist(uint32_t slab);
  void DropGroupIfUnused(uint32_t group);
  void DropTenantIfUnused(TenantId tenant);
  absl::Status CheckSlab(uint32_t index) const;
  absl::Status CheckWorker(uint8_t slot) const;
  absl::Status CheckSessions() const;
  absl::Status CheckHolders() const;

  PoolConfig config_;
  Journal journal_;
  uint32_t slab_granules_;
  Divisor slab_stride_;  // ids from a slab to the next
  uint32_t slab_words_;
  std::vector<SlabEntry> slabs_;
  std::map<TenantId, Tenant> tenants_;
  std::vector<std::unique_ptr<Group>> groups_;
  std::array<std::unique_ptr<Worker>, limits::kWorkers> workers_;
  std::vector<Session> sessions_;
  std::vector<uint32_t> unused_sessions_;  // slots
  absl::flat_hash_map<SessionId, uint32_t> session_slots_;
  uint64_t next_session_ = 1;
  uint32_t next_worker_ = 1;
  uint32_t free_slabs_ = 0;
  uint32_t stuck_slabs_ = 0;
  uint64_t paged_ = 0;               // pages of all slabs in use
  uint64_t holds_ = 0;               // frozen pages of all sessions
  std::vector<uint16_t> layer_map_;  // of the group that is being made, with kMasksSelf
};

// Here for speed: it is asked about every page that a worker returns.
inline PoolLedger::Place PoolLedger::Locate(PageId page) const {
  const uint32_t slab = slab_stride_.Divide(page.value());
  if (slab >= config_.slabs || slabs_[slab].state == SlabState::kFree) return {};
  const Group& group = *groups_[slabs_[slab].group];
  const uint32_t index = group.page_stride.Divide(page.value() - slab * slab_granules_);
  // Any value lies near a page; a page is its own.
  if (index >= slabs_[slab].pages.size() || group.layout.Page(SlabIndex(slab), index) != page) {
    return {};
  }
  return {.slab = slab, .index = index};
}

}  // namespace kvpool
