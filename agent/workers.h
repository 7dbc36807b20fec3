// The attached workers and everything that flows between them and the agent in time: pages into
// magazines, slabs offered and revoked, drains, hand-overs, detaching. The rules of one worker's
// memory are in attachment.h; this class gives them promises, kernel threads and the tenant's view.
//
// Lives on the RPC thread. Jobs run on the kernel pool; only values cross.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kj/async-io.h>
#include <kj/async-unix.h>

#include <boost/asio/thread_pool.hpp>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/attachment.h"
#include "agent/device.h"
#include "agent/pool.h"
#include "agent/prefix_store.h"
#include "agent/sealing_reserve.h"
#include "agent/tenant_book.h"
#include "common/log.h"
#include "common/rpc_listener.h"
#include "proto/agent.capnp.h"

namespace kvpool {

// What a worker asks for at attach. The layout has been checked, the numbers have not.
struct AttachRequest {
  TenantId tenant;
  std::string worker;
  Layout layout;
  uint32_t max_sessions = 0;
  uint32_t max_running = 0;
  uint32_t max_session_tokens = 0;
  uint32_t chunk_tokens = 0;
  QueryOffer queries = QueryOffer::kAll;
};

// What a worker says when it opens a session. Numbers have not been checked, lists have been.
struct SessionRequest {
  uint32_t prompt_tokens = 0;
  uint32_t max_tokens = 0;
  std::vector<uint32_t> prompt;  // the tokens, or the first of them; empty: not told
  std::string model;             // what keys and values depend on besides
};

// One attached worker.
struct Worker {
  std::unique_ptr<Attachment> attachment;
  rpc::WorkerEvents::Client events;
  // Demand that admission or the magazine could not meet, and when it was last asked for.
  Charge waiting;
  Charge waiting_growth;  // that room must be left for besides
  TimePoint waiting_since;
  bool growing = false;   // slabs are being offered
  bool detached = false;  // its capability is gone; waiting for proof that its process is
  bool gone = false;      // nothing of it can touch memory any more
  kj::Own<kj::UnixEventPort::FdObserver> doorbell;
  kj::Promise<void> watching = nullptr;  // the doorbell; ends with the worker
};

struct WorkerCounts {
  uint32_t workers = 0;
  uint32_t sessions = 0;
};

// Signs of workers that write rubbish, or do not give what was asked for, since the agent started.
struct Hostilities {
  uint64_t bad_page_lists = 0;
  uint64_t bad_profiles = 0;
  uint64_t missing_profiles = 0;
  uint64_t bad_returns = 0;
  uint64_t unscored = 0;  // queries
};

struct DrainArgs {
  uint32_t slot = 0;
  uint32_t window = 0;
  uint64_t first = 0;
  uint32_t count = 0;
};

// Demand that nobody has asked for again is forgotten.
inline constexpr std::chrono::seconds kWaitingCounts(3);

class AgentMetrics;

class Workers final : private kj::TaskSet::ErrorHandler {
 public:
  struct Deps {
    Device* device = nullptr;
    PoolLedger* ledger = nullptr;
    TenantBook* book = nullptr;
    SealingReserve* reserve = nullptr;
    PrefixStore* prefixes = nullptr;
    boost::asio::thread_pool* pool = nullptr;
    kj::Timer* timer = nullptr;
    kj::UnixEventPort* port = nullptr;
    AgentMetrics* metrics = nullptr;
  };
  explicit Workers(const Deps& deps);

  // Called whenever a tenant's pages or sessions changed in a way that reclaim may care for.
  void OnChange(std::function<void(TenantId)> callback) { on_change_ = std::move(callback); }
  // Called when a worker lacks slabs within its tenant's lease: another layout of the tenant may
  // have some that it does not need.
  using Lacking = std::function<void(WorkerId, uint32_t slabs)>;
  void OnLacking(Lacking callback) { on_lacking_ = std::move(callback); }

  // InvalidArgument: a number; ResourceExhausted: too many workers, or no memory.
  // FailedPrecondition: the tenant is gone.
  absl::StatusOr<WorkerId> Attach(const AttachRequest& request, rpc::WorkerEvents::Client events);
  // The capability is gone. Its memory comes back when `gone` says that the process cannot touch it
  // any more: at once for a worker that let go by itself.
  void Detach(WorkerId worker, kj::Promise<void> gone);
  // nullptr: no such worker, or detached.
  Worker* Find(WorkerId worker);
  const std::map<WorkerId, Worker>& all() const { return workers_; }

