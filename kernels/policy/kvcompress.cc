// See kvcompress.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/kvcompress.h"

namespace kvpool {

KvCompressPolicy::KvCompressPolicy(const PolicySpec& spec)
    : once_{.budget = spec.Count("budget")},
      observed_(MakeObservationWindow(spec)),
      votes_(spec.Choice("votes") == "all" ? Votes::kAll : Votes::kWindow) {}

PolicyNeeds KvCompressPolicy::Needs() const {
  PolicyNeeds needs = observed_.Needs();
  if (votes_ == Votes::kWindow) return needs;
  needs.planes = {.square_sum = true};
  needs.prompt_rows = kAllPromptRows;
  return needs;
}

std::optional<Selection> KvCompressPolicy::Compact(const PolicyState& state) const {
  if (!once_.Due(state)) return std::nullopt;
  return Selection{
      .heads = {{.recent = observed_.window, .total = once_.budget}},
      .score = observed_.Score(votes_ == Votes::kAll ? RowScore::Kind::kSquareSum
                                                     : RowScore::Kind::kWindowSquareSum),
      .scope = Selection::Scope::kSession,
      .expected = once_.budget};
}

}  // namespace kvpool
