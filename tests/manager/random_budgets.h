// Small random clusters for property tests: short and idle agents, guarantees that can and cannot
// all be placed, floors that fit, weights and priorities, all alike or not.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "manager/allocator.h"

namespace kvpool {

inline AllocatorInput RandomBudgets(std::mt19937& random) {
  const auto below = [&](int64_t n) {
    return std::uniform_int_distribution<int64_t>(0, n)(random);
  };
  AllocatorInput input;
  input.capacity.resize(1 + below(6));
  for (int64_t& slabs : input.capacity) slabs = below(3) == 0 ? below(4) : below(60);
  const int64_t capacity =
      std::accumulate(input.capacity.begin(), input.capacity.end(), int64_t{0});
  int64_t unpromised = capacity;
  std::vector<int64_t> unpinned = input.capacity;
  const bool same_weight = below(2) == 0, same_priority = below(1) == 0;
  input.tenants.resize(below(8));
  for (AllocatorInput::Tenant& tenant : input.tenants) {
    // Guarantees exceed the capacity only when an agent was lost: seldom.
    tenant.guaranteed = below(10) == 0 ? below(capacity) : below(unpromised);
    unpromised = std::max<int64_t>(unpromised - tenant.guaranteed, 0);
    tenant.limit = tenant.guaranteed + below(2 * capacity);
    if (!same_weight) tenant.weight = 1 + (below(1) == 0 ? below(4) : below(100));
    if (!same_priority) tenant.priority = static_cast<int>(below(2)) * 4;
    if (below(5) == 0) tenant.borrowing = Borrowing::kOff;
    for (size_t a = 0; a < input.capacity.size(); ++a) {
      tenant.demand.push_back(below(2) == 0 ? 0 : below(80));
    }
    if (below(2) > 0) continue;
    int64_t left = tenant.guaranteed;
    for (int64_t& slabs : unpinned) {
      tenant.floors.push_back(below(std::min(left, slabs)));
      left -= tenant.floors.back();
      slabs -= tenant.floors.back();
    }
  }
  return input;
}

}  // namespace kvpool
