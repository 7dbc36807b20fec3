// See h2o.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/h2o.h"

namespace kvpool {

H2oPolicy::H2oPolicy(const PolicySpec& spec)
    : recent_(spec.Count("recent")),
      budget_{.kept = spec.Count("budget"), .slack = spec.Count("slack")} {}

PolicyNeeds H2oPolicy::Needs() const {
  return {.planes = {.sum = true}, .queries = QueryNeed::kExact, .prompt_rows = kAllPromptRows};
}

std::optional<Selection> H2oPolicy::Compact(const PolicyState& state) const {
  if (state.length <= budget_.kept) return std::nullopt;
  return Selection{.heads = {{.recent = recent_, .total = budget_.kept}},
                   .score = {.kind = RowScore::Kind::kSum},
                   .expected = budget_.kept};
}

}  // namespace kvpool
