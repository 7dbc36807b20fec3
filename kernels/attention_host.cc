// Host twin of attention: says which rows each query head attends; the arithmetic is
// simd/attend.cc.
//
// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <vector>

#include "kernels/attention.h"
#include "kernels/simd/targets.h"

namespace kvpool {

void Attention(const AttentionArgs& args) { simd::AttentionOn(simd::Targets().front(), args); }

namespace simd {

void AttentionOn(const Target& target, const AttentionArgs& args) {
  const Geometry& g = args.layout->geometry();
  const uint32_t group = g.group_size();
  const auto scratch = std::make_unique_for_overwrite<float[]>(AttendScratch(g));
  std::vector<Lane> lanes(size_t{args.query_count} * group);
  for (uint32_t head = 0; head < g.kv_heads; ++head) {
    const uint32_t length = args.session.Length(args.layer * g.kv_heads + head);
    for (uint32_t i = 0; i < args.query_count; ++i) {
      for (uint32_t j = 0; j < group; ++j) {
        const size_t query = size_t{i} * g.query_heads + head * group + j;
        lanes[i * group + j] = {.query = args.queries + query * g.key_dim,
                                .rows = length - (args.query_count - 1 - i),
                                .out = args.out + query * g.value_dim,
                                .lse = args.lse == nullptr ? nullptr : args.lse + query};
      }
    }
    const AttendArgs head_args{
        .head = RowsOf(*args.layout, args.base, args.session, args.layer, head),
        .lanes = lanes.data(),
        .lane_count = static_cast<uint32_t>(lanes.size()),
        .scale = args.scale,
        .scratch = scratch.get()};
    args.query_count == 1 ? target.attend_query(head_args) : target.attend_chunk(head_args);
  }
}

}  // namespace simd
}  // namespace kvpool
