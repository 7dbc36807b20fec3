// Weighted max-min shares of one amount: the one rule by which the allocator is fair. It knows
// neither tenants nor agents. A pure function, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

namespace kvpool {

struct Claim {
  int64_t want = 0;    // gets at most this
  int64_t weight = 1;  // at least 1
};

// shares[i] of min(amount, the sum of all wants). One after the other goes to the poorest claim,
// the one with the smallest share / weight that wants more; earlier ones win ties. So nobody could
// have one more but from someone who would then have less per weight than it had before.
//
// Needs amount * weight below 2^63 for every weight. O(n log n) for claims as they come, at worst
// O(n^2).
std::vector<int64_t> ShareMaxMin(int64_t amount, const std::vector<Claim>& claims);

}  // namespace kvpool
