// See scissorhands.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/scissorhands.h"

#include <algorithm>

#include "common/units.h"

namespace kvpool {

PolicyNeeds ScissorhandsPolicy::Needs() const {
  // Full drains fill an entry each. Every hand-over, one in m queries, ends one entry early, though
  // never more than every other entry (Planes::BeginDrain joins small drains).
  const uint32_t full = CeilDiv(window_, kDrainQueries);
  const uint32_t early = std::min(full, CeilDiv(window_, drop_));
  return {.planes = {.low_count_ring = full + early + 1},
          .queries = QueryNeed::kExact,
          .prompt_rows = window_};
}

uint32_t ScissorhandsPolicy::PeakTokens(uint32_t max_tokens, uint32_t chunk) const {
  return std::min(max_tokens, budget_ + chunk);
}

std::optional<Selection> ScissorhandsPolicy::Compact(uint32_t length) const {
  const uint32_t total = budget_ - drop_;
  if (length <= total) return std::nullopt;
  return Selection{
      .recent = recent_, .total = total, .rank = Selection::Rank::kLowCount, .window = window_};
}

}  // namespace kvpool
