// See full.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/full.h"

namespace kvpool {

PolicyNeeds FullPolicy::Needs() const {
  if (recovery_every_ == 0) return {.queries = QueryNeed::kNone};
  return {.queries = QueryNeed::kSampled, .sample_every = recovery_every_};
}

uint32_t FullPolicy::PeakTokens(uint32_t max_tokens, uint32_t /*chunk*/) const {
  return max_tokens;
}

std::optional<Selection> FullPolicy::Compact(uint32_t /*length*/) const { return std::nullopt; }

}  // namespace kvpool
