// Divides the cluster's slabs among tenants: from budgets, capacities and demand to the lease that
// each tenant should have at each agent. It knows nothing of what is leased now and of what may be
// sent when: that is lease_ledger.h's business. A pure function of its input, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

namespace kvpool {

// All numbers are whole slabs, and none is negative. Every agent's slabs have the same size.
struct AllocatorInput {
  struct Tenant {
    int64_t guaranteed = 0;  // at most `limit`
    int64_t limit = 0;
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

// lease[tenant][agent], in three steps, each on what the one before left over:
//
//   1. Guarantees. Of min(demand, guaranteed) as much as fits is placed, all tenants together: no
//      other placement serves more. Where it does not fit, agents share their slabs max-min.
//   2. The rest of the demand, up to the limit. A tenant asks each agent for a part of its
//      remaining limit in proportion to its unmet demand there; each agent shares its free slabs
//      max-min between those who ask; again until nothing moves.
//   3. Head-room and starting credit, up to the limit, in the same way as 2.
//
// Always: an agent's leases sum to at most its capacity, a tenant's to at most its limit, and as
// long as an agent has free slabs, no tenant below its limit has unmet demand there.
std::vector<std::vector<int64_t>> Allocate(const AllocatorInput& input);

}  // namespace kvpool
