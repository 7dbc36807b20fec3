// See pyramidkv.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/pyramidkv.h"

#include <algorithm>

#include "common/units.h"

namespace kvpool {

PyramidKvPolicy::PyramidKvPolicy(const PolicySpec& spec)
    : once_{.budget = spec.Count("budget")},
      observed_(MakeObservationWindow(spec)),
      beta_(spec.Count("beta")) {}

std::optional<Selection> PyramidKvPolicy::Compact(const PolicyState& state) const {
  if (!once_.Due(state)) return std::nullopt;
  const uint32_t mean = once_.budget - observed_.window;
  const uint32_t most = std::min(2 * mean - mean / beta_, state.length - observed_.window);
  const uint32_t fall = 2 * (most - mean);  // from the lowest to the highest layer
  const uint32_t steps = std::max(1u, state.geometry->layers - 1);
  Selection selection{.score = observed_.Score(RowScore::Kind::kWindowSum),
                      .expected = once_.budget};
  for (uint32_t plane = 0; plane < state.geometry->planes(); ++plane) {
    const uint32_t layer = plane / state.geometry->kv_heads;
    const auto drop = static_cast<uint32_t>(CeilDiv(uint64_t{fall} * layer, uint64_t{steps}));
    const uint32_t kept = state.geometry->layers == 1 ? mean : most - drop;
    selection.heads.push_back({.recent = observed_.window, .total = observed_.window + kept});
  }
  return selection;
}

}  // namespace kvpool
