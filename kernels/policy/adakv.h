// adakv: Ada-KV (arXiv 2407.11550, section 3, Algorithm 1): the heads of a layer share its budget;
// the best keys of all of them stay, so that heads whose attention is spread keep more than those
// whose attention is narrow. Every head keeps at least a part of its even share.
//
// It wraps any scorer that gives each key of the prompt a number of its own head: snapkv
// (attention of the window) and kvcompress (its square), smoothed along positions as they are; h2o
// (attention of the whole prompt), knorm, keydiff and expected-attention as they rank, not
// smoothed. expected-attention tells the distribution from the window's queries, keeps its sinks,
// and has its own defaults but for rope_theta. Scores of different heads are compared as they are:
// norms and cosines are no shares of attention, and a head of large keys may lose more by them.
//
// Not wrapped: tova ranks a layer's keys alike for all its heads, which leaves nothing to share;
// rkv compares keys with each other, which is dear for a whole prompt (it bounds its own budget for
// that); pyramidkv's scores are snapkv's, and its budgets by layer are not shared here; the others
// choose by sets or by counts of steps, in which equal keys are many and shares say little.
//
// Parameters: budget (keys of the prompt that stay, the window among them, as the mean over heads),
// scorer, floor (part of its even share that a head keeps at least), window, pooling, kernel,
// rope_theta.
//
// Queries: those of the prompt that the scorer looks at, exactly (QueryNeed::kPrompt): the last
// `window`, all, or none; after it one in 16, for recovery only. Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/policy/prompt_once.h"

namespace kvpool {

class AdaKvPolicy : public Policy {
 public:
  explicit AdaKvPolicy(const PolicySpec& spec);
  PolicyNeeds Needs() const override { return needs_; }
  uint32_t PeakTokens(const SessionPlan& plan) const override { return once_.PeakTokens(plan); }
  std::optional<uint32_t> NextCompactAt(const PolicyState& state) const override {
    return once_.NextCompactAt(state);
  }
  std::optional<Selection> Compact(const PolicyState& state) const override;

 private:
  const PromptOnce once_;
  const uint32_t window_;
  const RowScore score_;
  const PolicyNeeds needs_;
  const double floor_;
};

}  // namespace kvpool
