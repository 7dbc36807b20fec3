// A coroutine on an io_context that lives for one exchange.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/http_client.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <cctype>
#include <exception>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/http_stream.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;

constexpr auto kAsTuple = asio::as_tuple(asio::use_awaitable);

http::request<http::string_body> ToMessage(const HostPort& server, const HttpRequest& request) {
  http::request<http::string_body> message;
  message.method_string(request.method);
  message.target(request.query.empty() ? request.path
                                       : absl::StrCat(request.path, "?", request.query));
  message.version(11);
  message.set(http::field::host, ToString(server));
  for (const auto& [name, value] : request.headers) message.set(name, value);
  message.body() = request.body;
  message.keep_alive(false);
  message.prepare_payload();
  return message;
}

HttpResponse ToResponse(http::response<http::string_body>&& message) {
  HttpResponse response{.status = static_cast<int>(message.result_int()),
                        .content_type = std::string(message[http::field::content_type]),
                        .body = std::move(message.body())};
  for (const auto& field : message) {
    std::string name(field.name_string());
    for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    response.headers[name] = std::string(field.value());
  }
  return response;
}

absl::Status Failed(const HostPort& server, const char* what, const beast::error_code& error) {
  return absl::UnavailableError(absl::StrCat(what, " ", ToString(server), ": ", error.message()));
}

absl::Status FailedTls(const HostPort& server, const beast::error_code& error, HttpStream& stream) {
  const std::string distrust = stream.Distrust();
  const std::string why = distrust.empty() ? error.message() : distrust;
  return absl::UnavailableError(
      absl::StrCat("no TLS with ", ToString(server), ": ", why, TlsAdvice(why)));
}

asio::awaitable<absl::StatusOr<HttpResponse>> Exchange(const HostPort& server,
                                                       const HttpRequest& request, TlsSource* tls) {
  const auto executor = co_await asio::this_coro::executor;
  tcp::resolver resolver(executor);
  auto [resolve_error, endpoints] =
      co_await resolver.async_resolve(server.host, std::to_string(server.port), kAsTuple);
  if (resolve_error) co_return Failed(server, "cannot resolve", resolve_error);
  HttpStream stream{beast::tcp_stream(executor)};
  auto [connect_error, endpoint] = co_await stream.tcp().async_connect(endpoints, kAsTuple);
  if (connect_error) co_return Failed(server, "cannot connect to", connect_error);
  if (tls != nullptr) {
    const auto material = tls->Current();
    const beast::error_code error = co_await stream.Connect(*material, server.host);
    if (error) co_return FailedTls(server, error, stream);
  }

  const auto message = ToMessage(server, request);
  // A server may answer and close before it has read everything, so the answer counts first.
  auto [write_error, written] = co_await http::async_write(stream, message, kAsTuple);
  beast::flat_buffer buffer;
  http::response_parser<http::string_body> parser;
  parser.body_limit(limits::kHttpReplyBytes);
  if (message.method() == http::verb::head) parser.skip(true);
  auto [read_error, size] = co_await http::async_read(stream, buffer, parser, kAsTuple);
  if (read_error == http::error::body_limit) {
    co_return absl::ResourceExhaustedError(absl::StrCat("the response of ", ToString(server),
                                                        " is larger than ", limits::kHttpReplyBytes,
                                                        " bytes"));
  }
  if (read_error) {
    // TLS's alert, which says more than that writing failed, is read.
    const beast::error_code error = write_error && tls == nullptr ? write_error : read_error;
    co_return absl::UnknownError(absl::StrCat("no answer from ", ToString(server), ": ",
                                              error.message(),
                                              tls != nullptr ? TlsAdvice(error.message()) : ""));
  }
  co_return ToResponse(parser.release());
}

}  // namespace

absl::StatusOr<HttpResponse> HttpCall(const HostPort& server, const HttpRequest& request,
                                      Duration deadline, TlsSource* tls) {
  std::optional<absl::StatusOr<HttpResponse>> result;
  asio::io_context io(1);
  asio::co_spawn(io, Exchange(server, request, tls),
                 [&result](std::exception_ptr error, absl::StatusOr<HttpResponse> response) {
                   result =
                       error ? absl::InternalError("the exchange has thrown") : std::move(response);
                 });
  io.run_for(deadline);
  if (result.has_value()) return *std::move(result);
  return absl::DeadlineExceededError(absl::StrCat("no answer from ", ToString(server), " in time"));
}

}  // namespace kvpool
