// h2o: H2O, heavy hitters (arXiv 2306.14048, section 4, Algorithm 1): a head keeps the newest keys
// and, of the others, those that all queries so far paid most attention to.
//
// Parameters: budget (keys that stay), recent (newest keys among them; the paper gives half of the
// budget to each part), slack (growth between two compactions; the paper evicts one key a step,
// which is slack = 1).
//
// A key's attention is summed from its own step on and survives compactions; an evicted key's sum
// is gone with it. Every query of the prompt counts, so all its rows are pushed. Every query is
// scored exactly once (QueryNeed::kExact). Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/policy/budget.h"

namespace kvpool {

class H2oPolicy : public Policy {
 public:
  explicit H2oPolicy(const PolicySpec& spec);
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
