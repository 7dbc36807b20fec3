// TLS for RPC connections: both sides show a certificate that a CA of ours has signed, or there is
// no connection. KJ's TLS over the files of a TlsSource; KJ thread only.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kj/async-io.h>
#include <kj/compat/tls.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "common/tls.h"

namespace kvpool {

class RpcTls {
 public:
  enum class Side : uint8_t { kServer, kClient };
  // `source` must have all three files.
  RpcTls(std::shared_ptr<TlsSource> source, Side side) : source_(std::move(source)), side_(side) {}

  // The server's handshake. The identity that comes with the stream is a kj::TlsPeerIdentity with a
  // certificate. Broken, with a text for the log, for whoever shows none that is good.
  kj::Promise<kj::AuthenticatedStream> Accept(kj::AuthenticatedStream stream);

  // The client's, with a server whose certificate must be for the host name `host`. Broken with a
  // text that says what is wrong with it.
  kj::Promise<kj::Own<kj::AsyncIoStream>> Connect(kj::Own<kj::AsyncIoStream> stream,
                                                  const std::string& host);

 private:
  kj::TlsContext& Context();

  const std::shared_ptr<TlsSource> source_;
  const Side side_;
  std::shared_ptr<const TlsMaterial> material_;  // that context_ was made of
  kj::Maybe<kj::Own<kj::TlsContext>> context_;
};

// What has become of a handshake or of a connection after it, for a log: KJ's text, and advice.
std::string TlsError(const kj::Exception& error);

// Whether the certificate's common name is `name`. This version of KJ declares a look at the
// alternative names, too, but does not define it.
bool IsFor(kj::TlsPeerIdentity& certificate, const std::string& name);

}  // namespace kvpool
