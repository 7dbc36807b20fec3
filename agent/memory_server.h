// The server side of rpc::Memory: a capability that carries a file descriptor and nothing else.
//
// RPC thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kj/io.h>

#include "proto/agent.capnp.h"

namespace kvpool {

class MemoryServer final : public rpc::Memory::Server {
 public:
  // Takes a duplicate of `fd`, so that the owner may close its own at any time.
  explicit MemoryServer(int fd);
  kj::Maybe<int> getFd() override { return fd_.get(); }

 private:
  kj::AutoCloseFd fd_;
};

}  // namespace kvpool
