// Policy `auto`: sessions that change policy while they run, the floor that holds them, and the
// room that is kept so that whoever is held can still finish. A real kvpool-agent process, the real
// client library, and a manager that does as it is told; at the end the real manager.
//
// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "client/kvpool.h"
#include "tests/integration/cluster.h"
#include "tests/integration/fake_manager.h"
#include "tests/integration/process.h"
#include "tests/integration/small_geometry.h"

namespace kvpool {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

constexpr char kToken[] = "kvp_tenant";
constexpr char kHeld[] = "5:6";  // a refusal for the floor
constexpr uint32_t kWhole = 600;

// 64 keys stay, and 64 more come before the next compaction: all attend alike, so one keeps half.
PolicySpec Half() {
  return *MakePolicySpec("streaming", {{"sinks", 4}, {"recent", 60}, {"slack", 64}});
}

// One step; keys are what the memory holds, which is zero, so that every key gets as much
// attention.
absl::Status Advance(Tenant& tenant, Session* session, uint32_t tokens) {
  Step step{.session = session, .tokens = tokens};
  if (absl::Status status = tenant.SafePoint({&step, 1}); !status.ok()) return status;
  if (!step.outcome.ok()) return step.outcome;
  const std::vector<float> queries(size_t{tokens} * 2 * 4 * 32, 0.1f);
  return session->Commit(tokens, session->WantsQueries(tokens) ? queries.data() : nullptr);
}

// Steps of a token until the session has so many, or something is wrong. It may have to wait.
absl::Status Grow(Tenant& tenant, Session* session, uint32_t tokens) {
  absl::Status last;
  const bool done = Eventually([&] {
    while (session->position() < tokens) {
      last = Advance(tenant, session, 1);
      if (absl::IsAborted(last) || absl::IsResourceExhausted(last)) return false;
      if (!last.ok()) return true;
    }
    return true;
  });
  return done ? last : absl::DeadlineExceededError("the agent keeps the session");
}

class LadderTest : public testing::Test {
 protected:
  void Order(uint32_t lease, uint32_t rung, double min_recovery,
             std::vector<PolicySpec> rungs = {DefaultPolicySpec(), Half()}) {
    manager_.Set(1, {.name = "t",
                     .token = kToken,
                     .lease_slabs = lease,
                     .limit_slabs = 16,
                     .ladder = PolicyLadder{.min_recovery = min_recovery, .rungs = rungs},
                     .rung = rung});
    const uint64_t now = manager_.reports();
    ASSERT_TRUE(now == 0 || Eventually([&] { return manager_.reports() >= now + 3; }));
  }

  // Pages of 8 KiB, 32 in a slab, unless the geometry is another one.
  void Start(const Geometry& geometry = SmallGeometry()) {
    agent_ = Process("kvpool-agent",
                     {"--name", "a", "--socket", socket_, "--manager", manager_.address(),
                      "--manager-token", FakeManager::kToken, "--http", "127.0.0.1:0", "--pool",
                      "4352 KiB", "--slab-bytes", "256 KiB", "--reserve-slabs", "1"},
                     dir_ / "agent.log");
    ASSERT_TRUE(Eventually([this] { return manager_.reports() >= 2; })) << "agent did not report";
    auto connection = Connection::Open({.socket = socket_, .worker = "test"});
    ASSERT_TRUE(connection.ok()) << connection.status();
    connection_ = *std::move(connection);
    auto tenant = connection_->Attach(kToken, {.geometry = geometry,
                                               .max_sessions = 16,
                                               .max_running = 16,
                                               .max_session_tokens = kWhole,
                                               .chunk_tokens = 16});
    ASSERT_TRUE(tenant.ok()) << tenant.status();
    tenant_ = *std::move(tenant);
  }

  std::unique_ptr<Session> Open() {
    auto session = tenant_->Open({.prompt_tokens = 16, .max_tokens = kWhole});
    EXPECT_TRUE(session.ok()) << session.status();
    return session.ok() ? *std::move(session) : nullptr;
  }
  absl::Status Grow(Session* session, uint32_t tokens) {
    return kvpool::Grow(*tenant_, session, tokens);
  }
  // Until it may not grow any more; not beyond what its rung says.
  bool GrowUntilHeld(Session* session) {
    absl::Status status;
    while (status.ok()) status = Advance(*tenant_, session, 1);
    return absl::IsResourceExhausted(status) && session->position() <= 128;
  }
  FakeRungUse Rung(size_t index) {
    const FakeUse use = manager_.Use(1);
    return index < use.rungs.size() ? use.rungs[index] : FakeRungUse();
  }

