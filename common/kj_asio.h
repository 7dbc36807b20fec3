// The crossing between the KJ thread and every other thread. Only values cross.
//
//   any thread -> KJ   Inbox: functions run on the loop's thread, in the order of posting.
//   KJ -> Asio -> KJ   Offload: runs a function on a thread pool, its result comes back as a
//   promise.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kj/async-io.h>
#include <kj/async-unix.h>
#include <kj/async.h>
#include <kj/debug.h>
#include <kj/exception.h>
#include <kj/function.h>
#include <kj/io.h>

#include <atomic>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <memory>
#include <mutex>
#include <optional>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace kvpool {

// Functions for one KJ loop. Made and destroyed on the loop's thread; every other thread must have
// stopped posting by then. What was posted and has not run is destroyed on the loop's thread, too,
// so a function may own capabilities.
class Inbox {
 public:
  explicit Inbox(kj::UnixEventPort& port);
  KJ_DISALLOW_COPY(Inbox);

  // Any thread. Never runs `function` before returning. An exception that escapes it is logged.
  void Post(kj::Function<void()> function);

 private:
  kj::Promise<void> Run();
  void RunPosted();

  kj::AutoCloseFd event_;
  kj::UnixEventPort::FdObserver observer_;
  std::mutex mutex_;
  std::vector<kj::Function<void()>> posted_;  // guarded by mutex_
  kj::Promise<void> running_;
};

// Routes KJ's own log lines on this thread into spdlog, without stack traces (KJ would start a
// process to symbolise each). Must be a variable on the stack of the thread that runs the loop.
class KjLogScope final : public kj::ExceptionCallback {
 public:
  void logMessage(kj::LogSeverity severity, const char* file, int line, int context_depth,
                  kj::String&& text) override;
  StackTraceMode stackTraceMode() override { return StackTraceMode::NONE; }
};

// What a function on the pool leaves for the loop: a value or an exception. KJ orders the two
// threads by itself, but in a library that ThreadSanitizer cannot see into; `done_` is an order
// that it sees, so that everything that crosses here is checked.
template <typename T>
class OffloadResult {
 public:
  // On the pool, once.
  template <typename F>
  void Take(F& function) {
    error_ = kj::runCatchingExceptions([&] {
      if constexpr (std::is_void_v<T>) {
        function();
      } else {
        value_.emplace(function());
      }
    });
    done_.store(true, std::memory_order_release);
  }

  // On the loop, once, after Take. Throws what the function threw.
  T Give() {
    KJ_ASSERT(done_.load(std::memory_order_acquire));
    KJ_IF_MAYBE (error, error_) {
      kj::throwFatalException(kj::mv(*error));
    }
    if constexpr (!std::is_void_v<T>) return *std::move(value_);
  }

 private:
  kj::Maybe<kj::Exception> error_;
  std::optional<std::conditional_t<std::is_void_v<T>, std::monostate, T>> value_;
  std::atomic<bool> done_ = false;
};

// Runs `function` on `pool` and resolves to what it returns. Call on a KJ thread. When it throws,
// or the pool is stopped before it ran, the promise is broken. Dropping the promise does not stop
// it.
template <typename F>
kj::Promise<std::invoke_result_t<F&>> Offload(boost::asio::thread_pool& pool, F function) {
  auto pair = kj::newPromiseAndCrossThreadFulfiller<void>();
  auto result = std::make_shared<OffloadResult<std::invoke_result_t<F&>>>();
  boost::asio::post(
      pool, [function = std::move(function), result, fulfiller = kj::mv(pair.fulfiller)]() mutable {
        result->Take(function);
        fulfiller->fulfill();
      });
  return pair.promise.then([result] { return result->Give(); });
}

}  // namespace kvpool
