// pyramidkv: PyramidKV (arXiv 2406.02069, section 4): SnapKV, but lower layers keep more of the
// prompt and higher ones less, falling in equal steps.
//
// Parameters: budget B (mean over layers), window W, pooling, kernel, beta. Beside the window the
// highest layer keeps (B - W) / beta keys, the lowest 2 (B - W) less that; when the prompt is
// shorter than that, the lowest keeps all of it and the highest gets the difference, as in the
// code that came with the paper.
//
// Queries: the last W of the prompt, exactly (QueryNeed::kPrompt); after it one in 16, for recovery
// only. Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/policy/prompt_once.h"

namespace kvpool {

class PyramidKvPolicy : public Policy {
 public:
  explicit PyramidKvPolicy(const PolicySpec& spec);
  PolicyNeeds Needs() const override { return observed_.Needs(); }
  uint32_t PeakTokens(const SessionPlan& plan) const override { return once_.PeakTokens(plan); }
  std::optional<uint32_t> NextCompactAt(const PolicyState& state) const override {
    return once_.NextCompactAt(state);
  }
  std::optional<Selection> Compact(const PolicyState& state) const override;

 private:
  const PromptOnce once_;
  const ObservationWindow observed_;
  const uint32_t beta_;
};

}  // namespace kvpool
