// tova: TOVA (arXiv 2401.06104, section 3.2): what goes is what the last query paid least attention
// to, on average over the heads of a layer, so that all heads of a layer keep the same tokens.
// Nothing is protected, neither the first tokens nor the newest.
//
// Parameters: budget (keys that stay), slack (growth between two compactions; the paper evicts one
// key a step, which is slack = 1: with more, the last query chooses all that go).
//
// Every query is pushed (QueryNeed::kExact): a compaction needs the last one, and it is not known
// before which step it will be. Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/policy/budget.h"

namespace kvpool {

class TovaPolicy : public Policy {
 public:
  explicit TovaPolicy(const PolicySpec& spec);
  PolicyNeeds Needs() const override;
  uint32_t PeakTokens(const SessionPlan& plan) const override { return budget_.PeakTokens(plan); }
  std::optional<uint32_t> NextCompactAt(const PolicyState&) const override {
    return budget_.CompactAt();
  }
  std::optional<Selection> Compact(const PolicyState& state) const override;

 private:
  const Budget budget_;
};

}  // namespace kvpool
