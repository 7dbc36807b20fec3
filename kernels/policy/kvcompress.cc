// See kvcompress.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/kvcompress.h"

namespace kvpool {

KvCompressPolicy::KvCompressPolicy(const PolicySpec& spec)
    : once_{.budget = spec.Count("budget")}, observed_(MakeObservationWindow(spec)) {}

std::optional<Selection> KvCompressPolicy::Compact(const PolicyState& state) const {
  if (!once_.Due(state)) return std::nullopt;
  return Selection{.heads = {{.recent = observed_.window, .total = once_.budget}},
                   .score = observed_.Score(RowScore::Kind::kWindowSquareSum),
                   .scope = Selection::Scope::kSession,
                   .expected = once_.budget};
}

}  // namespace kvpool
