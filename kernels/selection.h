// A selection: which rows of each head stay, said as a union of a few primitives, and its host
// executor. Policies return selections and never touch memory.
//
// Values and a pure function; any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/geometry.h"
#include "kernels/planes.h"

namespace kvpool {

// keep = first ∪ recent ∪ (rows of lowest rank until `total` rows are kept).
// A head with at most `total` rows keeps everything.
struct Selection {
  uint32_t first = 0;   // rows at logical positions < first stay
  uint32_t recent = 0;  // the `recent` rows with the highest positions stay
  uint32_t total = 0;   // rows a head keeps in the end; first and recent count towards it
  // By what the remaining places are filled: nothing (kNone: first and recent are all that stay),
  // or the rows with the fewest low marks, ties: newer position stays.
  enum class Rank : uint8_t { kNone, kLowCount } rank = Rank::kNone;
  uint32_t window = 0;  // kLowCount: queries that vote
};

// For one head: rows that stay, ascending row numbers.
using KeepRows = std::vector<uint32_t>;

// Applies a selection to every (layer, head): result [layers * kv_heads]. NaN-free by construction
// (ranks are integers); positions and statistics come from the planes.
std::vector<KeepRows> Select(const Selection& selection, const Planes& planes);

// Recovery per (layer, head): the share of `mass` on the rows that stay; negative where there is no
// mass to tell from (no query was drained since the last compaction).
std::vector<float> Recovery(const std::vector<KeepRows>& keep, const Planes& planes);

}  // namespace kvpool
