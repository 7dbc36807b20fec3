// Attaching, admission, detaching. See agent/workers.cc.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/agent_workers.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "tests/sim/sim_worker.h"

namespace kvpool::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kWaitingCounts(3), kWorkerAnswers(5);
constexpr milliseconds kLookForEnd(20);
constexpr uint32_t kMostSessions = 64;

}  // namespace

void AgentWorkers::CallWorker(AgentWorker* worker, const Call& call, Done answered, Done failed) {
  std::erase_if(worker->calls, [](const auto& before) { return before->over; });
  auto pending = std::make_shared<AgentWorker::Call>();
  pending->failed = std::move(failed);
  worker->calls.push_back(pending);
  const auto finish = [pending](const Done& then) {
    if (pending->over) return;
    pending->over = true;
    then();
  };
  // The worker may outlive this agent.
  const Done answer = [network = deps_.network, finish, connection = worker->connection,
                       peer = worker->peer, answered = std::move(answered)] {
    network->Send(connection, peer->process(), [finish, answered] { finish(answered); });
  };
  deps_.network->Send(worker->connection, deps_.process,
                      [peer = worker->peer, call, answer] { call(*peer, answer); });
  deps_.process->After(kWorkerAnswers, [pending, finish] { finish(pending->failed); });
}

absl::StatusOr<WorkerId> AgentWorkers::Attach(SimWorker* peer, ConnectionId connection,
                                              TenantId tenant, const Layout& layout,
                                              std::shared_ptr<SharedMemory> shared) {
  if (deps_.book->Find(tenant) == nullptr) return absl::FailedPreconditionError("deleted");
  absl::StatusOr<WorkerId> id = deps_.ledger->AddWorker(tenant, layout);
  if (!id.ok()) return id.status();
  AgentWorker& worker = workers_[*id];
  worker.peer = peer;
  worker.connection = connection;
  worker.tenant = tenant;
  worker.layout = &layout;
  worker.shared = std::move(shared);
  TopUp(*id);
  Changed(tenant);
  return id;
}

AgentWorker* AgentWorkers::Find(WorkerId id) {
  const auto found = workers_.find(id);
  return found == workers_.end() || found->second.detached ? nullptr : &found->second;
}

void AgentWorkers::LetGo(WorkerId id) {
  AgentWorker* worker = Find(id);
  worker->detached = true;
  std::vector<uint32_t> slots;
  for (const auto& [slot, session] : worker->sessions) slots.push_back(slot);
  for (uint32_t slot : slots) {
    AgentSession& session = worker->sessions.at(slot);
    if (session.closed) continue;
    session.closed = true;
    if (!session.job) Free(id, slot);
  }
}

void AgentWorkers::Detach(WorkerId id) {
  if (Find(id) == nullptr) return;
  LetGo(id);
  deps_.process->After(Duration(0), [this, id] {
    workers_.at(id).gone = true;
    RemoveIfDone(id);
  });
}

void AgentWorkers::HungUp(WorkerId id) {
  const auto found = workers_.find(id);
  if (found == workers_.end()) return;
  for (const auto& call : std::exchange(found->second.calls, {})) {
    if (call->over) continue;
    call->over = true;
    call->failed();
  }
  if (Find(id) == nullptr) return;
  LetGo(id);
  AwaitEnd(id);
}

// Only the end of its process is proof.
void AgentWorkers::AwaitEnd(WorkerId id) {
  AgentWorker& worker = workers_.at(id);
  if (worker.peer->process()->alive()) {
    return deps_.process->After(kLookForEnd, [this, id] { AwaitEnd(id); });
  }
  worker.gone = true;
  RemoveIfDone(id);
}

void AgentWorkers::RemoveIfDone(WorkerId id) {
  const auto found = workers_.find(id);
  if (found == workers_.end() || !found->second.gone) return;
  if (!found->second.sessions.empty() || found->second.growing) return;
  const TenantId tenant = found->second.tenant;
  (void)deps_.ledger->RemoveWorker(id);
  workers_.erase(found);
  deps_.world->Note("worker", "agent process % is done with worker %",
                    {deps_.process->id(), id.value()});
  Changed(tenant);
}

// ---- Admission ----------------------------------------------------------------------------------

TenantCharges AgentWorkers::Charges(TenantId tenant, std::optional<TimePoint> now) const {
  TenantCharges charges;
  for (const auto& [id, worker] : workers_) {
    if (worker.tenant != tenant) continue;
    charges.Add(*worker.layout, worker.charge);
    if (now.has_value() && *now - worker.waiting_since < kWaitingCounts) {
      charges.Add(*worker.layout, worker.waiting);
    }
  }
  return charges;
}

uint32_t AgentWorkers::ChargedSlabs(TenantId tenant) const {
  return Charges(tenant, std::nullopt).Slabs();
}

