// The guard sits between the network and the stream, where every message passes as bytes.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/rpc_link.h"

#include <capnp/message.h>
#include <capnp/rpc.capnp.h>
#include <capnp/serialize-async.h>
#include <kj/io.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "proto/limits.h"

namespace kvpool {
namespace {

using Segments = kj::ArrayPtr<const kj::ArrayPtr<const capnp::word>>;

// How long answers may still flow after the peer has stopped sending.
constexpr auto kLinger = 1 * kj::SECONDS;

void CopyKind(capnp::rpc::Exception::Reader from, capnp::rpc::Exception::Builder to) {
  to.setType(from.getType());
  switch (from.getType()) {
    case capnp::rpc::Exception::Type::OVERLOADED:
      return to.setReason("overloaded");
    case capnp::rpc::Exception::Type::DISCONNECTED:
      return to.setReason("disconnected");
    case capnp::rpc::Exception::Type::UNIMPLEMENTED:
      return to.setReason("unimplemented");
    default:
      return to.setReason("failed");
  }
}

// We abort for what the peer sent, except when all it did was to hang up.
bool IsBlame(Segments segments) {
  capnp::SegmentArrayMessageReader reader(segments);
  const auto message = reader.getRoot<capnp::rpc::Message>();
  return message.isAbort() &&
         message.getAbort().getType() != capnp::rpc::Exception::Type::DISCONNECTED;
}

// The message without its exception text, or nothing when it carries none.
kj::Maybe<kj::Own<capnp::MallocMessageBuilder>> WithoutText(Segments segments) {
  capnp::SegmentArrayMessageReader reader(segments);
  const auto message = reader.getRoot<capnp::rpc::Message>();
  const bool is_return = message.isReturn() && message.getReturn().isException();
  const bool is_resolve = message.isResolve() && message.getResolve().isException();
  if (!message.isAbort() && !is_return && !is_resolve) return nullptr;

  auto builder = kj::heap<capnp::MallocMessageBuilder>(64);
  auto clean = builder->initRoot<capnp::rpc::Message>();
  if (message.isAbort()) {
    CopyKind(message.getAbort(), clean.initAbort());
  } else if (is_return) {
    auto to = clean.initReturn();
    to.setAnswerId(message.getReturn().getAnswerId());
    to.setReleaseParamCaps(message.getReturn().getReleaseParamCaps());
    CopyKind(message.getReturn().getException(), to.initException());
  } else {
    auto to = clean.initResolve();
    to.setPromiseId(message.getResolve().getPromiseId());
    CopyKind(message.getResolve().getException(), to.initException());
  }
  return kj::mv(builder);
}

// A write that fails because reading did says less of why: the reader's error goes first.
kj::Promise<void> AfterTheReader(kj::Promise<void> write) {
  return write.catch_([](kj::Exception&& error) {
    return kj::evalLast(
        [error = kj::mv(error)]() mutable { kj::throwFatalException(kj::mv(error)); });
  });
}

class GuardedStream final : public capnp::MessageStream {
 public:
  GuardedStream(kj::Own<capnp::MessageStream> inner, size_t incoming_fds,
                kj::Own<kj::PromiseFulfiller<void>> read_ended)
      : inner_(kj::mv(inner)), incoming_fds_(incoming_fds), read_ended_(kj::mv(read_ended)) {}

  void Watch(capnp::TwoPartyVatNetwork& network) { network_ = &network; }
  RpcLink::Fault fault() const { return fault_; }

  kj::Promise<kj::Maybe<capnp::MessageReaderAndFds>> tryReadMessage(
      kj::ArrayPtr<kj::AutoCloseFd> fds, capnp::ReaderOptions options,
      kj::ArrayPtr<capnp::word> scratch) override {
    if (network_->getCurrentQueueSize() > limits::kSendQueueBytes) {
      fault_ = RpcLink::Fault::kUnread;
      read_ended_->fulfill();
      return KJ_EXCEPTION(OVERLOADED, "the peer does not read its answers");
    }
    const size_t count = kj::min(fds.size(), incoming_fds_);
    return inner_->tryReadMessage(fds.slice(0, count), options, scratch)
        .then(
            [this](kj::Maybe<capnp::MessageReaderAndFds>&& message) {
              if (message == nullptr) read_ended_->fulfill();
              return kj::mv(message);
            },
            [this](kj::Exception&& error) -> kj::Maybe<capnp::MessageReaderAndFds> {
              if (error.getType() != kj::Exception::Type::DISCONNECTED) Blame();
              read_ended_->fulfill();
              kj::throwFatalException(kj::mv(error));
            });
  }

  kj::Promise<void> writeMessage(kj::ArrayPtr<const int> fds, Segments segments) override {
    if (IsBlame(segments)) Blame();
    KJ_IF_MAYBE (clean, WithoutText(segments)) {
      auto promise = inner_->writeMessage(nullptr, (*clean)->getSegmentsForOutput());
      return AfterTheReader(promise.attach(kj::mv(*clean)));
    }
    return AfterTheReader(inner_->writeMessage(fds, segments));
  }

