// Reports in, orders out.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/cluster.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "manager/allocator.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

// For each pair of tenant and agent so long passes between two plans: about twice what the plan
// takes, so that planning has at most half of the thread.
constexpr Duration kPlanPause = std::chrono::nanoseconds(600);

std::vector<LeaseHolder> Holders(const std::vector<KnownAgent>& agents) {
  std::vector<LeaseHolder> holders;
  for (const KnownAgent& known : agents) {
    holders.push_back(
        {.agent = known.info.name, .incarnation = known.info.incarnation, .bounds = known.bounds});
  }
  return holders;
}

// Shrinks of a tenth of a pool a round are through long before.
constexpr int kOutlookRounds = 100;

// What the operator has set, for the agents that are ready.
AllocatorInput::Tenant BudgetOf(const TenantSpec& spec, Bytes slab, const PacingInput::Tenant& now,
                                const std::vector<std::string>& ready) {
  AllocatorInput::Tenant budget{.guaranteed = now.guaranteed,
                                .limit = now.limit,
                                .weight = spec.weight,
                                .priority = spec.priority,
                                .borrowing = spec.borrowing,
                                .demand = now.demand};
  if (spec.floors.empty()) return budget;
  for (const std::string& agent : ready) {
    const auto floor = spec.floors.find(agent);
    budget.floors.push_back(floor == spec.floors.end() ? 0 : floor->second / slab);
  }
  return budget;
}

// What a tenant wants at each agent.
std::vector<int64_t> DemandOf(TenantId tenant, const std::vector<const Cluster::Agent*>& agents) {
  std::vector<int64_t> demand;
  for (const Cluster::Agent* agent : agents) {
    const auto use = agent->use.find(tenant);
    demand.push_back(use == agent->use.end() ? 0 : use->second.wanted_slabs);
  }
  return demand;
}

// What a tenant has in its hands at each agent.
std::vector<int64_t> HeldOf(TenantId tenant, const std::vector<const Cluster::Agent*>& agents) {
  std::vector<int64_t> held;
  for (const Cluster::Agent* agent : agents) {
    const auto use = agent->use.find(tenant);
    held.push_back(use == agent->use.end() ? 0 : use->second.held_slabs);
  }
  return held;
}

}  // namespace

