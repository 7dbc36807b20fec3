// What agent/workers.cc and attachment.cc do around the agent's cores, imitated in the same order
// of calls, without RPC and shared memory: attaching, admission, magazines, slabs on their way to
// and from workers, hand-overs, detaching. Ledger, book and the formulas of admission are the real
// ones. A compaction moves no bytes: it keeps as many pages as the policy's peak says.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "absl/status/statusor.h"
#include "agent/admission.h"
#include "agent/pool.h"
#include "agent/reclaim_planner.h"
#include "agent/tenant_book.h"
#include "kernels/layout.h"
#include "tests/sim/network.h"
#include "tests/sim/sim_device.h"
#include "tests/sim/world.h"

namespace kvpool::sim {

class SimWorker;

// What an agent and a worker share. The worker may write anything into it.
struct SharedMemory {
  enum class State : uint8_t { kFree, kIdle, kRunning, kBusy, kFailed };
  struct Slot {
    State state = State::kFree;
    std::vector<PageId> pages;  // fresh ones, as the worker lists them
    uint32_t tokens = 0;  // of the whole cache; after a compaction the agent says what is left
    enum class HandOver : uint8_t { kNo, kAsked } hand_over = HandOver::kNo;
  };
  std::deque<PageId> grants;
  std::vector<PageId> returns;
  std::map<uint32_t, Slot> slots;
};

struct OpenedSession {
  uint32_t slot = 0;
  SessionId id;
  uint32_t peak_tokens = 0;  // the worker hands over before it passes this
};

struct AgentSession {
  SessionId id;
  SessionPlan plan;
  std::shared_ptr<const Policy> policy;
  Charge charge;
  std::vector<PageId> compacted;  // sorted
  bool job = false;
  bool closed = false;
  bool failed = false;
  bool ending = false;  // to be ended when it is handed over
  bool ended = false;   // by the agent: it has no pages any more
};

struct AgentWorker {
  SimWorker* peer = nullptr;
  ConnectionId connection = ConnectionId::kNone;
  TenantId tenant;
  const Layout* layout = nullptr;
  std::shared_ptr<SharedMemory> shared;
  std::map<uint32_t, AgentSession> sessions;
  Charge charge, waiting;
  TimePoint waiting_since;
  uint32_t target = 2;
  bool growing = false;
  bool detached = false;
  bool gone = false;
  struct Call {
    bool over = false;
    std::function<void()> failed;
  };
  std::vector<std::shared_ptr<Call>> calls;  // that wait for an answer of the worker
};

class AgentWorkers {
 public:
  struct Deps {
    World* world = nullptr;
    Network* network = nullptr;
    Process* process = nullptr;
    PoolLedger* ledger = nullptr;
    TenantBook* book = nullptr;
    std::shared_ptr<SimDevice> device;  // descriptors on their way outlive the agent
  };
  using Done = std::function<void()>;

  explicit AgentWorkers(const Deps& deps) : deps_(deps) {}

  void OnChange(std::function<void(TenantId)> callback) { on_change_ = std::move(callback); }
  const std::map<WorkerId, AgentWorker>& all() const { return workers_; }

  // Calls of workers.
  absl::StatusOr<WorkerId> Attach(SimWorker* peer, ConnectionId connection, TenantId tenant,
                                  const Layout& layout, std::shared_ptr<SharedMemory> shared);
  void Detach(WorkerId worker);  // by its own word
  void HungUp(WorkerId worker);  // its connection is gone; its process may not be
  absl::StatusOr<OpenedSession> Open(WorkerId worker, const SessionPlan& plan);
  void Close(WorkerId worker, uint32_t slot, SessionId session);
  void Reserve(WorkerId worker, uint32_t pages, std::function<void(const absl::Status&)> done);
  void TopUp(WorkerId worker);
  void HandOver(WorkerId worker, uint32_t slot, Done done);

