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
// How long a peer whose handshake failed has to read why.
constexpr auto kLinger = 1 * kj::SECONDS;

kj::Promise<void> ReadAway(kj::AsyncIoStream& stream, kj::ArrayPtr<kj::byte> buffer) {
  return stream.tryRead(buffer.begin(), 1, buffer.size())
      .then([&stream, buffer](size_t count) -> kj::Promise<void> {
        if (count == 0) return kj::READY_NOW;
        return ReadAway(stream, buffer);
      });
}

// Closing with unread bytes would reset the connection, and the peer might never see TLS's alert.
kj::Promise<void> Drain(kj::AsyncIoStream& stream) {
  stream.shutdownWrite();
  auto ignored = kj::heapArray<kj::byte>(4096);
  auto drained = ReadAway(stream, ignored);
  return drained.attach(kj::mv(ignored));
}

absl::StatusOr<RpcPeer> Identify(kj::Own<kj::PeerIdentity> identity) {
  RpcPeer peer;
  KJ_IF_MAYBE (local, kj::dynamicDowncastIfAvailable<kj::LocalPeerIdentity>(*identity)) {
    const auto credentials = local->getCredentials();
    peer.pid = credentials.pid.orDefault(0);
    peer.uid = credentials.uid.orDefault(static_cast<kj::uint>(-1));
    peer.text = absl::StrCat("pid ", peer.pid, " uid ", peer.uid);
    // Not pidfd_open: glibc 2.36 declares it without C linkage.
    peer.pidfd = kj::AutoCloseFd(static_cast<int>(syscall(SYS_pidfd_open, peer.pid, 0)));
    if (peer.pidfd.get() < 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot watch the process of ", peer.text));
    }
  } else if (kj::dynamicDowncastIfAvailable<kj::TlsPeerIdentity>(*identity) != nullptr) {
    peer.certificate = identity.downcast<kj::TlsPeerIdentity>();
    peer.text = peer.certificate->getNetworkIdentity().toString().cStr();
  } else {
    peer.text = identity->toString().cStr();
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

// A connection's place among those that may be open.
struct RpcListener::Place {
  explicit Place(Counters& counters) : counters(counters) { ++counters.open; }
  ~Place() { --counters.open; }
  KJ_DISALLOW_COPY(Place);

  Counters& counters;
};

// What a connection owns while it is served.
struct RpcListener::Live {
  Live(std::string peer, kj::Own<Place> place, kj::Own<RpcConnection> connection)
      : peer(std::move(peer)), place(kj::mv(place)), connection(kj::mv(connection)) {}
  ~Live() noexcept(false) {
    if (link.get() != nullptr) Note(link->fault());
    link = nullptr;
    place = nullptr;
    connection->Finish();
  }

  void Note(RpcLink::Fault fault) const {
    place->counters.Count(fault);
    if (fault != RpcLink::Fault::kGarbage) return;
    Logger("rpc").Warn("not our protocol, or above its limits: connection cut", {{"peer", peer}});
  }

  const std::string peer;
  kj::Own<Place> place;
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
  if (options_.tls != nullptr) tls_.emplace(options_.tls, RpcTls::Side::kServer);
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
  auto place = kj::heap<Place>(counters_);
  const auto deadline = timer_.now() + options_.authenticate.count() * kj::MILLISECONDS;
  KJ_IF_MAYBE (error, kj::runCatchingExceptions([&] {
                 // However it ended, it has ended.
                 tasks_.add((options_.tls == nullptr
                                 ? Serve(kj::mv(accepted), kj::mv(place), deadline)
                                 : Handshake(kj::mv(accepted), kj::mv(place), deadline))
                                .catch_([](kj::Exception&&) {}));
               })) {
    Logger("rpc").Warn("cannot serve a connection", {{"error", error->getDescription().cStr()}});
  }
}

kj::Promise<void> RpcListener::Handshake(kj::AuthenticatedStream accepted, kj::Own<Place> place,
                                         kj::TimePoint deadline) {
  // TLS borrows the stream, so that a peer that is refused can still be let read why.
  kj::Own<kj::AsyncIoStream> stream = kj::mv(accepted.stream);
  kj::AsyncIoStream& bytes = *stream;
  accepted.stream = kj::Own<kj::AsyncIoStream>(&bytes, kj::NullDisposer::instance);
  const std::string peer = accepted.peerIdentity->toString().cStr();
  auto late = timer_.atTime(deadline).then([]() -> kj::AuthenticatedStream {
    kj::throwFatalException(KJ_EXCEPTION(OVERLOADED, "no TLS handshake in time"));
  });
  return KJ_ASSERT_NONNULL(tls_)
      .Accept(kj::mv(accepted))
      .exclusiveJoin(kj::mv(late))
      .then(
          [this, place = kj::mv(place), deadline](kj::AuthenticatedStream&& secure) mutable {
            return Serve(kj::mv(secure), kj::mv(place), deadline);
          },
          [this, peer, &bytes](kj::Exception&& error) -> kj::Promise<void> {
            ++counters_.handshake;
            Logger("rpc").Warn("no TLS with a good certificate: connection cut",
                               {{"peer", peer}, {"error", TlsError(error)}});
            return Drain(bytes).exclusiveJoin(timer_.afterDelay(kLinger));
          })
      .attach(kj::mv(stream));
}

kj::Promise<void> RpcListener::Serve(kj::AuthenticatedStream accepted, kj::Own<Place> place,
                                     kj::TimePoint deadline) {
  auto peer = Identify(kj::mv(accepted.peerIdentity));
  if (!peer.ok()) {
    Logger("rpc").Warn("closed a connection", {{"error", peer.status().ToString()}});
    return kj::READY_NOW;
  }
  ++counters_.accepted;
  const std::string text = peer->text;
  const bool with_tls = peer->certificate.get() != nullptr;
  auto close = kj::newPromiseAndFulfiller<void>();
  auto connection = kj::refcounted<RpcConnection>(kj::mv(close.fulfiller));
  auto live = kj::heap<Live>(text, kj::mv(place), kj::addRef(*connection));
  live->link = RpcLink::Serve(kj::mv(accepted.stream), timer_,
                              factory_(*std::move(peer), kj::addRef(*connection)));

  auto over = live->link->Done().then([text, with_tls, connection = kj::addRef(*connection)] {
    if (!with_tls || connection->IsAuthenticated()) return;
    Logger("rpc").Warn("hung up after the TLS handshake; does it know the CA of our certificate?",
                       {{"peer", text}});
  });
  auto late = timer_.atTime(deadline).then(
      [this, text, connection = kj::mv(connection)]() -> kj::Promise<void> {
        if (connection->IsAuthenticated()) return kj::NEVER_DONE;
        ++counters_.unauthenticated;
        Logger("rpc").Warn("no token in time: connection cut", {{"peer", text}});
        return kj::READY_NOW;
      });
  return over.exclusiveJoin(kj::mv(close.promise)).exclusiveJoin(kj::mv(late)).attach(kj::mv(live));
}

void RpcListener::taskFailed(kj::Exception&& error) {
  Logger("rpc").Error("a connection task failed", {{"error", error.getDescription().cStr()}});
}

}  // namespace kvpool
