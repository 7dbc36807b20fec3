// What is etcd's own about the store: leaderships that are stolen, expire or are revoked, answers
// that are missing, changes larger than a transaction. Against a real etcd; what every store must
// do is in conformance/store_suite.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/etcd_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "common/http_server.h"
#include "tests/common/certificates.h"
#include "tests/conformance/store_suite.h"
#include "tests/integration/etcd_server.h"

namespace kvpool {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

constexpr Duration kTtl = seconds(2);

// One etcd for all tests, each in a place of its own. Null where it is not installed.
EtcdServer* Server() {
  static const std::unique_ptr<EtcdServer> server =
      EtcdServer::Installed() ? std::make_unique<EtcdServer>() : nullptr;
  return server.get();
}

// The same over TLS, with what a client of it needs.
struct TlsEtcd {
  TempDir folder;
  TestCa ca{folder / "", "ca"};
  std::shared_ptr<TlsSource> client = *TlsSource::Open(ca.Issue("client", {.common_name = "m"}));
  EtcdServer server{
      ca.Issue("etcd", {.common_name = "etcd", .alternatives = "DNS:localhost,IP:127.0.0.1"}),
      client};
};
TlsEtcd& TlsServer() {
  static TlsEtcd etcd;
  return etcd;
}

std::string NextPrefix() {
  static int count = 0;
  return "/kvpool-" + std::to_string(++count);
}

class EtcdRig final : public StoreRig {
 public:
  explicit EtcdRig(const EtcdServer& server, std::shared_ptr<TlsSource> tls = nullptr)
      : server_(server), tls_(std::move(tls)) {}

  absl::StatusOr<std::unique_ptr<Store>> Open() override { return Make("a:1"); }
  std::unique_ptr<EtcdStore> Make(const std::string& advertise) const {
    return std::make_unique<EtcdStore>(EtcdStoreOptions{.endpoints = {server_.address()},
                                                        .tls = tls_,
                                                        .prefix = prefix_,
                                                        .ttl = kTtl,
                                                        .advertise = advertise});
  }
  std::string Key(const std::string& key) const { return prefix_ + "/" + key; }
  EtcdClient Client() const {
    return EtcdClient({.endpoints = {server_.address()}, .deadline = seconds(5)});
  }

 private:
  const EtcdServer& server_;
  const std::shared_ptr<TlsSource> tls_;
  const std::string prefix_ = NextPrefix();
};

// Nothing to test where etcd is missing: scripts/setup installs it.
using Rigs = std::vector<std::function<std::unique_ptr<StoreRig>()>>;
Rigs WhereInstalled(const Rigs::value_type& rig) {
  return EtcdServer::Installed() ? Rigs{rig} : Rigs();
}
INSTANTIATE_TEST_SUITE_P(Etcd, StoreSuite, ::testing::ValuesIn(WhereInstalled([] {
                           return std::make_unique<EtcdRig>(*Server());
                         })));
INSTANTIATE_TEST_SUITE_P(EtcdTls, StoreSuite, ::testing::ValuesIn(WhereInstalled([] {
                           return std::make_unique<EtcdRig>(TlsServer().server, TlsServer().client);
                         })));
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(StoreSuite);

class EtcdStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!EtcdServer::Installed()) GTEST_SKIP() << EtcdServer::kProgram << " is not installed";
    ASSERT_TRUE(Server()->healthy());
    rig_ = std::make_unique<EtcdRig>(*Server());
    store_ = rig_->Make("a:1");
  }

  static Store::Contents Lead(Store& store) {
    const auto standing = store.Campaign();
    EXPECT_TRUE(standing.ok()) << standing.status();
    EXPECT_TRUE(standing.ok() && standing->leads_until.has_value());
    auto contents = store.Begin();
    EXPECT_TRUE(contents.ok()) << contents.status();
    return contents.ok() ? *contents : Store::Contents();
  }
  // Whether it comes to lead while others do not renew.
  static bool LeadsInTime(Store& store, milliseconds deadline) {
    return Eventually(
        [&] {
          const auto standing = store.Campaign();
          return standing.ok() && standing->leads_until.has_value();
        },
        deadline);
  }
  // As somebody does who has etcd's root rights: without a guard.
  void Force(const std::string& key, const std::optional<std::string>& value) {
    EtcdClient client = rig_->Client();
    const auto nothing = client.Txn({.key = "/never"}, {{.key = rig_->Key(key), .value = value}});
    ASSERT_TRUE(nothing.ok() && nothing->succeeded) << nothing.status();
  }
  std::map<std::string, std::string> RecordsOf(Store& store) { return Lead(store).records; }

  std::unique_ptr<EtcdRig> rig_;
  std::unique_ptr<EtcdStore> store_;
};

