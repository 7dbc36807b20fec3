// Revoke by acknowledgement: what counts, and what may therefore be ordered.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/lease_ledger.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace kvpool {
namespace {

constexpr int64_t kLeastBound = 8;

}  // namespace

int64_t LeaseLedger::Lease::Committed() const {
  return orders.empty() ? promise : std::max(promise, orders.front().slabs);
}

void LeaseLedger::Lease::Add(Order order) {
  while (!orders.empty() && orders.back().slabs <= order.slabs) orders.pop_back();
  orders.push_back(order);
}

void LeaseLedger::Lease::Acknowledge(uint64_t seq, int64_t slabs) {
  promise = slabs;
  std::erase_if(orders, [&](const Order& order) { return order.seq < seq; });
}

int64_t LeaseLedger::Agent::Committed() const {
  int64_t sum = 0;
  for (const auto& [tenant, lease] : leases) sum += lease.Committed();
  return sum;
}

int64_t LeaseLedger::Agent::Bound(TenantId tenant) const {
  const auto bound = bounds.find(tenant);
  return bound == bounds.end() ? 0 : bound->second;
}

LeaseLedger::LeaseLedger(uint64_t epoch, const std::vector<LeaseHolder>& known_agents)
    : epoch_(epoch) {
  for (const LeaseHolder& known : known_agents) {
    unheard_.push_back(known.agent);
    Agent& agent = agents_[known.agent];
    agent.incarnation = known.incarnation;
    agent.bounds = known.bounds;
    for (const auto& [tenant, slabs] : known.bounds) agent.leases[tenant].promise = slabs;
  }
}

void LeaseLedger::Connect(const std::string& name, uint64_t incarnation, int64_t capacity_slabs) {
  Agent& agent = agents_[name];
  if (agent.incarnation != incarnation) {
    Agent another{.incarnation = incarnation, .bounds = std::move(agent.bounds)};
    for (const auto& [tenant, lease] : agent.leases) {
      another.leases[tenant].promise = lease.Committed();
    }
    agent = std::move(another);
  }
  agent.connected = true;
  agent.heard = false;
  agent.report_seq = 0;
  agent.capacity = capacity_slabs;
}

void LeaseLedger::Disconnect(const std::string& name) { agents_.at(name).connected = false; }

void LeaseLedger::Forget(const std::string& name) {
  agents_.erase(name);
  std::erase(unheard_, name);
}

void LeaseLedger::Remove(TenantId tenant) {
  for (auto& [name, agent] : agents_) {
    agent.leases.erase(tenant);
    agent.bounds.erase(tenant);
  }
}

bool LeaseLedger::Report(const std::string& name, uint64_t seq,
                         const std::vector<LeaseReport>& tenants) {
  Agent& agent = agents_.at(name);
  if (seq <= agent.report_seq) return false;
  agent.report_seq = seq;
  agent.heard = true;
  std::erase(unheard_, name);

  std::map<TenantId, Lease> never_ordered;
  for (auto& [tenant, lease] : agent.leases) {
    if (lease.orders.empty()) never_ordered.emplace(tenant, lease);
  }
  for (const LeaseReport& report : tenants) {
    never_ordered.erase(report.tenant);
    Lease& lease = agent.leases[report.tenant];
    if (report.epoch < epoch_) {
      // It has applied none of this epoch's orders: they all stand beside the old promise.
      lease.promise = report.slabs;
    } else if (report.epoch == epoch_ && report.seq <= last_seq_) {
      lease.Acknowledge(report.seq, report.slabs);
    }
  }
  for (const auto& [tenant, lease] : never_ordered) agent.leases.erase(tenant);
  return true;
}

void LeaseLedger::Plan(const std::vector<LeaseTarget>& targets) {
  if (Learning()) return;
  std::vector<Agent*> ready;
  for (auto& [name, agent] : agents_) {
    if (agent.Ready()) ready.push_back(&agent);
  }
  for (const LeaseTarget& target : targets) {
    for (size_t a = 0; a < ready.size(); ++a) {
      Lease& lease = ready[a]->leases[target.tenant];
      if (target.slabs[a] < lease.Ordered()) lease.Add({++last_seq_, target.slabs[a]});
    }
  }
  std::vector<int64_t> agent_room;
  for (const Agent* agent : ready) agent_room.push_back(agent->capacity - agent->Committed());
  const std::map<TenantId, int64_t> committed = CommittedByTenant();
  for (const LeaseTarget& target : targets) {
    const auto sum = committed.find(target.tenant);
    int64_t tenant_room = target.limit - (sum == committed.end() ? 0 : sum->second);
    for (size_t a = 0; a < ready.size(); ++a) {
      Lease& lease = ready[a]->leases.at(target.tenant);
      const int64_t before = lease.Committed();
      const int64_t fits = before + std::min(tenant_room, agent_room[a]);
      const int64_t slabs = std::min(target.slabs[a], fits);
      if (slabs > lease.Ordered()) {
        lease.Add({++last_seq_, slabs});
      } else if (lease.orders.empty()) {
        lease.Add({++last_seq_, lease.promise});  // confirms what an earlier manager granted
      }
      tenant_room -= lease.Committed() - before;
      agent_room[a] -= lease.Committed() - before;
    }
  }
}

