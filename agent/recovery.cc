// Means, minima and products. See recovery.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/recovery.h"

#include <algorithm>
#include <cstddef>

namespace kvpool {

void RecoveryStats::Add(const RecoveryStats& other) {
  if (!other.measured()) return;
  if (!measured()) {
    *this = other;
    return;
  }
  const double sum = double{mean} * count + double{other.mean} * other.count;
  count += other.count;
  mean = static_cast<float>(sum / count);
  min = std::min(min, other.min);
}

RecoveryStats StatsOf(std::span<const RecoveryStats> sessions) {
  RecoveryStats stats;
  float sum = 0;
  for (const RecoveryStats& one : sessions) {
    if (!one.measured()) continue;
    stats.min = stats.measured() ? std::min(stats.min, one.min) : one.min;
    sum += one.mean;
    ++stats.count;
  }
  if (stats.measured()) stats.mean = sum / static_cast<float>(stats.count);
  return stats;
}

RecoveryStats StatsOf(std::span<const float> heads) {
  std::vector<RecoveryStats> each;
  for (float head : heads) each.push_back({.mean = head, .min = head, .count = head >= 0});
  return StatsOf(each);
}

void MultiplyRecovery(std::span<const float> heads, std::vector<float>* product) {
  product->resize(heads.size(), -1.0f);
  for (size_t head = 0; head < heads.size(); ++head) {
    if (heads[head] < 0) continue;
    float& all = (*product)[head];
    all = all < 0 ? heads[head] : all * heads[head];
  }
}

}  // namespace kvpool
