// See tova.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/tova.h"

namespace kvpool {

TovaPolicy::TovaPolicy(const PolicySpec& spec)
    : budget_{.kept = spec.Count("budget"), .slack = spec.Count("slack")} {}

PolicyNeeds TovaPolicy::Needs() const {
  return {.planes = {.window_queries = 1}, .queries = QueryNeed::kExact, .prompt_rows = 1};
}

std::optional<Selection> TovaPolicy::Compact(const PolicyState& state) const {
  if (state.length <= budget_.kept) return std::nullopt;
  return Selection{.heads = {{.total = budget_.kept}},
                   .score = {.kind = RowScore::Kind::kWindowSum, .window = 1},
                   .scope = Selection::Scope::kLayerMean,
                   .expected = budget_.kept};
}

}  // namespace kvpool
