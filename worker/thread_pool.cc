// One round per loop: everybody wakes, takes tasks off a counter, and the last one out reports.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/thread_pool.h"

namespace kvpool {

ThreadPool::ThreadPool(uint32_t threads) {
  for (uint32_t i = 1; i < threads; ++i) threads_.emplace_back([this] { Serve(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  start_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::ParallelFor(size_t count, const std::function<void(size_t)>& body) {
  if (threads_.empty() || count < 2) {
    for (size_t i = 0; i < count; ++i) body(i);
    return;
  }
  {
    std::lock_guard lock(mutex_);
    count_ = count;
    body_ = &body;
    next_ = 0;
    working_ = threads_.size();
    ++round_;
  }
  start_.notify_all();
  Work();
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return working_ == 0; });
}

void ThreadPool::Serve() {
  for (uint64_t seen = 0;;) {
    {
      std::unique_lock lock(mutex_);
      start_.wait(lock, [&] { return stop_ || round_ != seen; });
      if (stop_) return;
      seen = round_;
    }
    Work();
    std::lock_guard lock(mutex_);
    if (--working_ == 0) done_.notify_one();
  }
}

void ThreadPool::Work() {
  for (size_t i = next_.fetch_add(1); i < count_; i = next_.fetch_add(1)) (*body_)(i);
}

}  // namespace kvpool
