// For how long a tenant has held more than its lease, and what may be done about it by now. Pure:
// time is given; it knows no ledger and does nothing itself.
//
// The grace runs from the moment at which the tenant came to hold more than its lease, without a
// break, until it fits again: a lease that is lowered once more meanwhile starts no new one.
//
// Lives on the RPC thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>

#include "common/clock.h"
#include "common/tenants_file.h"

namespace kvpool {

// A grace that never passes.
inline constexpr Grace kEndlessGrace{.cold = Duration::max(), .running = Duration::max()};

enum class OveragePhase : uint8_t {
  kWithin,        // it holds no more than its lease
  kGrace,         // it has time to give back what is too much
  kColdOver,      // the time for what idle sessions hold has passed
  kPastDeadline,  // and that for what running ones hold: it gets nothing new
};

// Whose sessions may be ended (step 6 of the reclaim order).
enum class Preemption : uint8_t { kNone, kIdle, kAll };

class Overage {
 public:
  // To be told whenever one of the two has changed. `held_slabs`: without STUCK ones, which nobody
  // can give back.
  void See(uint32_t held_slabs, uint32_t lease_slabs, TimePoint now);

  // Zero while it is within its lease.
  Duration Lasted(TimePoint now) const;
  // Cold bytes never have more time than running ones.
  OveragePhase Phase(const Grace& grace, TimePoint now) const;

 private:
  std::optional<TimePoint> since_;
};

Preemption AllowedPreemption(OveragePhase phase, OverDeadline action);

}  // namespace kvpool
