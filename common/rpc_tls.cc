// KJ's context, made anew when the files have changed.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/rpc_tls.h"

#include <kj/debug.h>
#include <kj/vector.h>

#include <string_view>
#include <utility>

#include "common/tls.h"

namespace kvpool {

kj::TlsContext& RpcTls::Context() {
  auto material = source_->Current();
  if (material != material_) {
    kj::TlsContext::Options options;
    options.useSystemTrustStore = false;
    // A client that had OpenSSL verify would learn that it failed, but not why; KJ looks at the
    // result after the handshake and says.
    options.verifyClients = side_ == Side::kServer;
    options.minVersion = kj::TlsVersion::TLS_1_2;
    kj::Vector<kj::TlsCertificate> trusted;
    for (const std::string& pem : material->ca) trusted.add(kj::StringPtr(pem.c_str()));
    options.trustedCertificates = trusted;
    const kj::TlsKeypair pair{kj::TlsPrivateKey(kj::StringPtr(material->key.c_str())),
                              kj::TlsCertificate(kj::StringPtr(material->certificate.c_str()))};
    options.defaultKeypair = pair;
    context_ = kj::heap<kj::TlsContext>(kj::mv(options));
    material_ = std::move(material);
  }
  return *KJ_ASSERT_NONNULL(context_);
}

kj::Promise<kj::AuthenticatedStream> RpcTls::Accept(kj::AuthenticatedStream stream) {
  return Context().wrapServer(kj::mv(stream)).then([](kj::AuthenticatedStream&& accepted) {
    // This version takes a peer that hangs up in the middle for one that has finished.
    auto identity = accepted.peerIdentity.downcast<kj::TlsPeerIdentity>();
    if (!identity->hasCertificate()) {
      kj::throwFatalException(KJ_EXCEPTION(DISCONNECTED, "it hung up in the handshake"));
    }
    accepted.peerIdentity = kj::mv(identity);
    return kj::mv(accepted);
  });
}

kj::Promise<kj::Own<kj::AsyncIoStream>> RpcTls::Connect(kj::Own<kj::AsyncIoStream> stream,
                                                        const std::string& host) {
  return Context().wrapClient(kj::mv(stream), kj::StringPtr(host.c_str()));
}

std::string TlsError(const kj::Exception& error) {
  const std::string text = error.getDescription().cStr();
  return text + TlsAdvice(text);
}

bool IsFor(kj::TlsPeerIdentity& certificate, const std::string& name) {
  bool is_for = false;
  // It throws for a certificate without a common name.
  (void)kj::runCatchingExceptions([&] {
    const kj::String common = certificate.getCommonName();
    is_for = std::string_view(common.begin(), common.size()) == name;
  });
  return is_for;
}

}  // namespace kvpool
