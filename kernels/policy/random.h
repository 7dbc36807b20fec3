// random: the newest keys and a random choice of the others. No paper: the yardstick that every
// policy must beat at the same budget.
//
// Parameters: budget (keys that stay), recent (newest keys among them), slack (growth between two
// compactions), seed. The choice depends on the seed, the session's number, the head and the key's
// position alone, so it is the same in every run.
//
// Queries: one in 16, for recovery only. Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/policy/budget.h"

namespace kvpool {

class RandomPolicy : public Policy {
 public:
  explicit RandomPolicy(const PolicySpec& spec);
  PolicyNeeds Needs() const override;
  uint32_t PeakTokens(const SessionPlan& plan) const override { return budget_.PeakTokens(plan); }
  std::optional<uint32_t> NextCompactAt(const PolicyState&) const override {
    return budget_.CompactAt();
  }
  std::optional<Selection> Compact(const PolicyState& state) const override;

 private:
  const uint32_t recent_;
  const uint64_t seed_;
  const Budget budget_;
};

}  // namespace kvpool
