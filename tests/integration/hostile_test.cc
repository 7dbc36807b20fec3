// Workers that break the rules, against a real kvpool-agent: each gets its typed refusal or loses
// its connection, the daemon lives, and another tenant's session goes on with every row in place.
//
// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <random>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "client/kvpool.h"
#include "common/address.h"
#include "common/http_client.h"
#include "tests/integration/fake_manager.h"
#include "tests/integration/process.h"
#include "tests/integration/raw_worker.h"
#include "tests/integration/small_geometry.h"

namespace kvpool {
namespace {

using ::testing::HasSubstr;

constexpr char kGoodToken[] = "kvp_good", kBadToken[] = "kvp_bad";
constexpr uint32_t kGood = 1, kBad = 2;
constexpr uint32_t kPagesPerSlab = 32;
constexpr std::chrono::seconds kPatience(10);

absl::Status Advance(Tenant& tenant, Session* session, uint32_t tokens, float key_value,
                     float query_value) {
  Step step{.session = session, .tokens = tokens};
  if (absl::Status status = tenant.SafePoint({&step, 1}); !status.ok()) return status;
  if (!step.outcome.ok()) return step.outcome;
  const Geometry& g = tenant.layout().geometry();
  const std::vector<float> key(g.key_dim, key_value);
  for (uint32_t i = 0; i < tokens; ++i) {
    // A value that names its row, small enough to be exact in bf16.
    const std::vector<float> value(g.value_dim,
                                   static_cast<float>((session->position() + i) % 128));
    for (uint32_t plane = 0; plane < g.planes(); ++plane) {
      StoreRow(tenant.layout(), tenant.base(),
               session->WriteBlock(plane / g.kv_heads, plane % g.kv_heads, i), session->WriteRow(i),
               key.data(), value.data());
    }
  }
  const std::vector<float> queries(tokens * g.model_layers() * g.query_heads * g.key_dim,
                                   query_value);
  return session->Commit(tokens, session->WantsQueries(tokens) ? queries.data() : nullptr);
}

class HostileTest : public testing::Test {
 protected:
  void SetUp() override {
    manager_.Set(kGood, {.name = "good", .token = kGoodToken, .lease_slabs = 4});
    manager_.Set(kBad,
                 {.name = "bad",
                  .token = kBadToken,
                  .lease_slabs = 8,
                  .limit_slabs = 8,
                  .policy = *MakePolicySpec("scissorhands", {{"budget", 64}, {"window", 64}})});
    agent_ = Process("kvpool-agent",
                     {"--name", "a", "--socket", socket_, "--manager", manager_.address(),
                      "--manager-token", FakeManager::kToken, "--http", "127.0.0.1:0", "--pool",
                      "8 MiB", "--slab-bytes", "256 KiB", "--reserve-slabs", "0"},
                     log_);
    ASSERT_TRUE(Eventually([this] { return manager_.reports() >= 2; })) << "agent did not report";
    auto connection = Connection::Open({.socket = socket_, .worker = "good"});
    ASSERT_TRUE(connection.ok()) << connection.status();
    connection_ = *std::move(connection);
    auto tenant = connection_->Attach(
        kGoodToken, {.geometry = SmallGeometry(), .max_sessions = 4, .max_running = 4});
    ASSERT_TRUE(tenant.ok()) << tenant.status();
    tenant_ = *std::move(tenant);
    auto session = tenant_->Open({.prompt_tokens = 64, .max_tokens = 1000});
    ASSERT_TRUE(session.ok()) << session.status();
    session_ = *std::move(session);
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(GoOn(64).ok());
  }

  void TearDown() override {
    CheckGood();
    session_.reset();
    tenant_.reset();
    connection_.reset();
    agent_.Kill(SIGTERM);
    EXPECT_EQ(agent_.Wait(), 0) << Log();
  }

  absl::Status GoOn(uint32_t tokens) { return Advance(*tenant_, session_.get(), tokens, 0, 0.1f); }

