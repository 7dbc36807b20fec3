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
#include <kj/exception.h>
#include <kj/function.h>
#include <kj/io.h>

#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>
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

// Runs `function` on `pool` and resolves to what it returns. Call on a KJ thread. When it throws,
// or the pool is stopped before it ran, the promise is broken. Dropping the promise does not stop
// it.
template <typename F>
kj::Promise<std::invoke_result_t<F&>> Offload(boost::asio::thread_pool& pool, F function) {
  using T = std::invoke_result_t<F&>;
  auto pair = kj::newPromiseAndCrossThreadFulfiller<T>();
  boost::asio::post(pool,
                    [function = std::move(function), fulfiller = kj::mv(pair.fulfiller)]() mutable {
                      fulfiller->rejectIfThrows([&] {
                        if constexpr (std::is_void_v<T>) {
                          function();
                          fulfiller->fulfill();
                        } else {
                          fulfiller->fulfill(function());
                        }
                      });
                    });
  return kj::mv(pair.promise);
}

}  // namespace kvpool
