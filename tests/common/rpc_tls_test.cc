// RpcListener and RpcConnect through TLS over real sockets, and with peers that break its rules.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/rpc_tls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "common/rpc_connect.h"
#include "common/rpc_listener.h"
#include "proto/manager.capnp.h"
#include "tests/common/certificates.h"
#include "tests/integration/process.h"

namespace kvpool {
namespace {

using ::testing::HasSubstr;

// Refuses everybody as a manager would: the certificate first, then the pool.
class ManagerServer final : public rpc::Manager::Server {
 public:
  ManagerServer(RpcPeer peer, kj::Own<RpcConnection> connection)
      : peer_(kj::mv(peer)), connection_(kj::mv(connection)) {}

  kj::Promise<void> register_(RegisterContext context) override {
    connection_->Authenticated();
    const auto params = context.getParams().getParams();
    const bool is_for =
        peer_.certificate.get() != nullptr && IsFor(*peer_.certificate, params.getAgent().cStr());
    context.getResults().getResult().setRefused(is_for ? rpc::RegisterRefusal::BAD_POOL
                                                       : rpc::RegisterRefusal::BAD_CERTIFICATE);
    return kj::READY_NOW;
  }

 private:
  RpcPeer peer_;
  kj::Own<RpcConnection> connection_;
};

class RpcTlsTest : public ::testing::Test {
 public:
  ~RpcTlsTest() noexcept override {}

 protected:
  static std::shared_ptr<TlsSource> Open(const TlsFiles& files) {
    auto source = TlsSource::Open(files);
    EXPECT_TRUE(source.ok()) << source.status();
    return source.ok() ? *source : nullptr;
  }
  void Listen(std::shared_ptr<TlsSource> tls) {
    auto listener =
        RpcListener::Listen(*io_.lowLevelProvider,
                            {.address = HostPort{"127.0.0.1", 0},
                             .authenticate = std::chrono::milliseconds(500),
                             .tls = std::move(tls)},
                            [](RpcPeer peer, kj::Own<RpcConnection> connection) {
                              return kj::heap<ManagerServer>(kj::mv(peer), kj::mv(connection));
                            });
    ASSERT_TRUE(listener.ok()) << listener.status();
    listener_ = *std::move(listener);
  }
  void SetUp() override {
    Listen(Open(ca_.Issue("server", {.common_name = "m", .alternatives = "DNS:manager"})));
  }
  HostPort Address() const { return std::get<HostPort>(listener_->address()); }

  // What a registration as `agent` comes to: the refusal's number, or the error's text.
  std::string Register(kj::Own<RpcClient> client, const std::string& agent) {
    auto request = client->Bootstrap().castAs<rpc::Manager>().registerRequest();
    request.getParams().setAgent(agent);
    return std::to_string(
        static_cast<int>(request.send().wait(io_.waitScope).getResult().getRefused()));
  }
  std::string RegisterWith(const std::shared_ptr<TlsSource>& source, const std::string& agent,
                           const std::string& name = "manager") {
    RpcTls tls(source, RpcTls::Side::kClient);
    std::string outcome;
    KJ_IF_MAYBE (error, kj::runCatchingExceptions([&] {
                   outcome =
                       Register(RpcConnect(io_, Address(), tls, name).wait(io_.waitScope), agent);
                 })) {
      return TlsError(*error);
    }
    return outcome;
  }
  void ExpectServing() { EXPECT_EQ(RegisterWith(agent_, "gpu-0"), kAccepted); }

  kj::Own<kj::AsyncIoStream> Dial() {
    auto address = io_.provider->getNetwork().parseAddress(ToString(Address()).c_str());
    return address.wait(io_.waitScope)->connect().wait(io_.waitScope);
  }
  // Runs the loop until `condition` holds; false after 10 s.
  bool Eventually(const std::function<bool()>& condition) {
    kj::Timer& timer = io_.provider->getTimer();
    const auto end = timer.now() + 10 * kj::SECONDS;
    while (!condition() && timer.now() < end) {
      timer.afterDelay(1 * kj::MILLISECONDS).wait(io_.waitScope);
    }
    return condition();
  }

