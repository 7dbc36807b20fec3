// Host executor of selections: exact integer ranks and a partial order, never a full sort.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <functional>
#include <numeric>

#include "kernels/selection.h"

namespace kvpool {
namespace {

// Lowest position among the `recent` newest rows; one past every position when recent is 0.
uint64_t RecentFrom(const std::vector<uint32_t>& positions, uint32_t recent) {
  if (recent == 0) return uint64_t{1} << 32;
  if (recent >= positions.size()) return 0;
  std::vector<uint32_t> order = positions;
  std::nth_element(order.begin(), order.begin() + (recent - 1), order.end(), std::greater<>());
  return order[recent - 1];
}

std::vector<uint32_t> LowCounts(const Planes& planes, uint32_t plane, uint32_t window) {
  std::vector<uint32_t> counts(planes.rows(plane));
  const uint32_t drains = planes.DrainsWithin(window);
  for (uint32_t age = 0; age < drains; ++age) {
    const uint8_t* low = planes.low_counts(plane, age);
    for (size_t row = 0; row < counts.size(); ++row) counts[row] += low[row];
  }
  return counts;
}

// Adds the `places` rows of `candidates` with the fewest low marks, newer first among equals.
void FillByLowCount(const Planes& planes, uint32_t plane, uint32_t window, size_t places,
                    const KeepRows& candidates, KeepRows* keep) {
  const std::vector<uint32_t> low = LowCounts(planes, plane, window);
  const std::vector<uint32_t>& positions = planes.positions(plane);
  struct Ranked {
    uint64_t rank;
    uint32_t row;
  };
  std::vector<Ranked> ranked;
  ranked.reserve(candidates.size());
  for (uint32_t row : candidates) {
    ranked.push_back({uint64_t{low[row]} << 32 | (UINT32_MAX - positions[row]), row});
  }
  places = std::min(places, ranked.size());
  std::nth_element(ranked.begin(), ranked.begin() + static_cast<ptrdiff_t>(places), ranked.end(),
                   [](const Ranked& a, const Ranked& b) { return a.rank < b.rank; });
  for (size_t i = 0; i < places; ++i) keep->push_back(ranked[i].row);
  std::sort(keep->begin(), keep->end());
}

KeepRows SelectHead(const Selection& selection, const Planes& planes, uint32_t plane) {
  const std::vector<uint32_t>& positions = planes.positions(plane);
  KeepRows keep, candidates;
  if (positions.size() <= selection.total) {
    keep.resize(positions.size());
    std::iota(keep.begin(), keep.end(), 0);
    return keep;
  }
  const uint64_t recent_from = RecentFrom(positions, selection.recent);
  for (uint32_t row = 0; row < positions.size(); ++row) {
    const bool stays = positions[row] < selection.first || positions[row] >= recent_from;
    (stays ? keep : candidates).push_back(row);
  }
  if (selection.rank == Selection::Rank::kLowCount && keep.size() < selection.total) {
    FillByLowCount(planes, plane, selection.window, selection.total - keep.size(), candidates,
                   &keep);
  }
  return keep;
}

}  // namespace

std::vector<KeepRows> Select(const Selection& selection, const Planes& planes) {
  std::vector<KeepRows> keep;
  keep.reserve(planes.planes());
  for (uint32_t plane = 0; plane < planes.planes(); ++plane) {
    keep.push_back(SelectHead(selection, planes, plane));
  }
  return keep;
}

std::vector<float> Recovery(const std::vector<KeepRows>& keep, const Planes& planes) {
  std::vector<float> recovery;
  recovery.reserve(keep.size());
  for (uint32_t plane = 0; plane < keep.size(); ++plane) {
    const std::vector<float>& mass = planes.mass(plane);
    const double total = std::accumulate(mass.begin(), mass.end(), 0.0);
    double kept = 0;
    for (uint32_t row : keep[plane]) kept += mass[row];
    recovery.push_back(total > 0 ? static_cast<float>(kept / total) : -1.0f);
  }
  return recovery;
}

}  // namespace kvpool
