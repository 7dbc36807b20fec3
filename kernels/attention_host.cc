// Host twin of attention: plain loops, one query head and one row at a time.
//
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention.h"

namespace kvpool {
namespace {

// One query head over its first `rows` rows.
void AttendHead(const AttentionArgs& args, uint32_t head, uint32_t rows, const float* query,
                float* out, float* lse) {
  const Layout& layout = *args.layout;
  const Geometry& g = layout.geometry();
  const uint32_t plane = args.layer * g.kv_heads + head;
  std::vector<float> key(g.key_dim), value(g.value_dim), sum(g.value_dim);
  float highest = -std::numeric_limits<float>::infinity(), weight = 0;
  for (uint32_t row = 0; row < rows; ++row) {
    LoadRow(layout, args.base, args.session.BlockOf(layout, args.layer, head, row),
            args.session.RowInBlock(plane, row), key.data(), value.data());
    float logit = 0;
    for (uint32_t d = 0; d < g.key_dim; ++d) logit += query[d] * key[d];
    logit *= args.scale;
    const float next = logit > highest ? logit : highest;
    const float rescale = row == 0 ? 0 : std::exp(highest - next);
    const float p = std::exp(logit - next);
    highest = next;
    weight = weight * rescale + p;
    for (uint32_t d = 0; d < g.value_dim; ++d) sum[d] = sum[d] * rescale + p * value[d];
  }
  for (uint32_t d = 0; d < g.value_dim; ++d) out[d] = rows == 0 ? 0 : sum[d] / weight;
  if (lse != nullptr) *lse = rows == 0 ? highest : highest + std::log(weight);
}

}  // namespace

void Attention(const AttentionArgs& args) {
  const Geometry& g = args.layout->geometry();
  for (uint32_t i = 0; i < args.query_count; ++i) {
    for (uint32_t q = 0; q < g.query_heads; ++q) {
      const uint32_t head = q / g.group_size();
      const uint32_t hidden = args.query_count - 1 - i;
      const uint32_t rows = args.session.Length(args.layer * g.kv_heads + head) - hidden;
      const uint64_t lane = uint64_t{i} * g.query_heads + q;
      AttendHead(args, head, rows, args.queries + lane * g.key_dim, args.out + lane * g.value_dim,
                 args.lse == nullptr ? nullptr : args.lse + lane);
    }
  }
}

}  // namespace kvpool