  const std::string kAccepted = std::to_string(static_cast<int>(rpc::RegisterRefusal::BAD_POOL));
  const std::string kOtherName =
      std::to_string(static_cast<int>(rpc::RegisterRefusal::BAD_CERTIFICATE));
  kj::AsyncIoContext io_ = kj::setupAsyncIo();
  TempDir folder_;
  const TestCa ca_{folder_ / "", "ca"};
  const std::shared_ptr<TlsSource> agent_ = Open(ca_.Issue("gpu-0", {.common_name = "gpu-0"}));
  std::unique_ptr<RpcListener> listener_;
};

TEST_F(RpcTlsTest, ACertificateSpeaksForItsOwnNameAlone) {
  EXPECT_EQ(RegisterWith(agent_, "gpu-0"), kAccepted);
  for (const char* other : {"gpu-1", "gpu", "gpu-00", "GPU-0", "", "*"}) {
    EXPECT_EQ(RegisterWith(agent_, other), kOtherName) << other;
  }
  // Alternative names do not count, with a common name or without.
  const auto alternative = Open(ca_.Issue("alt", {.common_name = "", .alternatives = "DNS:gpu-0"}));
  EXPECT_EQ(RegisterWith(alternative, "gpu-0"), kOtherName);
  EXPECT_TRUE(Eventually([&] { return listener_->counters().open == 0; }));
  EXPECT_EQ(listener_->counters().handshake, 0u);
  EXPECT_EQ(listener_->counters().garbage, 0u) << "a client that hangs up does nothing wrong";
}

TEST_F(RpcTlsTest, LongMessagesGoThrough) {
  EXPECT_EQ(RegisterWith(agent_, std::string(500'000, 'x')), kOtherName);
}

TEST_F(RpcTlsTest, WhoShowsNoGoodCertificateIsRefusedAndTold) {
  const TestCa other(folder_ / "", "other");
  TlsFiles foreign = other.Issue("foreign", {.common_name = "gpu-0"});
  foreign.ca = ca_.file();
  EXPECT_THAT(RegisterWith(Open(foreign), "gpu-0"), HasSubstr("does not know the CA"));
  const auto expired = Open(ca_.Issue("old", {.common_name = "gpu-0", .ends_s = -10}));
  EXPECT_THAT(RegisterWith(expired, "gpu-0"), HasSubstr("has expired"));
  const auto early =
      Open(ca_.Issue("early", {.common_name = "gpu-0", .begins_s = 600, .ends_s = 900}));
  EXPECT_THAT(RegisterWith(early, "gpu-0"), HasSubstr("refuses the certificate"));
  EXPECT_EQ(listener_->counters().handshake, 3u);
  EXPECT_EQ(listener_->counters().accepted, 0u);

  kj::TlsContext::Options options;
  options.useSystemTrustStore = false;
  const kj::TlsCertificate trusted(kj::StringPtr(agent_->Current()->ca[0].c_str()));
  options.trustedCertificates = kj::arrayPtr(&trusted, 1);
  kj::TlsContext without(kj::mv(options));
  auto stream = without.wrapClient(Dial(), "manager").wait(io_.waitScope);
  std::string refusal;
  KJ_IF_MAYBE (error,
               kj::runCatchingExceptions([&] { stream->readAllBytes().wait(io_.waitScope); })) {
    refusal = TlsError(*error);
  }
  EXPECT_THAT(refusal, HasSubstr("asks for a certificate"));
  EXPECT_EQ(listener_->counters().handshake, 4u);
  EXPECT_EQ(listener_->counters().accepted, 0u);
  ExpectServing();
}

TEST_F(RpcTlsTest, AClientRefusesAServerThatItCannotTrustAndSaysWhy) {
  EXPECT_THAT(RegisterWith(agent_, "gpu-0", "manager-2"), HasSubstr("for other names"));
  const TestCa other(folder_ / "", "other");
  TlsFiles foreign = ca_.Issue("foreign", {.common_name = "gpu-0"});
  foreign.ca = other.file();
  EXPECT_THAT(RegisterWith(Open(foreign), "gpu-0"), HasSubstr("signed by another CA"));
  EXPECT_TRUE(Eventually([&] { return listener_->counters().open == 0; }));
  Listen(Open(ca_.Issue("old", {.common_name = "manager", .ends_s = -10})));
  EXPECT_THAT(RegisterWith(agent_, "gpu-0"), HasSubstr("certificate has expired"));
}

TEST_F(RpcTlsTest, PlainAndTlsDoNotMeet) {
  EXPECT_NE(kj::runCatchingExceptions(
                [&] { Register(RpcConnect(io_, Address()).wait(io_.waitScope), "gpu-0"); }),
            nullptr);
  EXPECT_TRUE(Eventually([&] { return listener_->counters().handshake == 1; }));
  ExpectServing();

  Listen(nullptr);
  EXPECT_THAT(RegisterWith(agent_, "gpu-0"), HasSubstr("TLS"));
  EXPECT_TRUE(Eventually([&] { return listener_->counters().garbage == 1; }));
  EXPECT_EQ(Register(RpcConnect(io_, Address()).wait(io_.waitScope), "gpu-0"), kOtherName);
}

TEST_F(RpcTlsTest, AHalfHandshakeIsCutInTimeAndStopsNobody) {
  auto silent = Dial(), half = Dial();
  const kj::byte record[] = {0x16, 0x03, 0x01, 0x02, 0x00, 0x01};  // of a ClientHello
  half->write(record, sizeof(record)).wait(io_.waitScope);
  EXPECT_TRUE(Eventually([&] { return listener_->counters().open == 2; }));
  ExpectServing();
  EXPECT_EQ(silent->readAllBytes().wait(io_.waitScope).size(), 0u);
  EXPECT_EQ(half->readAllBytes().wait(io_.waitScope).size(), 0u);
  EXPECT_EQ(listener_->counters().handshake, 2u);
  ExpectServing();
}

TEST_F(RpcTlsTest, WhoHangsUpInTheHandshakeIsNotServed) {
  for (const size_t bytes : {0, 1, 6}) {
    auto stream = Dial();
    const kj::byte record[] = {0x16, 0x03, 0x01, 0x02, 0x00, 0x01};
    if (bytes > 0) stream->write(record, bytes).wait(io_.waitScope);
    stream->shutdownWrite();
    stream->readAllBytes().wait(io_.waitScope);
  }
  EXPECT_TRUE(Eventually([&] { return listener_->counters().open == 0; }));
  EXPECT_EQ(listener_->counters().handshake, 3u);
  EXPECT_EQ(listener_->counters().accepted, 0u);
  ExpectServing();
}

TEST_F(RpcTlsTest, WhoDiesAfterTheHandshakeHasDoneNothingWrong) {
  RpcTls tls(agent_, RpcTls::Side::kClient);
  for (const size_t bytes : {0, 3}) {  // of a message
    auto stream = tls.Connect(Dial(), "manager").wait(io_.waitScope);
    EXPECT_TRUE(Eventually([&] { return listener_->counters().accepted == (bytes == 0 ? 1 : 2); }));
    if (bytes > 0) stream->write("\0\0\0", bytes).wait(io_.waitScope);
    stream = nullptr;  // without a word of TLS's
    EXPECT_TRUE(Eventually([&] { return listener_->counters().open == 0; }));
  }
  EXPECT_EQ(listener_->counters().garbage, 0u);
  EXPECT_EQ(listener_->counters().handshake, 0u);
}

TEST_F(RpcTlsTest, WhoShowsACertificateButNoTokenIsCutInTheSameTime) {
  RpcTls tls(agent_, RpcTls::Side::kClient);
  const auto begin = io_.provider->getTimer().now();
  auto client = RpcConnect(io_, Address(), tls, "manager").wait(io_.waitScope);
  client->OnDisconnect().wait(io_.waitScope);
  EXPECT_LT(io_.provider->getTimer().now() - begin, 5 * kj::SECONDS);
  EXPECT_EQ(listener_->counters().unauthenticated, 1u);
}

TEST_F(RpcTlsTest, ConnectionsInTheHandshakeCountAgainstTheMaximum) {
  listener_.reset();
  auto listener =
      RpcListener::Listen(*io_.lowLevelProvider,
                          {.address = HostPort{"127.0.0.1", 0},
                           .connections = 2,
                           .tls = Open(ca_.Issue("server", {.common_name = "manager"}))},
                          [](RpcPeer peer, kj::Own<RpcConnection> connection) {
                            return kj::heap<ManagerServer>(kj::mv(peer), kj::mv(connection));
                          });
  ASSERT_TRUE(listener.ok()) << listener.status();
  listener_ = *std::move(listener);
  auto first = Dial(), second = Dial(), third = Dial();
  EXPECT_EQ(third->readAllBytes().wait(io_.waitScope).size(), 0u);
  EXPECT_EQ(listener_->counters().above_maximum, 1u);
  first = nullptr;
  EXPECT_TRUE(Eventually([&] { return listener_->counters().open == 1; }));
  ExpectServing();
}

TEST_F(RpcTlsTest, NewFilesHoldForTheNextConnection) {
  const TestCa next(folder_ / "", "next");
  TlsFiles files = next.Issue("next-agent", {.common_name = "gpu-0"});
  const auto agent = Open(files);
  EXPECT_NE(RegisterWith(agent, "gpu-0"), kAccepted);
  TlsFiles server = next.Issue("server", {.common_name = "manager"});
  std::filesystem::copy_file(next.file(), ca_.file(),
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_EQ(RegisterWith(agent, "gpu-0"), kAccepted);
}

}  // namespace
}  // namespace kvpool