std::map<TenantId, int64_t> LeaseLedger::CommittedByTenant() const {
  std::map<TenantId, int64_t> sums;
  for (const auto& [name, agent] : agents_) {
    for (const auto& [tenant, lease] : agent.leases) sums[tenant] += lease.Committed();
  }
  return sums;
}

LeaseTable LeaseLedger::LeasesOf(const std::vector<TenantId>& tenants) const {
  LeaseTable table{.agents = ReadyAgents()};
  const std::vector<int64_t> none(table.agents.size());
  table.others = none;
  table.ordered = table.committed = std::vector(tenants.size(), none);
  table.elsewhere.resize(tenants.size());
  std::map<TenantId, size_t> places;
  for (size_t t = 0; t < tenants.size(); ++t) places[tenants[t]] = t;
  for (const auto& [name, agent] : agents_) {
    const size_t a = table.capacity.size();
    if (agent.Ready()) table.capacity.push_back(agent.capacity);
    for (const auto& [tenant, lease] : agent.leases) {
      const auto place = places.find(tenant);
      if (place == places.end()) {
        if (agent.Ready()) table.others[a] += lease.Committed();
      } else if (agent.Ready()) {
        table.ordered[place->second][a] = lease.Ordered();
        table.committed[place->second][a] = lease.Committed();
      } else {
        table.elsewhere[place->second] += lease.Committed();
      }
    }
  }
  return table;
}

std::vector<LeaseOrder> LeaseLedger::Orders(const std::string& name) const {
  std::vector<LeaseOrder> orders;
  for (const auto& [tenant, lease] : agents_.at(name).leases) {
    if (lease.orders.empty() || lease.Ordered() > agents_.at(name).Bound(tenant)) continue;
    orders.push_back({tenant, lease.orders.back().seq, lease.orders.back().slabs});
  }
  return orders;
}

bool LeaseLedger::AwaitsBounds(const std::string& name) const {
  const Agent& agent = agents_.at(name);
  return std::any_of(agent.leases.begin(), agent.leases.end(), [&](const auto& entry) {
    return entry.second.Ordered() > agent.Bound(entry.first);
  });
}

LeaseBounds LeaseLedger::PrepareBounds(const std::string& name) {
  Agent& agent = agents_.at(name);
  LeaseBounds bounds;
  for (const auto& [tenant, lease] : agent.leases) {
    const int64_t slabs = lease.Committed();
    if (slabs == 0) continue;
    bounds[tenant] =
        std::max(kLeastBound, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(slabs))));
  }
  std::erase_if(agent.bounds, [&](const auto& bound) { return !bounds.contains(bound.first); });
  for (auto& [tenant, slabs] : agent.bounds) slabs = std::min(slabs, bounds.at(tenant));
  return bounds;
}

void LeaseLedger::BoundsRecorded(const std::string& name, const LeaseBounds& bounds) {
  const auto agent = agents_.find(name);
  if (agent != agents_.end()) agent->second.bounds = bounds;
}

std::vector<std::string> LeaseLedger::ReadyAgents() const {
  std::vector<std::string> names;
  for (const auto& [name, agent] : agents_) {
    if (agent.Ready()) names.push_back(name);
  }
  return names;
}

const LeaseLedger::Lease* LeaseLedger::Find(TenantId tenant, const std::string& name) const {
  const auto agent = agents_.find(name);
  if (agent == agents_.end()) return nullptr;
  const auto lease = agent->second.leases.find(tenant);
  return lease == agent->second.leases.end() ? nullptr : &lease->second;
}

int64_t LeaseLedger::Committed(TenantId tenant, const std::string& name) const {
  const Lease* lease = Find(tenant, name);
  return lease == nullptr ? 0 : lease->Committed();
}

int64_t LeaseLedger::Committed(TenantId tenant) const {
  int64_t sum = 0;
  for (const auto& [name, agent] : agents_) sum += Committed(tenant, name);
  return sum;
}

int64_t LeaseLedger::Ordered(TenantId tenant, const std::string& name) const {
  const Lease* lease = Find(tenant, name);
  return lease == nullptr ? 0 : lease->Ordered();
}

}  // namespace kvpool
