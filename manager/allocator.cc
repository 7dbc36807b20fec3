// The steps, from budgets to claims; placement.h does the rest.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/allocator.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "common/units.h"
#include "manager/max_min.h"
#include "manager/placement.h"

namespace kvpool {
namespace {

using Row = std::vector<int64_t>;
using Table = std::vector<Row>;  // [tenant][agent]

int64_t Sum(const Row& row) { return std::accumulate(row.begin(), row.end(), int64_t{0}); }

int64_t Ceiling(const AllocatorInput::Tenant& tenant) {
  return tenant.borrowing == Borrowing::kOn ? tenant.limit
                                            : std::min(tenant.limit, tenant.guaranteed);
}

int64_t HeadRoom(int64_t lease) {
  return lease == 0 ? kStartingSlabs
                    : std::min(CeilDiv(lease, kHeadRoomDivisor), kMostHeadRoomSlabs);
}

// The leases while they are being made.
class Allocation {
 public:
  explicit Allocation(const AllocatorInput& input)
      : tenants_(input.tenants),
        free_(input.capacity),
        leases_(tenants_.size(), Row(free_.size())),
        sums_(tenants_.size()) {}

  const Table& leases() const { return leases_; }

  void PlaceFloors() {
    struct Needs {
      std::vector<size_t> tenants;
      std::vector<Claim> claims;
    };
    std::vector<Needs> at(free_.size());
    for (size_t t = 0; t < tenants_.size(); ++t) {
      int64_t guaranteed = tenants_[t].guaranteed;
      for (size_t a = 0; a < tenants_[t].floors.size(); ++a) {
        const int64_t need = std::min({tenants_[t].floors[a], tenants_[t].demand[a], guaranteed});
        if (need == 0) continue;
        guaranteed -= need;
        at[a].tenants.push_back(t);
        at[a].claims.push_back({need});
      }
    }
    for (size_t a = 0; a < free_.size(); ++a) {
      const Row shares = ShareMaxMin(free_[a], at[a].claims);
      free_[a] -= Sum(shares);
      for (size_t i = 0; i < shares.size(); ++i) {
        leases_[at[a].tenants[i]][a] = shares[i];
        sums_[at[a].tenants[i]] += shares[i];
      }
    }
  }

  void PlaceDemand() {
    Placement placement(free_, tenants_.size());
    for (size_t t = 0; t < tenants_.size(); ++t) {
      for (size_t a = 0; a < free_.size(); ++a) {
        const int64_t unmet = tenants_[t].demand[a] - leases_[t][a];
        if (unmet > 0) placement.SetWant(t, a, unmet);
      }
    }
    std::vector<Claim> claims(tenants_.size());
    for (size_t t = 0; t < claims.size(); ++t) claims[t].want = tenants_[t].guaranteed - sums_[t];
    Raise(placement, claims);
    for (int64_t priority = kMaxPriority; priority >= 0; --priority) {
      for (size_t t = 0; t < claims.size(); ++t) {
        const bool now = tenants_[t].priority == priority;
        claims[t] = {now ? Ceiling(tenants_[t]) - sums_[t] : 0, tenants_[t].weight};
      }
      Raise(placement, claims);
    }
    Take(placement);
  }

  void PlaceHeadRoom() {
    std::vector<size_t> idle;  // agents
    for (size_t a = 0; a < free_.size(); ++a) {
      if (free_[a] > 0) idle.push_back(a);
    }
    if (idle.empty()) return;
    Placement placement(free_, tenants_.size());
    std::vector<Claim> claims(tenants_.size());
    for (size_t t = 0; t < tenants_.size(); ++t) {
      claims[t] = {Ceiling(tenants_[t]) - sums_[t], tenants_[t].weight};
      if (claims[t].want == 0) continue;
      for (const size_t a : idle) placement.SetWant(t, a, HeadRoom(leases_[t][a]));
    }
    placement.Fill(claims);
    Take(placement);
  }

 private:
  void Raise(Placement& placement, const std::vector<Claim>& claims) {
    if (std::all_of(claims.begin(), claims.end(), [](const Claim& c) { return c.want == 0; })) {
      return;
    }
    placement.Raise(claims);
    for (size_t t = 0; t < sums_.size(); ++t) sums_[t] += placement.gained()[t];
  }

  void Take(const Placement& placement) {
    for (size_t t = 0; t < tenants_.size(); ++t) {
      for (size_t a = 0; a < free_.size(); ++a) leases_[t][a] += placement.placed(t, a);
    }
    free_ = placement.free();
  }

  const std::vector<AllocatorInput::Tenant>& tenants_;
  Row free_;  // [agent]
  Table leases_;
  Row sums_;  // [tenant]: over all agents
};

}  // namespace

Table Allocate(const AllocatorInput& input) {
  Allocation allocation(input);
  allocation.PlaceFloors();
  allocation.PlaceDemand();
  allocation.PlaceHeadRoom();
  return allocation.leases();
}

}  // namespace kvpool
