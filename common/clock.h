// Time as a value. Cores take a TimePoint; shells own a Clock; tests own a ManualClock.
//
// Durations only: the epoch is boot (CLOCK_BOOTTIME), so suspend counts and the wall clock does
// not. Never put a TimePoint on the wire. Thread-safe.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <time.h>

#include <chrono>

namespace kvpool {

struct BootClock {
  using duration = std::chrono::nanoseconds;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<BootClock>;
  static constexpr bool is_steady = true;

  static time_point now() {
    timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return time_point(std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec));
  }
};

using TimePoint = BootClock::time_point;
using Duration = BootClock::duration;

}  // namespace kvpool
