// A coroutine per connection on one io_context with one thread, so nothing here needs a lock.
//
// Ownership: coroutines hold the Service. A request that waits for its handler's answer is a
// suspended coroutine owned by the Reply, which also keeps the io_context: whoever drops the last
// of both, in whatever order and thread, destroys them.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/http_server.h"

#include <openssl/sslerr.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl/error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <cctype>
#include <exception>
#include <future>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/http_stream.h"
#include "common/json.h"
#include "common/log.h"
#include "common/socket.h"

namespace kvpool {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;

constexpr auto kAsTuple = asio::as_tuple(asio::use_awaitable);
constexpr auto kStopGrace = std::chrono::seconds(1);
constexpr auto kAcceptPause = std::chrono::milliseconds(100);
constexpr auto kLinger = std::chrono::seconds(1);

using Parser = http::request_parser<http::string_body>;

// What to answer to a request that could not be read; 0: nothing, the peer has gone or was slow.
int StatusFor(const beast::error_code& error) {
  static const beast::error_code kSample = http::error::bad_method;
  if (error == http::error::end_of_stream || error == http::error::partial_message) return 0;
  if (error == http::error::body_limit) return 413;
  if (error == http::error::header_limit || error == http::error::buffer_overflow) return 431;
  return error.category() == kSample.category() ? 400 : 0;
}

// Of a request that no handler sees.
std::string RefusalBody(int status) {
  if (status == 413) {
    return JsonError("too_large",
                     absl::StrCat("the body is above ", limits::kHttpBodyBytes, " bytes"));
  }
  if (status == 431) {
    return JsonError("too_large",
                     absl::StrCat("the headers are above ", limits::kHttpHeaderBytes, " bytes"));
  }
  return JsonError("malformed", "this is not an HTTP request that can be read");
}

HttpRequest ToRequest(http::request<http::string_body>&& message) {
  HttpRequest request;
  const bool head = message.method() == http::verb::head;
  request.method = head ? "GET" : std::string(message.method_string());
  const std::string target(message.target());
  const size_t question = target.find('?');
  request.path = target.substr(0, question);
  if (question != std::string::npos) request.query = target.substr(question + 1);
  for (const auto& field : message) {
    std::string name(field.name_string());
    for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    std::string& value = request.headers[name];
    if (!value.empty()) value += ", ";
    value += std::string(field.value());
  }
  request.body = std::move(message.body());
  return request;
}

enum class Body { kSend, kOmit };
enum class After { kKeepAlive, kClose };

// Closing with unread bytes would reset the connection, and the peer might never see our answer.
asio::awaitable<void> Linger(beast::tcp_stream& stream) {
  beast::error_code error;
  stream.socket().shutdown(tcp::socket::shutdown_send, error);
  stream.expires_after(kLinger);
  std::array<char, 4096> ignored;
  while (!error) {
    std::tie(error, std::ignore) = co_await stream.async_read_some(asio::buffer(ignored), kAsTuple);
  }
}

bool IsPlainHttp(const beast::error_code& error) {
  return error.category() == asio::error::get_ssl_category() &&
         ERR_GET_REASON(static_cast<unsigned long>(error.value())) == SSL_R_HTTP_REQUEST;
}

std::string PeerOf(beast::tcp_stream& stream) {
  beast::error_code error;
  const tcp::endpoint peer = stream.socket().remote_endpoint(error);
  return error ? "gone" : ToString(HostPort{peer.address().to_string(), peer.port()});
}

// Carries one answer back to the coroutine that waits for it.
template <typename Resume>
class Reply {
 public:
  Reply(std::shared_ptr<asio::io_context> io, Resume resume)
      : io_(std::move(io)), resume_(std::move(resume)) {}
  ~Reply() { Send({.status = 500, .body = JsonError("internal", "the request was dropped")}); }

  void Send(HttpResponse response) {
    if (sent_.exchange(true)) return;
    asio::post(*io_, [resume = std::move(resume_), response = std::move(response)]() mutable {
      std::move(resume)(std::move(response));
    });
  }

 private:
  std::shared_ptr<asio::io_context> io_;
  Resume resume_;
  std::atomic<bool> sent_ = false;
};

}  // namespace

class HttpServer::Service : public std::enable_shared_from_this<Service> {
 public:
  Service(const HttpServerOptions& options, Handler handler)
      : options_(options), handler_(std::move(handler)) {}

  Counters counters() const {
    return {handled_, refused_, bad_requests_, above_maximum_, timed_out_};
  }

  // Runs until the acceptor is closed.
  static asio::awaitable<void> AcceptLoop(std::shared_ptr<Service> self,
                                          std::weak_ptr<asio::io_context> io,
                                          tcp::acceptor& acceptor);

  // On the server's thread: ends what waits for a request.
  void Close() {
    closing_ = true;
    for (HttpStream* stream : idle_) stream->tcp().cancel();
  }

