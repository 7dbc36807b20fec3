// Max-min filling in rounds, and augmenting paths that make the guarantees' placement exact.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/allocator.h"

#include <algorithm>
#include <numeric>

#include "common/units.h"

namespace kvpool {
namespace {

using Row = std::vector<int64_t>;
using Table = std::vector<Row>;  // [tenant][agent]

int64_t Sum(const Row& row) { return std::accumulate(row.begin(), row.end(), int64_t{0}); }

// At most `amount` in all and `wants[i]` to each, as equal as that allows: who gets less than it
// wants gets at most one less than anyone else.
Row ShareMaxMin(int64_t amount, const Row& wants) {
  std::vector<size_t> order(wants.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return wants[a] != wants[b] ? wants[a] < wants[b] : a > b; });
  Row shares(wants.size());
  int64_t sharers = static_cast<int64_t>(wants.size());
  for (const size_t i : order) {
    shares[i] = std::min(wants[i], amount / sharers);
    amount -= shares[i];
    --sharers;
  }
  return shares;
}

// `amount`, or all wants when they are less, in proportion to the wants; sums exactly.
Row SplitByWants(int64_t amount, const Row& wants) {
  const int64_t sum = Sum(wants);
  if (amount >= sum) return wants;
  Row parts(wants.size());
  int64_t wanted_before = 0, given_before = 0;
  for (size_t i = 0; i < wants.size(); ++i) {
    wanted_before += wants[i];
    const int64_t given = amount * wanted_before / sum;
    parts[i] = given - given_before;
    given_before = given;
  }
  return parts;
}

// The leases while they are being filled.
class Filling {
 public:
  explicit Filling(const AllocatorInput& input)
      : leases_(input.tenants.size(), Row(input.capacity.size())), free_(input.capacity) {}

  const Table& leases() const { return leases_; }

  // Raises leases towards `wants[tenant][agent]`, a tenant's sum to at most `ceilings[tenant]`.
  // Ends after at most one round more than there are agents: where none is used up, every tenant
  // got all that it asked for.
  void Fill(const Table& wants, const Row& ceilings) {
    for (bool moved = true; moved;) {
      Table asked(leases_.size());
      for (size_t t = 0; t < leases_.size(); ++t) asked[t] = Ask(t, wants[t], ceilings[t]);
      moved = false;
      for (size_t a = 0; a < free_.size(); ++a) moved |= Serve(a, asked);
    }
  }

  // Raises the sum of all leases as far as it can go by moving other tenants' leases between agents
  // (a maximum flow by shortest augmenting paths). No tenant's sum falls.
  void Augment(const Table& wants, const Row& ceilings) {
    while (const int64_t amount = FindPath(wants, ceilings)) MoveAlongPath(amount);
  }

 private:
  static constexpr size_t kNone = ~size_t{0};

  Row Ask(size_t t, const Row& wants, int64_t ceiling) const {
    Row unmet(free_.size());
    for (size_t a = 0; a < free_.size(); ++a) {
      unmet[a] = std::clamp<int64_t>(wants[a] - leases_[t][a], 0, free_[a]);
    }
    return SplitByWants(std::max<int64_t>(ceiling - Sum(leases_[t]), 0), unmet);
  }

  // Whether anything was granted.
  bool Serve(size_t a, const Table& asked) {
    Row wants(asked.size());
    for (size_t t = 0; t < asked.size(); ++t) wants[t] = asked[t][a];
    const Row shares = ShareMaxMin(free_[a], wants);
    for (size_t t = 0; t < shares.size(); ++t) leases_[t][a] += shares[t];
    const int64_t granted = Sum(shares);
    free_[a] -= granted;
    return granted > 0;
  }

  // Breadth first from every tenant below its ceiling. A tenant leads to the agents where it wants
  // more, an agent to the tenants that hold something there. Ends at an agent with free slabs;
  // returns how much can move along the way, 0 when there is none.
  int64_t FindPath(const Table& wants, const Row& ceilings) {
    const size_t tenants = leases_.size(), agents = free_.size();
    reached_from_.assign(agents, kNone);
    freed_at_.assign(tenants, kNone);
    std::vector<int64_t> amounts(tenants);  // what can reach the tenant; 0: not reached
    std::vector<size_t> queue;
    for (size_t t = 0; t < tenants; ++t) {
      amounts[t] = std::max<int64_t>(ceilings[t] - Sum(leases_[t]), 0);
      if (amounts[t] > 0) queue.push_back(t);
    }
    for (size_t next = 0; next < queue.size(); ++next) {
      const size_t t = queue[next];
      for (size_t a = 0; a < agents; ++a) {
        const int64_t unmet = wants[t][a] - leases_[t][a];
        if (reached_from_[a] != kNone || unmet <= 0) continue;
        reached_from_[a] = t;
        const int64_t amount = std::min(amounts[t], unmet);
        if (free_[a] > 0) {
          end_ = a;
          return std::min(amount, free_[a]);
        }
        for (size_t u = 0; u < tenants; ++u) {
          if (amounts[u] > 0 || leases_[u][a] == 0) continue;
          amounts[u] = std::min(amount, leases_[u][a]);
          freed_at_[u] = a;
          queue.push_back(u);
        }
      }
    }
    return 0;
  }

  void MoveAlongPath(int64_t amount) {
    free_[end_] -= amount;
    for (size_t a = end_; a != kNone;) {
      const size_t t = reached_from_[a];
      leases_[t][a] += amount;
      a = freed_at_[t];
      if (a != kNone) leases_[t][a] -= amount;
    }
  }

  Table leases_;
  Row free_;  // [agent]

  // The path that FindPath found, backwards from agent `end_`.
  size_t end_ = kNone;
  std::vector<size_t> reached_from_;  // [agent]: the tenant that takes slabs here
  std::vector<size_t> freed_at_;      // [tenant]: the agent where it gives slabs up; kNone: start
};

int64_t HeadRoom(int64_t lease) {
  return lease == 0 ? kStartingSlabs
                    : std::min(CeilDiv(lease, kHeadRoomDivisor), kMostHeadRoomSlabs);
}

}  // namespace

Table Allocate(const AllocatorInput& input) {
  Table wants;
  Row guarantees, limits;
  for (const AllocatorInput::Tenant& tenant : input.tenants) {
    wants.push_back(tenant.demand);
    guarantees.push_back(tenant.guaranteed);
    limits.push_back(tenant.limit);
  }
  Filling filling(input);
  filling.Fill(wants, guarantees);
  filling.Augment(wants, guarantees);
  filling.Fill(wants, limits);
  for (size_t t = 0; t < wants.size(); ++t) {
    for (size_t a = 0; a < input.capacity.size(); ++a) {
      const int64_t lease = filling.leases()[t][a];
      wants[t][a] = lease + HeadRoom(lease);
    }
  }
  filling.Fill(wants, limits);
  return filling.leases();
}

}  // namespace kvpool