TEST_F(EtcdStoreTest, TheEpochIsTheLeaderKeysRevisionAndTheKeyNamesTheLeader) {
  const uint64_t epoch = Lead(*store_).epoch;
  ASSERT_TRUE(store_->Write({{"a", "1"}}).ok());
  const auto key = rig_->Client().Get(rig_->Key("leader"));
  ASSERT_TRUE(key.ok()) << key.status();
  EXPECT_EQ(static_cast<uint64_t>(key->create_revision), epoch);
  EXPECT_GT(key->mod_revision, key->create_revision) << "every write is a link of a chain";
  EXPECT_EQ(key->value, "a:1");
  auto other = rig_->Make("b:2");
  const auto standing = other->Campaign();
  ASSERT_TRUE(standing.ok()) << standing.status();
  EXPECT_EQ(standing->leader, "a:1");
}

TEST_F(EtcdStoreTest, AnotherLeadsOnceTheLeaderHasStoppedToRenew) {
  Lead(*store_);
  ASSERT_TRUE(store_->Write({{"a", "1"}}).ok());
  const auto until = store_->Renew();
  ASSERT_TRUE(until.ok()) << until.status();
  auto other = rig_->Make("b:2");
  ASSERT_TRUE(LeadsInTime(*other, 2 * kTtl / milliseconds(1) * milliseconds(1)));
  EXPECT_GE(BootClock::now(), *until) << "the first one was certain to lead until then";
  ASSERT_TRUE(other->Begin().ok());
  EXPECT_TRUE(absl::IsCancelled(store_->Write({{"a", "2"}})));
  EXPECT_TRUE(absl::IsCancelled(store_->Renew().status()));
  ASSERT_TRUE(other->Write({{"b", "1"}}).ok()) << "the deposed one's end takes nothing from it";
  other->Resign();
  EXPECT_THAT(RecordsOf(*other), ElementsAre(Pair("a", "1"), Pair("b", "1")));
}

