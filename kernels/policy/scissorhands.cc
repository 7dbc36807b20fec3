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
      budget_{.kept = spec.Count("budget") - drop_, .slack = drop_},
      gain_(spec.Choice("layers") == "persistence" ? spec.Number("gain") : 0) {}

PolicyNeeds ScissorhandsPolicy::Needs() const {
  // Full drains fill an entry each. Every hand-over, one in m queries or wherever sealing is due,
  // ends one entry early, though never more than every other (Planes::BeginDrain joins small ones).
  const uint32_t full = CeilDiv(window_, kDrainQueries);
  const uint32_t early = seals_ ? full : std::min(full, CeilDiv(window_, drop_));
  return {.planes = {.low_count_ring = full + early + 1},
          .queries = QueryNeed::kExact,
          .prompt_rows = window_};
}

std::optional<uint32_t> ScissorhandsPolicy::NextCompactAt(const PolicyState& state) const {
  // All layers grow by the same m keys, whatever each of them has kept.
  if (gain_ > 0 && state.compacted_step > 0) return state.compacted_length + drop_;
  return budget_.CompactAt();
}

std::optional<Selection> ScissorhandsPolicy::Compact(const PolicyState& state) const {
  if (state.length <= budget_.kept) return std::nullopt;
  if (gain_ > 0 && state.length <= state.compacted_length) return std::nullopt;
  return Selection{.heads = {{.recent = recent_, .total = budget_.kept}},
                   .score = {.kind = RowScore::Kind::kLowCount, .window = window_},
                   .persistence_gain = gain_,
                   .expected = budget_.kept};
}

}  // namespace kvpool
