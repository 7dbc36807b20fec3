// See keydiff.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/keydiff.h"

namespace kvpool {

KeyDiffPolicy::KeyDiffPolicy(const PolicySpec& spec)
    : recent_(spec.Count("recent")),
      budget_{.kept = spec.Count("budget"), .slack = spec.Count("slack")} {}

PolicyNeeds KeyDiffPolicy::Needs() const {
  return {.queries = QueryNeed::kSampled, .sample_every = kRecoverySampleEvery};
}

std::optional<Selection> KeyDiffPolicy::Compact(const PolicyState& state) const {
  if (state.length <= budget_.kept) return std::nullopt;
  return Selection{.heads = {{.recent = recent_, .total = budget_.kept}},
                   .score = {.kind = RowScore::Kind::kKeyDiff},
                   .expected = budget_.kept};
}

}  // namespace kvpool
