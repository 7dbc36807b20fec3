// scissorhands: Scissorhands (arXiv 2305.17118, Algorithms 1 and 2): a head holds at most B keys;
// when it is full, the m keys that the last w queries most often found low (alpha < 1 / t, t the
// absolute step) go, older first among equals; the newest r always stay.
//
// Parameters: budget B, window w, recent r, drop m, layers, gain. Heads of a layer always have the
// same budget. Layers have it too (even), or shares of the same sum that grow with how much the
// important keys of a layer change (persistence): section 5 gives more to layers that persist less,
// without a formula. Here a compaction leaves each layer its newest r, and what it may leave beyond
// them, B - m - r keys a head in the mean, is divided among layers in proportion to
// 1 + gain * (1 - persistence ratio).
//
// Algorithm 1 appends, and compresses when n > B. Here a session is handed over at length B, before
// the next append: B -> B - m, then the append, which leaves the same B - m + 1 keys. A chunk can
// bring a head over B by its own length; then what is over goes too, so that B - m always stay.
// Every query is scored exactly once (QueryNeed::kExact), counts are kept per drain, so the window
// is made of whole drains: the newest ones that hold at most w queries together, and always the
// newest one. A drain holds up to kDrainQueries (32), so a w below that is the newest drain.
//
// Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/policy/budget.h"

namespace kvpool {

class ScissorhandsPolicy : public Policy {
 public:
  explicit ScissorhandsPolicy(const PolicySpec& spec);
  PolicyNeeds Needs() const override;
  uint32_t PeakTokens(const SessionPlan& plan) const override { return budget_.PeakTokens(plan); }
  std::optional<uint32_t> NextCompactAt(const PolicyState& state) const override;
  std::optional<Selection> Compact(const PolicyState& state) const override;

 private:
  const uint32_t window_, recent_, drop_;
  const bool seals_;
  const Budget budget_;
  const double gain_;  // 0: even
};

}  // namespace kvpool
