// Divides the cluster's slabs among tenants: from budgets, capacities and demand to the lease that
// each tenant should have at each agent. It knows nothing of what is leased now, of what may be
// sent when: those are lease_pacing.h's and lease_ledger.h's business. A pure function of its
// input, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "common/tenants_file.h"

namespace kvpool {

// All numbers are whole slabs, and none is negative. Every agent's slabs have the same size.
struct AllocatorInput {
  struct Tenant {
    int64_t guaranteed = 0;       // at most `limit`
    std::vector<int64_t> floors;  // [agent]: parts of `guaranteed` kept for it there; empty: none
    int64_t limit = 0;
    int64_t weight = 1;    // 1..kMaxWeight: its share of what is borrowed within a priority
    int64_t priority = 0;  // 0..kMaxPriority: the highest borrows first, all that it wants
    Borrowing borrowing = Borrowing::kOn;
    std::vector<int64_t> demand;  // [agent]: what it holds or waits for there
  };

  std::vector<int64_t> capacity;  // [agent]: slabs it can lease out, at most kSlabsPerAgent
  std::vector<Tenant> tenants;    // earlier ones win ties
};

// What idle capacity is granted ahead of demand, so that a worker seldom waits for the manager: a
// quarter of the lease where there is one, a starting credit where there is none.
inline constexpr int64_t kHeadRoomDivisor = 4;
inline constexpr int64_t kMostHeadRoomSlabs = 8;
inline constexpr int64_t kStartingSlabs = 2;

// lease[tenant][agent], in four steps, each on what the ones before left over:
//
//   1. Floors. Of min(demand, floor) all, at every agent where they fit: promises that sum to more
//      than an agent has are met max-min. Without demand nothing is kept: a guarantee is lent while
//      it is not used.
//   2. Guarantees. Of min(demand, guaranteed) as much as fits is placed, all tenants together: no
//      other placement serves more. What cannot all be placed is max-min. Weight and priority do
//      not count.
//   3. Borrowing. The rest of the demand up to the limit, one priority after the other, weighted
//      max-min within: slab by slab to the tenant that has borrowed least per weight, unless no
//      placement has room for it. What one cannot place goes to the others.
//   4. Head-room and starting credit, up to the limit, by weight.
//
// In 2 and 3 a tenant's slabs may be moved between agents for another's, but what it has in sum
// stays. How a sum is split over agents follows the tenant's demand there as far as that costs
// nobody anything.
//
// Always: an agent's leases sum to at most its capacity, a tenant's to at most its limit (without
// borrowing: its guarantee), and as long as an agent has free slabs, no tenant below that has unmet
// demand there. More capacity never lowers what anyone has after step 2, as long as the floors fit.
std::vector<std::vector<int64_t>> Allocate(const AllocatorInput& input);

}  // namespace kvpool
