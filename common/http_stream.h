// The bytes of one HTTP connection, in the clear or through TLS, for the server and the client
// alike: Beast reads and writes it as it does a tcp_stream. Included by their .cc files alone; the
// thread of its io_context.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <openssl/ssl.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/error.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "common/address.h"
#include "common/tls.h"

namespace kvpool {

class HttpStream {
 public:
  using executor_type = boost::beast::tcp_stream::executor_type;

  explicit HttpStream(boost::beast::tcp_stream tcp) : tcp_(std::move(tcp)) {}
  HttpStream(const HttpStream&) = delete;
  HttpStream& operator=(const HttpStream&) = delete;

  executor_type get_executor() { return tcp_.get_executor(); }
  // For deadlines, and for what goes past TLS.
  boost::beast::tcp_stream& tcp() { return tcp_; }

  // The rest goes through TLS, once this has no error. As the server:
  boost::asio::awaitable<boost::beast::error_code> Accept(const TlsMaterial& material) {
    Begin(material);
    return Handshake(boost::asio::ssl::stream_base::server);
  }
  // As the client of a server that must prove to be `host`, a name or an address.
  boost::asio::awaitable<boost::beast::error_code> Connect(const TlsMaterial& material,
                                                           const std::string& host) {
    Begin(material);
    // Without it any certificate of the CA's would do.
    if (host.empty() || SSL_set1_host(tls_->native_handle(), host.c_str()) != 1) {
      co_return boost::asio::error::invalid_argument;
    }
    // Tells the server which name is asked for: names alone, RFC 6066 has no addresses in it.
    if (!IsNumeric({host})) SSL_set_tlsext_host_name(tls_->native_handle(), host.c_str());
    tls_->set_verify_mode(boost::asio::ssl::verify_peer);
    co_return co_await Handshake(boost::asio::ssl::stream_base::client);
  }
  // Why the peer's certificate was refused; empty when it was not.
  std::string Distrust() {
    const long result = SSL_get_verify_result(tls_->native_handle());
    return result == X509_V_OK ? "" : X509_verify_cert_error_string(result);
  }
  // Tells a TLS peer that this was all.
  boost::asio::awaitable<void> Finish() {
    if (!tls_.has_value()) co_return;
    (void)co_await tls_->async_shutdown(boost::asio::as_tuple(boost::asio::use_awaitable));
  }

  template <typename Buffers, typename Token>
  auto async_read_some(const Buffers& buffers, Token&& token) {
    return tls_.has_value() ? tls_->async_read_some(buffers, std::forward<Token>(token))
                            : tcp_.async_read_some(buffers, std::forward<Token>(token));
  }
  template <typename Buffers, typename Token>
  auto async_write_some(const Buffers& buffers, Token&& token) {
    return tls_.has_value() ? tls_->async_write_some(buffers, std::forward<Token>(token))
                            : tcp_.async_write_some(buffers, std::forward<Token>(token));
  }

 private:
  void Begin(const TlsMaterial& material) {
    SSL_CTX_up_ref(material.context.get());
    boost::asio::ssl::context context(material.context.get());
    tls_.emplace(tcp_, context);
  }
  boost::asio::awaitable<boost::beast::error_code> Handshake(
      boost::asio::ssl::stream_base::handshake_type type) {
    auto [error] =
        co_await tls_->async_handshake(type, boost::asio::as_tuple(boost::asio::use_awaitable));
    co_return error;
  }

  boost::beast::tcp_stream tcp_;
  std::optional<boost::asio::ssl::stream<boost::beast::tcp_stream&>> tls_;
};

}  // namespace kvpool
