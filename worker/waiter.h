// Time for the engine, and waiting. Tests have one whose time moves only when the engine waits.
//
// Engine's thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <thread>

#include "common/clock.h"

namespace kvpool {

class Waiter {
 public:
  virtual ~Waiter() = default;
  virtual TimePoint Now() = 0;
  virtual void Wait(Duration time) = 0;
};

class BootWaiter final : public Waiter {
 public:
  TimePoint Now() override { return BootClock::now(); }
  void Wait(Duration time) override { std::this_thread::sleep_for(time); }
};

}  // namespace kvpool
