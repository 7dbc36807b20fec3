// adakv: Ada-KV (arXiv 2407.11550, section 3, Algorithm 1): the heads of a layer share its budget;
// the best keys of all of them stay, so that heads whose attention is spread keep more than those
// whose attention is narrow. Every head keeps at least a part of its even share. The scores may be
// those of any scorer that looks at the prompt once.
//
// Parameters: budget (keys of the prompt that stay, the window among them, as the mean over heads),
// scorer (snapkv: attention of the window; kvcompress: its square), floor (part of its even share
// that a head keeps at least), window, pooling, kernel.
//
// Queries: the last `window` of the prompt, exactly (QueryNeed::kPrompt); after it one in 16, for
// recovery only. Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/policy/prompt_once.h"

namespace kvpool {

class AdaKvPolicy : public Policy {
 public:
  explicit AdaKvPolicy(const PolicySpec& spec);
  PolicyNeeds Needs() const override { return observed_.Needs(); }
  uint32_t PeakTokens(const SessionPlan& plan) const override { return once_.PeakTokens(plan); }
  std::optional<uint32_t> NextCompactAt(const PolicyState& state) const override {
    return once_.NextCompactAt(state);
  }
  std::optional<Selection> Compact(const PolicyState& state) const override;

 private:
  const PromptOnce once_;
  const ObservationWindow observed_;
  const RowScore::Kind kind_;
  const double floor_;
};

}  // namespace kvpool
