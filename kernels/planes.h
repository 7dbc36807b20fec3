// Planes: the small per-(head, key) statistics that policies declare and scoring fills. Kept by the
// agent, never mapped by workers. One array element per (layer, head) and row, rows numbered as in
// session_view.h; compaction carries them along with the rows.
//
// Owned by one session's operation at a time; no locking.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/geometry.h"

namespace kvpool {

// Most queries in a drain, and in an entry of the ring of low counts.
inline constexpr uint32_t kDrainQueries = 32;

// Which statistics a session keeps. `positions` and `mass` are always kept: positions because
// policies ask for "recent", mass because recovery is reported for every compaction.
struct PlaneSet {
  // Scissorhands: entries in the ring of low counts; 0: no such plane. See BeginDrain for how many
  // queries an entry holds.
  uint32_t low_count_ring = 0;
  bool operator==(const PlaneSet&) const = default;
};

// Bytes that the planes of one session with `rows` rows a head take: what a tenant is charged.
// (4 position + 4 mass + low_count_ring) per (layer, head) and row.
uint64_t PlaneBytes(const Geometry& geometry, const PlaneSet& set, uint32_t rows);

class Planes {
 public:
  Planes() = default;
  Planes(const Geometry& geometry, const PlaneSet& set);

  const PlaneSet& set() const { return set_; }
  uint32_t planes() const { return planes_; }
  // Rows of (layer, head) number `plane` that have entries.
  uint32_t rows(uint32_t plane) const { return static_cast<uint32_t>(positions_[plane].size()); }

  // Appends rows for tokens at logical positions first .. first + count - 1 to every head, with
  // zero statistics.
  void Append(uint32_t first_position, uint32_t count);

  // Begins a drain of `queries` (1..kDrainQueries) queries. It joins the ring's newest entry while
  // that holds no more than kDrainQueries together, so that many small drains do not shorten what
  // the ring remembers: any two neighbours hold more than kDrainQueries. Else the oldest entry is
  // zeroed and becomes the newest. A no-op without a ring.
  void BeginDrain(uint32_t queries);

  std::vector<uint32_t>& positions(uint32_t plane) { return positions_[plane]; }
  const std::vector<uint32_t>& positions(uint32_t plane) const { return positions_[plane]; }
  // Attention mass since the last compaction: sum over drained queries and the group's query heads.
  std::vector<float>& mass(uint32_t plane) { return mass_[plane]; }
  const std::vector<float>& mass(uint32_t plane) const { return mass_[plane]; }
  // Low counts of the ring's entry that is `age` entries old (0 = newest), [rows].
  uint8_t* low_counts(uint32_t plane, uint32_t age);
  const uint8_t* low_counts(uint32_t plane, uint32_t age) const;
  // Queries in the entry that is `age` entries old; 0 when there was none.
  uint32_t drain_queries(uint32_t age) const;
  // How many of the newest entries make up the last `window` queries: those whose queries together
  // fit in it, and always the newest one.
  uint32_t DrainsWithin(uint32_t window) const;

  // How many of the last `window` queries found row `row` low: the sum over DrainsWithin(window).
  uint32_t LowCount(uint32_t plane, uint32_t row, uint32_t window) const;

  // As Gather, but all rows stay, in another order, and mass stays with them: for moves.
  void Reorder(uint32_t plane, const std::vector<uint32_t>& source);
  // Rewrites every array of (layer, head) `plane` so that new row i is old row source[i]; mass is
  // reset to zero, because it counts from the last compaction.
  void Gather(uint32_t plane, const std::vector<uint32_t>& source);

 private:
  uint32_t RingSlot(uint32_t age) const;

  PlaneSet set_;
  uint32_t planes_ = 0;
  uint32_t newest_ = 0;                                 // the ring's newest entry
  std::vector<uint32_t> ring_queries_;                  // [ring]
  std::vector<std::vector<uint32_t>> positions_;        // [planes][rows]
  std::vector<std::vector<float>> mass_;                // [planes][rows]
  std::vector<std::vector<std::vector<uint8_t>>> low_;  // [planes][ring][rows]
};

}  // namespace kvpool
