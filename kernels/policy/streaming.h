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

#include "kernels/policy/policy.h"

namespace kvpool {

class StreamingPolicy : public Policy {
 public:
  StreamingPolicy(uint32_t sinks, uint32_t recent, uint32_t slack)
      : sinks_(sinks), recent_(recent), slack_(slack) {}

  PolicyNeeds Needs() const override;
  uint32_t PeakTokens(uint32_t max_tokens, uint32_t chunk) const override;
  std::optional<uint32_t> CompactAt() const override { return sinks_ + recent_ + slack_; }
  std::optional<Selection> Compact(uint32_t length) const override;

 private:
  uint32_t sinks_, recent_, slack_;
};

}  // namespace kvpool
