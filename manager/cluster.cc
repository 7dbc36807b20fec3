// Reports in, orders out.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/cluster.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/quantity.h"
#include "manager/allocator.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

// A plan costs about this much for each pair of tenant and agent; twice as long must pass before
// the next, so that planning takes at most half of the thread.
constexpr Duration kPlanPause = std::chrono::microseconds(2);

std::vector<std::string> Names(const std::vector<AgentInfo>& agents) {
  std::vector<std::string> names;
  for (const AgentInfo& agent : agents) names.push_back(agent.name);
  return names;
}

}  // namespace

Cluster::Cluster(Start start)
    : tenants_(std::move(start.tenants)),
      ledger_(start.epoch, Names(start.known_agents)),
      learn_until_(start.learn_until),
      oversubscription_percent_(start.oversubscription_percent) {
  for (const AgentInfo& info : start.known_agents) agents_[info.name].info = info;
}

Pools Cluster::AgentPools() const {
  Pools pools;
  for (const auto& [name, agent] : agents_) pools.agents[name] = agent.info.pool_bytes;
  pools.oversubscription_percent = oversubscription_percent_;
  return pools;
}

Bytes Cluster::Capacity() const {
  Bytes sum;
  for (const auto& [name, agent] : agents_) sum += agent.info.pool_bytes;
  return sum;
}

Bytes Cluster::SlabBytes() const {
  return agents_.empty() ? 0_B : agents_.begin()->second.info.slab_bytes;
}

const std::deque<ReclaimEntry>& Cluster::ReclaimsOf(TenantId tenant) const {
  static const std::deque<ReclaimEntry> none;
  const auto found = reclaims_.find(tenant);
  return found == reclaims_.end() ? none : found->second.runs();
}

RegisterOutcome Cluster::CheckAgent(const AgentInfo& info, uint64_t highest_epoch) const {
  if (highest_epoch > epoch()) return RegisterOutcome::kStaleEpoch;
  const bool whole = info.slab_bytes > 0_B && info.slabs() > 0 &&
                     info.slab_bytes * info.slabs() == info.pool_bytes;
  if (!whole || info.slabs() > limits::kSlabsPerAgent) return RegisterOutcome::kBadPool;
  for (const auto& [name, other] : agents_) {
    if (name != info.name && other.info.slab_bytes != info.slab_bytes) {
      return RegisterOutcome::kBadPool;
    }
  }
  const auto found = agents_.find(info.name);
  if (found == agents_.end()) {
    return agents_.size() < limits::kAgents ? RegisterOutcome::kOk : RegisterOutcome::kTooMany;
  }
  const bool taken = found->second.connected && found->second.info.incarnation != info.incarnation;
  return taken ? RegisterOutcome::kNameTaken : RegisterOutcome::kOk;
}

uint64_t Cluster::Connect(const AgentInfo& info) {
  agents_[info.name] = Agent{.info = info, .connected = true, .link = ++last_link_};
  ledger_.Connect(info.name, info.incarnation, info.slabs());
  return last_link_;
}

bool Cluster::IsLive(const std::string& name, uint64_t link) const {
  const auto found = agents_.find(name);
  return found != agents_.end() && found->second.connected && found->second.link == link;
}

void Cluster::Disconnect(const std::string& name, uint64_t link) {
  if (!IsLive(name, link)) return;
  agents_.at(name).connected = false;
  ledger_.Disconnect(name);
}

absl::Status Cluster::CheckForget(const std::string& name) const {
  const auto found = agents_.find(name);
  if (found == agents_.end()) {
    return absl::NotFoundError(absl::StrCat("agent \"", name, "\" does not exist"));
  }
  if (!found->second.connected) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("agent \"", name, "\" is connected; stop it first"));
}

void Cluster::Forget(const std::string& name) {
  agents_.erase(name);
  ledger_.Forget(name);
}

AgentOrders Cluster::Exchange(const std::string& name, AgentReport report, TimePoint now) {
  std::vector<LeaseReport> leases;
  for (const TenantUse& use : report.tenants) leases.push_back(use.lease);
  if (ledger_.Report(name, report.seq, leases)) {
    Take(agents_.at(name), std::move(report), now);
    if (ledger_.Learning() && now >= learn_until_) ledger_.StopLearning();
    PlanSometimes(now);
  }
  return OrdersFor(name);
}

