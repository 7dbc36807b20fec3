// See persistence.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/persistence.h"

#include <algorithm>
#include <numeric>

namespace kvpool {
namespace {

// Entries from .. to - 1 of the ring, by age.
struct Half {
  uint32_t from = 0, to = 0, queries = 0;
};

Half HalfOf(const Planes& planes, uint32_t from, uint32_t to) {
  Half half{.from = from, .to = to};
  for (uint32_t age = from; age < to; ++age) half.queries += planes.drain_queries(age);
  return half;
}

// Whether some query of the half did not find a row low that all of them saw.
bool Important(const Planes& planes, uint32_t plane, uint32_t row, const Half& half) {
  uint32_t low = 0;
  for (uint32_t age = half.from; age < half.to; ++age) low += planes.low_counts(plane, age)[row];
  return low < half.queries;
}

}  // namespace

std::vector<double> LayerPersistence(const Geometry& geometry, const Planes& planes,
                                     uint32_t window) {
  const uint32_t drains = planes.DrainsWithin(window);
  const Half newer = HalfOf(planes, 0, drains / 2), older = HalfOf(planes, drains / 2, drains);
  std::vector<double> persistence;
  for (uint32_t layer = 0; layer < geometry.layers; ++layer) {
    uint32_t important = 0, persistent = 0;
    for (uint32_t plane = layer * geometry.kv_heads; plane < (layer + 1) * geometry.kv_heads;
         ++plane) {
      const std::vector<uint32_t>& positions = planes.positions(plane);
      if (positions.empty()) continue;
      const uint64_t newest = *std::max_element(positions.begin(), positions.end());
      for (uint32_t row = 0; row < positions.size(); ++row) {
        if (uint64_t{positions[row]} + newer.queries + older.queries > newest + 1) continue;
        if (!Important(planes, plane, row, newer)) continue;
        ++important;
        persistent += Important(planes, plane, row, older) ? 1 : 0;
      }
    }
    persistence.push_back(important == 0 ? 1.0 : static_cast<double>(persistent) / important);
  }
  return persistence;
}

std::vector<uint32_t> ShareByPersistence(const std::vector<double>& persistence, double gain,
                                         uint32_t mean, uint32_t least) {
  std::vector<double> weights;
  for (double p : persistence) weights.push_back(1 + gain * (1 - p));
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  const double shared = static_cast<double>(mean - least) * static_cast<double>(weights.size());
  std::vector<uint32_t> shares;
  for (double weight : weights) {
    shares.push_back(least + static_cast<uint32_t>(shared * weight / sum));
  }
  return shares;
}

}  // namespace kvpool