  // The two-party network of this version writes one message at a time.
  kj::Promise<void> writeMessages(kj::ArrayPtr<Segments>) override {
    return KJ_EXCEPTION(UNIMPLEMENTED, "batched writes are not guarded");
  }

  kj::Maybe<int> getSendBufferSize() override { return inner_->getSendBufferSize(); }
  kj::Promise<void> end() override { return inner_->end(); }

 private:
  // The abort that follows an earlier fault is no fault of its own.
  void Blame() {
    if (fault_ == RpcLink::Fault::kNone) fault_ = RpcLink::Fault::kGarbage;
  }

  kj::Own<capnp::MessageStream> inner_;
  size_t incoming_fds_;
  kj::Own<kj::PromiseFulfiller<void>> read_ended_;
  capnp::TwoPartyVatNetwork* network_ = nullptr;
  RpcLink::Fault fault_ = RpcLink::Fault::kNone;
};

kj::Own<capnp::MessageStream> MakeMessageStream(kj::AsyncIoStream& stream) {
  KJ_IF_MAYBE (with_fds, kj::dynamicDowncastIfAvailable<kj::AsyncCapabilityStream>(stream)) {
    return kj::heap<capnp::AsyncCapabilityMessageStream>(*with_fds);
  }
  return kj::heap<capnp::AsyncIoMessageStream>(stream);
}

// Small messages must not wait for each other, and a peer whose machine is gone must be noticed.
void TuneTcp(kj::AsyncIoStream& stream) {
  sockaddr_storage address;
  kj::uint length = sizeof(address);
  stream.getsockname(reinterpret_cast<sockaddr*>(&address), &length);
  if (address.ss_family != AF_INET && address.ss_family != AF_INET6) return;
  const auto set = [&stream](int level, int option, int value) {
    stream.setsockopt(level, option, &value, sizeof(value));
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 5);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
}

class Link final : public RpcLink {
 public:
  Link(kj::Own<kj::AsyncIoStream> stream, kj::Timer& timer, capnp::rpc::twoparty::Side side,
       kj::Maybe<capnp::Capability::Client> bootstrap,
       kj::PromiseFulfillerPair<void> read_ended = kj::newPromiseAndFulfiller<void>())
      : stream_(kj::mv(stream)),
        timer_(timer),
        read_ended_(kj::mv(read_ended.promise)),
        guard_(MakeMessageStream(*stream_),
               side == capnp::rpc::twoparty::Side::CLIENT ? limits::kFdsPerMessage : 0,
               kj::mv(read_ended.fulfiller)),
        // With a maximum of 0 this version would also drop every descriptor that we send.
        network_(guard_, limits::kFdsPerMessage, side, Options()),
        system_((guard_.Watch(network_), network_), kj::mv(bootstrap)) {
    TuneTcp(*stream_);
    system_.setFlowLimit(limits::kInFlightWords);
  }

  capnp::Capability::Client Bootstrap() override {
    capnp::MallocMessageBuilder message(4);
    auto peer = message.initRoot<capnp::rpc::twoparty::VatId>();
    peer.setSide(network_.getSide() == capnp::rpc::twoparty::Side::CLIENT
                     ? capnp::rpc::twoparty::Side::SERVER
                     : capnp::rpc::twoparty::Side::CLIENT);
    return system_.bootstrap(peer);
  }

  kj::Promise<void> Done() override {
    // A peer that neither reads nor hangs up would hold the connection's last messages for ever;
    // one that hangs up while it is over its flow limit would not be noticed by reading.
    auto cut = read_ended_.exclusiveJoin(stream_->whenWriteDisconnected()).then([this] {
      return timer_.afterDelay(kLinger);
    });
    return network_.onDisconnect().exclusiveJoin(kj::mv(cut));
  }

  Fault fault() const override { return guard_.fault(); }

 private:
  static capnp::ReaderOptions Options() {
    capnp::ReaderOptions options;
    options.traversalLimitInWords = limits::kMessageWords;
    options.nestingLimit = limits::kNestingDepth;
    return options;
  }

  kj::Own<kj::AsyncIoStream> stream_;
  kj::Timer& timer_;
  kj::Promise<void> read_ended_;
  GuardedStream guard_;
  capnp::TwoPartyVatNetwork network_;
  capnp::RpcSystem<capnp::rpc::twoparty::VatId> system_;
};

}  // namespace

kj::Own<RpcLink> RpcLink::Serve(kj::Own<kj::AsyncIoStream> stream, kj::Timer& timer,
                                capnp::Capability::Client bootstrap) {
  return kj::heap<Link>(kj::mv(stream), timer, capnp::rpc::twoparty::Side::SERVER,
                        kj::mv(bootstrap));
}

kj::Own<RpcLink> RpcLink::Connect(kj::Own<kj::AsyncIoStream> stream, kj::Timer& timer) {
  return kj::heap<Link>(kj::mv(stream), timer, capnp::rpc::twoparty::Side::CLIENT, nullptr);
}

}  // namespace kvpool
