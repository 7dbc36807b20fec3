// See corm.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/corm.h"

#include <algorithm>

namespace kvpool {

CormPolicy::CormPolicy(const PolicySpec& spec)
    : window_(spec.Count("window")),
      recent_(spec.Count("recent")),
      slack_(spec.Count("slack")),
      threshold_(spec.Choice("threshold") == "inv_cached" ? Threshold::kInverseCached
                                                          : Threshold::kInverseStep) {}

PolicyNeeds CormPolicy::Needs() const {
  return {.planes = {.last_hit = true, .threshold = threshold_},
          .queries = QueryNeed::kExact,
          .prompt_rows = window_};
}

std::optional<uint32_t> CormPolicy::NextCompactAt(const PolicyState& state) const {
  const uint32_t grown = std::max(state.compacted_length, recent_) + slack_;
  if (state.observed >= window_) return grown;
  return std::max(grown, state.length + window_ - static_cast<uint32_t>(state.observed));
}

std::optional<Selection> CormPolicy::Compact(const PolicyState& state) const {
  if (state.observed < window_ || state.length <= recent_) return std::nullopt;
  // What it will keep shows only in the statistics: about what it kept last time, half at first.
  const uint32_t expected = state.compacted_step > 0 ? state.compacted_length : state.length / 2;
  return Selection{.heads = {{.recent = recent_,
                              .hit_since = state.step > window_ ? state.step - window_ + 1 : 1}},
                   .expected = std::max(recent_, std::min(expected, state.length))};
}

}  // namespace kvpool