  // The daemon answers, and the good tenant's session has every row and takes one more.
  void CheckGood() {
    EXPECT_THAT(Get("/healthz"), HasSubstr("\"ok\""));
    ASSERT_TRUE(GoOn(1).ok());
    const Layout& layout = tenant_->layout();
    const SessionView view = session_->View(0);
    std::vector<float> key(32), value(32);
    for (uint32_t plane = 0; plane < layout.geometry().planes(); ++plane) {
      ASSERT_EQ(view.Length(plane), session_->position());
      for (uint32_t row = 0; row < view.Length(plane); ++row) {
        LoadRow(layout, tenant_->base(), view.BlockOf(layout, plane / 2, plane % 2, row),
                view.RowInBlock(plane, row), key.data(), value.data());
        ASSERT_EQ(key[31], 0.0f);
        ASSERT_EQ(value[31], static_cast<float>(row % 128)) << "plane " << plane;
      }
    }
  }

  std::string Log() const {
    std::ostringstream text;
    text << std::ifstream(log_).rdbuf();
    return text.str();
  }
  HostPort Http() const {
    std::smatch found;
    const std::string log = Log();
    const std::regex address("http=\"?(127\\.0\\.0\\.1:[0-9]+)");
    return std::regex_search(log, found, address) ? *ParseHostPort(found[1]) : HostPort();
  }
  std::string Get(const std::string& path) {
    const auto response =
        HttpCall(Http(), {.method = "GET", .path = path}, std::chrono::seconds(5));
    return response.ok() ? response->body : response.status().ToString();
  }
  double Metric(const std::string& series) {
    const std::string page = Get("/metrics");
    const size_t at = page.find("\n" + series + " ");
    return at == std::string::npos ? 0 : std::stod(page.substr(at + series.size() + 2));
  }
  double Cut(const std::string& reason) {
    return Metric("kvpool_agent_connections_refused_total{reason=\"" + reason + "\"}");
  }
  double Refused(const std::string& reason) {
    return Metric("kvpool_agent_refused_calls_total{reason=\"" + reason + "\"}");
  }

  std::unique_ptr<RawWorker> Raw() { return std::make_unique<RawWorker>(thread_, socket_); }
  std::unique_ptr<RawWorker> Attached() {
    auto raw = Raw();
    EXPECT_EQ(raw->Authenticate(kBadToken), "ok");
    EXPECT_EQ(raw->Attach(SmallGeometry()), "ok");
    return raw;
  }

  // A connected socket, without any protocol.
  int Socket() const {
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{.sun_family = AF_UNIX};
    strncpy(address.sun_path, socket_.c_str(), sizeof(address.sun_path) - 1);
    EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    return fd;
  }
  int HttpSocket() {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in address{.sin_family = AF_INET,
                              .sin_port = htons(Http().port),
                              .sin_addr = {htonl(INADDR_LOOPBACK)}};
    EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    return fd;
  }
  // Whether the peer has closed it; what it says before is thrown away.
  static bool Closed(int fd) {
    char bytes[4096];
    ssize_t got;
    while ((got = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT)) > 0) {
    }
    return got == 0 || (errno != EAGAIN && errno != EINTR);
  }

