// A worker that never rests: opens a session, grows it token by token, closes it, and again, so
// that what its tenant wants goes up and down. Test code; the work runs on a thread of its own.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "client/kvpool.h"
#include "tests/integration/small_geometry.h"

namespace kvpool {

class DecodeLoad {
 public:
  DecodeLoad(std::string socket, std::string token, uint32_t tokens_per_session)
      : socket_(std::move(socket)), token_(std::move(token)), tokens_(tokens_per_session) {
    thread_ = std::thread([this] { Finish(Run()); });
  }
  ~DecodeLoad() {
    stop_ = true;
    thread_.join();
  }

  uint64_t steps() const { return steps_; }
  // Longest time that a step took since the last call.
  std::chrono::nanoseconds TakeLongestStep() {
    return std::chrono::nanoseconds(longest_.exchange(0));
  }
  // Of what ended the work: OK while it goes on. A refusal of a session is no error.
  absl::Status status() const {
    const std::lock_guard lock(mutex_);
    return status_;
  }

 private:
  void Finish(absl::Status status) {
    const std::lock_guard lock(mutex_);
    status_ = std::move(status);
  }

  absl::Status Run() {
    auto connection = Connection::Open({.socket = socket_, .worker = "load"});
    if (!connection.ok()) return connection.status();
    auto tenant = (*connection)
                      ->Attach(token_, {.geometry = SmallGeometry(),
                                        .max_sessions = 4,
                                        .max_running = 4,
                                        .max_session_tokens = tokens_,
                                        .chunk_tokens = 64});
    if (!tenant.ok()) return tenant.status();
    while (!stop_) {
      auto session = (*tenant)->Open({.prompt_tokens = 1, .max_tokens = tokens_});
      if (absl::IsResourceExhausted(session.status())) {
        std::this_thread::yield();
        continue;
      }
      if (!session.ok()) return session.status();
      while (!stop_ && (*session)->position() + 16 <= tokens_) {
        if (absl::Status status = Advance(**tenant, **session); !status.ok()) return status;
      }
    }
    return absl::OkStatus();
  }

  // A step of 16 tokens. One that finds no page, as a lease comes down, waits; nothing is lost.
  absl::Status Advance(Tenant& tenant, Session& session) {
    const auto start = std::chrono::steady_clock::now();
    Step step{.session = &session, .tokens = 16};
    if (absl::Status status = tenant.SafePoint({&step, 1}); !status.ok()) return status;
    if (absl::IsResourceExhausted(step.outcome) || absl::IsAborted(step.outcome)) {
      return absl::OkStatus();
    }
    if (!step.outcome.ok()) return step.outcome;
    const Geometry& g = tenant.layout().geometry();
    const std::vector<float> queries(size_t{16} * g.model_layers() * g.query_heads * g.key_dim,
                                     0.1f);
    absl::Status status = session.Commit(16, session.WantsQueries(16) ? queries.data() : nullptr);
    const auto took = (std::chrono::steady_clock::now() - start).count();
    longest_ = std::max<int64_t>(longest_, took);
    ++steps_;
    return status;
  }

  const std::string socket_, token_;
  const uint32_t tokens_;
  std::atomic<bool> stop_ = false;
  std::atomic<uint64_t> steps_ = 0;
  std::atomic<int64_t> longest_ = 0;  // nanoseconds
  mutable std::mutex mutex_;
  absl::Status status_;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace kvpool
