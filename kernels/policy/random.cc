// See random.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/random.h"

namespace kvpool {

RandomPolicy::RandomPolicy(const PolicySpec& spec)
    : recent_(spec.Count("recent")),
      seed_(spec.Count("seed")),
      budget_{.kept = spec.Count("budget"), .slack = spec.Count("slack")} {}

PolicyNeeds RandomPolicy::Needs() const {
  return {.queries = QueryNeed::kSampled, .sample_every = kRecoverySampleEvery};
}

std::optional<Selection> RandomPolicy::Compact(const PolicyState& state) const {
  if (state.length <= budget_.kept) return std::nullopt;
  return Selection{.heads = {{.recent = recent_, .total = budget_.kept}},
                   .score = {.kind = RowScore::Kind::kRandom, .seed = seed_ << 32 ^ state.session},
                   .expected = budget_.kept};
}

}  // namespace kvpool