  TempDir dir_;
  const std::string socket_ = dir_ / "agent.sock";
  FakeManager manager_;
  Process agent_;
  std::unique_ptr<Connection> connection_;
  std::unique_ptr<Tenant> tenant_;
};

TEST_F(LadderTest, LiveSessionsClimbWithTheirTenantAndNeverComeDown) {
  Order(8, 0, 0);
  Start();
  auto session = Open();
  ASSERT_TRUE(Grow(session.get(), 300).ok());
  EXPECT_EQ(session->View(0).Length(0), 300u);
  ASSERT_TRUE(Eventually([&] { return Rung(0).sessions == 1; }));
  const uint32_t charged = manager_.Use(1).charged_slabs;
  Order(8, 1, 0);
  EXPECT_TRUE(Eventually([&] { return Rung(1).sessions == 1; }));
  ASSERT_TRUE(Grow(session.get(), 310).ok());
  EXPECT_LE(session->View(0).Length(0), 128u);
  EXPECT_TRUE(Eventually(
      [&] { return Rung(1).compactions == 1 && manager_.Use(1).charged_slabs < charged; }));
  Order(8, 0, 0);
  auto later = Open();
  ASSERT_TRUE(Grow(later.get(), 300).ok());
  EXPECT_EQ(later->View(0).Length(0), 300u) << "opened on the rung that the tenant is on";
  ASSERT_TRUE(Grow(session.get(), kWhole).ok());
  EXPECT_LE(session->View(0).Length(0), 128u);
  EXPECT_TRUE(Eventually([&] { return Rung(0).sessions == 1 && Rung(1).sessions == 1; }));
}

TEST_F(LadderTest, IdleSessionsAreCompactedWhenTheirTenantClimbs) {
  Order(8, 0, 0);
  Start();
  auto session = Open();
  ASSERT_TRUE(Grow(session.get(), 400).ok());
  session->Park();
  uint64_t used = 0;
  ASSERT_TRUE(Eventually([&] { return (used = manager_.Use(1).used_bytes) >= 25 * 8192; }));
  Order(8, 1, 0);
  EXPECT_TRUE(Eventually(
      [&] { return Rung(1).compactions == 1 && manager_.Use(1).used_bytes < used / 2; }));
  ASSERT_TRUE(Grow(session.get(), 401).ok());
  EXPECT_EQ(session->View(0).Length(0), 65u);
}

TEST_F(LadderTest, TheProductOfRecoveryStaysAboveTheFloor) {
  Order(8, 1, 0.2);
  Start();
  auto session = Open();
  // The first leaves about 0.3, the second would leave half of that.
  ASSERT_TRUE(Grow(session.get(), kWhole).ok());
  ASSERT_TRUE(Eventually([&] { return Rung(1).floor_stops >= 1; }));
  const FakeRungUse rung = Rung(1);
  EXPECT_EQ(rung.compactions, 1u);
  ASSERT_EQ(rung.cumulative_count, 1u);
  EXPECT_GE(rung.cumulative_sum, 0.2);
  EXPECT_LE(rung.cumulative_sum, 0.4);
  EXPECT_GE(session->View(0).Length(0), kWhole - 128 + 64) << "every row since is there";
  EXPECT_THAT(manager_.Reclaims(1), Contains(kHeld));
  EXPECT_EQ(manager_.Use(1).refusals, 0u) << "nobody was refused anything";
}

TEST_F(LadderTest, AHighFloorRefusesSessionsInsteadOfCompactingThem) {
  Order(5, 1, 0.999);
  Start();
  auto first = Open();
  ASSERT_TRUE(Grow(first.get(), 200).ok());
  EXPECT_EQ(first->View(0).Length(0), 200u);
  EXPECT_TRUE(Eventually([&] { return Rung(1).floor_stops >= 1; }));
  // One that may not be compacted is charged its whole length.
  std::vector<std::unique_ptr<Session>> sessions;
  absl::Status refused;
  while (refused.ok() && sessions.size() < 16) {
    auto session = tenant_->Open({.prompt_tokens = 16, .max_tokens = kWhole});
    refused = session.status();
    if (session.ok()) sessions.push_back(*std::move(session));
  }
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  ASSERT_TRUE(Grow(first.get(), kWhole).ok()) << "the oldest finishes";
  EXPECT_EQ(first->View(0).Length(0), kWhole);
  EXPECT_EQ(Rung(1).compactions, 0u);
}

// Lease for two sessions on their rung and one of them at its whole length, not for two of those.
TEST_F(LadderTest, OfSessionsThatTheFloorHoldsTheOldestGoesFirstAndAllFinish) {
  Order(3, 1, 0.999);
  Start();
  auto first = Open(), second = Open();
  ASSERT_NE(second, nullptr);
  ASSERT_TRUE(Grow(first.get(), 200).ok());
  // The second is due, and waits for room.
  ASSERT_TRUE(GrowUntilHeld(second.get()));
  ASSERT_TRUE(Eventually([&] { return Rung(1).floor_stops == 2; }));
  EXPECT_TRUE(GrowUntilHeld(second.get())) << "again";
  EXPECT_EQ(Rung(1).floor_stops, 2u) << "and is not counted twice";
  EXPECT_LE(second->View(0).Length(0), 128u);
  ASSERT_TRUE(Grow(first.get(), kWhole).ok());
  EXPECT_TRUE(GrowUntilHeld(second.get()));
  first.reset();
  ASSERT_TRUE(Grow(second.get(), kWhole).ok());
  EXPECT_EQ(second->View(0).Length(0), kWhole);
  EXPECT_EQ(Rung(1).compactions, 0u);
}

TEST_F(LadderTest, OneThatWaitsForRoomCanBeClosedAndSoCanItsWorker) {
  Order(3, 1, 0.999);
  Start();
  auto first = Open(), second = Open(), third = Open();
  ASSERT_NE(third, nullptr);
  ASSERT_TRUE(Grow(first.get(), 200).ok());
  for (std::unique_ptr<Session>* session : {&second, &third}) {
    ASSERT_TRUE(GrowUntilHeld(session->get()));
    // Beside one that can go on nobody waits for it: the agent has it, for about a second.
    std::vector<Step> steps = {{.session = first.get()}, {.session = session->get()}};
    ASSERT_TRUE(tenant_->SafePoint(steps).ok());
    EXPECT_TRUE(steps[0].outcome.ok()) << steps[0].outcome;
    EXPECT_TRUE(absl::IsAborted(steps[1].outcome)) << steps[1].outcome;
    session->reset();
  }
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).sessions == 1; }));
  ASSERT_TRUE(Grow(first.get(), kWhole).ok());
  first.reset();
  tenant_.reset();
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).workers == 0; }));
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).held_slabs == 0; }));
}