void Cluster::Take(Agent& agent, AgentReport report, TimePoint now) {
  agent.last_report = now;
  agent.free_slabs = report.free_slabs;
  agent.stuck_slabs = report.stuck_slabs;
  agent.use.clear();
  for (const TenantUse& use : report.tenants) agent.use[use.lease.tenant] = use;
  std::set<TenantId> ids;
  for (const auto& [tenant_name, tenant] : tenants_.by_name()) ids.insert(tenant.id);
  for (ReclaimEntry& entry : report.reclaims) {
    if (!ids.contains(entry.tenant)) continue;
    reclaims_[entry.tenant].Add(std::move(entry));
  }
}

void Cluster::PlanSometimes(TimePoint now) {
  if (now < next_plan_) return;
  Plan();
  next_plan_ = now + kPlanPause * (tenants_.by_name().size() * agents_.size());
}

int64_t Cluster::LimitSlabs(const Tenant& tenant) const {
  return SlabBytes() == 0_B ? 0 : tenant.spec.limit / SlabBytes();
}

// Only ready agents can be ordered from. What is leased elsewhere still counts against a tenant's
// limit, and what a tenant unknown here holds against its agent's capacity.
void Cluster::Plan() {
  const std::vector<std::string> ready = ledger_.ReadyAgents();
  AllocatorInput input;
  std::vector<LeaseTarget> targets;
  for (const std::string& agent : ready) {
    input.capacity.push_back(ledger_.CapacityOf(agent) - ledger_.CommittedAt(agent));
  }
  for (const auto& [name, tenant] : tenants_.by_name()) {
    const int64_t limit = LimitSlabs(tenant);
    int64_t elsewhere = ledger_.Committed(tenant.id);
    std::vector<int64_t> demand;
    for (size_t a = 0; a < ready.size(); ++a) {
      const int64_t here = ledger_.Committed(tenant.id, ready[a]);
      elsewhere -= here;
      input.capacity[a] += here;
      const auto& use = agents_.at(ready[a]).use;
      const auto found = use.find(tenant.id);
      demand.push_back(found == use.end() ? 0 : found->second.wanted_slabs);
    }
    const int64_t limit_here = std::max<int64_t>(limit - elsewhere, 0);
    const int64_t guaranteed = tenant.spec.guaranteed / SlabBytes();
    input.tenants.push_back({.guaranteed = std::min(guaranteed, limit_here),
                             .limit = limit_here,
                             .demand = std::move(demand)});
    targets.push_back({.tenant = tenant.id, .limit = limit});
  }
  for (int64_t& slabs : input.capacity) slabs = std::max<int64_t>(slabs, 0);
  std::vector<std::vector<int64_t>> leases = Allocate(input);
  for (size_t t = 0; t < targets.size(); ++t) targets[t].slabs = std::move(leases[t]);
  ledger_.Plan(targets);
}

AgentOrders Cluster::OrdersFor(const std::string& agent) const {
  AgentOrders orders{.epoch = epoch()};
  std::map<TenantId, LeaseOrder> leases;
  for (const LeaseOrder& lease : ledger_.Orders(agent)) leases[lease.tenant] = lease;
  for (const auto& [name, tenant] : tenants_.by_name()) {
    const auto lease = leases.find(tenant.id);
    if (lease == leases.end()) continue;
    orders.tenants.push_back({&tenant, lease->second, LimitSlabs(tenant)});
  }
  // A tenant that is missing from complete orders is gone: one that was not planned yet is not.
  orders.complete = !ledger_.Learning() && orders.tenants.size() == tenants_.by_name().size();
  return orders;
}

void Cluster::CommitTenants(const std::vector<Tenant>& changed) {
  tenants_.Commit(changed);
  next_plan_ = TimePoint();
}

absl::Status Cluster::CheckRemove(const std::string& name) const {
  const absl::StatusOr<Tenant> tenant = tenants_.Get(name);
  if (!tenant.ok()) return tenant.status();
  if (ledger_.Learning()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "tenant \"", name, "\" may still have leases: not every agent has reported since this",
        " manager started; try again soon, or delete agents that are gone for good"));
  }
  const int64_t slabs = ledger_.Committed(tenant->id);
  if (slabs == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("tenant \"", name, "\" still has leases of ", FormatBytes(SlabBytes() * slabs),
                   "; set its guaranteed and limit to 0, wait until nothing is leased, then delete"
                   " it"));
}

void Cluster::RemoveTenant(const std::string& name) {
  const Tenant* tenant = tenants_.Find(name);
  ledger_.Remove(tenant->id);
  reclaims_.erase(tenant->id);
  tenants_.Remove(name);
}

}  // namespace kvpool
