// Sockets, the accept loop, and the life of one connection.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/rpc_listener.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/socket.h"

namespace kvpool {
namespace {

// How long to wait when accept fails, which means that the process is out of descriptors or memory.
constexpr auto kAcceptPause = 100 * kj::MILLISECONDS;

absl::StatusOr<RpcPeer> Identify(kj::PeerIdentity& identity) {
  RpcPeer peer;
  KJ_IF_MAYBE (local, kj::dynamicDowncastIfAvailable<kj::LocalPeerIdentity>(identity)) {
    const auto credentials = local->getCredentials();
    peer.pid = credentials.pid.orDefault(0);
    peer.uid = credentials.uid.orDefault(static_cast<kj::uint>(-1));
    peer.text = absl::StrCat("pid ", peer.pid, " uid ", peer.uid);
    // Not pidfd_open: glibc 2.36 declares it without C linkage.
    peer.pidfd = kj::AutoCloseFd(static_cast<int>(syscall(SYS_pidfd_open, peer.pid, 0)));
    if (peer.pidfd.get() < 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot watch the process of ", peer.text));
    }
  } else {
    peer.text = identity.toString().cStr();
  }
  return peer;
}

}  // namespace

void RpcConnection::OnDisconnect(std::function<void()> callback) {
  if (finished_) return callback();
  callbacks_.push_back(std::move(callback));
}

void RpcConnection::Finish() {
  finished_ = true;
  for (const auto& callback : std::exchange(callbacks_, {})) callback();
}

// What a connection owns while it is open.
struct RpcListener::Live {
  Live(RpcListener& listener, kj::Own<RpcConnection> connection)
      : listener(listener), connection(kj::mv(connection)) {
    ++listener.counters_.open;
  }
  ~Live() noexcept(false) {
    if (link.get() != nullptr) listener.counters_.Count(link->fault());
    link = nullptr;
    --listener.counters_.open;
    connection->Finish();
  }

  RpcListener& listener;
  kj::Own<RpcConnection> connection;
  kj::Own<RpcLink> link;
};

absl::StatusOr<std::unique_ptr<RpcListener>> RpcListener::Listen(kj::LowLevelAsyncIoProvider& io,
                                                                 RpcListenerOptions options,
                                                                 BootstrapFactory factory) {
  auto socket = ListenOn(options.address);
  if (!socket.ok()) return socket.status();
  return std::unique_ptr<RpcListener>(
      new RpcListener(io, std::move(options), std::move(factory), kj::AutoCloseFd(*socket)));
}

RpcListener::RpcListener(kj::LowLevelAsyncIoProvider& io, RpcListenerOptions options,
                         BootstrapFactory factory, kj::AutoCloseFd socket)
    : options_(std::move(options)),
      factory_(std::move(factory)),
      timer_(io.getTimer()),
      receiver_(io.wrapListenSocketFd(kj::mv(socket))),
      tasks_(*this) {
  if (auto* host_port = std::get_if<HostPort>(&options_.address)) {
    host_port->port = static_cast<uint16_t>(receiver_->getPort());
  }
  tasks_.add(AcceptLoop());
}

RpcListener::~RpcListener() noexcept(false) {
  if (const auto* local = std::get_if<UnixPath>(&options_.address)) unlink(local->path.c_str());
}

kj::Promise<void> RpcListener::AcceptLoop() {
  return receiver_->acceptAuthenticated()
      .then(
          [this](kj::AuthenticatedStream&& accepted) -> kj::Promise<void> {
            Accept(kj::mv(accepted));
            return kj::READY_NOW;
          },
          [this](kj::Exception&& error) -> kj::Promise<void> {
            Logger("rpc").Error("cannot accept a connection",
                                {{"address", ToString(options_.address)},
                                 {"error", error.getDescription().cStr()}});
            return timer_.afterDelay(kAcceptPause);
          })
      .then([this] { return AcceptLoop(); });
}

void RpcListener::Accept(kj::AuthenticatedStream accepted) {
  if (counters_.open >= options_.connections) {
    ++counters_.above_maximum;
    Logger("rpc").Warn(
        "too many connections: closed a new one",
        {{"address", ToString(options_.address)}, {"maximum", options_.connections}});
    return;
  }
  KJ_IF_MAYBE (error, kj::runCatchingExceptions([&] { Serve(kj::mv(accepted)); })) {
    Logger("rpc").Warn("cannot serve a connection", {{"error", error->getDescription().cStr()}});
  }
}

void RpcListener::Serve(kj::AuthenticatedStream accepted) {
  auto peer = Identify(*accepted.peerIdentity);
  if (!peer.ok()) {
    Logger("rpc").Warn("closed a connection", {{"error", peer.status().ToString()}});
    return;
  }
  ++counters_.accepted;
  const std::string text = peer->text;
  auto close = kj::newPromiseAndFulfiller<void>();
  auto connection = kj::refcounted<RpcConnection>(kj::mv(close.fulfiller));
  auto live = kj::heap<Live>(*this, kj::addRef(*connection));
  live->link = RpcLink::Serve(kj::mv(accepted.stream), timer_,
                              factory_(*std::move(peer), kj::addRef(*connection)));

  const auto limit = options_.authenticate.count() * kj::MILLISECONDS;
  auto deadline = timer_.afterDelay(limit).then(
      [this, text, connection = kj::mv(connection)]() -> kj::Promise<void> {
        if (connection->IsAuthenticated()) return kj::NEVER_DONE;
        ++counters_.unauthenticated;
        Logger("rpc").Warn("no token in time: connection cut", {{"peer", text}});
        return kj::READY_NOW;
      });
  auto done = live->link->Done()
                  .exclusiveJoin(kj::mv(close.promise))
                  .exclusiveJoin(kj::mv(deadline))
                  .attach(kj::mv(live));
  // However it ended, it has ended.
  tasks_.add(done.catch_([](kj::Exception&&) {}));
}

void RpcListener::taskFailed(kj::Exception&& error) {
  Logger("rpc").Error("a connection task failed", {{"error", error.getDescription().cStr()}});
}

}  // namespace kvpool