 private:
  static asio::awaitable<void> Serve(std::shared_ptr<Service> self,
                                     std::weak_ptr<asio::io_context> io, tcp::socket socket);
  // False: there is no TLS, and the connection has been dealt with.
  asio::awaitable<bool> Handshake(HttpStream& stream);
  asio::awaitable<beast::error_code> Read(HttpStream& stream, beast::flat_buffer& buffer,
                                          Parser& parser);
  // To a tcp_stream in the clear, whatever the server speaks.
  template <typename Stream>
  asio::awaitable<beast::error_code> Write(Stream& stream, HttpResponse response, Body body,
                                           After after);
  static beast::tcp_stream& TcpOf(HttpStream& stream) { return stream.tcp(); }
  static beast::tcp_stream& TcpOf(beast::tcp_stream& stream) { return stream; }
  static asio::awaitable<void> End(HttpStream& stream);
  asio::awaitable<HttpResponse> Answer(std::shared_ptr<asio::io_context> io, HttpRequest request);

  const HttpServerOptions options_;
  const Handler handler_;
  std::set<HttpStream*> idle_;
  uint32_t open_ = 0;
  bool closing_ = false;
  std::atomic<uint64_t> handled_ = 0, refused_ = 0, bad_requests_ = 0, above_maximum_ = 0,
                        timed_out_ = 0;
};

asio::awaitable<bool> HttpServer::Service::Handshake(HttpStream& stream) {
  if (options_.tls == nullptr) co_return true;
  const auto material = options_.tls->Current();
  stream.tcp().expires_after(
      std::min(options_.deadline, std::chrono::milliseconds(limits::kAuthenticateMillis)));
  const std::string peer = PeerOf(stream.tcp());
  idle_.insert(&stream);
  const beast::error_code error = co_await stream.Accept(*material);
  idle_.erase(&stream);
  if (!error) co_return true;
  if (closing_) co_return false;
  // Who only looks whether the port is open.
  if (error == asio::error::eof || error == asio::ssl::error::stream_truncated) co_return false;
  ++(error == beast::error::timeout ? timed_out_ : bad_requests_);
  const std::string why = error.message();
  Logger("http").Warn("no TLS with a client: connection closed",
                      {{"peer", peer}, {"error", why + TlsAdvice(why)}});
  if (IsPlainHttp(error)) {
    HttpResponse response{
        .status = 400,
        .body = JsonError("malformed", "this port speaks HTTPS: write https:// in front of it")};
    co_await Write(stream.tcp(), std::move(response), Body::kSend, After::kClose);
  }
  co_await Linger(stream.tcp());
  co_return false;
}

asio::awaitable<void> HttpServer::Service::End(HttpStream& stream) {
  stream.tcp().expires_after(kLinger);
  co_await stream.Finish();
  co_await Linger(stream.tcp());
}

asio::awaitable<beast::error_code> HttpServer::Service::Read(HttpStream& stream,
                                                             beast::flat_buffer& buffer,
                                                             Parser& parser) {
  parser.header_limit(limits::kHttpHeaderBytes);
  parser.body_limit(limits::kHttpBodyBytes);
  stream.tcp().expires_after(options_.deadline);
  idle_.insert(&stream);
  auto [error, size] = co_await http::async_read(stream, buffer, parser, kAsTuple);
  idle_.erase(&stream);
  co_return error;
}

template <typename Stream>
asio::awaitable<beast::error_code> HttpServer::Service::Write(Stream& stream, HttpResponse response,
                                                              Body body, After after) {
  http::response<http::string_body> message(static_cast<http::status>(response.status), 11);
  for (const auto& [name, value] : response.headers) message.set(name, value);
  message.set(http::field::content_type, response.content_type);
  message.keep_alive(after == After::kKeepAlive);
  message.body() = std::move(response.body);
  message.prepare_payload();
  http::response_serializer<http::string_body> serializer(message);
  TcpOf(stream).expires_after(options_.deadline);
  beast::error_code error;
  if (body == Body::kSend) {
    std::tie(error, std::ignore) = co_await http::async_write(stream, serializer, kAsTuple);
  } else {
    std::tie(error, std::ignore) = co_await http::async_write_header(stream, serializer, kAsTuple);
  }
  if (error == beast::error::timeout) ++timed_out_;
  co_return error;
}

asio::awaitable<HttpResponse> HttpServer::Service::Answer(std::shared_ptr<asio::io_context> io,
                                                          HttpRequest request) {
  auto start = [this, &io, &request](auto resume) {
    using Resume = decltype(resume);
    auto reply = std::make_shared<Reply<Resume>>(std::move(io), std::move(resume));
    handler_(std::move(request),
             [reply](HttpResponse response) { reply->Send(std::move(response)); });
  };
  co_return co_await asio::async_initiate<const asio::use_awaitable_t<>, void(HttpResponse)>(
      start, asio::use_awaitable);
}

