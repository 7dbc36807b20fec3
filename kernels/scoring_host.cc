// Host twin of scoring: says which rows each query saw and where its statistics go; the arithmetic
// is simd/score.cc.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "kernels/scoring.h"
#include "kernels/simd/targets.h"

namespace kvpool {
namespace {

// That a vector kernel can compare with.
constexpr uint32_t kMostPosition = std::numeric_limits<int32_t>::max() - 1;

// Rows of a head at positions below `end`, all of them before the others: no fresh row is at a
// position below fresh_start, which is at most `end`.
uint32_t RowsBefore(const ScoreArgs& args, uint32_t plane, uint64_t end) {
  const uint64_t fresh = end - args.fresh_start;
  return args.session.CompactedLength(plane) +
         static_cast<uint32_t>(std::min<uint64_t>(fresh, args.session.fresh_tokens));
}

// The same of any query, by the rows' positions: compacted rows are in no order.
uint32_t RowsUpTo(const std::vector<uint32_t>& positions, uint32_t position) {
  return static_cast<uint32_t>(std::count_if(positions.begin(), positions.end(),
                                             [&](uint32_t row) { return row <= position; }));
}

// What a query of absolute step `step` leaves in the last hits: 0 when it is too old for them.
float HitValue(const Planes& planes, uint64_t step) {
  if (step <= planes.hit_base()) return 0;
  return static_cast<float>(
      std::min<uint64_t>(step - planes.hit_base(), std::numeric_limits<uint16_t>::max()));
}

// For every query vector that reads (layer, head), [query heads of all model layers that share the
// cached layer][query_count]: where its part of `data` is, [query_count][model_layers][query_heads]
// [floats].
std::vector<const float*> PartsOf(const ScoreArgs& args, uint32_t plane, const float* data,
                                  uint32_t floats) {
  const Geometry& g = args.layout->geometry();
  std::vector<const float*> parts;
  for (uint32_t reader : ReadersOf(g, plane)) {
    for (uint32_t query = 0; query < args.query_count; ++query) {
      const size_t vector = size_t{query} * g.model_layers() * g.query_heads + reader;
      parts.push_back(data + vector * floats);
    }
  }
  return parts;
}

// Whether each of the query heads that read (layer, head), [readers], masks its own position.
std::vector<uint8_t> MasksOf(const Geometry& g, uint32_t plane) {
  std::vector<uint8_t> masks;
  for (uint32_t reader : ReadersOf(g, plane)) masks.push_back(g.MasksSelf(reader / g.query_heads));
  return masks;
}

bool AllFinite(const ScoreArgs& args) {
  const Geometry& g = args.layout->geometry();
  const size_t count = size_t{args.query_count} * g.model_layers() * g.query_heads;
  return std::all_of(args.lses, args.lses + count, [](float lse) { return std::isfinite(lse); });
}

}  // namespace

void Score(const ScoreArgs& args, Planes* planes) {
  simd::ScoreOn(simd::Targets().front(), args, planes);
}

namespace simd {

void ScoreOn(const Target& target, const ScoreArgs& args, Planes* planes) {
  const Geometry& g = args.layout->geometry();
  uint32_t longest = 0;
  for (uint32_t plane = 0; plane < g.planes(); ++plane) {
    longest = std::max(longest, args.session.Length(plane));
  }
  const auto scratch = std::make_unique_for_overwrite<float[]>(ScoreScratch(g, longest));
  const bool one_pass = args.lses != nullptr && AllFinite(args);
  std::vector<float> thresholds(args.query_count), hits(args.query_count);
  // For each query, the number of its rows, or the first position that is not among theirs.
  std::vector<uint32_t> rows(args.query_count), masked_rows(args.query_count);
  const bool by_position =
      std::any_of(args.query_positions, args.query_positions + args.query_count,
                  [&](uint32_t position) { return position < args.fresh_start; });
  for (uint32_t i = 0; i < args.query_count; ++i) {
    hits[i] = HitValue(*planes, uint64_t{args.query_positions[i]} + 1);
  }
  for (uint32_t plane = 0; plane < g.planes(); ++plane) {
    const uint32_t layer = plane / g.kv_heads, head = plane % g.kv_heads;
    for (uint32_t i = 0; i < args.query_count; ++i) {
      const uint32_t position = args.query_positions[i];
      const uint32_t seen = by_position ? RowsUpTo(planes->positions(plane), position)
                                        : RowsBefore(args, plane, uint64_t{position} + 1);
      rows[i] = by_position ? std::min(position, kMostPosition) + 1 : seen;
      masked_rows[i] = by_position ? rows[i] - 1 : RowsBefore(args, plane, position);
      thresholds[i] = 1.0f / (planes->set().threshold == Threshold::kInverseCached
                                  ? static_cast<float>(seen)
                                  : static_cast<float>(position) + 1.0f);
    }
    const std::vector<const float*> queries = PartsOf(args, plane, args.queries, g.key_dim);
    const std::vector<uint8_t> masks = MasksOf(g, plane);
    const bool some = std::ranges::count(masks, 1) > 0, all = std::ranges::count(masks, 0) == 0;
    std::vector<const float*> lses;
    if (one_pass) lses = PartsOf(args, plane, args.lses, 1);
    target.score_head(
        {.head = RowsOf(*args.layout, args.base, args.session, layer, head),
         .queries = queries.data(),
         .lses = one_pass ? lses.data() : nullptr,
         .query_rows = all ? masked_rows.data() : rows.data(),
         .masked_rows = masked_rows.data(),
         .masks = some && !all ? masks.data() : nullptr,
         .numbers = by_position ? planes->positions(plane).data() : nullptr,
         .thresholds = thresholds.data(),
         .hits = hits.data(),
         .heads = static_cast<uint32_t>(queries.size() / args.query_count),
         .query_count = args.query_count,
         .scale = args.scale,
         .mass = planes->mass(plane).data(),
         .square_sum = planes->set().square_sum ? planes->square_sum(plane).data() : nullptr,
         .low_counts = planes->set().low_count_ring > 0 ? planes->low_counts(plane, 0) : nullptr,
         .last_hits = planes->set().last_hit ? planes->last_hits(plane).data() : nullptr,
         .scratch = scratch.get()});
  }
}

}  // namespace simd
}  // namespace kvpool
