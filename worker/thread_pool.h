// Runs the tasks of one loop on several threads and returns when all are done. For the parts of a
// forward pass that fall into independent pieces.
//
// ParallelFor is called by one thread at a time; that thread works too.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace kvpool {

class ThreadPool {
 public:
  // `threads` (>= 1) counts the caller: 1 makes no thread.
  explicit ThreadPool(uint32_t threads);
  ~ThreadPool();

  // body(0) .. body(count - 1), each once, in any order, possibly at the same time.
  void ParallelFor(size_t count, const std::function<void(size_t)>& body);

 private:
  void Serve();
  void Work();

  std::mutex mutex_;
  std::condition_variable start_, done_;
  uint64_t round_ = 0;  // counts loops; guarded by mutex_
  size_t working_ = 0;  // threads not done with this round; guarded by mutex_
  bool stop_ = false;   // guarded by mutex_
  size_t count_ = 0;    // written between rounds only
  const std::function<void(size_t)>* body_ = nullptr;  // written between rounds only
  std::atomic<size_t> next_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace kvpool
