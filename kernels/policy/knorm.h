// knorm: KNorm (arXiv 2406.11430, the L2-norm strategy): keys with the lowest Euclidean norm stay,
// because they get most attention; no query is looked at.
//
// Parameters: budget (keys that stay), recent (newest keys among them), slack (growth between two
// compactions). The paper protects no newest key, which is recent = 1 but for the very newest, and
// evicts one key a step once the cache is full. Every layer is compressed alike: where the first
// layers' norms say little, the paper leaves those whole.
//
// Queries: one in 16, for recovery only. Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/policy/budget.h"

namespace kvpool {

class KNormPolicy : public Policy {
 public:
  explicit KNormPolicy(const PolicySpec& spec);
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
