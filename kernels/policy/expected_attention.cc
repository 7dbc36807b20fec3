// See expected_attention.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/expected_attention.h"

namespace kvpool {

ExpectedAttentionPolicy::ExpectedAttentionPolicy(const PolicySpec& spec)
    : sinks_(spec.Count("sinks")),
      recent_(spec.Count("recent")),
      horizon_(spec.Count("horizon")),
      queries_(spec.Count("queries")),
      every_(spec.Count("every")),
      epsilon_(spec.Number("epsilon")),
      rope_theta_(spec.Number("rope_theta")),
      budget_{.kept = spec.Count("budget"), .slack = spec.Count("slack")} {}

PolicyNeeds ExpectedAttentionPolicy::Needs() const {
  return {.planes = {.window_queries = queries_},
          .queries = QueryNeed::kSampled,
          .sample_every = every_};
}

std::optional<Selection> ExpectedAttentionPolicy::Compact(const PolicyState& state) const {
  if (state.length <= budget_.kept) return std::nullopt;
  return Selection{.heads = {{.first = sinks_, .recent = recent_, .total = budget_.kept}},
                   .score = {.kind = RowScore::Kind::kExpectedAttention,
                             .window = queries_,
                             .future = {.from = state.step,
                                        .horizon = horizon_,
                                        .sinks = sinks_,
                                        .epsilon = epsilon_,
                                        .rope_theta = rope_theta_}},
                   .expected = budget_.kept};
}

}  // namespace kvpool
