// The schedule of policies that keep a fixed number of keys: `kept` after every compaction, and
// room to grow by `slack` until the next one. Beyond that a session is longer only by the chunk
// that it was fed last.
//
// A value; any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/policy/policy.h"

namespace kvpool {

struct Budget {
  uint32_t kept = 0;
  uint32_t slack = 0;

  uint32_t CompactAt() const { return kept + slack; }
  uint32_t PeakTokens(const SessionPlan& plan) const {
    return std::min(plan.max_tokens, CompactAt() + plan.chunk);
  }
};

}  // namespace kvpool
