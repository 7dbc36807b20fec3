// Time for the engine, and a way to wait for memory without polling: a wait ends early when
// somebody calls Notify. Tests have one whose time moves only when the engine waits.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <mutex>

#include "common/clock.h"

namespace kvpool {

class Waiter {
 public:
  virtual ~Waiter() = default;
  virtual TimePoint Now() = 0;
  // At most this long. A Notify since the last wait ends it at once. Engine's thread only.
  virtual void Wait(Duration at_most) = 0;
  // Something changed that may let a session go on. Any thread.
  virtual void Notify() = 0;
};

class BootWaiter final : public Waiter {
 public:
  TimePoint Now() override { return BootClock::now(); }
  void Wait(Duration at_most) override {
    std::unique_lock lock(mutex_);
    condition_.wait_for(lock, at_most, [this] { return notified_; });
    notified_ = false;
  }
  void Notify() override {
    {
      std::lock_guard lock(mutex_);
      notified_ = true;
    }
    condition_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable condition_;
  bool notified_ = false;
};

}  // namespace kvpool
