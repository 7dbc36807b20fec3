// Keeps what a restart without a manager begins with: writes the state file whenever what the
// tenant book wants kept has changed, one write at a time, on the kernel pool. A lease that came
// down is promised only once the file says so, too (TenantBook::Promise).
//
// RPC thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kj/async-io.h>
#include <kj/async.h>

#include <boost/asio/thread_pool.hpp>
#include <cstdint>
#include <functional>
#include <string>

#include "agent/state_file.h"
#include "agent/tenant_book.h"
#include "common/log.h"

namespace kvpool {

class LeaseKeeper {
 public:
  struct Deps {
    TenantBook* book = nullptr;
    boost::asio::thread_pool* pool = nullptr;
    kj::Timer* timer = nullptr;
  };
  // `path` empty: keeps nothing. `on_kept` runs after each write that succeeded.
  LeaseKeeper(const Deps& deps, std::string path, StateOwner owner, std::function<void()> on_kept);

  // The book may have changed.
  void Look();

  uint64_t writes() const { return writes_; }
  uint64_t failures() const { return failures_; }

 private:
  kj::Promise<void> Write();

  const Deps deps_;
  const std::string path_;
  const StateOwner owner_;
  const std::function<void()> on_kept_;
  const Logger log_{"lease_keeper"};
  std::string content_;  // of the file; empty: not known
  bool writing_ = false;
  uint64_t writes_ = 0;
  uint64_t failures_ = 0;
  kj::Promise<void> task_ = kj::READY_NOW;
};

}  // namespace kvpool
