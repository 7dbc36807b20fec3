// Host twin of the profile's pass over a chunk: says which rows each query saw and which of them
// are far; the arithmetic is simd/profile.cc.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "kernels/profile.h"
#include "kernels/simd/targets.h"

namespace kvpool {
namespace {

// Number of the first reader of (layer, head) that belongs to `model_layer`.
uint32_t FirstReader(const Geometry& g, uint32_t model_layer) {
  const auto end = g.kv_of_layer.begin() + model_layer;
  return g.group_size() *
         static_cast<uint32_t>(std::count(g.kv_of_layer.begin(), end, g.kv_of_layer[model_layer]));
}

// The position of each row of a head that has lost none. Those of compacted rows lie in memory that
// another process writes: what is not below the length becomes the last, and no sum goes astray.
std::vector<uint32_t> PositionsOf(const SessionView& session, uint32_t plane) {
  std::vector<uint32_t> positions(session.Length(plane));
  std::iota(positions.begin(), positions.end(), 0);
  if (const uint32_t compacted = session.CompactedLength(plane); compacted > 0) {
    const uint32_t* const told =
        session.compacted_positions + size_t{plane} * session.positions_stride;
    const auto last = static_cast<uint32_t>(positions.size() - 1);
    std::transform(told, told + compacted, positions.begin(),
                   [last](uint32_t position) { return std::min(position, last); });
  }
  return positions;
}

}  // namespace

void AddToProfile(const ProfileArgs& args, PromptSums* sums) {
  simd::AddToProfileOn(simd::Targets().front(), args, sums);
}

namespace simd {

void AddToProfileOn(const Target& target, const ProfileArgs& args, PromptSums* sums) {
  const Geometry& g = args.layout->geometry();
  const uint32_t layer = g.kv_of_layer[args.chunk.model_layer];
  const uint32_t plane = layer * g.kv_heads + args.chunk.head;
  const uint32_t first_position = args.session.Length(plane) - args.chunk.query_count;
  const uint32_t masked = g.MasksSelf(args.chunk.model_layer) ? 1 : 0;  // the query's own row
  std::vector<uint32_t> scored;                                         // queries
  std::vector<uint32_t> seen, far;
  for (uint32_t i = 0; i < args.chunk.query_count; ++i) {
    if ((first_position + i) % args.sample_every != 0) continue;
    const uint32_t length = first_position + i + 1;
    scored.push_back(i);
    seen.push_back(length - masked);
    far.push_back(length - std::min(args.local_keys, length));
  }
  if (scored.empty()) return;
  const std::vector<uint32_t> positions = PositionsOf(args.session, plane);
  const auto scratch = std::make_unique_for_overwrite<float[]>(ProfileScratch(g));
  std::vector<const float*> queries(scored.size());
  std::vector<float> lse(scored.size());
  for (uint32_t i = 0; i < g.group_size(); ++i) {
    const uint32_t reader = FirstReader(g, args.chunk.model_layer) + i;
    for (size_t n = 0; n < scored.size(); ++n) {
      const size_t query = size_t{scored[n]} * g.query_heads + args.chunk.head * g.group_size() + i;
      queries[n] = args.chunk.queries + query * g.key_dim;
      lse[n] = args.chunk.lse[query];
    }
    target.profile_head(
        {.head = RowsOf(*args.layout, args.base, args.session, layer, args.chunk.head),
         .queries = queries.data(),
         .lse = lse.data(),
         .query_rows = seen.data(),
         .far_positions = far.data(),
         .query_count = static_cast<uint32_t>(scored.size()),
         .positions = positions.data(),
         .scale = args.scale,
         .mass = sums->mass(plane, reader).data(),
         .far = sums->far(plane, reader).data(),
         .scratch = scratch.get()});
  }
}

}  // namespace simd
}  // namespace kvpool