  // What reclaim does.
  void Snapshot(TenantId tenant);
  void AskHandOver(TenantId tenant, const std::vector<SessionId>& sessions);
  // All that are to be ended: now if IDLE, else when handed over.
  void Preempt(TenantId tenant, const std::vector<SessionId>& sessions);
  void ReturnMagazines(TenantId tenant, Done done);
  void CompactIdle(TenantId tenant, const std::vector<SessionId>& sessions, const Done& done);
  bool Populating(SlabIndex slab) const { return populating_.contains(slab); }
  void Revoke(SlabIndex slab, Done done);
  void AddReclaimSessions(TenantId tenant, ReclaimInput* input) const;

  // What reports say.
  uint32_t Count(TenantId tenant) const;  // workers
  uint32_t Sessions(TenantId tenant) const;
  Bytes UsedBytes(TenantId tenant) const;
  uint32_t ChargedSlabs(TenantId tenant) const;
  uint32_t WantedSlabs(TenantId tenant, TimePoint now) const;

  // Jobs on sessions, for I7.
  uint64_t jobs_begun() const { return jobs_begun_; }
  uint64_t jobs_ended() const { return jobs_ended_; }
  void CountAJobThatIsLost() { ++jobs_begun_; }  // for saboteurs

 private:
  struct Job {
    std::vector<PageId> dropped;  // released when it ends
    std::vector<PageId> kept;     // sorted: what its compacted segment is afterwards
  };

  AgentWorker* Find(WorkerId worker);
  TenantCharges Charges(TenantId tenant, std::optional<TimePoint> now) const;
  uint32_t UsableSlabs(const TenantState& tenant) const;
  bool PastDeadline(TenantId tenant) const;
  absl::Status RefuseSession(AgentWorker* worker, const Charge& charge, uint32_t needed,
                             uint32_t most);
  void Changed(TenantId tenant) {
    if (on_change_) on_change_(tenant);
  }

  // Calls `call` at the worker with a way to answer; one of the two others follows.
  using Call = std::function<void(SimWorker&, const Done& answer)>;
  void CallWorker(AgentWorker* worker, const Call& call, Done answered, Done failed);

  void LetGo(WorkerId worker);
  void AwaitEnd(WorkerId worker);
  void RemoveIfDone(WorkerId worker);
  void Collect(WorkerId id, AgentWorker* worker);
  uint32_t Fill(WorkerId id, AgentWorker* worker, uint32_t pages);
  // Nothing new past the grace.
  uint32_t FillInTime(WorkerId id, AgentWorker* worker, uint32_t pages);
  std::vector<SlabIndex> MakeSlabs(WorkerId id, const TenantState& tenant, size_t count);
  void Grow(WorkerId id, uint32_t pages, std::function<void(bool)> done);
  void Offer(WorkerId id, std::vector<SlabIndex> slabs, std::function<void(bool)> done);
  void Refuse(WorkerId id, uint32_t pages, std::function<void(const absl::Status&)> done);

  bool Snapshot(AgentWorker* worker, uint32_t slot, AgentSession* session);
  void Free(WorkerId id, uint32_t slot);
  void GiveBack(AgentWorker* worker, AgentSession* session);
  bool ShallEnd(const AgentWorker& worker, const AgentSession& session) const;
  void End(AgentWorker* worker, uint32_t slot, AgentSession* session);
  uint64_t PagesFreed(const AgentWorker& worker, uint32_t slot, const AgentSession& session) const;
  std::vector<PageId> GrantReplacements(WorkerId id, const AgentSession& session, size_t count);
  // False when there was nothing to do.
  bool BeginJob(WorkerId id, uint32_t slot, SharedMemory::State resting, Done done);
  void EndJob(WorkerId id, uint32_t slot, const Job& job, SharedMemory::State resting);

  const Deps deps_;
  std::function<void(TenantId)> on_change_;
  std::map<WorkerId, AgentWorker> workers_;
  std::multiset<SlabIndex> populating_;
  uint64_t jobs_begun_ = 0, jobs_ended_ = 0;
};

}  // namespace kvpool::sim
