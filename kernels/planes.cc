// The arrays behind planes.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/planes.h"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace kvpool {
namespace {

template <typename T>
void GatherInto(std::vector<T>& array, const std::vector<uint32_t>& source) {
  std::vector<T> gathered(source.size());
  for (size_t i = 0; i < source.size(); ++i) gathered[i] = array[source[i]];
  array.swap(gathered);
}

}  // namespace

uint64_t PlaneBytes(const Geometry& geometry, const PlaneSet& set, uint32_t rows) {
  return (sizeof(uint32_t) + sizeof(float) + set.low_count_ring) * uint64_t{geometry.planes()} *
         rows;
}

Planes::Planes(const Geometry& geometry, const PlaneSet& set)
    : set_(set),
      planes_(geometry.planes()),
      ring_queries_(set.low_count_ring),
      positions_(planes_),
      mass_(planes_),
      low_(planes_, std::vector<std::vector<uint8_t>>(set.low_count_ring)) {}

void Planes::Append(uint32_t first_position, uint32_t count) {
  for (uint32_t plane = 0; plane < planes_; ++plane) {
    for (uint32_t i = 0; i < count; ++i) positions_[plane].push_back(first_position + i);
    const size_t rows = positions_[plane].size();
    mass_[plane].resize(rows);
    for (std::vector<uint8_t>& counts : low_[plane]) counts.resize(rows);
  }
}

void Planes::BeginDrain(uint32_t queries) {
  if (set_.low_count_ring == 0) return;
  if (ring_queries_[newest_] + queries <= kDrainQueries) {
    ring_queries_[newest_] += queries;
    return;
  }
  newest_ = (newest_ + 1) % set_.low_count_ring;
  ring_queries_[newest_] = queries;
  for (auto& ring : low_) std::fill(ring[newest_].begin(), ring[newest_].end(), uint8_t{0});
}

uint8_t* Planes::low_counts(uint32_t plane, uint32_t age) {
  return low_[plane][RingSlot(age)].data();
}

const uint8_t* Planes::low_counts(uint32_t plane, uint32_t age) const {
  return low_[plane][RingSlot(age)].data();
}

uint32_t Planes::drain_queries(uint32_t age) const {
  return age < set_.low_count_ring ? ring_queries_[RingSlot(age)] : 0;
}

uint32_t Planes::DrainsWithin(uint32_t window) const {
  uint32_t drains = 0, queries = 0;
  while (drains < set_.low_count_ring && drain_queries(drains) != 0) {
    queries += drain_queries(drains);
    if (queries > window && drains > 0) break;
    ++drains;
  }
  return drains;
}

uint32_t Planes::LowCount(uint32_t plane, uint32_t row, uint32_t window) const {
  uint32_t count = 0;
  const uint32_t drains = DrainsWithin(window);
  for (uint32_t age = 0; age < drains; ++age) count += low_counts(plane, age)[row];
  return count;
}

void Planes::Gather(uint32_t plane, const std::vector<uint32_t>& source) {
  GatherInto(positions_[plane], source);
  mass_[plane].assign(source.size(), 0.0f);
  for (std::vector<uint8_t>& counts : low_[plane]) GatherInto(counts, source);
}

void Planes::Reorder(uint32_t plane, const std::vector<uint32_t>& source) {
  std::vector<float> mass = std::move(mass_[plane]);
  Gather(plane, source);
  GatherInto(mass, source);
  mass_[plane] = std::move(mass);
}

uint32_t Planes::RingSlot(uint32_t age) const {
  return (newest_ + set_.low_count_ring - age) % set_.low_count_ring;
}

}  // namespace kvpool
