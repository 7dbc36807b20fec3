// The HTTP server and client over loopback, with peers that break the rules.
//
// SPDX-License-Identifier: Apache-2.0
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <future>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/http_client.h"
#include "common/http_server.h"

namespace kvpool {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// What the server says without the handler.
constexpr char kMalformed[] =
    R"({"error":{"code":"malformed","message":"this is not an HTTP request that can be read"}})";
constexpr char kLargeBody[] =
    R"({"error":{"code":"too_large","message":"the body is above 1048576 bytes"}})";
constexpr char kLargeHeaders[] =
    R"({"error":{"code":"too_large","message":"the headers are above 16384 bytes"}})";
constexpr char kDropped[] = R"({"error":{"code":"internal","message":"the request was dropped"}})";

// A client socket that sends whatever it is told to.
class RawClient {
 public:
  explicit RawClient(const HostPort& server) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{.sin_family = AF_INET, .sin_port = htons(server.port)};
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    const timeval limit{.tv_sec = 8};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  ~RawClient() { close(fd_); }

  bool Send(const std::string& bytes) {
    return send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
           static_cast<ssize_t>(bytes.size());
  }
  // Everything until the server closes; a time-out fails the test.
  std::string ReadAll() {
    std::string text;
    char buffer[4096];
    for (;;) {
      const ssize_t got = recv(fd_, buffer, sizeof(buffer), 0);
      if (got <= 0) {
        EXPECT_FALSE(got < 0 && errno == EAGAIN) << "the server did not close";
        return text;
      }
      text.append(buffer, got);
    }
  }
  // Until `end` has come.
  std::string ReadUntil(const std::string& end) {
    std::string text;
    char byte;
    while (text.find(end) == std::string::npos && recv(fd_, &byte, 1, 0) == 1) text += byte;
    return text;
  }

 private:
  int fd_;
};

class HttpTest : public ::testing::Test {
 protected:
  void Start(HttpServerOptions options = {}) {
    auto server = HttpServer::Start(options, [this](HttpRequest request, HttpServer::Done done) {
      Handle(std::move(request), std::move(done));
    });
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  void Handle(HttpRequest request, HttpServer::Done done) {
    if (request.path == "/drop") return;
    if (request.path == "/keep") {
      kept_.set_value(std::move(done));
      return;
    }
    if (request.path == "/later") {
      later_ = std::thread([done = std::move(done)] {
        done({.status = 202, .body = "later"});
        done({.status = 500, .body = "twice"});
      });
      return;
    }
    if (request.path == "/no") return done({.status = 404});
    if (request.path == "/huge") return done({.body = std::string(size_t{64} << 20, 'x')});
    done({.body = request.method + " " + request.path + " " + request.query + " " +
                  request.Header("authorization") + " " + std::to_string(request.body.size()),
          .headers = {{"X-Test", "1"}}});
  }

  absl::StatusOr<HttpResponse> Call(const HttpRequest& request) {
    return HttpCall(server_->address(), request, seconds(8));
  }
  std::string Get(const std::string& path) {
    const auto response = Call({.path = path});
    return response.ok() ? response->body : response.status().ToString();
  }
  // Status, type and body: "404 application/json {...}".
  std::string Refusal(const HttpRequest& request) {
    const auto response = Call(request);
    if (!response.ok()) return response.status().ToString();
    return std::to_string(response->status) + " " + response->content_type + " " + response->body;
  }
  // Whether `count` connections have been closed for silence.
  bool TimedOut(uint64_t count) {
    const auto end = std::chrono::steady_clock::now() + seconds(8);
    while (server_->counters().timed_out < count) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::yield();
    }
    return server_->counters().timed_out == count;
  }

  void TearDown() override {
    if (later_.joinable()) later_.join();
  }

  std::promise<HttpServer::Done> kept_;
  std::thread later_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpTest, RequestAndResponse) {
  Start();
  const auto response = Call({.method = "PUT",
                              .path = "/v1/tenants/a",
                              .query = "x=1",
                              .headers = {{"Authorization", "Bearer kvp_1"}},
                              .body = std::string(100000, 'b')});
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->status, 200);
  EXPECT_EQ(response->content_type, "application/json");
  EXPECT_EQ(response->headers.at("x-test"), "1");
  EXPECT_EQ(response->body, "PUT /v1/tenants/a x=1 Bearer kvp_1 100000");
}

