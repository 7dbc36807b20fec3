// How far leases move in one round towards what the allocator would like: grows at once, shrinks in
// portions, and nothing that is held, nor a trifle, for nobody. So that demand that wavers does not
// move memory, what a tenant parks (which is no demand) stays while there is room for it, and a new
// budget does not compact half a pool at one stroke. It knows nothing of
// messages: the ledger orders what comes out, and its acknowledgements make the next round. A pure
// function of its input, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

namespace kvpool {

// All numbers are whole slabs; each vector of a tenant is by agent.
struct PacingInput {
  struct Tenant {
    int64_t guaranteed = 0;
    int64_t limit = 0;
    int64_t priority = 0;
    std::vector<int64_t> demand;     // what was allocated for
    std::vector<int64_t> allocated;  // what Allocate gave
    std::vector<int64_t> ordered;    // what it may hold by the standing orders
    std::vector<int64_t> committed;  // all that counts, at least `ordered`: more is on its way back
    std::vector<int64_t> held;       // slabs in its hands, also for what it keeps for later
  };

  std::vector<int64_t> capacity;  // [agent]
  std::vector<Tenant> tenants;    // earlier ones win ties
};

// A shrink below the larger of these is a trifle. (No grow is: with shrinks that wait, demand that
// wavers moves nothing, and head-room that comes late is none.)
inline constexpr int64_t kTrifleSlabs = 2;
inline constexpr int64_t kTrifleDivisor = 20;  // of the lease

// At most this part of an agent's pool, or kTrifleSlabs where that is more, is on its way back.
inline constexpr int64_t kPaceDivisor = 10;

// lease[tenant][agent], each between `ordered` and `allocated`.
//
//   Shrinks. A trifle stays, and so does what is held, unless somebody waits for it: at that agent,
//   or the tenant itself at another one, at its limit. The others together keep the pace. Unused
//   leases go first, then those of the lowest priority, then the largest. Two kinds do not wait for
//   the pace: what a tenant lacks of its guarantee comes back at once, and so does what one has
//   above its limit. Grows. As much as has room now: what guarantees lack first, then demand by
//   priority, then head-room.
//
// While allocations stay the same and agents acknowledge, every lease moves towards its allocation
// only, all demand that was allocated for is served after finitely many rounds, and then nothing
// changes any more.
std::vector<std::vector<int64_t>> PaceLeases(const PacingInput& input);

}  // namespace kvpool
