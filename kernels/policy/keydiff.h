// keydiff: KeyDiff (arXiv 2504.15364, section 3, the variant with an anchor): keys with the lowest
// cosine similarity to the mean of the head's unit keys stay; no query is looked at.
//
// Parameters: budget N (keys that stay), recent (newest keys among them: the paper's extension by a
// sliding window; 1 is its plain rule but for the very newest key), slack (growth between two
// compactions: the paper's block B of 128, by which it feeds prompts too).
//
// Queries: one in 16, for recovery only. Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/policy/budget.h"

namespace kvpool {

class KeyDiffPolicy : public Policy {
 public:
  explicit KeyDiffPolicy(const PolicySpec& spec);
  PolicyNeeds Needs() const override;
  uint32_t PeakTokens(const SessionPlan& plan) const override { return budget_.PeakTokens(plan); }
  std::optional<uint32_t> NextCompactAt(const PolicyState&) const override {
    return budget_.CompactAt();
  }
  std::optional<Selection> Compact(const PolicyState& state) const override;

 private:
  const uint32_t recent_;
  const Budget budget_;
};

}  // namespace kvpool
