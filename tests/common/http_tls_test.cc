// HTTPS between HttpServer and HttpCall over real sockets, and with peers that do not speak it.
//
// SPDX-License-Identifier: Apache-2.0
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <string>

#include "common/http_client.h"
#include "common/http_server.h"
#include "tests/common/certificates.h"
#include "tests/integration/process.h"

namespace kvpool {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

std::shared_ptr<TlsSource> Open(const TlsFiles& files) {
  auto source = TlsSource::Open(files);
  EXPECT_TRUE(source.ok()) << source.status();
  return source.ok() ? *source : nullptr;
}

// A connection that says what the test wants.
class RawPeer {
 public:
  explicit RawPeer(uint16_t port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    const sockaddr_in address{
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    EXPECT_EQ(connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    const timeval limit{.tv_sec = 10};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  }
  ~RawPeer() { close(fd_); }
  RawPeer(const RawPeer&) = delete;
  RawPeer& operator=(const RawPeer&) = delete;

  void Send(const std::string& bytes) {
    EXPECT_EQ(send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  // All until the server hangs up; "timeout" when it does not.
  std::string Receive() {
    std::string all;
    char buffer[4096];
    ssize_t count;
    while ((count = recv(fd_, buffer, sizeof(buffer), 0)) > 0) all.append(buffer, count);
    return count < 0 && errno == EAGAIN ? "timeout" : all;
  }

 private:
  const int fd_;
};

class HttpTlsTest : public ::testing::Test {
 protected:
  void Start(const TestCa::Subject& subject) {
    auto server = HttpServer::Start(
        {.tls = Open(ca_.Issue("server", subject))},
        [](const HttpRequest& request, const HttpServer::Done& done) {
          done({.body = request.path == "/big" ? std::string(3 << 20, 'b') : request.body});
        });
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  void SetUp() override {
    Start({.common_name = "manager", .alternatives = "DNS:localhost,IP:127.0.0.1"});
  }
  absl::StatusOr<HttpResponse> Call(const HttpRequest& request, const std::string& host,
                                    const std::shared_ptr<TlsSource>& tls) {
    return HttpCall({host, server_->address().port}, request, seconds(8), tls.get());
  }
  // The server lives on and serves who speaks as it does.
  void ExpectServing() {
    const auto answer = Call({.method = "POST", .body = "hello"}, "127.0.0.1", client_);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->body, "hello");
  }

  TempDir folder_;
  const TestCa ca_{folder_ / "", "ca"};
  const std::shared_ptr<TlsSource> client_ = Open({.ca = ca_.file()});
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpTlsTest, AnswersBothWaysWhateverTheSize) {
  const std::string body(1 << 20, 'x');
  for (const char* host : {"127.0.0.1", "localhost"}) {
    const auto answer = Call({.method = "POST", .body = body}, host, client_);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->status, 200);
    EXPECT_EQ(answer->body, body);
  }
  EXPECT_EQ(Call({.path = "/big"}, "localhost", client_)->body.size(), 3u << 20);
  EXPECT_EQ(Call({.method = "POST", .body = body + "x"}, "localhost", client_)->status, 413);
  EXPECT_EQ(server_->counters().handled, 3u);
}

TEST_F(HttpTlsTest, AClientRefusesAServerThatItCannotTrustAndSaysWhy) {
  const TestCa other(folder_ / "", "other");
  const auto by_other = Call({}, "127.0.0.1", Open({.ca = other.file()}));
  EXPECT_EQ(by_other.status().code(), absl::StatusCode::kUnavailable) << "nothing was sent";
  EXPECT_THAT(by_other.status().ToString(), HasSubstr("signed by another CA"));
  const auto by_system = Call({}, "127.0.0.1", Open({}));
  EXPECT_THAT(by_system.status().ToString(), HasSubstr("signed by another CA"));
  ExpectServing();

  Start({.common_name = "manager", .alternatives = "DNS:elsewhere,IP:10.1.2.3"});
  EXPECT_THAT(Call({}, "localhost", client_).status().ToString(), HasSubstr("for other names"));
  EXPECT_THAT(Call({}, "127.0.0.1", client_).status().ToString(), HasSubstr("for other addresses"));

  Start({.common_name = "m", .alternatives = "IP:127.0.0.1", .ends_s = -5});
  EXPECT_THAT(Call({}, "127.0.0.1", client_).status().ToString(), HasSubstr("expired"));
  EXPECT_EQ(server_->counters().handled, 0u);
}

TEST_F(HttpTlsTest, PlainHttpIsToldToComeBackWithTls) {
  const auto plain = Call({.path = "/metrics"}, "127.0.0.1", nullptr);
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(plain->status, 400);
  EXPECT_THAT(plain->body, HasSubstr("https://"));
  EXPECT_EQ(server_->counters().bad_requests, 1u);
  ExpectServing();
}

TEST_F(HttpTlsTest, AClientOfTlsIsToldThatTheServerSpeaksPlainHttp) {
  auto plain = HttpServer::Start(
      {}, [](const HttpRequest&, const HttpServer::Done& done) { done({.body = "never"}); });
  ASSERT_TRUE(plain.ok()) << plain.status();
  const auto answer = HttpCall((*plain)->address(), {}, seconds(8), client_.get());
  EXPECT_EQ(answer.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(answer.status().ToString(), HasSubstr("does not speak TLS on this port"));
  EXPECT_EQ((*plain)->counters().bad_requests, 1u);
}

TEST_F(HttpTlsTest, AHalfHandshakeIsCutInTimeAndStopsNobody) {
  RawPeer silent(server_->address().port), half(server_->address().port);
  const std::string record("\x16\x03\x01\x02\x00\x01", 6);  // the beginning of a ClientHello
  half.Send(record);
  ExpectServing();
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(silent.Receive(), "");
  EXPECT_EQ(half.Receive(), "");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, seconds(5));
  EXPECT_TRUE(Eventually([&] { return server_->counters().timed_out == 2; }));
  RawPeer rubbish(server_->address().port);
  rubbish.Send(std::string("\x16\x03\x01\x00\x05hello", 10));  // a whole record
  EXPECT_NE(rubbish.Receive(), "timeout");
  EXPECT_EQ(server_->counters().bad_requests, 1u);
  ExpectServing();
}

TEST_F(HttpTlsTest, ANewCertificateIsShownToTheNextConnection) {
  const TestCa other(folder_ / "", "other");
  const auto other_client = Open({.ca = other.file()});
  EXPECT_FALSE(Call({}, "127.0.0.1", other_client).ok());
  other.Issue("server", {.common_name = "m", .alternatives = "IP:127.0.0.1"});
  const auto answer = Call({.method = "POST", .body = "new"}, "127.0.0.1", other_client);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->body, "new");
}

}  // namespace
}  // namespace kvpool