TEST_F(LadderTest, UnderAShrunkLeaseSessionsShrinkByTheRungThatTheyClimbTo) {
  Order(16, 0, 0);
  Start();
  std::vector<std::unique_ptr<Session>> sessions;
  for (int i = 0; i < 3; ++i) {
    sessions.push_back(Open());
    ASSERT_TRUE(Grow(sessions.back().get(), 500).ok());
  }
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).held_slabs >= 3; }));
  Order(2, 0, 0);
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).over_millis > 100; })) << "full stays full";
  Order(2, 1, 0);
  EXPECT_TRUE(Eventually([&] {
    for (auto& session : sessions) {
      Step step{.session = session.get(), .tokens = 1};
      EXPECT_TRUE(tenant_->SafePoint({&step, 1}).ok());
    }
    return manager_.Use(1).held_slabs <= 2;
  })) << manager_.Use(1).held_slabs;
}

// A format goes along with the rungs: what was sealed stays so, and gets denser.
TEST_F(LadderTest, AFormatThatGetsDenserIsTakenUpByLiveSessions) {
  const auto full = [](const char* format) {
    return *MakePolicySpec("full", {{"format", std::string(format)}, {"open", 0}});
  };
  const std::vector<PolicySpec> rungs = {DefaultPolicySpec(), full("int8"), full("int4")};
  Order(12, 0, 0.9, rungs);
  Geometry geometry = SmallGeometry();
  geometry.kv_heads = 4;  // with two, int8 saves nothing
  Start(geometry);
  auto session = Open();
  ASSERT_TRUE(Grow(session.get(), 300).ok());
  for (uint32_t rung : {1u, 2u}) {
    Order(12, rung, 0.9, rungs);
    ASSERT_TRUE(Grow(session.get(), session->position() + 140).ok());
    const SealedFormat expected = rung == 1 ? SealedFormat::kInt8 : SealedFormat::kInt4;
    EXPECT_EQ(session->View(0).sealed_format, expected);
  }
  EXPECT_EQ(session->View(0).Length(0), session->position()) << "no row is lost";
  EXPECT_EQ(Rung(2).floor_stops, 0u);
}

