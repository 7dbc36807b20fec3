// An exponential decay towards what is wanted.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/smoothed_demand.h"

#include <algorithm>
#include <cmath>

namespace kvpool {

double SmoothedDemand::Excess(TimePoint now) const {
  const std::chrono::duration<double> half_life = kDemandHalfLife;
  const std::chrono::duration<double> passed = now - since_;
  return excess_ * std::exp2(-(passed / half_life));
}

void SmoothedDemand::Set(int64_t slabs, TimePoint now) {
  const double demand = static_cast<double>(wanted_) + Excess(now);
  wanted_ = slabs;
  excess_ = std::max(demand - static_cast<double>(slabs), 0.0);
  since_ = now;
}

int64_t SmoothedDemand::At(TimePoint now) const { return wanted_ + std::llround(Excess(now)); }

}  // namespace kvpool
