// Dialling an RPC server, and the small things every caller of RPC needs: deadlines and errors as
// values. KJ thread only.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <capnp/capability.h>
#include <kj/async-io.h>
#include <kj/timer.h>

#include <chrono>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "common/address.h"
#include "common/rpc_link.h"
#include "common/rpc_tls.h"

namespace kvpool {

// A connection to a server. Destroying it hangs up.
class RpcClient {
 public:
  RpcClient(kj::Own<kj::AsyncIoStream> stream, kj::Timer& timer);

  // What the server offers. Calls fail with DISCONNECTED once the server has gone.
  capnp::Capability::Client Bootstrap() { return bootstrap_; }
  // Resolves when the server has gone. Calls under way fail with DISCONNECTED.
  kj::Promise<void> OnDisconnect() { return done_.addBranch(); }

 private:
  kj::Own<RpcLink> link_;
  capnp::Capability::Client bootstrap_;
  kj::ForkedPromise<void> done_;
};

// Connects to a unix socket (file descriptors can be received) or to host:port.
kj::Promise<kj::Own<RpcClient>> RpcConnect(kj::AsyncIoContext& io, const Address& address);

// Through TLS to a server whose certificate must be for the host name `name`. `tls` must outlive
// the promise.
kj::Promise<kj::Own<RpcClient>> RpcConnect(kj::AsyncIoContext& io, const HostPort& address,
                                           RpcTls& tls, const std::string& name);

// Breaks `promise` with OVERLOADED, which ToStatus makes DeadlineExceeded, when it takes longer.
// The peer is not told: the call still runs there.
template <typename T, typename Rep, typename Period>
kj::Promise<T> WithDeadline(kj::Promise<T>&& promise, kj::Timer& timer,
                            std::chrono::duration<Rep, Period> limit) {
  const auto nanos = std::chrono::duration_cast<std::chrono::nanoseconds>(limit).count();
  return timer.timeoutAfter(nanos * kj::NANOSECONDS, kj::mv(promise));
}

// Unavailable; DeadlineExceeded for OVERLOADED and Unimplemented for UNIMPLEMENTED.
absl::Status ToStatus(const kj::Exception& error);

}  // namespace kvpool
