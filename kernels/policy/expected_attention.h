// expected-attention: Expected Attention (arXiv 2510.00636, section 3): keys stay by the attention
// that future queries are expected to give them, times the norm of their value; see
// kernels/scores/expected_attention.h.
//
// Parameters: budget (keys that stay), sinks and recent (first and newest keys among them; the
// paper names no newest keys, which is recent = 1 but for the very newest), slack (growth between
// two compactions), horizon T (future positions that are averaged over), epsilon, queries (how many
// of the newest kept queries tell the distribution), every (one query in this many is kept),
// rope_theta.
//
// The distribution: the paper takes it from all of a prompt's hidden states, and from the newest
// 128 while it decodes. Here it is that of the last `queries` sampled ones, which reach back over
// queries * every tokens, so it moves with the session. Of a chunk longer than 32 * every tokens
// its first ones are sampled.
//
// rope_theta is the model's base of rotation, which a geometry does not carry; elements are paired
// as in Hugging Face's Llama. For a model that rotates otherwise (scaled, partly, interleaved, not
// at all) this is not the paper's method.
//
// Kept queries take 4 * queries * model_layers * query_heads * key_dim bytes a session, charged
// with the planes. Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/policy/budget.h"

namespace kvpool {

class ExpectedAttentionPolicy : public Policy {
 public:
  explicit ExpectedAttentionPolicy(const PolicySpec& spec);
  PolicyNeeds Needs() const override;
  uint32_t PeakTokens(const SessionPlan& plan) const override { return budget_.PeakTokens(plan); }
  std::optional<uint32_t> NextCompactAt(const PolicyState&) const override {
    return budget_.CompactAt();
  }
  std::optional<Selection> Compact(const PolicyState& state) const override;

 private:
  const uint32_t sinks_, recent_, horizon_, queries_, every_;
  const double epsilon_, rope_theta_;
  const Budget budget_;
};

}  // namespace kvpool
