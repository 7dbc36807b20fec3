// full: keeps every key, never compacts. The baseline.
//
// Queries: one in `recovery_every`, for recovery only (which is 1 as long as nothing is dropped);
// 0: none.
//
// Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/policy/policy.h"

namespace kvpool {

class FullPolicy : public Policy {
 public:
  explicit FullPolicy(const PolicySpec& spec);
  PolicyNeeds Needs() const override;
  uint32_t PeakTokens(const SessionPlan& plan) const override { return plan.max_tokens; }
  std::optional<uint32_t> NextCompactAt(const PolicyState&) const override { return std::nullopt; }
  std::optional<Selection> Compact(const PolicyState&) const override { return std::nullopt; }

 private:
  const uint32_t recovery_every_;
};

}  // namespace kvpool
