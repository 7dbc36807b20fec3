// full: keeps every key, never compacts. The baseline. No parameters.
//
// Queries: one in 16, for recovery only (which is 1 as long as nothing is dropped).
//
// Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/policy/policy.h"

namespace kvpool {

class FullPolicy : public Policy {
 public:
  PolicyNeeds Needs() const override;
  uint32_t PeakTokens(uint32_t max_tokens, uint32_t chunk) const override;
  std::optional<uint32_t> CompactAt() const override { return std::nullopt; }
  std::optional<Selection> Compact(uint32_t length) const override;
};

}  // namespace kvpool
