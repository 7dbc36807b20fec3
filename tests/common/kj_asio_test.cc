// The crossing between threads: order, exceptions, orderly ends. Also run under TSan.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/kj_asio.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "common/rpc_thread.h"

namespace kvpool {
namespace {

using ::testing::HasSubstr;

// Turns the loop until `done`, at most ten seconds.
template <typename Predicate>
bool TurnUntil(kj::AsyncIoContext& io, Predicate done) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!done()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    io.provider->getTimer().afterDelay(1 * kj::MILLISECONDS).wait(io.waitScope);
  }
  return true;
}

TEST(InboxTest, ManyThreadsKeepTheirOrderAndRunOnTheLoop) {
  constexpr int kThreads = 8, kPosts = 2000;
  auto io = kj::setupAsyncIo();
  Inbox inbox(io.unixEventPort);
  const auto loop = std::this_thread::get_id();
  std::vector<int> next(kThreads, 0);
  int total = 0, wrong = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kPosts; ++i) {
        inbox.Post([&, t, i] {
          if (std::this_thread::get_id() != loop || next[t] != i) ++wrong;
          next[t] = i + 1;
          ++total;
        });
      }
    });
  }
  EXPECT_TRUE(TurnUntil(io, [&] { return total == kThreads * kPosts; }));
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(InboxTest, AFunctionThatThrowsDoesNotStopTheNext) {
  auto io = kj::setupAsyncIo();
  Inbox inbox(io.unixEventPort);
  bool ran = false;
  inbox.Post([] { throw std::runtime_error("no"); });
  inbox.Post([&] { ran = true; });
  EXPECT_TRUE(TurnUntil(io, [&] { return ran; }));
}

TEST(InboxTest, AFunctionMayPostAgain) {
  auto io = kj::setupAsyncIo();
  Inbox inbox(io.unixEventPort);
  int rounds = 0;
  std::function<void()> again = [&] {
    if (++rounds < 100) inbox.Post([&] { again(); });
  };
  inbox.Post([&] { again(); });
  EXPECT_TRUE(TurnUntil(io, [&] { return rounds == 100; }));
}

TEST(InboxTest, WhatHasNotRunIsDestroyedWithIt) {
  auto io = kj::setupAsyncIo();
  auto token = std::make_shared<int>(1);
  {
    Inbox inbox(io.unixEventPort);
    inbox.Post([token] { FAIL() << "the loop has not turned"; });
    EXPECT_EQ(token.use_count(), 2);
  }
  EXPECT_EQ(token.use_count(), 1);
}

TEST(OffloadTest, ValuesComeBack) {
  auto io = kj::setupAsyncIo();
  boost::asio::thread_pool pool(2);
  std::vector<kj::Promise<std::string>> promises;
  for (int i = 0; i < 50; ++i) {
    promises.push_back(Offload(pool, [i] { return std::to_string(i); }));
  }
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(promises[i].wait(io.waitScope), std::to_string(i));
  }
  bool ran = false;  // no atomic: ThreadSanitizer sees that the crossing orders the threads
  Offload(pool, [&] { ran = true; }).wait(io.waitScope);
  EXPECT_TRUE(ran);
}

TEST(OffloadTest, AThrowBreaksThePromiseOnly) {
  auto io = kj::setupAsyncIo();
  boost::asio::thread_pool pool(1);
  auto broken = Offload(pool, []() -> int { throw std::runtime_error("disk on fire"); });
  std::string text;
  broken.then([](int) {}, [&](kj::Exception&& e) { text = e.getDescription().cStr(); })
      .wait(io.waitScope);
  EXPECT_THAT(text, HasSubstr("disk on fire"));
  EXPECT_EQ(Offload(pool, [] { return 7; }).wait(io.waitScope), 7);
}

TEST(OffloadTest, AStoppedPoolBreaksThePromise) {
  auto io = kj::setupAsyncIo();
  kj::Maybe<kj::Promise<int>> promise;
  {
    boost::asio::thread_pool pool(1);
    pool.stop();
    promise = Offload(pool, [] { return 7; });
  }
  bool broken = false;
  KJ_REQUIRE_NONNULL(promise)
      .then([](int) {}, [&](kj::Exception&&) { broken = true; })
      .wait(io.waitScope);
  EXPECT_TRUE(broken);
}

TEST(RpcThreadTest, CallReturnsValuesAndErrors) {
  RpcThread thread;
  const auto value = thread.Call([](kj::AsyncIoContext& io) {
    return io.provider->getTimer().afterDelay(1 * kj::MILLISECONDS).then([] {
      return std::string("done");
    });
  });
  ASSERT_TRUE(value.ok()) << value.status();
  EXPECT_EQ(*value, "done");

  EXPECT_TRUE(
      thread.Call([](kj::AsyncIoContext&) -> kj::Promise<void> { return kj::READY_NOW; }).ok());

  const absl::Status thrown = thread.Call(
      [](kj::AsyncIoContext&) -> kj::Promise<void> { KJ_FAIL_REQUIRE("no such thing"); });
  EXPECT_EQ(thrown.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(thrown.message()), HasSubstr("no such thing"));

  const absl::Status late = thread.Call([](kj::AsyncIoContext& io) {
    return WithDeadline(kj::Promise<void>(kj::NEVER_DONE), io.provider->getTimer(),
                        std::chrono::milliseconds(5));
  });
  EXPECT_EQ(late.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(RpcThreadTest, CallsFromManyThreads) {
  RpcThread loop;
  std::atomic<int> good = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const auto value =
            loop.Call([t, i](kj::AsyncIoContext&) { return kj::Promise<int>(t * 1000 + i); });
        if (value.ok() && *value == t * 1000 + i) ++good;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 800);
}

TEST(RpcThreadTest, ACallFromTheLoopIsRefused) {
  RpcThread thread;
  std::promise<absl::Status> inner;
  thread.Post([&](kj::AsyncIoContext&) {
    inner.set_value(
        thread.Call([](kj::AsyncIoContext&) -> kj::Promise<void> { return kj::READY_NOW; }));
  });
  EXPECT_EQ(inner.get_future().get().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(RpcThreadTest, StoppingAnswersACallThatWaits) {
  absl::Status status;
  std::thread caller;
  {
    RpcThread thread;
    std::promise<void> waiting;
    caller = std::thread([&] {
      status = thread.Call([&](kj::AsyncIoContext&) {
        waiting.set_value();
        return kj::Promise<void>(kj::NEVER_DONE);
      });
    });
    waiting.get_future().wait();
  }
  caller.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace kvpool