TEST_F(LadderTest, AWorkerWithoutQueriesIsRefusedWhereRecoveryMustBeMeasured) {
  Order(8, 0, 0.5);
  Start();
  auto connection = Connection::Open({.socket = socket_, .worker = "mute"});
  ASSERT_TRUE(connection.ok());
  auto mute = (*connection)
                  ->Attach(kToken, {.geometry = SmallGeometry(),
                                    .max_sessions = 1,
                                    .max_running = 1,
                                    .max_session_tokens = kWhole,
                                    .chunk_tokens = 16,
                                    .queries = GivenQueries::kNone});
  ASSERT_TRUE(mute.ok()) << mute.status();
  const absl::Status refused = (*mute)->Open({.prompt_tokens = 16, .max_tokens = kWhole}).status();
  EXPECT_THAT(refused.ToString(), HasSubstr("pushes none; give the tenant a fixed policy"));
  Order(8, 0, 0);
  EXPECT_TRUE((*mute)->Open({.prompt_tokens = 16, .max_tokens = kWhole}).ok());
}

TEST_F(LadderTest, OrdersWithALadderThatCannotBeAreIgnored) {
  Order(8, 0, 0.5);
  Start();
  const auto refused = [&](const FakeTenant& tenant) {
    manager_.Set(1, tenant);
    const uint64_t now = manager_.reports();
    EXPECT_TRUE(Eventually([&] { return manager_.reports() >= now + 3; }));
    return manager_.Use(1).lease_slabs == 8;
  };
  FakeTenant bad{.name = "t", .token = kToken, .lease_slabs = 7};
  bad.ladder = PolicyLadder{.min_recovery = 2, .rungs = {DefaultPolicySpec()}};
  EXPECT_TRUE(refused(bad));
  bad.ladder = PolicyLadder{.min_recovery = 0.5};
  for (uint32_t i = 0; i <= limits::kRungs; ++i) {
    bad.ladder->rungs.push_back(*MakePolicySpec("streaming", {{"recent", int64_t{100} + i}}));
  }
  EXPECT_TRUE(refused(bad));
  bad.ladder->rungs.pop_back();
  EXPECT_FALSE(refused(bad));
}

// The real manager: demand that does not fit makes it climb, and says so; a restart changes
// nothing.
TEST(LadderClusterTest, DemandThatDoesNotFitMakesTheManagerClimb) {
  Cluster cluster;
  cluster.StartAgent("a", 3);
  cluster.PutTenant("t", R"({"guaranteed": "6 MiB", "limit": "6 MiB", "policy": {"name": "auto",
      "min_recovery": 0.5, "allowed": ["full", {"name": "streaming", "recent": 252}]}})");
  const std::string token = cluster.MakeToken("t");
  auto connection = Connection::Open({.socket = cluster.Socket("a"), .worker = "test"});
  ASSERT_TRUE(connection.ok()) << connection.status();
  auto tenant = (*connection)
                    ->Attach(token, {.geometry = SmallGeometry(),
                                     .max_sessions = 8,
                                     .max_running = 8,
                                     .max_session_tokens = 4096,
                                     .chunk_tokens = 16});
  ASSERT_TRUE(tenant.ok()) << tenant.status();
  std::vector<std::unique_ptr<Session>> sessions;
  const auto open = [&] {
    auto session = (*tenant)->Open({.prompt_tokens = 16, .max_tokens = 4096});
    const absl::Status status = session.status();
    if (status.ok()) sessions.push_back(*std::move(session));
    return status;
  };
  ASSERT_TRUE(Eventually([&] { return open().ok(); }));
  ASSERT_TRUE(Advance(**tenant, sessions[0].get(), 16).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(open())) << "whole sessions fit one at a time";
  ASSERT_TRUE(Eventually([&] {
    (void)open();
    return sessions.size() >= 2;
  })) << cluster.Call("GET", "/v1/tenants/t").body;
  const auto rung = [&] { return cluster.GetTenant("t").at("ladder").at("rung").as_int64(); };
  EXPECT_EQ(rung(), 1);
  const std::string audit = cluster.Call("GET", "/v1/audit?tenant=t").body;
  EXPECT_THAT(audit, HasSubstr(R"("actor":"manager","action":"policy.climb")"));
  EXPECT_THAT(audit, HasSubstr("it wants"));
  EXPECT_THAT(cluster.Call("GET", "/v1/tenants/t/explain").body,
              HasSubstr("Its policy is auto, on rung 2 of 2, streaming("));
  EXPECT_THAT(Cluster::CallAt(cluster.http(), "GET", "/metrics").body,
              HasSubstr("kvpool_tenant_rung{tenant=\"t\"} 1"));
  cluster.StopManager();
  cluster.StartManager();
  EXPECT_EQ(rung(), 1);
}

}  // namespace
}  // namespace kvpool