  // Makes the magazine hold `pages` pages. ResourceExhausted after the tenant's lease, its other
  // workers' magazines and the pool were tried.
  kj::Promise<absl::Status> Reserve(WorkerId worker, uint32_t pages);
  // Keeps the magazine at its target; what a doorbell asks for. Never waits, never refuses.
  void TopUp(WorkerId worker);

  // OutOfRange: can never fit. ResourceExhausted: not now. InvalidArgument: a number, or a policy
  // that needs the queries that this worker does not push. FailedPrecondition: detached, or a
  // format that cannot be had here. The session begins with what is known of its prompt.
  kj::Promise<absl::StatusOr<AgentSession*>> Open(WorkerId worker, SessionRequest request);
  // A session that begins as this one is now. Errors as Open, and FailedPrecondition where the
  // session cannot be forked.
  kj::Promise<absl::StatusOr<AgentSession*>> Fork(WorkerId worker, uint32_t slot,
                                                  uint32_t max_tokens);
  void Close(WorkerId worker, uint32_t slot, SessionId session);

  kj::Promise<absl::Status> Drain(WorkerId worker, DrainArgs args);
  // Compacts and moves sessions that their worker handed over, or ends them; one outcome per slot.
  kj::Promise<std::vector<CompactionOutcome>> HandOver(WorkerId worker,
                                                       std::vector<uint32_t> slots);
  // The same for IDLE sessions of a tenant, by the agent itself. Resolves to how many were taken.
  kj::Promise<uint32_t> CompactIdle(TenantId tenant, const std::vector<SessionId>& sessions);
  // Has the sessions of tenants with a ladder follow their tenant's rung. After orders.
  void ClimbSessions();
  // What a tenant's rungs have done, with the sessions on them now; empty without a ladder.
  std::vector<RungCounters> CountRungs(const TenantState& tenant) const;
  // Marks RUNNING sessions for hand-over.
  void AskHandOver(TenantId tenant, const std::vector<SessionId>& sessions);
  // Ends these sessions: IDLE ones now, others when they are handed over, if preemption is still
  // allowed then. All others of the tenant go on, also those that were to be ended before.
  void Preempt(TenantId tenant, const std::vector<SessionId>& sessions);

  // Step 1 of the reclaim order: parked pages in these slabs, and so many of each group.
  void DropParked(TenantId tenant, const std::vector<SlabIndex>& slabs,
                  const std::map<uint32_t, uint64_t>& pages);
  // Those of all tenants for which nobody has asked since `then`.
  void DropParkedBefore(TimePoint then);

  // Has every worker of the tenant return the pages that no session uses.
  kj::Promise<void> ReturnMagazines(TenantId tenant);
  // Whether the slab is being prepared for an offer: its memory must stay.
  bool Populating(SlabIndex slab) const { return populating_.contains(slab); }
  // A DRAINING slab: has every worker unmap it. Resolves when all have answered or are overdue.
  kj::Promise<void> Revoke(SlabIndex slab);

  Hostilities hostilities() const;
  // Attached workers of a tenant and their open sessions.
  WorkerCounts Count(TenantId tenant) const;
  // Takes up what the tenant's workers wrote since the agent last looked.
  void Snapshot(TenantId tenant);
  // Bytes of pages that the tenant's workers have taken: granted and not waiting in a magazine.
  Bytes UsedBytes(TenantId tenant) const;
  // Slabs that admission counts against the tenant's lease: peaks and overhead of open sessions.
  uint32_t ChargedSlabs(TenantId tenant) const;
  // Slabs the tenant could use now: peaks of its sessions and demand that waits.
  uint32_t WantedSlabs(TenantId tenant, TimePoint now) const;

 private:
  TenantCharges Charges(TenantId tenant) const;
  // With the room that is kept for sessions to grow.
  TenantCharges ChargesAndRoom(TenantId tenant) const;
  uint32_t UsableSlabs(const TenantState& tenant) const;

