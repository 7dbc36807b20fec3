// The thread's body: a loop, an inbox, the running tasks, and a promise that ends it.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/rpc_thread.h"

#include "common/log.h"

namespace kvpool {

struct RpcThread::Loop final : kj::TaskSet::ErrorHandler {
  Loop() : io(kj::setupAsyncIo()), inbox(io.unixEventPort), tasks(*this) {}

  void taskFailed(kj::Exception&& error) override {
    Logger("rpc").Error("a task failed", {{"error", error.getDescription().cStr()}});
  }

  kj::AsyncIoContext io;
  Inbox inbox;
  kj::TaskSet tasks;  // destroyed first
  kj::PromiseFulfillerPair<void> stop = kj::newPromiseAndFulfiller<void>();
};

RpcThread::RpcThread() {
  std::promise<Loop*> started;
  std::future<Loop*> loop = started.get_future();
  thread_ = std::thread([this, &started] { Main(started); });
  loop_ = loop.get();
}

RpcThread::~RpcThread() {
  Post([loop = loop_](kj::AsyncIoContext&) { loop->stop.fulfiller->fulfill(); });
  thread_.join();
}

void RpcThread::Main(std::promise<Loop*>& started) {
  KjLogScope log;
  Loop loop;
  started.set_value(&loop);
  loop.stop.promise.wait(loop.io.waitScope);
}

void RpcThread::Post(kj::Function<void(kj::AsyncIoContext&)> function) {
  Loop& loop = *loop_;
  loop.inbox.Post([&loop, function = kj::mv(function)]() mutable { function(loop.io); });
}

void RpcThread::AddTask(kj::Promise<void> task) { loop_->tasks.add(kj::mv(task)); }

}  // namespace kvpool
