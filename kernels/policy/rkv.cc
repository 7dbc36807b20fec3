// See rkv.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/rkv.h"

namespace kvpool {
namespace {

constexpr uint32_t kComparedRows = 2048;

}  // namespace

RkvPolicy::RkvPolicy(const PolicySpec& spec)
    : window_(spec.Count("window")),
      kernel_(spec.Count("kernel")),
      lambda_(spec.Number("lambda")),
      threshold_(spec.Number("threshold")),
      budget_{.kept = spec.Count("budget"), .slack = spec.Count("buffer")} {}

PolicyNeeds RkvPolicy::Needs() const {
  return {
      .planes = {.window_queries = window_}, .queries = QueryNeed::kExact, .prompt_rows = window_};
}

std::optional<Selection> RkvPolicy::Compact(const PolicyState& state) const {
  if (state.length <= budget_.kept) return std::nullopt;
  return Selection{.heads = {{.recent = window_, .total = budget_.kept}},
                   .score = {.kind = RowScore::Kind::kRedundancy,
                             .window = window_,
                             .kernel = kernel_,
                             .redundancy = {.lambda = lambda_,
                                            .threshold = threshold_,
                                            .compared = kComparedRows}},
                   .expected = budget_.kept};
}

}  // namespace kvpool