uint32_t AgentWorkers::WantedSlabs(TenantId tenant, TimePoint now) const {
  return Charges(tenant, now).WantedSlabs();
}

uint32_t AgentWorkers::Count(TenantId tenant) const {
  return static_cast<uint32_t>(
      std::count_if(workers_.begin(), workers_.end(),
                    [&](const auto& entry) { return entry.second.tenant == tenant; }));
}

uint32_t AgentWorkers::Sessions(TenantId tenant) const {
  size_t sessions = 0;
  for (const auto& [id, worker] : workers_) {
    if (worker.tenant == tenant) sessions += worker.sessions.size();
  }
  return static_cast<uint32_t>(sessions);
}

Bytes AgentWorkers::UsedBytes(TenantId tenant) const {
  const TenantUsage usage = deps_.ledger->Usage(tenant);
  Bytes used = usage.owned_bytes + usage.granted_bytes;
  for (const auto& [id, worker] : workers_) {
    if (worker.tenant != tenant) continue;
    const uint64_t waiting =
        std::min<uint64_t>(worker.shared->grants.size(), deps_.ledger->GrantedPages(id));
    used -= worker.layout->page_bytes() * static_cast<int64_t>(waiting);
  }
  return std::max(used, 0_B);
}

uint32_t AgentWorkers::UsableSlabs(const TenantState& tenant) const {
  return Charges(tenant.id, std::nullopt).UsableSlabs(tenant.lease_slabs);
}

absl::StatusOr<OpenedSession> AgentWorkers::Open(WorkerId id, const SessionPlan& plan) {
  AgentWorker* worker = Find(id);
  if (worker == nullptr) return absl::FailedPreconditionError("detached");
  const TenantState* tenant = deps_.book->Find(worker->tenant);
  const Charge charge = PeakCharge(*worker->layout, *tenant->policy, tenant->seal, plan);
  const uint32_t alone = SlabsFor(*worker->layout, charge);
  const PoolConfig& pool = deps_.ledger->config();
  const uint32_t most = std::min(tenant->limit_slabs, pool.slabs - pool.reserve_slabs);
  if (alone > most) return absl::OutOfRangeError("can never fit");
  TenantCharges charges = Charges(worker->tenant, std::nullopt);
  charges.Add(*worker->layout, charge);
  const uint32_t needed = charges.Slabs();
  if (needed > tenant->lease_slabs || PastDeadline(tenant->id)) {
    return RefuseSession(worker, charge, needed, most);
  }
  worker->waiting = {};
  if (worker->sessions.size() >= kMostSessions) return absl::ResourceExhaustedError("no slot");
  absl::StatusOr<SessionId> session = deps_.ledger->OpenSession(id);
  if (!session.ok()) return session.status();
  uint32_t slot = 0;
  while (worker->sessions.contains(slot)) ++slot;
  AgentSession& opened = worker->sessions[slot];
  opened.id = *session;
  opened.plan = plan;
  opened.policy = tenant->policy;
  opened.charge = charge;
  worker->charge += charge;
  worker->shared->slots[slot] = {.state = SharedMemory::State::kRunning};
  return OpenedSession{
      .slot = slot, .id = *session, .peak_tokens = tenant->policy->PeakTokens(plan)};
}

bool AgentWorkers::PastDeadline(TenantId tenant) const {
  const TenantState* state = deps_.book->Find(tenant);
  return state != nullptr && state->PastDeadline(deps_.process->Now());
}

absl::Status AgentWorkers::RefuseSession(AgentWorker* worker, const Charge& charge, uint32_t needed,
                                         uint32_t most) {
  const TenantState& tenant = *deps_.book->Find(worker->tenant);
  const TimePoint now = deps_.process->Now();
  worker->waiting = charge;
  worker->waiting_since = now;
  deps_.book->Record(
      {.tenant = tenant.id,
       .time = now,
       .step = ReclaimStep::kRefusal,
       .reason = tenant.PastDeadline(now) ? ReclaimReason::kLeaseShrink
                                          : deps_.book->WhyRefused(tenant, needed, most, now),
       .policy = ToString(tenant.spec),
       .sessions = 1,
       .bytes = charge.pages * static_cast<uint64_t>(worker->layout->page_bytes().value())});
  Changed(worker->tenant);
  return absl::ResourceExhaustedError("not now");
}

void AgentWorkers::Close(WorkerId id, uint32_t slot, SessionId session) {
  AgentWorker* worker = Find(id);
  if (worker == nullptr) return;
  const auto found = worker->sessions.find(slot);
  if (found == worker->sessions.end() || found->second.id != session || found->second.closed) {
    return;
  }
  found->second.closed = true;
  if (!found->second.job) Free(id, slot);
  TopUp(id);
  Changed(worker->tenant);
}

}  // namespace kvpool::sim
