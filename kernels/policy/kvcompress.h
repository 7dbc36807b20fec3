// kvcompress: the scoring of KV-Compress (arXiv 2410.00161, section 4): keys are ranked by the sum
// of squared attention of the last queries of the prompt, over all heads of all layers together, so
// that the number of keys that stay differs from layer to layer and from head to head.
//
// Parameters: budget (keys of the prompt that stay, as the mean over heads), window (last queries
// of the prompt that vote, and newest keys that always stay), pooling, kernel, votes: window, or
// all queries of the prompt (the paper's "full" variant). The paper evicts whole blocks of 16 keys
// of a head; here single keys go, and blocks are packed afterwards.
//
// Queries: the last `window` of the prompt or all of it, exactly (QueryNeed::kPrompt); after it one
// in 16, for recovery only. Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/policy/prompt_once.h"

namespace kvpool {

class KvCompressPolicy : public Policy {
 public:
  explicit KvCompressPolicy(const PolicySpec& spec);
  PolicyNeeds Needs() const override;
  uint32_t PeakTokens(const SessionPlan& plan) const override { return once_.PeakTokens(plan); }
  std::optional<uint32_t> NextCompactAt(const PolicyState& state) const override {
    return once_.NextCompactAt(state);
  }
  std::optional<Selection> Compact(const PolicyState& state) const override;

 private:
  const PromptOnce once_;
  const ObservationWindow observed_;
  enum class Votes : uint8_t { kWindow, kAll };
  const Votes votes_;
};

}  // namespace kvpool
