// A background thread with a KJ loop, for a library whose callers know nothing of KJ. Daemons run
// their loop on the main thread instead and need an Inbox only.
//
// Every method may be called from any thread, the destructor from any but the loop's own.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kj/async-io.h>

#include <future>
#include <memory>
#include <thread>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/kj_asio.h"
#include "common/rpc_connect.h"

namespace kvpool {

class RpcThread {
 public:
  RpcThread();
  // Runs what was posted before, cancels every promise that Call still waits for, and joins.
  // Capabilities that outlive a Call must have been dropped by a posted function before.
  ~RpcThread();
  RpcThread(const RpcThread&) = delete;
  RpcThread& operator=(const RpcThread&) = delete;

  // Runs `function` on the loop, later.
  void Post(kj::Function<void(kj::AsyncIoContext&)> function);

  // Runs `function(kj::AsyncIoContext&) -> kj::Promise<T>` on the loop and blocks for its result:
  // StatusOr<T>, or Status for void. An exception comes back as ToStatus says, a stop as
  // Unavailable. From the loop itself it would wait for itself: FailedPrecondition.
  template <typename F>
  auto Call(F function);

 private:
  template <typename T>
  struct ResultOf {
    using type = absl::StatusOr<T>;
  };

  // The waiting side of a Call. Whoever drops it without an answer has answered Unavailable.
  template <typename R>
  class Reply {
   public:
    ~Reply() {
      if (!answered_) Set(absl::UnavailableError("the RPC thread has stopped"));
    }
    void Set(R result) {
      answered_ = true;
      promise_.set_value(std::move(result));
    }
    std::future<R> Future() { return promise_.get_future(); }

   private:
    std::promise<R> promise_;
    bool answered_ = false;
  };

  struct Loop;

  void Main(std::promise<Loop*>& started);
  void AddTask(kj::Promise<void> task);

  Loop* loop_ = nullptr;  // lives on the thread's stack, from the constructor to the join
  std::thread thread_;
};

template <>
struct RpcThread::ResultOf<void> {
  using type = absl::Status;
};

template <typename F>
auto RpcThread::Call(F function) {
  using Promise = std::invoke_result_t<F&, kj::AsyncIoContext&>;
  using T = decltype(std::declval<Promise>().wait(std::declval<kj::WaitScope&>()));
  using R = typename ResultOf<T>::type;
  if (std::this_thread::get_id() == thread_.get_id()) {
    return R(absl::FailedPreconditionError("a blocking call on the RPC thread itself"));
  }
  auto reply = std::make_shared<Reply<R>>();
  std::future<R> result = reply->Future();
  Post([this, function = std::move(function),
        reply = std::move(reply)](kj::AsyncIoContext& io) mutable {
    auto promise = kj::evalNow([&] { return function(io); });
    auto failed = [reply](kj::Exception&& error) { reply->Set(ToStatus(error)); };
    if constexpr (std::is_void_v<T>) {
      AddTask(promise.then([reply] { reply->Set(absl::OkStatus()); }, std::move(failed)));
    } else {
      AddTask(
          promise.then([reply](T&& value) { reply->Set(std::move(value)); }, std::move(failed)));
    }
  });
  return result.get();
}

}  // namespace kvpool