  TempDir dir_;
  const std::string socket_ = dir_ / "agent.sock", log_ = dir_ / "agent.log";
  FakeManager manager_;
  Process agent_;
  std::unique_ptr<Connection> connection_;
  std::unique_ptr<Tenant> tenant_;
  std::unique_ptr<Session> session_;
  RpcThread thread_;
};

// ---- Before a token -----------------------------------------------------------------------------

TEST_F(HostileTest, AWorkerIsRefusedWithoutAGoodToken) {
  auto raw = Raw();
  EXPECT_EQ(raw->Authenticate(kBadToken, limits::kProtocolVersion + 1), "badVersion");
  EXPECT_EQ(raw->Authenticate(kBadToken, 0), "badVersion");
  EXPECT_EQ(raw->Authenticate("kvp_wrong"), "badToken");
  EXPECT_EQ(raw->Authenticate(""), "badToken");
  EXPECT_EQ(raw->Authenticate(std::string(kBadToken) + '\0' + "more"), "badToken");
  EXPECT_EQ(raw->Authenticate(std::string(limits::kTokenBytes + 1, 'x')), "badToken");
  EXPECT_EQ(raw->Authenticate(kBadToken, limits::kProtocolVersion,
                              std::string(limits::kNameBytes + 1, 'n')),
            "badArgument");
  EXPECT_EQ(Refused("badVersion"), 2);
  EXPECT_EQ(Refused("badToken"), 4);
  EXPECT_EQ(Refused("badArgument"), 1);
  EXPECT_EQ(
      raw->Authenticate(kBadToken, limits::kProtocolVersion, std::string(limits::kNameBytes, 'n')),
      "ok");
}

TEST_F(HostileTest, ConnectionsAboveTheMaximumAndSilentOnesAreClosed) {
  std::vector<int> sockets;
  for (uint32_t i = 0; i < limits::kConnections + 8; ++i) sockets.push_back(Socket());
  const auto closed = [&] { return std::count_if(sockets.begin(), sockets.end(), Closed); };
  // The good tenant has one. Those above are closed at once, the others when they said nothing.
  EXPECT_TRUE(Eventually([&] { return closed() >= 9; }));
  CheckGood();
  EXPECT_TRUE(Eventually([&] { return closed() == std::ssize(sockets); },
                         std::chrono::milliseconds(limits::kAuthenticateMillis) + kPatience));
  EXPECT_EQ(Cut("maximum"), 9);
  EXPECT_EQ(Cut("unauthenticated"), limits::kConnections - 1);
  for (int fd : sockets) close(fd);
  EXPECT_EQ(Raw()->Authenticate(kBadToken), "ok");
}

TEST_F(HostileTest, GarbageAndOversizedFramesEndTheirConnectionAlone) {
  using Words = std::vector<uint32_t>;
  std::mt19937 random(3);
  std::vector<Words> frames = {
      Words{0xffffffff, 0xffffffff},        // more segments than a number can count
      Words{0, 0x80000000},                 // a segment of 16 GiB
      Words{0, limits::kMessageWords + 1},  // just above the limit
      Words{0, 1, 0xfffffffc, 0x7fffffff},  // a root that points outside
  };
  for (int i = 0; i < 20; ++i) {
    Words& noise = frames.emplace_back(4096);
    for (uint32_t& word : noise) word = static_cast<uint32_t>(random());
  }
  for (const Words& frame : frames) {
    const int fd = Socket();
    EXPECT_GT(send(fd, frame.data(), frame.size() * 4, MSG_NOSIGNAL), 0);
    EXPECT_TRUE(Eventually([fd] { return Closed(fd); }));
    close(fd);
  }
  EXPECT_TRUE(Eventually([&] { return Cut("garbage") == static_cast<double>(frames.size()); }))
      << Cut("garbage");
}

// ---- Attaching ----------------------------------------------------------------------------------

TEST_F(HostileTest, GeometriesThatCannotBeAreRefused) {
  auto raw = Raw();
  ASSERT_EQ(raw->Authenticate(kBadToken), "ok");
  const auto with = [&](void (*edit)(Geometry*)) {
    Geometry geometry = SmallGeometry();
    edit(&geometry);
    return raw->Attach(geometry);
  };
  EXPECT_EQ(with([](Geometry* g) { g->layers = 0; }), "badGeometry");
  EXPECT_EQ(with([](Geometry* g) { g->layers = limits::kLayers + 1; }), "badGeometry");
  EXPECT_EQ(with([](Geometry* g) { g->kv_of_layer.assign(limits::kLayers + 1, 0); }),
            "badGeometry");
  EXPECT_EQ(with([](Geometry* g) { g->query_heads = limits::kHeads + 2; }), "badGeometry");
  EXPECT_EQ(with([](Geometry* g) { g->query_heads = 3; }), "badGeometry");
  EXPECT_EQ(with([](Geometry* g) { g->query_heads = g->kv_heads = limits::kHeads + 1; }),
            "badGeometry");
  EXPECT_EQ(with([](Geometry* g) { g->key_dim = limits::kHeadDim + 1; }), "badGeometry");
  EXPECT_EQ(with([](Geometry* g) { g->value_dim = limits::kHeadDim + 1; }), "badGeometry");
  EXPECT_EQ(with([](Geometry* g) { g->kv_of_layer = {0, 2}; }), "badGeometry");
  EXPECT_EQ(with([](Geometry* g) { g->kv_of_layer.clear(); }), "badGeometry");
  EXPECT_EQ(with([](Geometry* g) { g->key_dim = g->value_dim = 1024, g->kv_heads = 4; }),
            "badGeometry");  // a page larger than a slab
  const auto edited = [&](const RawWorker::Edit& edit) {
    return raw->Attach(SmallGeometry(), edit);
  };
  EXPECT_EQ(edited([](auto params) { params.initGeometry().initGroups(0); }), "badGeometry");
  EXPECT_EQ(edited([](auto params) {
              for (auto group : params.initGeometry().initGroups(2)) {
                RawWorker::Describe(SmallGeometry(), group);
              }
            }),
            "badGeometry");
  EXPECT_EQ(edited([](auto params) { params.getGeometry().getGroups()[0].setWindow(4096); }),
            "badGeometry");
  EXPECT_EQ(edited([](auto params) {
              params.getGeometry().getGroups()[0].setDtype(rpc::Dtype::UNKNOWN);
            }),
            "badGeometry");
  EXPECT_EQ(Refused("badGeometry"), 15);
  EXPECT_EQ(raw->Attach(SmallGeometry()), "ok");
}

// The largest attachment, by its numbers alone.
shm::ShmSizes WideSizes(const Geometry& geometry) {
  return {.sessions = limits::kSessionsPerWorker,
          .windows = 4,
          .session_tokens = limits::kSessionTokens,
          .planes = geometry.planes(),
          .query_floats = geometry.model_layers() * geometry.query_heads * geometry.key_dim};
}

TEST_F(HostileTest, NumbersOutOfRangeAtAttachAreRefused) {
  auto raw = Raw();
  ASSERT_EQ(raw->Authenticate(kBadToken), "ok");
  const auto with = [&](const RawWorker::Edit& edit) { return raw->Attach(SmallGeometry(), edit); };
  EXPECT_EQ(with([](auto p) { p.setMaxSessions(0); }), "badArgument");
  EXPECT_EQ(with([](auto p) { p.setMaxSessions(limits::kSessionsPerWorker + 1); }), "badArgument");
  EXPECT_EQ(with([](auto p) { p.setMaxRunning(0); }), "badArgument");
  EXPECT_EQ(with([](auto p) { p.setMaxRunning(limits::kRunningPerWorker + 1); }), "badArgument");
  EXPECT_EQ(with([](auto p) { p.setMaxSessionTokens(0); }), "badArgument");
  EXPECT_EQ(with([](auto p) { p.setMaxSessionTokens(limits::kSessionTokens + 1); }), "badArgument");
  EXPECT_EQ(with([](auto p) { p.setChunkTokens(0); }), "badArgument");
  EXPECT_EQ(with([](auto p) { p.setChunkTokens(257); }), "badArgument");
  // Each number is allowed, but together they take terabytes of address space.
  Geometry wide = SmallGeometry();
  wide.layers = 256;
  wide.query_heads = wide.kv_heads = 1;
  wide.key_dim = wide.value_dim = 8;
  wide.kv_of_layer.assign(256, 0);
  EXPECT_GT(shm::ControlBytes(WideSizes(wide)) + shm::TablesBytes(WideSizes(wide)),
            limits::kSharedBytes);
  EXPECT_EQ(raw->Attach(wide,
                        [](auto params) {
                          params.setMaxSessions(limits::kSessionsPerWorker);
                          params.setMaxSessionTokens(limits::kSessionTokens);
                        }),
            "badArgument");
  EXPECT_EQ(raw->Attach(SmallGeometry()), "ok");
  EXPECT_EQ(raw->Attach(SmallGeometry()), "badState");
}

TEST_F(HostileTest, OneWorkerMoreThanTheAgentServesIsRefused) {
  std::vector<std::unique_ptr<RawWorker>> workers;
  for (uint32_t i = 1; i < limits::kWorkers; ++i) workers.push_back(Attached());
  auto raw = Raw();
  ASSERT_EQ(raw->Authenticate(kBadToken), "ok");
  EXPECT_EQ(raw->Attach(SmallGeometry()), "tooMany");
  EXPECT_EQ(Refused("tooMany"), 1);
  EXPECT_EQ(workers.back()->Open(10, 100), "ok");
  CheckGood();
}

// ---- Sessions and calls -------------------------------------------------------------------------

TEST_F(HostileTest, SessionsAndReservationsAboveTheirMaximaAreRefused) {
  auto raw = Attached();
  EXPECT_EQ(raw->Open(0, 100), "badArgument");
  EXPECT_EQ(raw->Open(101, 100), "badArgument");
  EXPECT_EQ(raw->Open(10, raw->sizes().session_tokens + 1), "tooLarge");
  EXPECT_EQ(raw->Open(10, std::numeric_limits<uint32_t>::max()), "tooLarge");
  for (uint32_t i = 0; i < raw->sizes().sessions; ++i) EXPECT_EQ(raw->Open(10, 100), "ok");
  EXPECT_EQ(raw->Open(10, 100), "tooMany");
  EXPECT_EQ(raw->Reserve(0), "badArgument");
  EXPECT_EQ(raw->Reserve(limits::kMagazinePages + 1), "tooLarge");
  EXPECT_EQ(raw->Reserve(limits::kMagazinePages), "noSpace");
  EXPECT_EQ(Refused("noSpace"), 1);
  EXPECT_EQ(Metric("kvpool_agent_refusals_total{reason=\"no_pages\",tenant=\"bad\"}"), 1);
  raw->CloseOne();
  EXPECT_EQ(raw->Open(10, 100), "ok");
}

TEST_F(HostileTest, DrainsAndHandOversOfNonsenseAreRefused) {
  auto raw = Attached();
  ASSERT_EQ(raw->Open(10, 100), "ok");
  using Item = RawWorker::Item;
  EXPECT_EQ(raw->Drain({Item{.slot = 0, .window = 0, .first = 0, .count = 1}}), "badArgument")
      << "a query of no token";
  EXPECT_EQ(raw->Drain({Item{.slot = 1, .window = 0, .first = 0, .count = 1}}), "badState");
  EXPECT_EQ(raw->Drain({Item{.slot = ~0u, .window = 0, .first = 0, .count = 1}}), "badState");
  EXPECT_EQ(raw->Drain({Item{.slot = 0, .window = 4, .first = 0, .count = 1}}), "badArgument");
  EXPECT_EQ(raw->Drain({Item{.slot = 0, .window = 0, .first = 0, .count = 0}}), "badArgument");
  EXPECT_EQ(
      raw->Drain({Item{.slot = 0, .window = 0, .first = 0, .count = limits::kWindowQueries + 1}}),
      "badArgument");
  EXPECT_EQ(raw->Drain({Item{.slot = 0, .window = 0, .first = ~uint64_t{0}, .count = 2}}),
            "badArgument");
  EXPECT_EQ(raw->HandOver({0}), "badState") << "it is RUNNING";
  EXPECT_EQ(raw->HandOver({~0u}), "badState");
  EXPECT_EQ(raw->HandOver(std::vector<uint32_t>(limits::kBatchItems, 0)), "badState");
  EXPECT_EQ(raw->Ping(), "ok");
}

TEST_F(HostileTest, ABatchAboveTheLimitEndsItsConnection) {
  auto drains = Attached(), hand_overs = Attached(), other = Attached();
  EXPECT_EQ(drains->Drain(std::vector<RawWorker::Item>(limits::kBatchItems + 1)), "broken");
  EXPECT_EQ(drains->Ping(), "broken");
  EXPECT_EQ(hand_overs->HandOver(std::vector<uint32_t>(limits::kBatchItems + 1)), "broken");
  EXPECT_EQ(hand_overs->Ping(), "broken");
  EXPECT_EQ(other->Ping(), "ok");
  EXPECT_EQ(Refused("tooMany"), 2);
}

TEST_F(HostileTest, ALargeReservationIsGrantedInCallsOfTheMaximum) {
  manager_.Set(kBad, {.name = "bad", .token = kBadToken, .lease_slabs = 24, .limit_slabs = 24});
  auto raw = Attached();
  ASSERT_TRUE(Eventually([&] { return manager_.Use(kBad).lease_slabs == 24; }));
  EXPECT_EQ(raw->Reserve((limits::kSlabsPerCall + 4) * kPagesPerSlab), "ok");
  EXPECT_EQ(raw->largest_grant(), limits::kSlabsPerCall);
  EXPECT_EQ(manager_.Use(kGood).held_slabs, 1u);
}

TEST_F(HostileTest, AMagazineHoldsItsShareOfTheLeaseHoweverOftenItIsEmptied) {
  auto raw = Attached();
  const uint64_t share = 8 * kPagesPerSlab / limits::kMagazineShare;
  ASSERT_EQ(raw->Reserve(1), "ok");
  shm::PageRing& grants = raw->grants();
  // Within one slab: a magazine alone makes no slab.
  for (uint64_t taken = 0; taken + share < kPagesPerSlab; taken += share) {
    EXPECT_TRUE(Eventually([&] { return grants.produced >= taken + share; }));
    // Each report is followed by orders, and they by a look at every magazine.
    const uint64_t before = manager_.reports();
    EXPECT_TRUE(Eventually([&] { return manager_.reports() >= before + 3; }));
    EXPECT_EQ(grants.produced, taken + share) << "it is filled further than its share";
    grants.consumed = taken + share;
  }
  EXPECT_TRUE(Eventually([&] { return grants.produced == kPagesPerSlab; }));
  constexpr uint64_t kPageBytes = 8192;
  EXPECT_EQ(Metric("kvpool_agent_tenant_magazine_bytes{tenant=\"bad\"}"), share * kPageBytes);
  EXPECT_EQ(Metric("kvpool_agent_tenant_used_bytes{tenant=\"bad\"}"),
            (kPagesPerSlab - share) * kPageBytes)
      << "what was taken is charged, used or not";
}

// ---- HTTP and the manager -----------------------------------------------------------------------

TEST_F(HostileTest, SilentHttpConnectionsAreBoundedAndClosed) {
  std::vector<int> sockets;
  for (uint32_t i = 0; i < limits::kHttpConnections + 4; ++i) sockets.push_back(HttpSocket());
  const auto closed = [&] { return std::count_if(sockets.begin(), sockets.end(), Closed); };
  EXPECT_TRUE(Eventually([&] { return closed() >= 4; }));
  EXPECT_TRUE(GoOn(1).ok());
  EXPECT_TRUE(Eventually([&] { return closed() == std::ssize(sockets); },
                         std::chrono::seconds(limits::kHttpSeconds) + kPatience));
  for (int fd : sockets) close(fd);
  EXPECT_TRUE(Eventually([&] {
    return Metric("kvpool_agent_http_requests_total{outcome=\"timed_out\"}") >=
           limits::kHttpConnections - 1;
  }));
  EXPECT_GE(Metric("kvpool_agent_http_requests_total{outcome=\"above_maximum\"}"), 4);
}

TEST_F(HostileTest, WhatHttpDoesNotServeIsRefusedInJson) {
  const auto none = HttpCall(Http(), {.path = "/v1/tenants"}, kPatience);
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(none->status, 404);
  EXPECT_EQ(none->body, R"({"error":{"code":"not_found","message":"try /metrics or /healthz"}})");
  const auto post = HttpCall(Http(), {.method = "POST", .path = "/metrics"}, kPatience);
  ASSERT_TRUE(post.ok()) << post.status();
  EXPECT_EQ(post->status, 405);
  EXPECT_EQ(post->body, R"({"error":{"code":"method_not_allowed","message":"only GET here"}})");
}

TEST_F(HostileTest, OrdersForMoreTenantsThanThereCanBeAreIgnored) {
  const auto orders = [&](uint32_t tenants) {
    for (uint32_t id = 1000; id < 1000 + tenants; ++id) {
      manager_.Set(id, {.name = "t" + std::to_string(id), .token = std::to_string(id)});
    }
  };
  orders(limits::kTenants - 2);
  EXPECT_TRUE(Eventually([&] { return Raw()->Authenticate("1000") == "ok"; }));
  const double before = Metric("kvpool_agent_bad_orders_total");
  manager_.Set(5000, {.name = "one-more", .token = "one-more"});
  manager_.Set(kGood, {.name = "good", .token = kGoodToken, .lease_slabs = 0});
  const uint64_t reports = manager_.reports();
  EXPECT_TRUE(Eventually([&] { return manager_.reports() >= reports + 3; }));
  EXPECT_GT(Metric("kvpool_agent_bad_orders_total"), before);
  EXPECT_EQ(Raw()->Authenticate("one-more"), "badToken");
  EXPECT_EQ(Metric("kvpool_agent_tenant_lease_bytes{tenant=\"good\"}"), 4 * (256 << 10));
}

// ---- Shared memory ------------------------------------------------------------------------------

TEST_F(HostileTest, RubbishInSharedMemoryFailsItsOwnSessionsAlone) {
  auto raw = Attached();
  ASSERT_NE(raw->control(), nullptr);
  std::mt19937_64 random(11);
  auto* words = reinterpret_cast<std::atomic<uint32_t>*>(raw->control());
  const uint64_t count = shm::ControlBytes(raw->sizes()) / 4;
  const uint64_t slots = shm::SlotsOffset() / 4, windows = shm::WindowsOffset(raw->sizes()) / 4;
  for (int round = 0; round < 300; ++round) {
    for (int i = 0; i < 300; ++i) {
      const uint64_t at = i % 3 == 0 ? slots + random() % (windows - slots) : random() % count;
      words[at].store(static_cast<uint32_t>(random() >> (random() % 33)));
    }
    const auto slot = static_cast<uint32_t>(random() % raw->sizes().sessions);
    auto* session =
        reinterpret_cast<shm::SessionSlot*>(raw->control() + shm::SlotOffset(raw->sizes(), slot));
    session->state.store(static_cast<uint32_t>(shm::State::kBusy));
    ASSERT_NE(raw->HandOver({slot}), "broken");
    ASSERT_NE(raw->Drain({{.slot = slot, .window = 0, .first = random() % 8, .count = 1}}),
              "broken");
    ASSERT_NE(raw->Reserve(1 + random() % 8), "broken");
    raw->CloseOne();
    ASSERT_NE(raw->Open(10, 100), "broken");
    if (round % 50 == 0) CheckGood();
  }
  EXPECT_GT(Metric("kvpool_agent_bad_page_lists_total"), 0);
  EXPECT_GT(Metric("kvpool_agent_bad_returns_total"), 0);
  EXPECT_GT(Refused("badPageList"), 0);
  raw.reset();
  EXPECT_TRUE(Eventually(
      [&] { return manager_.Use(kBad).workers == 0 && manager_.Use(kBad).held_slabs <= 8; }));
}

TEST_F(HostileTest, KeysAndQueriesFullOfNanAreScoredAndCompacted) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  auto connection = *Connection::Open({.socket = socket_, .worker = "nan"});
  auto tenant = *connection->Attach(
      kBadToken, {.geometry = SmallGeometry(), .max_sessions = 4, .max_running = 4});
  const std::vector<std::pair<float, float>> kinds = {
      {kNan, 0.1f}, {0.1f, kNan}, {kInf, -kInf}, {3e38f, 3e38f}};
  for (const auto& [key, query] : kinds) {
    auto session = *tenant->Open({.prompt_tokens = 48, .max_tokens = 1000});
    ASSERT_TRUE(Advance(*tenant, session.get(), 48, key, query).ok());
    for (int i = 0; i < 200; ++i) {
      const absl::Status status = Advance(*tenant, session.get(), 1, key, query);
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_LE(session->View(0).Length(0), 64u);
    }
    EXPECT_EQ(session->position(), 248u);
  }
  EXPECT_TRUE(Eventually([&] { return manager_.Use(kBad).compactions >= 16; }));
  EXPECT_EQ(Metric("kvpool_agent_bad_page_lists_total"), 0);
}

}  // namespace
}  // namespace kvpool
