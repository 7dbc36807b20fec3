// Who waits for what, then shrinks, then grows into the room that is there.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/lease_pacing.h"

#include <algorithm>
#include <array>
#include <tuple>

#include "common/units.h"
#include "manager/allocator.h"

namespace kvpool {
namespace {

// In slabs, of a tenant or of an agent.
struct Room {
  int64_t free = 0;       // counts for nobody yet; negative: too much counts
  int64_t returning = 0;  // counts still, but is on its way back
  int64_t needed = 0;     // demand that was allocated for and has no lease
  int64_t urgent = 0;     // the part of it that is guaranteed

  bool Lacks() const { return needed > free + returning; }
  int64_t LacksUrgently() const { return std::max<int64_t>(urgent - free - returning, 0); }
};

bool IsTrifle(int64_t change, int64_t lease) {
  return change < std::max(kTrifleSlabs, CeilDiv(lease, kTrifleDivisor));
}

class Pacing {
 public:
  explicit Pacing(const PacingInput& input)
      : input_(input), tenants_(input.tenants.size()), agents_(input.capacity.size()) {
    for (size_t a = 0; a < agents_.size(); ++a) agents_[a].free = input.capacity[a];
    for (size_t t = 0; t < tenants_.size(); ++t) {
      tenants_[t].free = input.tenants[t].limit;
      leases_.push_back(input.tenants[t].ordered);
      Count(t);
    }
  }

  const std::vector<std::vector<int64_t>>& leases() const { return leases_; }

  void Shrink() {
    for (size_t a = 0; a < agents_.size(); ++a) ShrinkAt(a);
  }

  void Grow() {
    for (const std::vector<Step>& rank : grows_) {
      for (const Step& grow : rank) GrowInto(grow);
    }
  }

 private:
  struct Step {
    size_t tenant;
    size_t agent;
    int64_t slabs;
  };

  // Ranks of grows: what guarantees lack, then demand from the highest priority down, then
  // head-room.
  static constexpr size_t kDemandRank = 1;
  static constexpr size_t kHeadRoomRank = kDemandRank + kMaxPriority + 1;

  void Count(size_t t) {
    const PacingInput::Tenant& tenant = input_.tenants[t];
    int64_t guaranteed = tenant.guaranteed;  // the part that no lease meets
    for (size_t a = 0; a < agents_.size(); ++a) {
      guaranteed -= std::min(tenant.ordered[a], tenant.allocated[a]);
    }
    for (size_t a = 0; a < agents_.size(); ++a) {
      const int64_t ordered = tenant.ordered[a], allocated = tenant.allocated[a];
      const int64_t needed = std::max<int64_t>(std::min(allocated, tenant.demand[a]) - ordered, 0);
      const int64_t urgent = std::clamp<int64_t>(guaranteed, 0, needed);
      guaranteed -= urgent;
      for (Room* room : {&tenants_[t], &agents_[a]}) {
        room->free -= tenant.committed[a];
        room->returning += tenant.committed[a] - ordered;
        room->needed += needed;
        room->urgent += urgent;
      }
      Rank(0, {t, a, urgent});
      Rank(kDemandRank + (kMaxPriority - tenant.priority), {t, a, needed - urgent});
      Rank(kHeadRoomRank, {t, a, allocated - ordered - needed});
    }
  }

  void Rank(size_t rank, const Step& grow) {
    if (grow.slabs > 0) grows_[rank].push_back(grow);
  }

  void ShrinkAt(size_t a) {
    Room& agent = agents_[a];
    const int64_t portion = std::max(kTrifleSlabs, input_.capacity[a] / kPaceDivisor);
    int64_t allowed = std::max({agent.LacksUrgently(), portion - agent.returning, int64_t{0}});
    for (const Step& shrink : ShrinksInOrder(a)) {
      const PacingInput::Tenant& tenant = input_.tenants[shrink.tenant];
      Room& own = tenants_[shrink.tenant];
      const int64_t above_limit = std::max<int64_t>(-own.free - own.returning, 0);
      const bool waited_for = agent.Lacks() || own.Lacks() || above_limit > 0;
      int64_t most = shrink.slabs;
      if (!waited_for) {
        most = std::min(most, tenant.ordered[a] - tenant.held[a]);
        if (IsTrifle(most, tenant.ordered[a])) continue;
      }
      const int64_t at_once = std::max(above_limit, own.LacksUrgently());
      const int64_t slabs = std::min(most, std::max(at_once, allowed));
      leases_[shrink.tenant][a] -= slabs;
      allowed = std::max<int64_t>(allowed - slabs, 0);
      own.returning += slabs;
      agent.returning += slabs;
    }
  }

  std::vector<Step> ShrinksInOrder(size_t a) const {
    std::vector<Step> shrinks;
    for (size_t t = 0; t < tenants_.size(); ++t) {
      const int64_t slabs = input_.tenants[t].ordered[a] - input_.tenants[t].allocated[a];
      if (slabs > 0) shrinks.push_back({t, a, slabs});
    }
    const auto order = [&](const Step& shrink) {
      const PacingInput::Tenant& tenant = input_.tenants[shrink.tenant];
      const bool in_use = tenant.demand[a] > tenant.allocated[a];
      return std::tuple(in_use, tenant.priority, -shrink.slabs, shrink.tenant);
    };
    std::sort(shrinks.begin(), shrinks.end(),
              [&](const Step& x, const Step& y) { return order(x) < order(y); });
    return shrinks;
  }

  // What counts for the tenant anyway takes no room.
  void GrowInto(const Step& grow) {
    int64_t& lease = leases_[grow.tenant][grow.agent];
    Room& own = tenants_[grow.tenant];
    Room& agent = agents_[grow.agent];
    const int64_t counts =
        std::max<int64_t>(input_.tenants[grow.tenant].committed[grow.agent] - lease, 0);
    const int64_t room = std::max<int64_t>(std::min(own.free, agent.free), 0);
    const int64_t slabs = std::min(grow.slabs, counts + room);
    const int64_t taken = std::max<int64_t>(slabs - counts, 0);
    lease += slabs;
    own.free -= taken;
    agent.free -= taken;
  }

  const PacingInput& input_;
  std::vector<Room> tenants_, agents_;
  std::vector<std::vector<int64_t>> leases_;
  std::array<std::vector<Step>, kHeadRoomRank + 1> grows_;
};

}  // namespace

std::vector<std::vector<int64_t>> PaceLeases(const PacingInput& input) {
  Pacing pacing(input);
  pacing.Shrink();
  pacing.Grow();
  return pacing.leases();
}

}  // namespace kvpool
