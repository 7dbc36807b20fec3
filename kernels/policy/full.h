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
  explicit FullPolicy(uint32_t recovery_every) : recovery_every_(recovery_every) {}
  PolicyNeeds Needs() const override;
  uint32_t PeakTokens(uint32_t max_tokens, uint32_t chunk) const override;
  std::optional<uint32_t> CompactAt() const override { return std::nullopt; }
  std::optional<Selection> Compact(uint32_t length) const override;

 private:
  const uint32_t recovery_every_;
};

}  // namespace kvpool
