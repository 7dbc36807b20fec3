// One tenant's demand at one agent, as the allocator shall see it: up at once, down slowly, so that
// a pause between two requests gives nothing away. A value that is told the time; one thread at a
// time.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/clock.h"

namespace kvpool {

// What is above the demand of now halves in this time.
inline constexpr Duration kDemandHalfLife = std::chrono::seconds(10);

class SmoothedDemand {
 public:
  // Takes what is wanted from now on: used and waited for, in slabs. Time never goes back.
  void Set(int64_t slabs, TimePoint now);

  // In slabs, at least what was last set, at most the highest that was ever set. To the nearest
  // slab, so that it comes down all the way.
  int64_t At(TimePoint now) const;

 private:
  double Excess(TimePoint now) const;

  int64_t wanted_ = 0;
  double excess_ = 0;  // above wanted_, at since_
  TimePoint since_;
};

}  // namespace kvpool
