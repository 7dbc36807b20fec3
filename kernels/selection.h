// A selection: which rows of each head stay, said as a union of a few primitives, and its host
// executor. Policies return selections and never touch memory.
//
// Values and pure functions; any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/geometry.h"
#include "kernels/planes.h"

namespace kvpool {

// By what rows are ranked: rows with a higher score stay, among equals the newer one. NaN ranks
// lowest.
struct RowScore {
  enum class Kind : uint8_t {
    kNone,  // no ranking: `top` and `total` fill in nothing
    // From planes.
    kLowCount,   // fewest low marks of the last `window` queries: of DrainsWithin(window)
    kSum,        // attention since the row is there
    kSquareSum,  // its square
    // Derived inside the compaction job: derived_scores.h.
    kWindowSum,        // attention of the last `window` kept queries
    kWindowSquareSum,  // its square
    kRandom,           // drawn from `seed`, head and position
    kKeyNorm,          // low norm of the key (KNorm)
    kKeyDiff,          // little likeness to the mean of the head's keys (KeyDiff)
    // What future queries are expected to look at, times the norm of the value, by `future` and the
    // last `window` kept queries
    kExpectedAttention,
    kRedundancy,  // looked at by the last `window` kept queries and unlike others, by `redundancy`
  };
  // Smoothing along positions, over the rows outside `recent`, `kernel` rows wide and zero beyond.
  enum class Pooling : uint8_t { kNone, kAverage, kMax };

  // Which queries are to come: those of the positions from .. from + horizon - 1.
  struct Future {
    uint32_t from = 0;
    uint32_t horizon = 1;  // at least 1
    uint32_t sinks = 0;    // rows and queries at positions below do not count
    double epsilon = 0;    // attention that every row gets beside
    double rope_theta = 10000;
    bool operator==(const Future&) const = default;
  };

  // How looks and likeness are weighed.
  struct Redundancy {
    double lambda = 1;      // weight of attention; 1 - lambda that of likeness
    double threshold = 1;   // cosine above which two keys say the same
    uint32_t compared = 1;  // most keys that are compared with each other, at least 1
    bool operator==(const Redundancy&) const = default;
  };

  Kind kind = Kind::kNone;
  uint32_t window = 0;
  Pooling pooling = Pooling::kNone;
  uint32_t kernel = 1;  // odd
  uint64_t seed = 0;
  Future future;
  Redundancy redundancy;

  bool derived() const { return kind >= Kind::kWindowSum; }
  bool operator==(const RowScore&) const = default;
};

// What stays of one head: the union of these. Where heads fill up each its own `total` (kHead,
// kLayerMean, or no ranking), one with at most `total` rows keeps everything.
struct HeadRule {
  uint32_t first = 0;      // rows at logical positions < first
  uint32_t recent = 0;     // the `recent` rows with the highest positions
  uint8_t flags = 0;       // rows with one of these flags (plane `flags`)
  uint32_t hit_since = 0;  // rows hit at this absolute step or later (plane `last_hit`); 0: none
  uint32_t top = 0;        // the best `top` rows of the head by score
  uint32_t total = 0;      // the best rows of those not named above, until `total` rows are kept
  bool operator==(const HeadRule&) const = default;
};

struct Selection {
  std::vector<HeadRule> heads;  // one for every (layer, head), or a single one for all
  RowScore score;
  // Among which rows `total` is filled up.
  enum class Scope : uint8_t {
    kHead,       // each head's own rows
    kLayer,      // all rows of a layer, until its heads together keep the sum of their totals;
                 // each keeps its best `floor` rows at least (Ada-KV)
    kSession,    // the same over all rows of all layers (KV-Compress)
    kLayerMean,  // each head's own rows by the mean score of the layer's heads, so that heads that
                 // hold the same rows keep the same rows (TOVA)
  } scope = Scope::kHead;
  uint32_t floor = 0;  // kLayer, kSession
  // Above 0: every layer's total is its share of the sum of the totals, by the persistence of its
  // keys over the last score.window queries (persistence.h, Scissorhands); recent is the least.
  // Requires a single rule for all heads.
  double persistence_gain = 0;
  // Rows that a head is expected to keep, as the mean over heads: an estimate, by which memory
  // pressure plans.
  uint32_t expected = 0;

  const HeadRule& Rule(uint32_t plane) const {
    return heads.size() == 1 ? heads.front() : heads[plane];
  }
  bool operator==(const Selection&) const = default;
};

// For one head: rows that stay, ascending row numbers.
using KeepRows = std::vector<uint32_t>;

// Scores of every row, [planes][rows].
using RowScores = std::vector<std::vector<float>>;

// Smooths scores along positions as `how` says, which is not kNone. `rows` are in the order of
// positions; other rows' scores stay.
void Pool(const RowScore& how, const std::vector<uint32_t>& rows, std::vector<float>* scores);

// The scores that `score` names, from planes. Requires !score.derived() and the plane it reads.
RowScores PlaneScores(const RowScore& score, const Planes& planes);

// Applies a selection to every (layer, head): result [layers * kv_heads]. `scores` as PlaneScores
// or DerivedScores made them for selection.score.
std::vector<KeepRows> Select(const Selection& selection, const Geometry& geometry,
                             const Planes& planes, const RowScores& scores);

// Recovery per (layer, head): the share of `mass` on the rows that stay; negative where there is no
// mass to tell from (no query was drained since the last compaction).
std::vector<float> Recovery(const std::vector<KeepRows>& keep, const Planes& planes);

}  // namespace kvpool
