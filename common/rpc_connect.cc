// Dialling, and the translation of KJ exceptions into statuses.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/rpc_connect.h"

#include "absl/strings/str_cat.h"

namespace kvpool {

RpcClient::RpcClient(kj::Own<kj::AsyncIoStream> stream, kj::Timer& timer)
    : link_(RpcLink::Connect(kj::mv(stream), timer)),
      bootstrap_(link_->Bootstrap()),
      done_(link_->Done().fork()) {}

namespace {

kj::Promise<kj::Own<kj::AsyncIoStream>> Dial(kj::AsyncIoContext& io, const Address& address) {
  const bool local = std::holds_alternative<UnixPath>(address);
  const std::string text = absl::StrCat(local ? "unix:" : "", ToString(address));
  return io.provider->getNetwork()
      .parseAddress(text.c_str())
      .then([](kj::Own<kj::NetworkAddress>&& resolved) {
        auto connecting = resolved->connect();
        return connecting.attach(kj::mv(resolved));
      });
}

}  // namespace

kj::Promise<kj::Own<RpcClient>> RpcConnect(kj::AsyncIoContext& io, const Address& address) {
  kj::Timer& timer = io.provider->getTimer();
  return Dial(io, address).then([&timer](kj::Own<kj::AsyncIoStream>&& stream) {
    return kj::heap<RpcClient>(kj::mv(stream), timer);
  });
}

kj::Promise<kj::Own<RpcClient>> RpcConnect(kj::AsyncIoContext& io, const HostPort& address,
                                           RpcTls& tls, const std::string& name) {
  kj::Timer& timer = io.provider->getTimer();
  return Dial(io, address)
      .then([&tls, name](kj::Own<kj::AsyncIoStream>&& stream) {
        return tls.Connect(kj::mv(stream), name);
      })
      .then([&timer](kj::Own<kj::AsyncIoStream>&& stream) {
        return kj::heap<RpcClient>(kj::mv(stream), timer);
      });
}

absl::Status ToStatus(const kj::Exception& error) {
  const std::string text = error.getDescription().cStr();
  switch (error.getType()) {
    case kj::Exception::Type::OVERLOADED:
      return absl::DeadlineExceededError(text);
    case kj::Exception::Type::UNIMPLEMENTED:
      return absl::UnimplementedError(text);
    case kj::Exception::Type::DISCONNECTED:
    case kj::Exception::Type::FAILED:
      break;
  }
  return absl::UnavailableError(text);
}

}  // namespace kvpool
