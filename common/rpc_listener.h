// Serves Cap'n Proto connections on a unix socket (with file descriptors from us to the peer) or on
// TCP (without). Knows nothing of what is served: each connection gets a bootstrap capability of
// its own from a factory. KJ thread only.
//
// A connection that has not shown a token (RpcConnection::Authenticated) after the deadline is cut,
// with TLS one that has not shown a good certificate, too; one above the maximum is closed at once;
// one that breaks the protocol is cut, see rpc_link.h. Each is counted.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <capnp/capability.h>
#include <kj/async-io.h>
#include <kj/io.h>
#include <kj/refcount.h>
#include <kj/timer.h>
#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/address.h"
#include "common/rpc_link.h"
#include "common/rpc_tls.h"
#include "proto/limits.h"

namespace kvpool {

// Who is at the other end.
struct RpcPeer {
  std::string text;       // for logs: "pid 123 uid 1000" or the remote address
  pid_t pid = 0;          // as the kernel recorded at connect; 0 over TCP
  uid_t uid = 0;          // of that process; meaningless over TCP
  kj::AutoCloseFd pidfd;  // readable once the process is gone; always open for a unix socket
  kj::Own<kj::TlsPeerIdentity> certificate;  // with TLS; else null
};

// One connection as its server objects see it. They may hold it for longer than it lives, as calls
// under way do: then its methods do nothing.
class RpcConnection final : public kj::Refcounted {
 public:
  explicit RpcConnection(kj::Own<kj::PromiseFulfiller<void>> close) : close_(kj::mv(close)) {}

  // Disarms the authentication deadline.
  void Authenticated() { authenticated_ = true; }
  bool IsAuthenticated() const { return authenticated_; }

  // Runs `callback` once, after every capability that the peer held has been released; at once when
  // the connection is over already.
  void OnDisconnect(std::function<void()> callback);

  // Cuts the connection, soon but not within this call.
  void Close() { close_->fulfill(); }

  // For the listener: the connection is over.
  void Finish();

 private:
  kj::Own<kj::PromiseFulfiller<void>> close_;
  std::vector<std::function<void()>> callbacks_;
  bool authenticated_ = false;
  bool finished_ = false;
};

// Makes the bootstrap capability of a new connection.
using BootstrapFactory =
    std::function<capnp::Capability::Client(RpcPeer peer, kj::Own<RpcConnection> connection)>;

struct RpcListenerOptions {
  Address address;
  uint32_t connections = limits::kConnections;
  std::chrono::milliseconds authenticate{limits::kAuthenticateMillis};
  std::shared_ptr<TlsSource> tls;  // with all three files; null: in the clear
};

class RpcListener final : private kj::TaskSet::ErrorHandler {
 public:
  struct Counters {
    uint64_t accepted = 0;         // served
    uint64_t above_maximum = 0;    // closed at once
    uint64_t unauthenticated = 0;  // cut at the deadline
    uint64_t handshake = 0;        // cut: no TLS with a good certificate
    uint64_t garbage = 0;          // cut: RpcLink::Fault::kGarbage
    uint64_t unread = 0;           // cut: RpcLink::Fault::kUnread
    uint32_t open = 0;             // now

    void Count(RpcLink::Fault fault) {
      garbage += fault == RpcLink::Fault::kGarbage ? 1 : 0;
      unread += fault == RpcLink::Fault::kUnread ? 1 : 0;
    }
  };

  // Starts to listen. A unix socket gets mode 0660; its folder must exist. A socket file that
  // nobody listens on is replaced; one in use, or a file of another kind, is an error.
  static absl::StatusOr<std::unique_ptr<RpcListener>> Listen(kj::LowLevelAsyncIoProvider& io,
                                                             RpcListenerOptions options,
                                                             BootstrapFactory factory);
  // Cuts every connection.
  ~RpcListener() noexcept(false);

  // With the port that the system picked, where the options said 0.
  const Address& address() const { return options_.address; }
  const Counters& counters() const { return counters_; }

 private:
  struct Place;
  struct Live;

  RpcListener(kj::LowLevelAsyncIoProvider& io, RpcListenerOptions options, BootstrapFactory factory,
              kj::AutoCloseFd socket);

  kj::Promise<void> AcceptLoop();
  void Accept(kj::AuthenticatedStream accepted);
  kj::Promise<void> Handshake(kj::AuthenticatedStream accepted, kj::Own<Place> place,
                              kj::TimePoint deadline);
  kj::Promise<void> Serve(kj::AuthenticatedStream accepted, kj::Own<Place> place,
                          kj::TimePoint deadline);
  void taskFailed(kj::Exception&& error) override;

  RpcListenerOptions options_;
  BootstrapFactory factory_;
  kj::Timer& timer_;
  kj::Own<kj::ConnectionReceiver> receiver_;
  kj::Maybe<RpcTls> tls_;
  Counters counters_;
  kj::TaskSet tasks_;  // destroyed first: the connections
};

}  // namespace kvpool
