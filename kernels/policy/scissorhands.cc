// See scissorhands.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/scissorhands.h"

#include <algorithm>

#include "common/units.h"

namespace kvpool {

ScissorhandsPolicy::ScissorhandsPolicy(const PolicySpec& spec)
    : window_(spec.Count("window")),
      recent_(spec.Count("recent")),
      drop_(spec.Count("drop")),
      seals_(SealRuleOf(spec).format != SealedFormat::kNone),
      budget_{.kept = spec.Count("budget") - drop_, .slack = drop_} {}

PolicyNeeds ScissorhandsPolicy::Needs() const {
  // Full drains fill an entry each. Every hand-over, one in m queries or wherever sealing is due,
  // ends one entry early, though never more than every other (Planes::BeginDrain joins small ones).
  const uint32_t full = CeilDiv(window_, kDrainQueries);
  const uint32_t early = seals_ ? full : std::min(full, CeilDiv(window_, drop_));
  return {.planes = {.low_count_ring = full + early + 1},
          .queries = QueryNeed::kExact,
          .prompt_rows = window_};
}

std::optional<Selection> ScissorhandsPolicy::Compact(const PolicyState& state) const {
  if (state.length <= budget_.kept) return std::nullopt;
  return Selection{.heads = {{.recent = recent_, .total = budget_.kept}},
                   .score = {.kind = RowScore::Kind::kLowCount, .window = window_},
                   .expected = budget_.kept};
}

}  // namespace kvpool
