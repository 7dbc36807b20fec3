// See streaming.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/streaming.h"

namespace kvpool {

StreamingPolicy::StreamingPolicy(const PolicySpec& spec)
    : sinks_(spec.Count("sinks")),
      recent_(spec.Count("recent")),
      budget_{.kept = sinks_ + recent_, .slack = spec.Count("slack")} {}

PolicyNeeds StreamingPolicy::Needs() const {
  return {.queries = QueryNeed::kSampled, .sample_every = kRecoverySampleEvery};
}

std::optional<Selection> StreamingPolicy::Compact(const PolicyState& state) const {
  if (state.length <= budget_.kept) return std::nullopt;
  return Selection{.heads = {{.first = sinks_, .recent = recent_, .total = budget_.kept}},
                   .expected = budget_.kept};
}

}  // namespace kvpool
