// One Cap'n Proto connection: a stream, its two-party network and its RPC system, guarded against a
// hostile peer. What RpcListener and RpcConnect are made of; KJ thread only.
//
// The guard: messages and nesting above proto/limits.h end the connection; so does a peer that
// keeps calling and does not read its answers. Either is remembered as the link's fault. Text of
// exceptions never leaves: the peer learns the kind alone, so expected outcomes belong into
// results. A server takes no file descriptors: the kernel closes what a client sends.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <capnp/rpc-twoparty.h>
#include <kj/async-io.h>
#include <kj/timer.h>

#include <cstdint>

namespace kvpool {

class RpcLink {
 public:
  // A client takes file descriptors (from a unix socket), a server offers `bootstrap`.
  static kj::Own<RpcLink> Serve(kj::Own<kj::AsyncIoStream> stream, kj::Timer& timer,
                                capnp::Capability::Client bootstrap);
  static kj::Own<RpcLink> Connect(kj::Own<kj::AsyncIoStream> stream, kj::Timer& timer);

  virtual ~RpcLink() noexcept(false) = default;

  // The peer's bootstrap capability. Ask at the beginning: a finished link throws.
  virtual capnp::Capability::Client Bootstrap() = 0;

  // Resolves when the connection is over; destroy the link then. Destroying it earlier cuts the
  // connection. Either way every capability that the peer held is released. Call once.
  virtual kj::Promise<void> Done() = 0;

  // What the peer did that ends the connection, so far. A peer that hangs up does nothing wrong.
  enum class Fault : uint8_t {
    kNone,
    kGarbage,  // a message too large, too deep, unfinished, or not of the protocol
    kUnread,   // more answers than the send queue holds that it has not read
  };
  virtual Fault fault() const = 0;
};

}  // namespace kvpool
