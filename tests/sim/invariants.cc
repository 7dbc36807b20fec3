// The checks. See invariants.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/invariants.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace kvpool::sim {
namespace {

constexpr uint64_t kWalkEvery = 16;

}  // namespace

void Invariants::AfterEvent() {
  may_hold_.clear();
  for (size_t i = 0; i < agents_.size(); ++i) {
    if (agents_[i].running()) CheckAgent(i);
  }
  CheckLimits();
  ++checks_;
  if (++events_ % kWalkEvery == 0) Walk();
}

// I4 at the agent, I5, I6.
void Invariants::CheckAgent(size_t index) {
  const SimAgent& agent = agents_[index];
  Seen& seen = seen_[index];
  if (seen.incarnation != agent.incarnation()) seen = {.incarnation = agent.incarnation()};
  if (agent.book().highest_epoch() < seen.epoch) {
    world_.Violate("I6", absl::StrCat(agent.shape().name, " went back from epoch ", seen.epoch,
                                      " to ", agent.book().highest_epoch()));
  }
  seen.epoch = agent.book().highest_epoch();
  int64_t at_agent = 0;
  for (const auto& [id, tenant] : agent.book().tenants()) {
    const uint32_t held = agent.ledger().Usage(id).held_slabs;
    uint32_t& before = seen.held[id];
    if (held > before && held > tenant.lease_slabs) {
      world_.Violate("I5", absl::StrCat("tenant ", id.value(), " went from ", before, " to ", held,
                                        " slabs at ", agent.shape().name, " with a lease of ",
                                        tenant.lease_slabs));
    }
    before = held;
    auto& lease = seen.lease[id];
    if (std::pair(tenant.lease_epoch, tenant.lease_seq) < lease) {
      world_.Violate("I6", absl::StrCat("the lease of tenant ", id.value(), " at ",
                                        agent.shape().name, " went back"));
    }
    lease = {tenant.lease_epoch, tenant.lease_seq};
    const int64_t may_hold = TenantBook::Promise(tenant, held);
    at_agent += may_hold;
    may_hold_[id] += may_hold;
  }
  if (at_agent > agent.capacity()) {
    world_.Violate("I4", absl::StrCat("tenants may hold ", at_agent, " slabs at ",
                                      agent.shape().name, ", which has ", agent.capacity()));
  }
}

// The one of the highest epoch that there ever was; nullptr while it is down.
const Cluster* Invariants::Leader() {
  const Cluster* leader = nullptr;
  for (const SimManager& manager : managers_) {
    const Cluster* cluster = manager.cluster();
    if (cluster == nullptr || cluster->epoch() < epoch_) continue;
    epoch_ = cluster->epoch();
    leader = cluster;
  }
  return leader;
}

// The largest that a running manager believes in: an old one beside the leader may not know better.
int64_t Invariants::LimitSlabs(TenantId tenant) const {
  int64_t limit = 0;
  for (const SimManager& manager : managers_) {
    if (manager.cluster() == nullptr) continue;
    for (const auto& [name, known] : manager.cluster()->tenants().by_name()) {
      if (known.id == tenant) limit = std::max(limit, known.spec.limit / slab_bytes_);
    }
  }
  return limit;
}

// I4 over the cluster. An operator may lower a limit below what is out already: then the bound
// comes down with what the leader knows to be committed, and never goes up again above the limit.
void Invariants::CheckLimits() {
  const Cluster* leader = Leader();
  if (leader != nullptr) {
    for (const auto& [name, tenant] : leader->tenants().by_name()) may_hold_.try_emplace(tenant.id);
    for (const auto& [tenant, bound] : bounds_) may_hold_.try_emplace(tenant);
    for (const auto& [tenant, may_hold] : may_hold_) {
      int64_t& bound = bounds_[tenant];
      int64_t out = bound;
      if (!leader->ledger().Learning()) out = std::min(out, leader->ledger().Committed(tenant));
      bound = std::max(LimitSlabs(tenant), out);
    }
  }
  for (const auto& [tenant, may_hold] : may_hold_) {
    const auto bound = bounds_.find(tenant);
    const int64_t most = bound == bounds_.end() ? 0 : bound->second;
    if (may_hold <= most) continue;
    world_.Violate("I4", absl::StrCat("tenant ", tenant.value(), " may hold ", may_hold,
                                      " slabs over all agents; its limit is ", LimitSlabs(tenant),
                                      ", and at most ", most, " can be out"));
  }
}

// I1, I2, I3.
void Invariants::Walk() {
  for (const SimAgent& agent : agents_) {
    if (!agent.running()) continue;
    if (const absl::Status status = agent.ledger().CheckInvariants(); !status.ok()) {
      world_.Violate("I1", absl::StrCat(agent.shape().name, ": ", std::string(status.message())));
    }
    for (uint32_t i = 0; i < agent.device().slabs(); ++i) {
      const SlabUsage slab = *agent.ledger().Slab(SlabIndex(i));
      const TenantId owner = agent.device().OwnerOf(SlabIndex(i));
      if (slab.state == SlabState::kFree && owner != TenantId()) {
        world_.Violate("I3", absl::StrCat("slab ", i, " of ", agent.shape().name,
                                          " is FREE with memory of tenant ", owner.value()));
      } else if (owner != slab.tenant) {
        world_.Violate("I2", absl::StrCat("slab ", i, " of ", agent.shape().name, " is tenant ",
                                          slab.tenant.value(), "'s and holds memory of tenant ",
                                          owner.value()));
      }
      if (agent.device().HonestHolders(SlabIndex(i)) > slab.workers) {
        world_.Violate("I2", absl::StrCat("slab ", i, " of ", agent.shape().name,
                                          " is mapped by more workers than the ledger knows"));
      }
    }
  }
}

}  // namespace kvpool::sim
