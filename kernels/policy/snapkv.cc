// See snapkv.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/snapkv.h"

namespace kvpool {

SnapKvPolicy::SnapKvPolicy(const PolicySpec& spec)
    : once_{.budget = spec.Count("budget")}, observed_(MakeObservationWindow(spec)) {}

std::optional<Selection> SnapKvPolicy::Compact(const PolicyState& state) const {
  if (!once_.Due(state)) return std::nullopt;
  return Selection{.heads = {{.recent = observed_.window, .total = once_.budget}},
                   .score = observed_.Score(RowScore::Kind::kWindowSum),
                   .expected = once_.budget};
}

}  // namespace kvpool
