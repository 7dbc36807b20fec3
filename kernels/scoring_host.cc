// Host twin of scoring: plain loops, one query head at a time.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/scoring.h"

namespace kvpool {
namespace {

// alpha of one query head over rows 0 .. rows - 1.
std::vector<float> Probabilities(const ScoreArgs& args, uint32_t layer, uint32_t head,
                                 uint32_t rows, const float* query) {
  const Layout& layout = *args.layout;
  const Geometry& g = layout.geometry();
  std::vector<float> alpha(rows), key(g.key_dim), value(g.value_dim);
  for (uint32_t row = 0; row < rows; ++row) {
    LoadRow(layout, args.base, args.session.BlockOf(layout, layer, head, row),
            args.session.RowInBlock(layer * g.kv_heads + head, row), key.data(), value.data());
    for (uint32_t d = 0; d < g.key_dim; ++d) alpha[row] += query[d] * key[d];
    alpha[row] *= args.scale;
  }
  float highest = -INFINITY, sum = 0;
  for (float logit : alpha) highest = std::max(highest, logit);
  for (float& a : alpha) sum += a = std::exp(a - highest);
  for (float& a : alpha) a /= sum;
  return alpha;
}

void ScoreQuery(const ScoreArgs& args, uint32_t query, uint32_t layer, uint32_t head,
                Planes* planes) {
  const Geometry& g = args.layout->geometry();
  const uint32_t plane = layer * g.kv_heads + head;
  const uint32_t position = args.query_positions[query];
  const uint32_t seen = position < args.fresh_start
                            ? 0
                            : std::min(args.session.fresh_tokens, position - args.fresh_start + 1);
  const uint32_t rows = args.session.CompactedLength(plane) + seen;
  std::vector<uint8_t> low(rows, 1);
  for (uint32_t model_layer = 0; model_layer < g.model_layers(); ++model_layer) {
    if (g.kv_of_layer[model_layer] != layer) continue;
    for (uint32_t i = 0; i < g.group_size(); ++i) {
      const uint64_t lane = (uint64_t{query} * g.model_layers() + model_layer) * g.query_heads +
                            head * g.group_size() + i;
      const std::vector<float> alpha =
          Probabilities(args, layer, head, rows, args.queries + lane * g.key_dim);
      for (uint32_t row = 0; row < rows; ++row) {
        if (alpha[row] >= 1.0f / (static_cast<float>(position) + 1.0f)) low[row] = 0;
        if (!std::isnan(alpha[row])) planes->mass(plane)[row] += alpha[row];
      }
    }
  }
  if (planes->set().low_count_ring == 0) return;
  for (uint32_t row = 0; row < rows; ++row) planes->low_counts(plane, 0)[row] += low[row];
}

}  // namespace

void Score(const ScoreArgs& args, Planes* planes) {
  const Geometry& g = args.layout->geometry();
  for (uint32_t layer = 0; layer < g.layers; ++layer) {
    for (uint32_t head = 0; head < g.kv_heads; ++head) {
      for (uint32_t query = 0; query < args.query_count; ++query) {
        ScoreQuery(args, query, layer, head, planes);
      }
    }
  }
}

}  // namespace kvpool
