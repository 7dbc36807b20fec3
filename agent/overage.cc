// See overage.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/overage.h"

#include <algorithm>

namespace kvpool {

void Overage::See(uint32_t held_slabs, uint32_t lease_slabs, TimePoint now) {
  if (held_slabs <= lease_slabs) {
    since_.reset();
  } else if (!since_.has_value()) {
    since_ = now;
  }
}

Duration Overage::Lasted(TimePoint now) const {
  return since_.has_value() ? std::max(now - *since_, Duration::zero()) : Duration::zero();
}

OveragePhase Overage::Phase(const Grace& grace, TimePoint now) const {
  if (!since_.has_value()) return OveragePhase::kWithin;
  const Duration lasted = Lasted(now);
  if (lasted >= grace.running) return OveragePhase::kPastDeadline;
  return lasted >= grace.cold ? OveragePhase::kColdOver : OveragePhase::kGrace;
}

Preemption AllowedPreemption(OveragePhase phase, OverDeadline action) {
  if (action != OverDeadline::kPreempt || phase < OveragePhase::kColdOver) return Preemption::kNone;
  return phase == OveragePhase::kColdOver ? Preemption::kIdle : Preemption::kAll;
}

}  // namespace kvpool
