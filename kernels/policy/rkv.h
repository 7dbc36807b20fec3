// rkv: R-KV (arXiv 2505.24133): keys stay that the last queries looked at and that are not much
// like others; see kernels/scores/redundancy.h.
//
// Parameters: budget (keys that stay), buffer (growth between two compactions), window alpha (last
// queries that vote; as many newest keys stay), kernel (width of the maximum along positions),
// lambda (weight of importance against redundancy; the authors' code has 0.07), threshold (cosine
// from which two keys say the same).
//
// The paper compacts while it decodes. Here a prompt that brings a head to budget + buffer is
// compacted by the same rule, with the last queries of the chunk fed last. Comparing all keys of a
// head takes time by the square of their number, on one thread: a head of at most 2048 rows, which
// is one that grows token by token with budget + buffer <= 2048, is compared whole, as in the
// paper; a longer one in runs of at most so many neighbours, in time by its length.
//
// Every query is pushed (QueryNeed::kExact), of a longer chunk the last `window`; they take
// 4 * window * model_layers * query_heads * key_dim bytes a session, charged with the planes.
// Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/policy/budget.h"

namespace kvpool {

class RkvPolicy : public Policy {
 public:
  explicit RkvPolicy(const PolicySpec& spec);
  PolicyNeeds Needs() const override;
  uint32_t PeakTokens(const SessionPlan& plan) const override { return budget_.PeakTokens(plan); }
  std::optional<uint32_t> NextCompactAt(const PolicyState&) const override {
    return budget_.CompactAt();
  }
  std::optional<Selection> Compact(const PolicyState& state) const override;

 private:
  const uint32_t window_, kernel_;
  const double lambda_, threshold_;
  const Budget budget_;
};

}  // namespace kvpool
