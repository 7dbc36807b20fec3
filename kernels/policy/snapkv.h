// snapkv: SnapKV (arXiv 2404.14469, section 4): of the prompt, each head keeps the last `window`
// keys and, of the others, those that the last `window` queries of the prompt paid most attention
// to, smoothed along positions so that neighbours of an important key stay too.
//
// Parameters: budget (keys of the prompt that stay, the window among them), window, pooling and
// kernel of the smoothing. With grouped queries the scores of a group are added up. Keys that come
// after the prompt all stay.
//
// Queries: the last `window` of the prompt, exactly (QueryNeed::kPrompt); after it one in 16, for
// recovery only. Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/policy/prompt_once.h"

namespace kvpool {

class SnapKvPolicy : public Policy {
 public:
  explicit SnapKvPolicy(const PolicySpec& spec);
  PolicyNeeds Needs() const override { return observed_.Needs(); }
  uint32_t PeakTokens(const SessionPlan& plan) const override { return once_.PeakTokens(plan); }
  std::optional<uint32_t> NextCompactAt(const PolicyState& state) const override {
    return once_.NextCompactAt(state);
  }
  std::optional<Selection> Compact(const PolicyState& state) const override;

 private:
  const PromptOnce once_;
  const ObservationWindow observed_;
};

}  // namespace kvpool