  // Whether such a session could be opened at all, whatever the room.
  absl::Status CheckOpen(const AttachmentSetup& setup, const TenantState& tenant,
                         const SessionPlan& plan) const;
  // What it would be opened under.
  SessionTerms TermsOf(const AttachmentSetup& setup, const TenantState& tenant,
                       const SessionPlan& plan) const;
  absl::StatusOr<AgentSession*> OpenNow(WorkerId worker, const SessionRequest& request,
                                        const std::vector<PageKey>& keys);
  absl::StatusOr<AgentSession*> ForkNow(WorkerId worker, uint32_t slot, uint32_t max_tokens);
  // Has the worker map what holds a known beginning of these keys, as far as it does.
  kj::Promise<void> MapPrefix(WorkerId worker, const std::vector<PageKey>& keys);
  // As many free pages for the agent to take for the worker as are wanted, within the lease; for
  // those that are needed parked ones go, too.
  kj::Promise<void> MakeRoom(WorkerId worker, Attachment::Copies copies);
  // For pages that the worker needs; false when nothing is parked that it could use.
  bool DropParked(WorkerId worker, uint64_t pages);
  void RecordParked(TenantId tenant, ReclaimReason reason, Bytes bytes);

  std::vector<SlabIndex> MakeSlabs(WorkerId worker, const TenantState& tenant, size_t count);
  kj::Promise<bool> Grow(WorkerId worker, uint32_t pages);
  kj::Promise<bool> Offer(WorkerId worker, std::vector<SlabIndex> slabs);
  kj::Promise<absl::Status> Refuse(WorkerId worker, uint32_t pages);
  // Whether a tenant's policy, or each of its ladder's, can be had by this worker here.
  absl::Status CheckPolicy(const AttachmentSetup& setup, const TenantState& tenant) const;
  absl::Status CheckFormatHere(const Layout& layout, SealedFormat format) const;
  // A session for which the tenant would need `needed` slabs of at most `most`.
  absl::Status RefuseSession(Worker* worker, const Charge& charge, const Charge& growth,
                             uint32_t needed, uint32_t most);
  bool PastDeadline(TenantId tenant) const;
  // As Attachment::Fill, but grants nothing to a tenant that is past its deadline.
  uint32_t Fill(Worker& worker, uint32_t pages);
  // Whether a session that is handed over ends there.
  bool ShallEnd(const Attachment& attachment, uint32_t slot) const;
  // First waits for room in the reserve, if the session has a format, and for pages to copy those
  // to that it shares.
  kj::Promise<CompactionOutcome> RunCompaction(WorkerId worker, uint32_t slot, shm::State resting);
  kj::Promise<CompactionOutcome> CompactThrough(WorkerId worker, uint32_t slot, shm::State resting,
                                                kj::Maybe<kj::Own<SealingReserve::Hold>> hold);
  // A BUSY session that the floor holds: until it can be charged its whole length, the oldest of
  // its tenant first. Not for ever: its worker is told (ResourceExhausted) and asks again.
  kj::Promise<CompactionOutcome> BeginAwaitingRoom(WorkerId worker, uint32_t slot,
                                                   shm::State resting, CompactionOutcome outcome);
  struct RoomWait {
    WorkerId worker;
    uint32_t slot = 0;
    shm::State resting = shm::State::kRunning;
    enum class Moved : uint8_t { kNo, kYes } moved = Moved::kNo;  // a new epoch was published
    TimePoint end;
  };
  kj::Promise<CompactionOutcome> AwaitRoom(RoomWait wait);
  bool HasRoom(const Attachment& attachment, const AgentSession& session) const;
  void RecordCompactions(TenantId tenant, const Layout& layout,
                         const std::vector<CompactionOutcome>& outcomes);
  // Counts it, and now and then says why.
  void SealingFailed(const TenantState& tenant, const absl::Status& why);
  void RemoveIfDone(WorkerId worker);
  static void Count(const Attachment& attachment, Hostilities* sum);
  void WatchDoorbell(WorkerId worker);
  // Tops up until less than half a magazine moves, for one turn at most: a worker that is in such a
  // hurry would ring again before this thread could sleep.
  void ServeMagazine(WorkerId worker);
  kj::Promise<void> AwaitDoorbell(WorkerId worker);
  void Changed(TenantId tenant) {
    if (on_change_) on_change_(tenant);
  }
  void taskFailed(kj::Exception&& error) override;

  const Deps deps_;
  const Logger log_;
  std::function<void(TenantId)> on_change_;
  Lacking on_lacking_;
  std::map<WorkerId, Worker> workers_;
  std::multiset<SlabIndex> populating_;  // once for each worker that waits for it
  // By age, and when each asked last.
  std::map<TenantId, std::map<SessionId, TimePoint>> awaiting_room_;
  Hostilities past_;  // of workers that are gone
  std::map<TenantId, TimePoint> sealing_failures_logged_;
  kj::TaskSet tasks_;
};

}  // namespace kvpool
