// See adakv.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/adakv.h"

namespace kvpool {

AdaKvPolicy::AdaKvPolicy(const PolicySpec& spec)
    : once_{.budget = spec.Count("budget")},
      observed_(MakeObservationWindow(spec)),
      kind_(spec.Choice("scorer") == "kvcompress" ? RowScore::Kind::kWindowSquareSum
                                                  : RowScore::Kind::kWindowSum),
      floor_(spec.Number("floor")) {}

std::optional<Selection> AdaKvPolicy::Compact(const PolicyState& state) const {
  if (!once_.Due(state)) return std::nullopt;
  const uint32_t share = once_.budget - observed_.window;
  return Selection{.heads = {{.recent = observed_.window, .total = once_.budget}},
                   .score = observed_.Score(kind_),
                   .scope = Selection::Scope::kLayer,
                   .floor = observed_.window + static_cast<uint32_t>(floor_ * share),
                   .expected = once_.budget};
}

}  // namespace kvpool