Cluster::Cluster(Start start)
    : tenants_(std::move(start.tenants)),
      ledger_(start.epoch, Holders(start.known_agents)),
      learn_until_(start.learn_until),
      oversubscription_percent_(start.oversubscription_percent) {
  for (const KnownAgent& known : start.known_agents) {
    agents_[known.info.name] = {.info = known.info, .settings = known.settings};
  }
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

const std::deque<LeaseDecision>& Cluster::DecisionsOf(TenantId tenant) const {
  static const std::deque<LeaseDecision> none;
  const auto found = decisions_.find(tenant);
  return found == decisions_.end() ? none : found->second.runs();
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
  Agent& agent = agents_[info.name];
  agent = {.info = info, .settings = agent.settings, .connected = true, .link = ++last_link_};
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

void Cluster::CommitSettings(const std::string& name, const AgentSettings& settings) {
  agents_.at(name).settings = settings;
  next_plan_ = TimePoint();
}

AgentOrders Cluster::Exchange(const std::string& name, AgentReport report, TimePoint now) {
  std::vector<LeaseReport> leases;
  for (const TenantUse& use : report.tenants) leases.push_back(use.lease);
  if (ledger_.Report(name, report.seq, leases)) {
    Take(agents_.at(name), std::move(report), now);
    if (ledger_.Learning() && now >= learn_until_) ledger_.StopLearning();
    PlanIfDue(now);
  }
  return OrdersFor(name);
}

std::optional<TimePoint> Cluster::AwaitsPlan(const std::string& name) const {
  const auto agent = agents_.find(name);
  if (agent == agents_.end() || agent->second.planned || ledger_.Learning()) return std::nullopt;
  return next_plan_;
}

void Cluster::Take(Agent& agent, AgentReport report, TimePoint now) {
  agent.last_report = now;
  agent.free_slabs = report.free_slabs;
  agent.stuck_slabs = report.stuck_slabs;
  const auto wants_the_same = [&](const TenantUse& use) {
    const auto before = agent.use.find(use.lease.tenant);
    return before == agent.use.end() ? use.wanted_slabs == 0
                                     : before->second.wanted_slabs == use.wanted_slabs;
  };
  if (!std::all_of(report.tenants.begin(), report.tenants.end(), wants_the_same)) {
    agent.planned = false;
  }
  TakeRungs(agent, report);
  agent.use.clear();
  for (const TenantUse& use : report.tenants) agent.use[use.lease.tenant] = use;
  if (report.reclaims.empty()) return;
  std::set<TenantId> ids;
  for (const auto& [tenant_name, tenant] : tenants_.by_name()) ids.insert(tenant.id);
  for (ReclaimEntry& entry : report.reclaims) {
    if (!ids.contains(entry.tenant)) continue;
    ReclaimLog& log = reclaims_[entry.tenant];
    log.Add(std::move(entry));
  }
}

void Cluster::PlanIfDue(TimePoint now) {
  if (now < next_plan_) return;
  Plan(now);
  for (auto& [name, agent] : agents_) agent.planned = true;
  next_plan_ = now + kPlanPause * (tenants_.by_name().size() * agents_.size());
}

int64_t Cluster::LimitSlabs(const Tenant& tenant) const {
  return SlabBytes() == 0_B ? 0 : tenant.spec.limit / SlabBytes();
}

// Only ready agents can be ordered from. What is leased elsewhere still counts against a tenant's
// limit, and what a tenant unknown here holds against its agent's capacity.
PacingInput Cluster::Allocation() const {
  std::vector<TenantId> ids;
  for (const auto& [name, tenant] : tenants_.by_name()) ids.push_back(tenant.id);
  LeaseTable leases = ledger_.LeasesOf(ids);
  std::vector<const Agent*> ready;
  for (const std::string& agent : leases.agents) ready.push_back(&agents_.at(agent));

  PacingInput pacing;
  AllocatorInput input;
  for (size_t a = 0; a < ready.size(); ++a) {
    const int64_t slabs = ready[a]->settings.draining ? 0 : leases.capacity[a] - leases.others[a];
    pacing.capacity.push_back(std::max<int64_t>(slabs, 0));
  }
  for (const auto& [name, tenant] : tenants_.by_name()) {
    const size_t t = pacing.tenants.size();
    PacingInput::Tenant now{.limit = std::max<int64_t>(LimitSlabs(tenant) - leases.elsewhere[t], 0),
                            .priority = tenant.spec.priority,
                            .demand = DemandOf(tenant.id, ready),
                            .ordered = std::move(leases.ordered[t]),
                            .committed = std::move(leases.committed[t]),
                            .held = HeldOf(tenant.id, ready)};
    now.guaranteed = SlabBytes() == 0_B ? 0 : tenant.spec.guaranteed / SlabBytes();
    now.guaranteed = std::min(now.guaranteed, now.limit);
    input.tenants.push_back(BudgetOf(tenant.spec, SlabBytes(), now, leases.agents));
    pacing.tenants.push_back(std::move(now));
  }
  input.capacity = pacing.capacity;
  std::vector<std::vector<int64_t>> allocated = Allocate(input);
  for (size_t t = 0; t < allocated.size(); ++t) {
    pacing.tenants[t].allocated = std::move(allocated[t]);
  }
  return pacing;
}

void Cluster::Plan(TimePoint now) {
  const PacingInput input = Allocation();
  std::vector<std::vector<int64_t>> leases = PaceLeases(input);
  const std::vector<LeaseMove> moves = LeaseMoves(input, leases);
  std::vector<LeaseTarget> targets;
  for (const auto& [name, tenant] : tenants_.by_name()) {
    targets.push_back({.tenant = tenant.id,
                       .limit = LimitSlabs(tenant),
                       .slabs = std::move(leases[targets.size()])});
  }
  ledger_.Plan(targets);
  LogMoves(moves, now);
}

void Cluster::LogMoves(const std::vector<LeaseMove>& moves, TimePoint now) {
  if (moves.empty()) return;
  std::vector<const Tenant*> tenants;
  for (const auto& [name, tenant] : tenants_.by_name()) tenants.push_back(&tenant);
  const std::vector<std::string> agents = ledger_.ReadyAgents();
  for (const LeaseMove& move : moves) {
    const Tenant& tenant = *tenants[move.tenant];
    // A grow may have to wait for what others give back.
    const int64_t to = ledger_.Ordered(tenant.id, agents[move.agent]);
    if (to == move.from) continue;
    LeaseDecision decision{.agent = agents[move.agent],
                           .first = now,
                           .last = now,
                           .from = move.from,
                           .to = to,
                           .reason = move.reason};
    for (const size_t other : move.others) {
      decision.others.push_back(tenants[other]->spec.name);
    }
    decisions_[tenant.id].Add(std::move(decision));
  }
}

std::map<TenantId, int64_t> Cluster::Outlook() const {
  std::map<TenantId, int64_t> outlook;
  if (agents_.empty()) return outlook;
  PacingInput plan = Allocation();
  std::vector<int64_t> elsewhere;  // at agents that cannot be ordered from
  for (const auto& [name, tenant] : tenants_.by_name()) {
    const PacingInput::Tenant& now = plan.tenants[elsewhere.size()];
    elsewhere.push_back(ledger_.Committed(tenant.id) -
                        std::accumulate(now.committed.begin(), now.committed.end(), int64_t{0}));
  }
  // Round after round, as if every agent followed at once, until nothing moves.
  for (int round = 0; round < kOutlookRounds; ++round) {
    const std::vector<std::vector<int64_t>> leases = PaceLeases(plan);
    bool moved = false;
    for (size_t t = 0; t < leases.size(); ++t) {
      PacingInput::Tenant& now = plan.tenants[t];
      moved |= leases[t] != now.committed;
      now.ordered = now.committed = leases[t];
    }
    if (!moved) break;
  }
  size_t t = 0;
  for (const auto& [name, tenant] : tenants_.by_name()) {
    const PacingInput::Tenant& then = plan.tenants[t];
    outlook[tenant.id] = std::accumulate(then.ordered.begin(), then.ordered.end(), elsewhere[t]);
    ++t;
  }
  return outlook;
}

AgentOrders Cluster::OrdersFor(const std::string& agent) const {
  AgentOrders orders{.epoch = epoch()};
  const int64_t pool = agents_.at(agent).info.slabs();
  std::map<TenantId, LeaseOrder> leases;
  for (const LeaseOrder& lease : ledger_.Orders(agent)) leases[lease.tenant] = lease;
  for (const auto& [name, tenant] : tenants_.by_name()) {
    const auto lease = leases.find(tenant.id);
    if (lease == leases.end()) continue;
    const auto floor = tenant.spec.floors.find(agent);
    orders.tenants.push_back(
        {&tenant, lease->second, LimitSlabs(tenant),
         floor == tenant.spec.floors.end() ? 0 : std::min(floor->second / SlabBytes(), pool)});
  }
  // A tenant that is missing from complete orders is gone: one that was not planned yet is not.
  orders.complete = !ledger_.Learning() && orders.tenants.size() == tenants_.by_name().size();
  return orders;
}

void Cluster::CommitTenants(const std::vector<Tenant>& changed) {
  CountRungChanges(changed);
  tenants_.Commit(changed);
  next_plan_ = TimePoint();
}

void Cluster::RemoveTenant(const std::string& name) {
  const Tenant* tenant = tenants_.Find(name);
  ledger_.Remove(tenant->id);
  reclaims_.erase(tenant->id);
  decisions_.erase(tenant->id);
  rungs_.erase(tenant->id);
  rung_changes_.erase(tenant->id);
  tenants_.Remove(name);
}

}  // namespace kvpool
