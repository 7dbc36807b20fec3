// See adakv.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/adakv.h"

#include <string>

namespace kvpool {
namespace {

RowScore ScoreOf(const std::string& scorer, const PolicySpec& spec) {
  const ObservationWindow observed = MakeObservationWindow(spec);
  if (scorer == "snapkv") return observed.Score(RowScore::Kind::kWindowSum);
  if (scorer == "kvcompress") return observed.Score(RowScore::Kind::kWindowSquareSum);
  if (scorer == "h2o") return {.kind = RowScore::Kind::kSum};
  if (scorer == "knorm") return {.kind = RowScore::Kind::kKeyNorm};
  if (scorer == "keydiff") return {.kind = RowScore::Kind::kKeyDiff};
  const PolicySpec expected = *MakePolicySpec("expected-attention", {});
  return {.kind = RowScore::Kind::kExpectedAttention,
          .window = observed.window,
          .future = {.horizon = expected.Count("horizon"),
                     .sinks = expected.Count("sinks"),
                     .epsilon = expected.Number("epsilon"),
                     .rope_theta = spec.Number("rope_theta")}};
}

PolicyNeeds NeedsOf(const RowScore& score, const PolicySpec& spec) {
  PolicyNeeds needs = MakeObservationWindow(spec).Needs();
  if (score.kind == RowScore::Kind::kSum) {
    needs.planes = {.sum = true};
    needs.prompt_rows = kAllPromptRows;
  } else if (score.kind == RowScore::Kind::kKeyNorm || score.kind == RowScore::Kind::kKeyDiff) {
    needs = {.queries = QueryNeed::kSampled, .sample_every = kRecoverySampleEvery};
  }
  return needs;
}

}  // namespace

AdaKvPolicy::AdaKvPolicy(const PolicySpec& spec)
    : once_{.budget = spec.Count("budget")},
      window_(spec.Count("window")),
      score_(ScoreOf(spec.Choice("scorer"), spec)),
      needs_(NeedsOf(score_, spec)),
      floor_(spec.Number("floor")) {}

std::optional<Selection> AdaKvPolicy::Compact(const PolicyState& state) const {
  if (!once_.Due(state)) return std::nullopt;
  const uint32_t share = once_.budget - window_;
  Selection selection{
      .heads = {{.first = score_.future.sinks, .recent = window_, .total = once_.budget}},
      .score = score_,
      .scope = Selection::Scope::kLayer,
      .floor = window_ + static_cast<uint32_t>(floor_ * share),
      .expected = once_.budget};
  selection.score.future.from = state.step;
  return selection;
}

}  // namespace kvpool