asio::awaitable<void> HttpServer::Service::Serve(std::shared_ptr<Service> self,
                                                 std::weak_ptr<asio::io_context> io,
                                                 tcp::socket socket) {
  HttpStream stream{beast::tcp_stream(std::move(socket))};
  if (!co_await self->Handshake(stream)) co_return;
  // Room for a header just above its limit, which is answered, and for reading ahead.
  beast::flat_buffer buffer(2 * limits::kHttpHeaderBytes);
  bool first = true;
  while (!self->closing_) {
    Parser parser;
    const beast::error_code error = co_await self->Read(stream, buffer, parser);
    int refusal = error ? StatusFor(error) : 0;
    if (!error && !parser.get().target().starts_with('/')) refusal = 400;
    if (refusal != 0) {
      ++self->bad_requests_;
      HttpResponse response{.status = refusal, .body = RefusalBody(refusal)};
      co_await self->Write(stream, std::move(response), Body::kSend, After::kClose);
      co_await End(stream);
      break;
    }
    // Between requests a connection may well fall idle.
    if (error == beast::error::timeout && (first || parser.got_some())) ++self->timed_out_;
    if (error) break;
    first = false;
    const bool keep_alive = parser.get().keep_alive();
    const Body body = parser.get().method() == http::verb::head ? Body::kOmit : Body::kSend;
    stream.tcp().expires_never();
    HttpResponse response = co_await self->Answer(io.lock(), ToRequest(parser.release()));
    ++(response.status / 100 == 4 ? self->refused_ : self->handled_);
    const After after = keep_alive && !self->closing_ ? After::kKeepAlive : After::kClose;
    if (co_await self->Write(stream, std::move(response), body, after)) break;
    if (after == After::kClose) {
      co_await End(stream);
      break;
    }
  }
}

asio::awaitable<void> HttpServer::Service::AcceptLoop(std::shared_ptr<Service> self,
                                                      std::weak_ptr<asio::io_context> io,
                                                      tcp::acceptor& acceptor) {
  asio::steady_timer pause(acceptor.get_executor());
  while (acceptor.is_open()) {
    auto [error, socket] = co_await acceptor.async_accept(kAsTuple);
    if (error == asio::error::operation_aborted) break;
    if (error) {
      Logger("http").Error("cannot accept a connection", {{"error", error.message()}});
      pause.expires_after(kAcceptPause);
      co_await pause.async_wait(kAsTuple);
    } else if (self->open_ >= self->options_.connections) {
      ++self->above_maximum_;
    } else {
      ++self->open_;
      asio::co_spawn(acceptor.get_executor(), Serve(self, io, std::move(socket)),
                     [self](std::exception_ptr error) {
                       --self->open_;
                       if (error) Logger("http").Error("a handler has thrown; connection closed");
                     });
    }
  }
}

struct HttpServer::Loop {
  std::shared_ptr<asio::io_context> io = std::make_shared<asio::io_context>(1);
  tcp::acceptor acceptor{*io};
  std::promise<void> finished;
  std::thread thread;
};

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpServerOptions& options,
                                                              Handler handler) {
  const absl::StatusOr<int> fd = ListenOn(options.address);
  if (!fd.ok()) return fd.status();
  auto loop = std::make_unique<Loop>();
  sockaddr_storage bound;
  socklen_t length = sizeof(bound);
  getsockname(*fd, reinterpret_cast<sockaddr*>(&bound), &length);
  loop->acceptor.assign(bound.ss_family == AF_INET6 ? tcp::v6() : tcp::v4(), *fd);
  const HostPort address{options.address.host, loop->acceptor.local_endpoint().port()};

  auto service = std::make_shared<Service>(options, std::move(handler));
  asio::co_spawn(*loop->io, Service::AcceptLoop(service, loop->io, loop->acceptor),
                 [](std::exception_ptr) {});
  loop->thread = std::thread([loop = loop.get()] {
    loop->io->run();
    loop->finished.set_value();
  });
  return std::unique_ptr<HttpServer>(new HttpServer(address, std::move(service), std::move(loop)));
}

HttpServer::HttpServer(HostPort address, std::shared_ptr<Service> service,
                       std::unique_ptr<Loop> loop)
    : address_(std::move(address)), service_(std::move(service)), loop_(std::move(loop)) {}

HttpServer::~HttpServer() {
  asio::post(*loop_->io, [this] {
    loop_->acceptor.close();
    service_->Close();
  });
  // The loop ends by itself once nothing is under way.
  if (loop_->finished.get_future().wait_for(kStopGrace) != std::future_status::ready) {
    loop_->io->stop();
  }
  loop_->thread.join();
}

HttpServer::Counters HttpServer::counters() const { return service_->counters(); }

}  // namespace kvpool
