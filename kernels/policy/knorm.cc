// See knorm.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/knorm.h"

namespace kvpool {

KNormPolicy::KNormPolicy(const PolicySpec& spec)
    : recent_(spec.Count("recent")),
      budget_{.kept = spec.Count("budget"), .slack = spec.Count("slack")} {}

PolicyNeeds KNormPolicy::Needs() const {
  return {.queries = QueryNeed::kSampled, .sample_every = kRecoverySampleEvery};
}

std::optional<Selection> KNormPolicy::Compact(const PolicyState& state) const {
  if (state.length <= budget_.kept) return std::nullopt;
  return Selection{.heads = {{.recent = recent_, .total = budget_.kept}},
                   .score = {.kind = RowScore::Kind::kKeyNorm},
                   .expected = budget_.kept};
}

}  // namespace kvpool