TEST_F(HttpTest, AnswersFromAnotherThreadOnce) {
  Start();
  const auto response = Call({.path = "/later"});
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->status, 202);
  EXPECT_EQ(response->body, "later");
}

TEST_F(HttpTest, AHandlerThatForgetsAnswers500) {
  Start();
  EXPECT_EQ(Refusal({.path = "/drop"}), std::string("500 application/json ") + kDropped);
  EXPECT_EQ(server_->counters().handled, 1u);
}

TEST_F(HttpTest, HeadHasTheLengthAndNoBody) {
  Start();
  const auto response = Call({.method = "HEAD", .path = "/x"});
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->body, "");
  EXPECT_EQ(response->headers.at("content-length"), std::to_string(sizeof("GET /x   0") - 1));
}

TEST_F(HttpTest, KeepAliveAndPipelining) {
  Start();
  RawClient client(server_->address());
  client.Send("GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("GET /1   0"), StartsWith("HTTP/1.1 200 OK"));
  EXPECT_THAT(client.ReadUntil("GET /2   0"), StartsWith("HTTP/1.1 200 OK"));
  client.Send("GET /3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(client.ReadAll(), HasSubstr("Connection: close"));
}

TEST_F(HttpTest, MalformedRequestsGet400AndOthersGoOn) {
  Start();
  const std::string bad[] = {
      "garbage\r\n\r\n",
      "GET / HTTP/9.9\r\n\r\n",
      "GET  / HTTP/1.1\r\n\r\n",
      std::string("GET /\0 HTTP/1.1\r\n\r\n", 20),
      "GET / HTTP/1.1\r\nNo colon here\r\n\r\n",
      "GET http://other/ HTTP/1.1\r\n\r\n",
      "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
      "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
      "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
  };
  for (const std::string& request : bad) {
    RawClient client(server_->address());
    client.Send(request);
    EXPECT_THAT(client.ReadAll(), AllOf(StartsWith("HTTP/1.1 400 "), EndsWith(kMalformed)))
        << request;
    EXPECT_EQ(Get("/ok"), "GET /ok   0");
  }
  EXPECT_EQ(server_->counters().bad_requests, std::size(bad));
}

TEST_F(HttpTest, WhatTheHandlerRefusesIsCountedApart) {
  Start();
  EXPECT_EQ(Call({.path = "/no"})->status, 404);
  EXPECT_EQ(Call({.path = "/yes"})->status, 200);
  EXPECT_EQ(server_->counters().refused, 1u);
  EXPECT_EQ(server_->counters().handled, 1u);
}

TEST_F(HttpTest, BinaryGarbageNeverHurts) {
  Start();
  for (int seed = 0; seed < 50; ++seed) {
    std::string bytes(2000, '\0');
    uint32_t state = 12345 + seed;
    for (char& c : bytes) c = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
    RawClient client(server_->address());
    client.Send(bytes);
    client.ReadAll();
  }
  EXPECT_EQ(Get("/ok"), "GET /ok   0");
}

TEST_F(HttpTest, OversizeGets413And431) {
  Start();
  EXPECT_EQ(Call({.method = "POST", .body = std::string(limits::kHttpBodyBytes, 'x')})->status,
            200);
  const std::string body = std::string("413 application/json ") + kLargeBody;
  const std::string headers = std::string("431 application/json ") + kLargeHeaders;
  EXPECT_EQ(Refusal({.method = "POST", .body = std::string(limits::kHttpBodyBytes + 1, 'x')}),
            body);
  EXPECT_EQ(Refusal({.path = "/" + std::string(limits::kHttpHeaderBytes, 'x')}), headers);
  EXPECT_EQ(Refusal({.headers = {{"x", std::string(3 * limits::kHttpHeaderBytes, 'x')}}}), headers);
  // The length is only claimed.
  RawClient claims(server_->address());
  claims.Send("POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n");
  EXPECT_THAT(claims.ReadAll(), StartsWith("HTTP/1.1 413"));
  // A chunked body has no length to check beforehand.
  RawClient chunked(server_->address());
  chunked.Send("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
  const std::string chunk = "10000\r\n" + std::string(0x10000, 'x') + "\r\n";
  for (int i = 0; i < 17; ++i) chunked.Send(chunk);
  EXPECT_THAT(chunked.ReadAll(), StartsWith("HTTP/1.1 413"));
}

TEST_F(HttpTest, SlowRequestsAreClosedAndCounted) {
  Start({.deadline = milliseconds(200)});
  RawClient silent(server_->address()), slow(server_->address());
  slow.Send("GET / HTTP/1.1\r\nHost: ");
  std::thread drip([&] {
    const auto end = std::chrono::steady_clock::now() + seconds(5);
    while (std::chrono::steady_clock::now() < end && slow.Send("x")) {
      std::this_thread::yield();
    }
  });
  EXPECT_EQ(silent.ReadAll(), "");
  drip.join();
  EXPECT_EQ(Get("/ok"), "GET /ok   0");
  // The dripping one may have grown too large first.
  EXPECT_TRUE(TimedOut(2 - server_->counters().bad_requests));
}

TEST_F(HttpTest, IdleConnectionsAreClosedAndNotCounted) {
  Start({.deadline = milliseconds(200)});
  RawClient idle(server_->address());
  idle.Send("GET /1 HTTP/1.1\r\n\r\n");
  EXPECT_THAT(idle.ReadAll(), EndsWith("GET /1   0"));
  RawClient half(server_->address());
  half.Send("GET /1 HTTP/1.1\r\n\r\nGET");
  EXPECT_THAT(half.ReadAll(), EndsWith("GET /1   0"));
  EXPECT_TRUE(TimedOut(1)) << "the request that had begun, and no other";
}

TEST_F(HttpTest, APeerThatDoesNotReadIsClosedAndCounted) {
  Start({.deadline = milliseconds(200)});
  RawClient deaf(server_->address());
  deaf.Send("GET /huge HTTP/1.1\r\n\r\n");
  EXPECT_TRUE(TimedOut(1));
}

TEST_F(HttpTest, ConnectionsAboveTheMaximumAreClosed) {
  Start({.connections = 2});
  RawClient a(server_->address()), b(server_->address());
  a.Send("GET /1 HTTP/1.1\r\n\r\n");
  b.Send("GET /2 HTTP/1.1\r\n\r\n");
  a.ReadUntil("GET /1   0");
  b.ReadUntil("GET /2   0");
  RawClient c(server_->address());
  EXPECT_EQ(c.ReadAll(), "");
  EXPECT_EQ(server_->counters().above_maximum, 1u);
  a.Send("GET /3 HTTP/1.1\r\n\r\n");
  EXPECT_THAT(a.ReadUntil("GET /3   0"), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpTest, ATakenPortIsAnError) {
  Start();
  const auto second =
      HttpServer::Start({.address = server_->address()}, [](HttpRequest, HttpServer::Done) {});
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("the port is taken"));
}

TEST_F(HttpTest, StoppingFinishesWhatIsUnderWay) {
  Start();
  RawClient idle(server_->address());
  std::thread caller([this] { EXPECT_EQ(Get("/keep"), "kept"); });
  HttpServer::Done done = kept_.get_future().get();
  std::thread stopper([this] { server_.reset(); });
  EXPECT_EQ(idle.ReadAll(), "") << "idle connections close at once";
  done({.body = "kept"});
  stopper.join();
  caller.join();
}

TEST_F(HttpTest, AnAnswerAfterTheEndDoesNothing) {
  Start();
  const HostPort address = server_->address();
  std::thread caller([&] {
    EXPECT_EQ(HttpCall(address, {.path = "/keep"}, seconds(8)).status().code(),
              absl::StatusCode::kUnknown);
  });
  HttpServer::Done done = kept_.get_future().get();
  server_.reset();
  done({.body = "late"});
  done = nullptr;
  caller.join();
}

TEST(HttpClientTest, ErrorsAreStatuses) {
  const auto refused = HttpCall({"127.0.0.1", 1}, {}, seconds(5));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("127.0.0.1:1"));

  auto server = HttpServer::Start({}, [](HttpRequest request, HttpServer::Done done) {
    static HttpServer::Done kept;
    if (request.path == "/big")
      return done({.body = std::string(limits::kHttpReplyBytes + 1, 'x')});
    kept = request.path == "/keep" ? std::move(done) : nullptr;
  });
  ASSERT_TRUE(server.ok());
  const auto start = std::chrono::steady_clock::now();
  const auto late = HttpCall((*server)->address(), {.path = "/keep"}, milliseconds(50));
  EXPECT_EQ(late.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(5));
  EXPECT_EQ(HttpCall((*server)->address(), {.path = "/big"}, seconds(8)).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(HttpCall((*server)->address(), {.path = "/forget"}, seconds(5))->status, 500);
}

}  // namespace
}  // namespace kvpool
