// streaming: StreamingLLM (arXiv 2309.17453, section 3.2): attention sinks and a rolling window of
// the newest keys; everything between goes.
//
// Parameters: sinks (first keys that stay), recent (newest keys that stay), slack (growth between
// two compactions; the paper evicts one key a step, which is slack = 1). Keys keep the positions
// they were rotated with: the paper re-rotates them to their place in the cache, which matters only
// beyond the length a model was trained for.
//
// Queries: one in 16, for recovery only. Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/policy/budget.h"

namespace kvpool {

class StreamingPolicy : public Policy {
 public:
  explicit StreamingPolicy(const PolicySpec& spec);
  PolicyNeeds Needs() const override;
  uint32_t PeakTokens(const SessionPlan& plan) const override { return budget_.PeakTokens(plan); }
  std::optional<uint32_t> NextCompactAt(const PolicyState&) const override {
    return budget_.CompactAt();
  }
  std::optional<Selection> Compact(const PolicyState& state) const override;

 private:
  const uint32_t sinks_, recent_;
  const Budget budget_;
};

}  // namespace kvpool
