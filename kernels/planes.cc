// The arrays behind planes.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/planes.h"

#include <algorithm>
#include <cstddef>
#include <limits>

namespace kvpool {
namespace {

template <typename T>
void GatherInto(std::vector<T>& array, const std::vector<uint32_t>& source) {
  if (array.empty()) return;  // not declared
  std::vector<T> gathered(source.size());
  for (size_t i = 0; i < source.size(); ++i) gathered[i] = array[source[i]];
  array.swap(gathered);
}

uint32_t QueryFloats(const Geometry& g) { return g.model_layers() * g.query_heads * g.key_dim; }

}  // namespace

uint64_t PlaneBytes(const Geometry& geometry, const PlaneSet& set, uint32_t rows) {
  const uint64_t row = sizeof(uint32_t) + sizeof(float) + set.low_count_ring +
                       (set.last_hit ? sizeof(uint16_t) : 0) + (set.sum ? sizeof(float) : 0) +
                       (set.square_sum ? sizeof(float) : 0) + (set.flags ? 1 : 0);
  return row * geometry.planes() * rows +
         sizeof(float) * (1 + uint64_t{QueryFloats(geometry)}) * set.window_queries;
}

Planes::Planes(const Geometry& geometry, const PlaneSet& set)
    : set_(set),
      query_floats_(QueryFloats(geometry)),
      ring_queries_(set.low_count_ring),
      heads_(geometry.planes()) {
  for (Head& head : heads_) head.low.resize(set.low_count_ring);
}

void Planes::Append(uint32_t first_position, uint32_t count) {
  for (Head& head : heads_) {
    for (uint32_t i = 0; i < count; ++i) head.positions.push_back(first_position + i);
    const size_t rows = head.positions.size();
    head.mass.resize(rows);
    if (set_.sum) head.sum_before.resize(rows);
    if (set_.square_sum) head.square_sum.resize(rows);
    if (set_.last_hit) head.last_hit.resize(rows);
    if (set_.flags) head.flags.resize(rows);
    for (std::vector<uint8_t>& counts : head.low) counts.resize(rows);
  }
}

void Planes::SetSums(uint32_t plane, std::span<const float> sums) {
  Head& head = heads_[plane];
  for (size_t row = 0; row < head.positions.size(); ++row) {
    const uint32_t position = head.positions[row];
    if (position < sums.size()) head.sum_before[row] = sums[position] - head.mass[row];
  }
}

void Planes::SetNewestFlags(std::span<const uint8_t> flags) {
  for (Head& head : heads_) {
    std::copy(flags.begin(), flags.end(), head.flags.end() - static_cast<ptrdiff_t>(flags.size()));
  }
}

void Planes::BeginDrain(uint32_t queries, uint32_t newest_step) {
  observed_ += queries;
  if (newest_step > hit_base_ && newest_step - hit_base_ > std::numeric_limits<uint16_t>::max()) {
    MoveHitBase(newest_step - kMaxHitWindow);
  }
  if (set_.low_count_ring == 0) return;
  if (ring_queries_[newest_] + queries <= kDrainQueries) {
    ring_queries_[newest_] += queries;
    return;
  }
  newest_ = (newest_ + 1) % set_.low_count_ring;
  ring_queries_[newest_] = queries;
  for (Head& head : heads_) {
    std::fill(head.low[newest_].begin(), head.low[newest_].end(), uint8_t{0});
  }
}

void Planes::MoveHitBase(uint32_t base) {
  const uint32_t up = base - hit_base_;
  hit_base_ = base;
  for (Head& head : heads_) {
    for (uint16_t& hit : head.last_hit) hit = static_cast<uint16_t>(hit > up ? hit - up : 0);
  }
}

void Planes::KeepQueries(const std::vector<uint32_t>& positions,
                         const std::vector<float>& vectors) {
  if (set_.window_queries == 0) return;
  window_.positions.insert(window_.positions.end(), positions.begin(), positions.end());
  window_.vectors.insert(window_.vectors.end(), vectors.begin(), vectors.end());
  if (window_.positions.size() <= set_.window_queries) return;
  const size_t over = window_.positions.size() - set_.window_queries;
  window_.positions.erase(window_.positions.begin(),
                          window_.positions.begin() + static_cast<ptrdiff_t>(over));
  window_.vectors.erase(window_.vectors.begin(),
                        window_.vectors.begin() + static_cast<ptrdiff_t>(over * query_floats_));
}

uint8_t* Planes::low_counts(uint32_t plane, uint32_t age) {
  return heads_[plane].low[RingSlot(age)].data();
}

const uint8_t* Planes::low_counts(uint32_t plane, uint32_t age) const {
  return heads_[plane].low[RingSlot(age)].data();
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

void Planes::Gather(uint32_t plane, const std::vector<uint32_t>& source) {
  Head& head = heads_[plane];
  for (size_t row = 0; row < head.sum_before.size(); ++row) head.sum_before[row] += head.mass[row];
  std::fill(head.mass.begin(), head.mass.end(), 0.0f);
  Reorder(plane, source);
}

void Planes::Reorder(uint32_t plane, const std::vector<uint32_t>& source) {
  Head& head = heads_[plane];
  GatherInto(head.mass, source);
  GatherInto(head.positions, source);
  GatherInto(head.sum_before, source);
  GatherInto(head.square_sum, source);
  GatherInto(head.last_hit, source);
  GatherInto(head.flags, source);
  for (std::vector<uint8_t>& counts : head.low) GatherInto(counts, source);
}

uint32_t Planes::RingSlot(uint32_t age) const {
  return (newest_ + set_.low_count_ring - age) % set_.low_count_ring;
}

}  // namespace kvpool