TEST_F(EtcdStoreTest, AStolenLeadershipIsNoticedAndNothingIsWritten) {
  Lead(*store_);
  ASSERT_TRUE(store_->Write({{"a", "1"}}).ok());
  Force("leader", std::nullopt);
  Force("leader", "thief:1");
  const absl::Status refused = store_->Write({{"a", "2"}});
  EXPECT_TRUE(absl::IsCancelled(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("nothing was changed"));
  EXPECT_THAT(store_->Campaign()->leader, "thief:1");
  Force("leader", std::nullopt);
  EXPECT_THAT(RecordsOf(*store_), ElementsAre(Pair("a", "1")));
}

TEST_F(EtcdStoreTest, ARenewalNoticesThatTheKeyIsAnothers) {
  Lead(*store_);
  Force("leader", std::nullopt);
  EXPECT_THAT(std::string(store_->Renew().status().message()), HasSubstr("the leader key is gone"));
  Lead(*store_);
  Force("leader", std::nullopt);
  Force("leader", "thief:1");
  const absl::Status lost = store_->Renew().status();
  EXPECT_TRUE(absl::IsCancelled(lost)) << lost;
  EXPECT_THAT(std::string(lost.message()), HasSubstr("thief:1"));
}

// etcd 3.4.23 can revoke all leases at once (etcd issue 15247): nobody's agents are gone.
TEST_F(EtcdStoreTest, MassRevokedLeasesCostNothingButAnElection) {
  const uint64_t epoch = Lead(*store_).epoch;
  ASSERT_TRUE(store_->Write({{"a", "1"}}).ok());
  const auto leases =
      HttpCall(Server()->address(), {.method = "POST", .path = "/v3/lease/leases", .body = "{}"},
               seconds(5));
  ASSERT_TRUE(leases.ok()) << leases.status();
  const boost::json::value listed = boost::json::parse(leases->body);
  for (const boost::json::value& lease : listed.at("leases").as_array()) {
    const int64_t id = std::stoll(std::string(lease.at("ID").as_string()));
    ASSERT_TRUE(rig_->Client().Revoke(id).ok());
  }
  EXPECT_THAT(std::string(store_->Renew().status().message()), HasSubstr("expired or was revoked"));
  const Store::Contents contents = Lead(*store_);
  EXPECT_GT(contents.epoch, epoch);
  EXPECT_THAT(contents.records, ElementsAre(Pair("a", "1")));
}

TEST_F(EtcdStoreTest, AWriteAfterTheLeaseHasEndedIsRefused) {
  Lead(*store_);
  EtcdClient client = rig_->Client();
  ASSERT_TRUE(Eventually(
      [&] {
        const auto key = client.Get(rig_->Key("leader"));
        return key.ok() && key->create_revision == 0;
      },
      2 * std::chrono::duration_cast<milliseconds>(kTtl)));
  EXPECT_TRUE(absl::IsCancelled(store_->Write({{"a", "1"}})));
  EXPECT_TRUE(RecordsOf(*store_).empty());
}

Store::Changes ManyRecords(int count, const std::string& value) {
  Store::Changes changes;
  for (int i = 0; i < count; ++i) changes["tenant/" + std::to_string(i)] = value;
  return changes;
}

TEST_F(EtcdStoreTest, AChangeOfManyTransactionsThatStoppedHalfwayIsFinishedByWhoeverLeadsNext) {
  Lead(*store_);
  ASSERT_TRUE(store_->Write({{"gone", "1"}, {"kept", "1"}, {"tenant/7", "old"}}).ok());
  store_->Resign();
  // As a manager leaves it that was killed after the first part.
  Force("pending", R"({"gone":null,"tenant/7":"new","tenant/8":"new"})");
  Force("records/tenant/8", "new");
  auto other = rig_->Make("b:2");
  EXPECT_THAT(RecordsOf(*other),
              ElementsAre(Pair("kept", "1"), Pair("tenant/7", "new"), Pair("tenant/8", "new")));
  EXPECT_EQ(rig_->Client().Get(rig_->Key("pending"))->create_revision, 0) << "once";
}

TEST_F(EtcdStoreTest, ADamagedPendingChangeIsNamed) {
  Force("pending", "[1]");
  ASSERT_TRUE(store_->Campaign().ok());
  const absl::Status damaged = store_->Begin().status();
  EXPECT_EQ(damaged.code(), absl::StatusCode::kFailedPrecondition) << damaged;
  EXPECT_THAT(std::string(damaged.message()), AllOf(HasSubstr("/pending"), HasSubstr("backup")));
}

TEST_F(EtcdStoreTest, AChangeThatEtcdCannotTakeIsRefusedAsAWhole) {
  Lead(*store_);
  ASSERT_TRUE(store_->Write({{"tenant/0", "old"}}).ok());
  const absl::Status many = store_->Write(ManyRecords(400, std::string(4096, 'x')));
  EXPECT_EQ(many.code(), absl::StatusCode::kResourceExhausted) << many;
  EXPECT_THAT(std::string(many.message()), HasSubstr("fewer tenants at once"));
  const absl::Status one = store_->Write({{"tenant/0", std::string(2 << 20, 'x')}});
  EXPECT_EQ(one.code(), absl::StatusCode::kInternal) << one;
  EXPECT_THAT(std::string(one.message()), HasSubstr("nothing was changed"));
  ASSERT_TRUE(store_->Write({{"tenant/1", "new"}}).ok()) << "the store goes on";
  store_->Resign();
  EXPECT_THAT(RecordsOf(*store_), ElementsAre(Pair("tenant/0", "old"), Pair("tenant/1", "new")));
}

// ---- answers that are missing ------------------------------------------------------------------

// Stands between a store and etcd, and breaks one transaction: either carries it out and says
// nothing of it, or keeps it to carry it out later.
class Proxy {
 public:
  enum class Next : uint8_t { kForward, kLoseTheAnswer, kDelay };

  explicit Proxy(const EtcdServer& etcd) : etcd_(etcd.address()) {
    auto server = HttpServer::Start({}, [this](HttpRequest request, HttpServer::Done done) {
      const Next next =
          request.path == "/v3/kv/txn" ? next_.exchange(Next::kForward) : Next::kForward;
      if (next == Next::kDelay) {
        delayed_ = request;
      } else {
        HttpResponse answer = Forward(request);
        if (next == Next::kForward) return done(std::move(answer));
      }
      done({.status = 503, .body = R"({"error": "etcdserver: request timed out", "code": 14})"});
    });
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  void Break(Next next) { next_ = next; }
  // The answer to the delayed transaction, which etcd gets only now.
  HttpResponse CarryOutLate() { return Forward(delayed_); }
  HostPort address() const { return server_->address(); }

 private:
  HttpResponse Forward(const HttpRequest& request) const {
    const auto answer =
        HttpCall(etcd_, {.method = "POST", .path = request.path, .body = request.body}, seconds(5));
    return answer.ok() ? *answer : HttpResponse{.status = 502, .body = "{}"};
  }

  const HostPort etcd_;
  std::atomic<Next> next_ = Next::kForward;
  HttpRequest delayed_;  // written by the server's thread before it answers the store
  std::unique_ptr<HttpServer> server_;
};

class EtcdProxyTest : public EtcdStoreTest {
 protected:
  void SetUp() override {
    EtcdStoreTest::SetUp();
    if (IsSkipped()) return;
    proxy_ = std::make_unique<Proxy>(*Server());
    store_ = std::make_unique<EtcdStore>(EtcdStoreOptions{.endpoints = {proxy_->address()},
                                                          .prefix = NextPrefix(),
                                                          .ttl = seconds(10),
                                                          .advertise = "a:1"});
  }
  void TearDown() override { store_.reset(); }

  std::unique_ptr<Proxy> proxy_;
};

TEST_F(EtcdProxyTest, AWriteWhoseAnswerIsLostIsMadeOnceAndKnownToBe) {
  const uint64_t epoch = Lead(*store_).epoch;
  proxy_->Break(Proxy::Next::kLoseTheAnswer);
  ASSERT_TRUE(store_->Write({{"a", "1"}}).ok());
  ASSERT_TRUE(store_->Write({{"b", "1"}}).ok()) << "the chain goes on";
  store_->Resign();
  const Store::Contents contents = Lead(*store_);
  EXPECT_GT(contents.epoch, epoch);
  EXPECT_THAT(contents.records, ElementsAre(Pair("a", "1"), Pair("b", "1")));
}

TEST_F(EtcdProxyTest, AnAttemptThatArrivesLateUndoesNothing) {
  Lead(*store_);
  proxy_->Break(Proxy::Next::kDelay);
  ASSERT_TRUE(store_->Write({{"a", "1"}}).ok());
  ASSERT_TRUE(store_->Write({{"a", "2"}}).ok());
  const HttpResponse late = proxy_->CarryOutLate();
  EXPECT_EQ(late.status, 200);
  EXPECT_THAT(late.body, ::testing::Not(HasSubstr("succeeded")));
  ASSERT_TRUE(store_->Write({{"b", "1"}}).ok());
  store_->Resign();
  EXPECT_THAT(RecordsOf(*store_), ElementsAre(Pair("a", "2"), Pair("b", "1")));
}

TEST_F(EtcdProxyTest, ACampaignWhoseAnswerIsLostLeavesNoLeaderBehind) {
  proxy_->Break(Proxy::Next::kLoseTheAnswer);
  EXPECT_FALSE(store_->Campaign().ok());
  EXPECT_GT(Lead(*store_).epoch, 0u) << "the key of the first attempt is gone with its lease";
}

TEST_F(EtcdProxyTest, ALargeChangeThatLosesAnAnswerIsMadeAsAWhole) {
  Lead(*store_);
  const Store::Changes changes = ManyRecords(300, "x");
  proxy_->Break(Proxy::Next::kLoseTheAnswer);
  ASSERT_TRUE(store_->Write(changes).ok());
  store_->Resign();
  EXPECT_EQ(RecordsOf(*store_).size(), changes.size());
}

// ---- an etcd that is away -----------------------------------------------------------------------

TEST_F(EtcdStoreTest, AnEtcdThatIsAwayShorterThanTheLeadershipCostsNothing) {
  EtcdServer server;
  ASSERT_TRUE(server.healthy());
  const EtcdRig rig(server);
  auto store = rig.Make("a:1");
  const uint64_t epoch = Lead(*store).epoch;
  server.Signal(SIGSTOP);
  std::thread later([&] {
    // Attempts have been made and not answered; the first may be carried out late.
    const auto start = BootClock::now();
    while (BootClock::now() < start + kTtl / 2) std::this_thread::yield();
    server.Signal(SIGCONT);
  });
  const absl::Status written = store->Write({{"a", "1"}});
  later.join();
  EXPECT_TRUE(written.ok()) << written;
  ASSERT_TRUE(store->Write({{"a", "2"}}).ok());
  EXPECT_TRUE(store->Renew().ok());
  const auto key = rig.Client().Get(rig.Key("leader"));
  EXPECT_EQ(static_cast<uint64_t>(key->create_revision), epoch);
  store->Resign();
  EXPECT_THAT(RecordsOf(*store), ElementsAre(Pair("a", "2"))) << "each write happened once";
}

TEST_F(EtcdStoreTest, AnEtcdThatIsAwayLongerEndsTheLeadershipAndLosesNothing) {
  EtcdServer server;
  ASSERT_TRUE(server.healthy());
  auto store = EtcdRig(server).Make("a:1");
  const uint64_t epoch = Lead(*store).epoch;
  ASSERT_TRUE(store->Write({{"a", "1"}}).ok());
  server.Kill();
  EXPECT_EQ(store->Renew().status().code(), absl::StatusCode::kUnavailable);
  const absl::Status written = store->Write({{"a", "2"}});
  EXPECT_EQ(written.code(), absl::StatusCode::kUnknown) << written;
  EXPECT_THAT(std::string(written.message()), HasSubstr("look again"));
  EXPECT_TRUE(absl::IsCancelled(store->Write({{"a", "3"}}))) << "it leads no longer";
  EXPECT_EQ(store->Campaign().status().code(), absl::StatusCode::kUnavailable);
  server.Start();
  ASSERT_TRUE(server.healthy());
  const Store::Contents contents = Lead(*store);
  EXPECT_GT(contents.epoch, epoch);
  EXPECT_THAT(contents.records, ElementsAre(Pair("a", "1")));
}

TEST_F(EtcdStoreTest, AnEtcdWithoutSpaceIsNamedAndNothingIsChanged) {
  EtcdServer server({"--quota-backend-bytes", "1"});
  ASSERT_TRUE(server.healthy());
  auto store = EtcdRig(server).Make("a:1");
  const absl::Status status = store->Campaign().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("space"));
}

TEST_F(EtcdStoreTest, WhatIsNoEtcdIsNamed) {
  auto web =
      HttpServer::Start({}, [](HttpRequest, HttpServer::Done done) { done({.body = "hi"}); });
  ASSERT_TRUE(web.ok());
  EtcdStore store({.endpoints = {(*web)->address()}, .prefix = "/k", .ttl = kTtl});
  const absl::Status status = store.Campaign().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("client port of an etcd"));
}

