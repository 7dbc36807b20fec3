// Planes: the small per-(head, key) statistics that policies declare and scoring fills. Kept by the
// agent, never mapped by workers. One array element per (layer, head) and row, rows numbered as in
// session_view.h; compaction carries them along with the rows.
//
// Owned by one session's operation at a time; no locking.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/geometry.h"

namespace kvpool {

// Most queries in a drain, and in an entry of the ring of low counts.
inline constexpr uint32_t kDrainQueries = 32;

// Last hits are exact for windows of at most this many steps, however long the session.
inline constexpr uint32_t kMaxHitWindow = 32768;

// A key is important to a query when its probability alpha is at least this; t is the absolute
// step, n the number of keys that the query saw: its own among them, also for a query that masks it
// (Geometry::self_masked), because readers of one cached layer may do so or not.
enum class Threshold : uint8_t { kInverseStep, kInverseCached };

// Which statistics a session keeps. `positions` and `mass` are always kept: positions because
// policies ask for "recent", mass because recovery is reported for every compaction.
struct PlaneSet {
  // Scissorhands: entries in the ring of low counts; 0: no such plane. See BeginDrain for how many
  // queries an entry holds.
  uint32_t low_count_ring = 0;
  bool last_hit = false;    // CORM: the step at which a query last found the row important
  bool sum = false;         // H2O: sum of alpha since the row is there
  bool square_sum = false;  // KV-Compress: sum of alpha squared since the row is there
  bool flags = false;       // a byte of flags, set by whoever knows the tokens
  // Which keys a query finds important: what is low, and what is a hit.
  Threshold threshold = Threshold::kInverseStep;
  // SnapKV, TOVA: the newest queries themselves are kept, this many; 0: none.
  uint32_t window_queries = 0;
  bool operator==(const PlaneSet&) const = default;
};

// Bytes that the planes of one session with `rows` rows a head take: what a tenant is charged.
// (4 position + 4 mass + low_count_ring + 2 last_hit + 4 sum + 4 square_sum + 1 flags) per (layer,
// head) and row, and 4 * (1 + model_layers * query_heads * key_dim) per kept query.
uint64_t PlaneBytes(const Geometry& geometry, const PlaneSet& set, uint32_t rows);

// The newest queries of a session, oldest first.
struct QueryWindow {
  std::vector<uint32_t> positions;
  std::vector<float> vectors;  // [positions.size()][model_layers][query_heads][key_dim]
};

class Planes {
 public:
  Planes() = default;
  Planes(const Geometry& geometry, const PlaneSet& set);

  const PlaneSet& set() const { return set_; }
  uint32_t planes() const { return static_cast<uint32_t>(heads_.size()); }
  // Rows of (layer, head) number `plane` that have entries.
  uint32_t rows(uint32_t plane) const {
    return static_cast<uint32_t>(heads_[plane].positions.size());
  }

  // Appends rows for tokens at logical positions first .. first + count - 1 to every head, with
  // zero statistics.
  void Append(uint32_t first_position, uint32_t count);

  // Begins a drain of `queries` (1..kDrainQueries) queries, the newest of absolute step
  // `newest_step`. It joins the ring's newest entry while that holds no more than kDrainQueries
  // together, so that many small drains do not shorten what the ring remembers: any two neighbours
  // hold more than kDrainQueries. Else the oldest entry is zeroed and becomes the newest.
  void BeginDrain(uint32_t queries, uint32_t newest_step);
  // Keeps drained queries, [count][model_layers][query_heads][key_dim], in the window, for policies
  // that declare one. Older ones fall out.
  void KeepQueries(const std::vector<uint32_t>& positions, const std::vector<float>& vectors);

  // Queries scored so far.
  uint64_t observed() const { return observed_; }
  const QueryWindow& window() const { return window_; }

