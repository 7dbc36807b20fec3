// A level that surely fits in one division, then the few that are left one by one.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/max_min.h"

#include <algorithm>

#include "common/units.h"

namespace kvpool {
namespace {

// Gives `left` to the poorest, one by one. Needs at least as much that `open` still want.
void GiveToThePoorest(int64_t left, const std::vector<Claim>& claims, std::vector<size_t> open,
                      std::vector<int64_t>& shares) {
  const auto richer = [&](size_t a, size_t b) {
    const int64_t of_a = shares[a] * claims[b].weight, of_b = shares[b] * claims[a].weight;
    return of_a != of_b ? of_a > of_b : a > b;
  };
  std::make_heap(open.begin(), open.end(), richer);
  for (; left > 0; --left) {
    std::pop_heap(open.begin(), open.end(), richer);
    const size_t poorest = open.back();
    if (++shares[poorest] == claims[poorest].want) {
      open.pop_back();
    } else {
      std::push_heap(open.begin(), open.end(), richer);
    }
  }
}

}  // namespace

std::vector<int64_t> ShareMaxMin(int64_t amount, const std::vector<Claim>& claims) {
  std::vector<int64_t> shares(claims.size());
  std::vector<size_t> open;  // who wants more than it has, by index
  int64_t wanted = 0, weights = 0;
  for (size_t i = 0; i < claims.size(); ++i) {
    if (claims[i].want == 0) continue;
    open.push_back(i);
    wanted += claims[i].want;
    weights += claims[i].weight;
  }
  if (wanted <= amount) {
    for (const size_t i : open) shares[i] = claims[i].want;
    return shares;
  }
  // All up to the level (left - open) / weights, rounded up, fit even if each was rounded up by
  // one. Who wants no more than that is served; without it the level is higher.
  int64_t left = amount;  // for those who are open
  for (bool served = true; served;) {
    const int64_t sure = left - static_cast<int64_t>(open.size());
    if (sure <= 0) break;
    served = false;
    const int64_t level_of = sure, level_per = weights;
    std::erase_if(open, [&](size_t i) {
      shares[i] = std::min(claims[i].want, CeilDiv(level_of * claims[i].weight, level_per));
      if (shares[i] < claims[i].want) return false;
      left -= shares[i];
      weights -= claims[i].weight;
      return served = true;
    });
  }
  for (const size_t i : open) left -= shares[i];
  GiveToThePoorest(left, claims, std::move(open), shares);
  return shares;
}

}  // namespace kvpool