TEST_F(EtcdStoreTest, ADeadMemberIsPassedOver) {
  EtcdStore store({.endpoints = {{"127.0.0.1", FreePort()}, Server()->address()},
                   .prefix = NextPrefix(),
                   .ttl = kTtl,
                   .advertise = "a:1"});
  Lead(store);
  EXPECT_TRUE(store.Write({{"a", "1"}}).ok());
  EXPECT_TRUE(store.Renew().ok());
}

// etcd's own users: the token is fetched, and fetched again when etcd forgot it.
TEST_F(EtcdStoreTest, AUserAndItsPassword) {
  EtcdServer server;
  ASSERT_TRUE(server.healthy());
  const auto post = [&](const std::string& path, const std::string& body) {
    const auto answer =
        HttpCall(server.address(), {.method = "POST", .path = path, .body = body}, seconds(5));
    ASSERT_TRUE(answer.ok() && answer->status == 200) << path;
  };
  post("/v3/auth/user/add", R"({"name":"root","password":"secret"})");
  post("/v3/auth/role/add", R"({"name":"root"})");
  post("/v3/auth/user/grant", R"({"user":"root","role":"root"})");
  post("/v3/auth/enable", "{}");
  EtcdStoreOptions options{.endpoints = {server.address()},
                           .user = "root",
                           .password = "secret",
                           .prefix = "/kvpool",
                           .ttl = kTtl,
                           .advertise = "a:1"};
  EtcdStore store(options);
  Lead(store);
  EXPECT_TRUE(store.Write({{"a", "1"}}).ok());
  server.Kill();
  server.Start();  // simple tokens do not survive that
  EXPECT_TRUE(store.Renew().ok());
  options.password = "wrong";
  EXPECT_EQ(EtcdStore(options).Campaign().status().code(), absl::StatusCode::kInvalidArgument);
  options.user = "";
  EXPECT_FALSE(EtcdStore(options).Campaign().ok());
}

TEST_F(EtcdStoreTest, OverTlsBothSidesMustBeTrusted) {
  TlsEtcd& etcd = TlsServer();
  const auto campaign = [&etcd](std::shared_ptr<TlsSource> tls) {
    return EtcdRig(etcd.server, std::move(tls)).Open().value()->Campaign().status();
  };
  EXPECT_TRUE(campaign(etcd.client).ok());
  const TestCa other(etcd.folder / "", "other");
  TlsFiles files = other.Issue("stranger", {.common_name = "m"});
  const absl::Status untrusted = campaign(*TlsSource::Open(files));
  EXPECT_EQ(untrusted.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(untrusted.ToString(), AllOf(HasSubstr("127.0.0.1"), HasSubstr("another CA")));
  files.ca = etcd.ca.file();
  EXPECT_THAT(campaign(*TlsSource::Open(files)).ToString(),
              HasSubstr("the other side refuses the certificate"));
  EXPECT_THAT(campaign(*TlsSource::Open({.ca = etcd.ca.file()})).ToString(),
              HasSubstr("certificate"));
  EXPECT_FALSE(campaign(nullptr).ok()) << "plain HTTP";
}

}  // namespace
}  // namespace kvpool