  std::vector<uint32_t>& positions(uint32_t plane) { return heads_[plane].positions; }
  const std::vector<uint32_t>& positions(uint32_t plane) const { return heads_[plane].positions; }
  // Attention mass since the last compaction: sum over drained queries and the group's query heads.
  std::vector<float>& mass(uint32_t plane) { return heads_[plane].mass; }
  const std::vector<float>& mass(uint32_t plane) const { return heads_[plane].mass; }
  // The sum of squares in the same way, but since the row is there.
  std::vector<float>& square_sum(uint32_t plane) { return heads_[plane].square_sum; }
  const std::vector<float>& square_sum(uint32_t plane) const { return heads_[plane].square_sum; }
  // Mass since the row is there. Requires the plane `sum`.
  float Sum(uint32_t plane, uint32_t row) const {
    return heads_[plane].sum_before[row] + heads_[plane].mass[row];
  }
  // Makes Sum(plane, row) what `sums`, [positions], says of its position; rows at later ones stay
  // as they are. Requires the plane `sum`.
  void SetSums(uint32_t plane, std::span<const float> sums);
  std::vector<uint8_t>& flags(uint32_t plane) { return heads_[plane].flags; }
  const std::vector<uint8_t>& flags(uint32_t plane) const { return heads_[plane].flags; }
  // Flags of the newest flags.size() rows of every head. Requires the plane `flags`.
  void SetNewestFlags(std::span<const uint8_t> flags);

  // The step of each row's last hit, less hit_base(); 0: none within the last kMaxHitWindow steps.
  // Two bytes do for a session of any length, because the base moves up before they overflow.
  std::vector<uint16_t>& last_hits(uint32_t plane) { return heads_[plane].last_hit; }
  const std::vector<uint16_t>& last_hits(uint32_t plane) const { return heads_[plane].last_hit; }
  uint32_t hit_base() const { return hit_base_; }
  // Whether a query of step `since` or later found the row important. Requires `since` to be less
  // than kMaxHitWindow steps before the newest step.
  bool HitSince(uint32_t plane, uint32_t row, uint32_t since) const {
    const uint32_t hit = heads_[plane].last_hit[row];
    return hit != 0 && uint64_t{hit_base_} + hit >= since;
  }

  // Low counts of the ring's entry that is `age` entries old (0 = newest), [rows].
  uint8_t* low_counts(uint32_t plane, uint32_t age);
  const uint8_t* low_counts(uint32_t plane, uint32_t age) const;
  // Queries in the entry that is `age` entries old; 0 when there was none.
  uint32_t drain_queries(uint32_t age) const;
  // How many of the newest entries make up the last `window` queries: those whose queries together
  // fit in it, and always the newest one.
  uint32_t DrainsWithin(uint32_t window) const;

  // As Gather, but all rows stay, in another order, and mass stays with them: for moves.
  void Reorder(uint32_t plane, const std::vector<uint32_t>& source);
  // Rewrites every array of (layer, head) `plane` so that new row i is old row source[i]; mass is
  // reset to zero, because it counts from the last compaction.
  void Gather(uint32_t plane, const std::vector<uint32_t>& source);

 private:
  // The arrays of one (layer, head), each [rows], or empty where the plane is not declared.
  struct Head {
    std::vector<uint32_t> positions;
    std::vector<float> mass;
    std::vector<float> sum_before;  // of the mass until the last compaction
    std::vector<float> square_sum;
    std::vector<uint16_t> last_hit;
    std::vector<uint8_t> flags;
    std::vector<std::vector<uint8_t>> low;  // [ring][rows]
  };

  uint32_t RingSlot(uint32_t age) const;
  void MoveHitBase(uint32_t base);

  PlaneSet set_;
  uint32_t query_floats_ = 0;
  uint64_t observed_ = 0;
  uint32_t hit_base_ = 0;
  uint32_t newest_ = 0;                 // the ring's newest entry
  std::vector<uint32_t> ring_queries_;  // [ring]
  std::vector<Head> heads_;             // [planes]
  QueryWindow window_;
};

}  // namespace kvpool
