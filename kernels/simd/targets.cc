// See targets.h. Compiled for the baseline processor.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/simd/targets.h"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <vector>

#include "common/units.h"

namespace kvpool::simd {

#define KVPOOL_DECLARE_TARGET(name)                                                  \
  namespace name {                                                                   \
  void AttendQuery(const AttendArgs& args);                                          \
  void AttendChunk(const AttendArgs& args);                                          \
  void ScoreHead(const ScoreHeadArgs& args);                                         \
  void ProfileHead(const ProfileHeadArgs& args);                                     \
  uint32_t ReadTile(const TileArgs& args);                                           \
  void Multiply(const ProductArgs& args);                                            \
  }                                                                                  \
  constexpr Target k_##name {                                                        \
#name, name::AttendQuery, name::AttendChunk, name::ScoreHead, name::ProfileHead, \
        name::ReadTile, name::Multiply                                               \
  }

KVPOOL_DECLARE_TARGET(baseline);
KVPOOL_DECLARE_TARGET(avx2);
KVPOOL_DECLARE_TARGET(avx512);

#undef KVPOOL_DECLARE_TARGET

static_assert(std::size(kTargetNames) == 3 && k_avx512.name == std::string_view(kTargetNames[0]) &&
              k_avx2.name == std::string_view(kTargetNames[1]) &&
              k_baseline.name == std::string_view(kTargetNames[2]));

std::span<const Target> Targets() {
  static const std::vector<Target> targets = [] {
    std::vector<Target> runnable;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      runnable.push_back(k_avx512);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) runnable.push_back(k_avx2);
    runnable.push_back(k_baseline);
    return runnable;
  }();
  return targets;
}

HeadRows RowsOf(const Layout& layout, const std::byte* base, const SessionView& session,
                uint32_t layer, uint32_t head) {
  static_assert(sizeof(BlockId) == sizeof(uint32_t) && sizeof(PageId) == sizeof(uint32_t));
  const Geometry& g = layout.geometry();
  const uint32_t plane = layer * g.kv_heads + head;
  HeadRows rows{.base = base,
                .key_dim = g.key_dim,
                .value_dim = g.value_dim,
                .dtype = g.dtype,
                .element_bytes = ElementBytes(g.dtype)};
  if (session.CompactedLength(plane) > 0) {
    const BlockId* blocks = session.compacted_blocks + uint64_t{plane} * session.compacted_stride;
    const auto* ids = reinterpret_cast<const uint32_t*>(blocks);
    const uint32_t sealed = session.SealedLength(plane);
    if (sealed > 0) {
      rows.sealed = {.ids = ids, .rows = sealed, .shape = ShapeOf(g, session.sealed_format)};
    }
    rows.open = {.ids = ids + CeilDiv(sealed, kSealedRows),
                 .rows = session.CompactedLength(plane) - sealed};
  }
  rows.fresh = {.ids = reinterpret_cast<const uint32_t*>(session.fresh_pages),
                .offset = layout.Block(PageId(0), layer, head).value(),
                .rows = session.fresh_tokens};
  return rows;
}

size_t AttendScratch(const Geometry& g) {
  // attend_query: a query and a sum for each lane of a pass, padded to two vectors, and a tile of
  // rows as f32. attend_chunk: queries and sums of its vectors of lanes, and such a tile.
  constexpr uint32_t kPad = 2 * kMaxLanes;
  const size_t query =
      size_t{kMaxQueryLanes} * (RoundUp(g.key_dim, kPad) + RoundUp(g.value_dim, kPad)) +
      size_t{kTileRows} * (g.key_dim + g.value_dim);
  const size_t chunk = size_t{kLaneVectors * kMaxLanes + kTileRows} * (g.key_dim + g.value_dim);
  return std::max(query, chunk);
}

size_t ScoreScratch(const Geometry& g, uint32_t rows) {
  // Queries of all heads that read one, with their log-sum-exps, a tile of keys as f32, and for
  // every row a vector of logits and one of low marks.
  size_t readers = 0;
  for (uint32_t plane = 0; plane < g.planes(); ++plane) {
    readers = std::max(readers, ReadersOf(g, plane).size());
  }
  return readers * kMaxLanes * (size_t{g.key_dim} + 1) + size_t{kTileRows} * g.key_dim +
         size_t{2 * kMaxLanes} * RoundUp(rows, kTileRows);
}

size_t ProfileScratch(const Geometry& g) {
  // Queries of one pass and a tile of keys as f32.
  return size_t{kLaneVectors * kMaxLanes + kTileRows} * g.key_dim;
}

}  // namespace kvpool::simd
