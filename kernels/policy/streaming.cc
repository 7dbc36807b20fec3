// See streaming.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/streaming.h"

#include <algorithm>

namespace kvpool {

PolicyNeeds StreamingPolicy::Needs() const {
  return {.queries = QueryNeed::kSampled, .sample_every = kRecoverySampleEvery};
}

uint32_t StreamingPolicy::PeakTokens(uint32_t max_tokens, uint32_t chunk) const {
  return std::min(max_tokens, sinks_ + recent_ + slack_ + chunk);
}

std::optional<Selection> StreamingPolicy::Compact(uint32_t length) const {
  if (length <= sinks_ + recent_) return std::nullopt;
  return Selection{.first = sinks_, .recent = recent_, .total = sinks_ + recent_};
}

}  // namespace kvpool
