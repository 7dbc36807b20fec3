// A real kvpool-agent process, the real client library, and a manager that does as it is told.
//
// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "client/kvpool.h"
#include "common/http_client.h"
#include "tests/integration/fake_manager.h"
#include "tests/integration/process.h"
#include "tests/integration/raw_worker.h"
#include "tests/integration/small_geometry.h"

namespace kvpool {
namespace {

constexpr char kTenantToken[] = "kvp_tenant";

class AgentTest : public testing::Test {
 protected:
  // Pages of SmallGeometry have 8 KiB, so a slab of 256 KiB has 32. One slab more is in reserve.
  void StartAgent(uint32_t slabs = 16) {
    StartAgentUnder(manager_.address(), slabs);
    ASSERT_TRUE(Eventually([this] { return manager_.reports() >= 2; })) << "agent did not report";
  }

  void StartAgentUnder(const std::string& manager, uint32_t slabs) {
    agent_ = Process("kvpool-agent",
                     {"--name", "a", "--socket", socket_, "--manager", manager, "--manager-token",
                      FakeManager::kToken, "--http", "127.0.0.1:0", "--pool",
                      std::to_string((slabs + 1) * 256) + " KiB", "--slab-bytes", "256 KiB",
                      "--reserve-slabs", "1", "--state-file", dir_ / "state"},
                     dir_ / "agent.log");
  }

  void SetTenant(uint32_t lease, const PolicySpec& policy = DefaultPolicySpec()) {
    manager_.Set(1, {.name = "t",
                     .token = kTenantToken,
                     .lease_slabs = lease,
                     .limit_slabs = 16,
                     .policy = policy});
    const uint64_t now = manager_.reports();
    ASSERT_TRUE(now == 0 || Eventually([&] { return manager_.reports() >= now + 2; }));
  }

  std::unique_ptr<Connection> Connect() {
    auto connection = Connection::Open({.socket = socket_, .worker = "test"});
    EXPECT_TRUE(connection.ok()) << connection.status();
    return *std::move(connection);
  }

  static AttachOptions Options() {
    return {.geometry = SmallGeometry(),
            .max_sessions = 32,
            .max_running = 32,
            .max_session_tokens = 1024,
            .chunk_tokens = 64};
  }

  static absl::Status Advance(Tenant& tenant, Session* session, uint32_t tokens) {
    Step step{.session = session, .tokens = tokens};
    if (absl::Status status = tenant.SafePoint({&step, 1}); !status.ok()) return status;
    if (!step.outcome.ok()) return step.outcome;
    const Geometry& g = tenant.layout().geometry();
    std::vector<float> key(g.key_dim), value(g.value_dim);
    for (uint32_t i = 0; i < tokens; ++i) {
      for (uint32_t l = 0; l < g.layers; ++l) {
        for (uint32_t h = 0; h < g.kv_heads; ++h) {
          // A value that names its row, small enough to be exact in bf16.
          std::fill(key.begin(), key.end(), 0.0f);
          std::fill(value.begin(), value.end(),
                    static_cast<float>((session->position() + i) % 128));
          StoreRow(tenant.layout(), tenant.base(), session->WriteBlock(l, h, i),
                   session->WriteRow(i), key.data(), value.data());
        }
      }
    }
    std::vector<float> queries(tokens * g.model_layers() * g.query_heads * g.key_dim, 0.1f);
    return session->Commit(tokens, session->WantsQueries(tokens) ? queries.data() : nullptr);
  }

  TempDir dir_;
  const std::string socket_ = dir_ / "agent.sock";
  FakeManager manager_;
  Process agent_;
};

TEST_F(AgentTest, AWorkerHoldsPagesAndGivesThemBack) {
  SetTenant(4);
  StartAgent();
  auto connection = Connect();
  auto tenant = connection->Attach(kTenantToken, Options());
  ASSERT_TRUE(tenant.ok()) << tenant.status();
  auto session = (*tenant)->Open({.prompt_tokens = 100, .max_tokens = 400});
  ASSERT_TRUE(session.ok()) << session.status();
  ASSERT_TRUE(Advance(**tenant, session->get(), 64).ok());
  for (int i = 0; i < 300; ++i) ASSERT_TRUE(Advance(**tenant, session->get(), 1).ok());
  const SessionView view = (*session)->View(0);
  EXPECT_EQ(view.Length(0), 364u);
  std::vector<float> key(32), value(32);
  for (uint32_t row = 0; row < 364; ++row) {
    LoadRow((*tenant)->layout(), (*tenant)->base(), view.BlockOf((*tenant)->layout(), 1, 1, row),
            view.RowInBlock(3, row), key.data(), value.data());
    ASSERT_EQ(value[7], static_cast<float>(row % 128));
  }
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).sessions == 1; }));
  session->reset();
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).sessions == 0; }));
  tenant->reset();
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).workers == 0; }));
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).held_slabs == 0; }));
}

TEST_F(AgentTest, AfterARestartWithoutAManagerTheFloorsAreServedAndNoMore) {
  const FakeTenant tenant{
      .name = "t", .token = kTenantToken, .lease_slabs = 6, .limit_slabs = 16, .floor_slabs = 3};
  manager_.Set(1, tenant);
  StartAgent();
  ASSERT_TRUE(Eventually([&] { return std::filesystem::exists(dir_ / "state"); }));
  // A shrink below the floor is promised, so it is on disk.
  manager_.Set(
      1,
      {.name = "t", .token = kTenantToken, .lease_slabs = 2, .limit_slabs = 16, .floor_slabs = 3});
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).lease_slabs == 2; }));
  agent_.Kill(SIGKILL);
  agent_.Wait();
  StartAgentUnder("127.0.0.1:" + std::to_string(FreePort()), 16);
  ASSERT_TRUE(
      Eventually([&] { return Connection::Open({.socket = socket_, .worker = "test"}).ok(); }));
  auto connection = Connect();
  auto attached = connection->Attach(kTenantToken, Options());
  ASSERT_TRUE(attached.ok()) << attached.status();
  EXPECT_EQ((*attached)->Statistics()->lease_slabs, 2u);
  auto session = (*attached)->Open({.prompt_tokens = 100, .max_tokens = 400});
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_TRUE(Advance(**attached, session->get(), 64).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(
      (*attached)->Open({.prompt_tokens = 100, .max_tokens = 1024}).status()));
  EXPECT_TRUE(absl::IsUnauthenticated(Connect()->Attach("kvp_other", Options()).status()));
}

TEST_F(AgentTest, AStateFileThatIsDamagedIsNotTakenForNone) {
  std::ofstream(dir_ / "state") << "kvpstat1 and then nothing that makes sense at all";
  StartAgentUnder(manager_.address(), 16);
  EXPECT_EQ(agent_.Wait(), 1);
  std::ostringstream text;
  text << std::ifstream(dir_ / "agent.log").rdbuf();
  EXPECT_NE(text.str().find("cannot be used: it is damaged; remove it"), std::string::npos)
      << text.str();
}

TEST_F(AgentTest, APoolThatHasBecomeSmallerBeginsWithAsManyFloorsAsItHolds) {
  manager_.Set(
      1,
      {.name = "t", .token = kTenantToken, .lease_slabs = 9, .limit_slabs = 16, .floor_slabs = 8});
  StartAgent();
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).lease_slabs == 9; }));
  manager_.Set(
      1,
      {.name = "t", .token = kTenantToken, .lease_slabs = 8, .limit_slabs = 16, .floor_slabs = 8});
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).lease_slabs == 8; }));
  agent_.Kill(SIGKILL);
  agent_.Wait();
  manager_.Set(1, {.name = "t", .token = kTenantToken, .lease_slabs = 2, .limit_slabs = 16});
  StartAgentUnder(manager_.address(), 4);
  // No report says more than the pool is, and the shrink is promised.
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).lease_slabs == 2; }));
}

TEST_F(AgentTest, ALayoutThatIsDoneGivesItsSlabsToAnotherOfItsTenant) {
  SetTenant(6);
  StartAgent();
  auto connection = Connect(), other_connection = Connect();
  auto small = connection->Attach(kTenantToken, Options());
  ASSERT_TRUE(small.ok()) << small.status();
  AttachOptions options = Options();
  options.geometry.layers = 4;
  options.geometry.kv_of_layer = {0, 1, 2, 3};
  auto large = other_connection->Attach(kTenantToken, options);
  ASSERT_TRUE(large.ok()) << large.status();
  const auto feed = [&](Tenant& tenant, Session* session) {
    absl::Status fed;
    while (fed.ok() && session->position() < 1024) {
      EXPECT_TRUE(Eventually([&] {
        fed = Advance(tenant, session, 64);
        return !absl::IsResourceExhausted(fed);
      }));
    }
    return fed;
  };
  // Four slabs of pages; then nothing is in use in them.
  auto first = (*small)->Open({.prompt_tokens = 64, .max_tokens = 1024});
  auto second = (*small)->Open({.prompt_tokens = 64, .max_tokens = 1024});
  ASSERT_TRUE(first.ok() && second.ok()) << second.status();
  ASSERT_TRUE(feed(**small, first->get()).ok());
  ASSERT_TRUE(feed(**small, second->get()).ok());
  ASSERT_TRUE(
      Eventually([&] { return manager_.Use(1).held_slabs >= 4 && manager_.Use(1).sessions == 2; }));
  first->reset();
  second->reset();
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).sessions == 0; }));
  // Four slabs of pages of the other size.
  auto wide = (*large)->Open({.prompt_tokens = 64, .max_tokens = 1024});
  ASSERT_TRUE(wide.ok()) << wide.status();
  EXPECT_TRUE(feed(**large, wide->get()).ok());
}

TEST_F(AgentTest, SettingsThatDoNotFitTogetherAreNamed) {
  const auto start = [&](std::vector<std::string> args) {
    const std::string log = dir_ / "settings.log";
    std::filesystem::remove(log);
    const int code = Process("kvpool-agent", std::move(args), log).Wait();
    std::ostringstream text;
    text << std::ifstream(log).rdbuf();
    return std::to_string(code) + " " + text.str();
  };
  const std::string larger =
      "2 kvpool-agent: slab_bytes is 4 MiB, pool only 2 MiB: make pool larger or slab_bytes "
      "smaller\n";
  EXPECT_EQ(start({"--pool", "2 MiB", "--slab-bytes", "4 MiB"}), larger);
  EXPECT_EQ(start({"--pool", "2 MiB", "--slab-bytes", "4 MiB", "--print-config"}), larger);
  EXPECT_NE(start({"--pool", "4 MiB", "--slab-bytes", "2 MiB", "--print-config"})
                .find("reserve_slabs keeps 2 of them"),
            std::string::npos);
  EXPECT_EQ(start({"--print-config"}).substr(0, 3), "0 #");
  EXPECT_NE(start({}).find("set manager_token_file"), std::string::npos);
}

TEST_F(AgentTest, AWrongTokenAndABadGeometryAreRefusedWithAReason) {
  SetTenant(4);
  StartAgent();
  auto connection = Connect();
  EXPECT_EQ(connection->Attach("kvp_wrong", Options()).status().code(),
            absl::StatusCode::kUnauthenticated);
  AttachOptions huge = Options();
  huge.geometry.layers = 128;
  huge.geometry.kv_of_layer.resize(128);
  for (uint16_t i = 0; i < 128; ++i) huge.geometry.kv_of_layer[i] = i;
  const absl::Status status = connection->Attach(kTenantToken, huge).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_NE(status.message().find("slab_bytes"), std::string::npos) << status;
  AttachOptions masked = Options();
  masked.geometry.self_masked = {1, 2};
  const absl::Status no_layer = connection->Attach(kTenantToken, masked).status();
  EXPECT_EQ(no_layer.code(), absl::StatusCode::kInvalidArgument) << no_layer;
  EXPECT_NE(no_layer.message().find("self_masked[1] = 2"), std::string::npos) << no_layer;
  EXPECT_TRUE(connection->Attach(kTenantToken, Options()).ok());
}

TEST_F(AgentTest, AdmissionRefusesWhatDoesNotFitNowAndWhatNeverWill) {
  SetTenant(2);
  StartAgent();
  auto connection = Connect();
  auto tenant = *connection->Attach(kTenantToken, Options());
  std::vector<std::unique_ptr<Session>> sessions;
  absl::Status status;
  while (status.ok() && sessions.size() < 32) {
    auto session = tenant->Open({.prompt_tokens = 10, .max_tokens = 160});
    status = session.status();
    if (session.ok()) sessions.push_back(*std::move(session));
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_GE(sessions.size(), 2u);
  EXPECT_LE(sessions.size(), 6u);  // 64 pages, 10 a session, less what overhead takes
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).wanted_slabs > 2; }));
  // Nothing is used, and yet nothing more is admitted: the charge says why.
  EXPECT_EQ(manager_.Use(1).used_bytes, 0u);
  EXPECT_EQ(manager_.Use(1).charged_slabs, 2u);
  // At first the lease might still grow; when the manager knows and gives no more, it is a refusal.
  ASSERT_TRUE(Eventually([&] { return !manager_.Reclaims(1).empty(); }));
  EXPECT_EQ(manager_.Reclaims(1).front(), "5:5");
  EXPECT_EQ(manager_.Use(1).refusals, 0u);
  EXPECT_TRUE(Eventually([&] {
    EXPECT_FALSE(tenant->Open({.prompt_tokens = 10, .max_tokens = 160}).ok());
    return manager_.Use(1).refusals >= 1;
  }));
  EXPECT_EQ(manager_.Reclaims(1).back(), "5:4");
  // More lease, and it fits.
  SetTenant(8);
  EXPECT_TRUE(tenant->Open({.prompt_tokens = 10, .max_tokens = 160}).ok());
  EXPECT_EQ(tenant->Open({.prompt_tokens = 10, .max_tokens = 2000}).status().code(),
            absl::StatusCode::kOutOfRange);
  EXPECT_EQ(tenant->Open({.prompt_tokens = 0, .max_tokens = 10}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(AgentTest, AWorkerThatPushesNoQueriesIsRefusedAPolicyThatNeedsThem) {
  SetTenant(4, *MakePolicySpec("corm", {}));
  StartAgent();
  auto connection = Connect();
  AttachOptions options = Options();
  options.queries = GivenQueries::kNone;
  auto tenant = connection->Attach(kTenantToken, options);
  ASSERT_TRUE(tenant.ok()) << tenant.status();
  const auto refused = (*tenant)->Open({.prompt_tokens = 10, .max_tokens = 100});
  EXPECT_TRUE(absl::IsInvalidArgument(refused.status())) << refused.status();
  EXPECT_THAT(refused.status().ToString(),
              testing::HasSubstr("it can serve tenants with full, streaming"));
  // A policy that only samples does without.
  SetTenant(4, *MakePolicySpec("streaming", {{"sinks", 4}, {"recent", 28}}));
  auto session = (*tenant)->Open({.prompt_tokens = 10, .max_tokens = 300});
  ASSERT_TRUE(session.ok()) << session.status();
  for (int i = 0; i < 150; ++i) {
    EXPECT_FALSE((*session)->WantsQueries(1));
    ASSERT_TRUE(Advance(**tenant, session->get(), 1).ok());
  }
  EXPECT_LT((*session)->View(0).Length(0), 100u);
}

TEST_F(AgentTest, AnOfferOfQueriesThatTheAgentDoesNotKnowIsNone) {
  SetTenant(4, *MakePolicySpec("corm", {}));
  StartAgent();
  RpcThread thread;
  RawWorker raw(thread, socket_);
  ASSERT_EQ(raw.Authenticate(kTenantToken), "ok");
  ASSERT_EQ(raw.Attach(SmallGeometry(),
                       [](rpc::AttachParams::Builder params) {
                         params.setQueries(static_cast<rpc::QueryOffer>(7));
                       }),
            "ok");
  EXPECT_EQ(raw.Open(10, 100), "badArgument");
}

TEST_F(AgentTest, AWorkerIsToldHowToProfileAPrompt) {
  SetTenant(4, *MakePolicySpec("fastgen", {{"recovery", 0.75},
                                           {"local", 0.125},
                                           {"frequent", 0.0625},
                                           {"group", "mean"},
                                           {"profile", "sampled"}}));
  StartAgent();
  RpcThread thread;
  RawWorker raw(thread, socket_);
  ASSERT_EQ(raw.Authenticate(kTenantToken), "ok");
  ASSERT_EQ(raw.Attach(SmallGeometry()), "ok");
  ASSERT_EQ(raw.Open(10, 100), "ok");
  EXPECT_EQ(raw.wish().sample_every, 8u);
  EXPECT_EQ(raw.wish().recovery, 0.75);
  EXPECT_EQ(raw.wish().local, 0.125);
  EXPECT_EQ(raw.wish().frequent, 0.0625);
  EXPECT_EQ(raw.wish().group, rpc::ProfileGroup::MEAN);
}

TEST_F(AgentTest, ScissorhandsSessionsStayWithinTheirBudgetAcrossTheWire) {
  SetTenant(4, *MakePolicySpec("scissorhands", {{"budget", 64}, {"window", 64}}));
  StartAgent();
  auto connection = Connect();
  auto tenant = *connection->Attach(kTenantToken, Options());
  auto session = *tenant->Open({.prompt_tokens = 48, .max_tokens = 1000});
  ASSERT_TRUE(Advance(*tenant, session.get(), 48).ok());
  for (int i = 0; i < 400; ++i) {
    const absl::Status status = Advance(*tenant, session.get(), 1);
    ASSERT_TRUE(status.ok()) << status << " at " << i;
    ASSERT_LE(session->View(0).Length(0), 64u);
  }
  EXPECT_LE(tenant->Statistics()->used_bytes, 6u * 8192);
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).compactions >= 10; }));
  EXPECT_TRUE(Eventually([&] { return !manager_.Reclaims(1).empty(); }));
}

TEST_F(AgentTest, SessionsHandedOverTogetherAreCountedOneByOneUnderThePolicyTheyWereOpenedWith) {
  const PolicySpec opened_with =
      *MakePolicySpec("scissorhands", {{"budget", 64}, {"window", 64}, {"drop", 16}});
  SetTenant(8, opened_with);
  StartAgent();
  auto connection = Connect();
  auto tenant = *connection->Attach(kTenantToken, Options());
  std::vector<std::unique_ptr<Session>> sessions;
  std::vector<Step> steps;
  for (int i = 0; i < 4; ++i) {
    sessions.push_back(*tenant->Open({.prompt_tokens = 60, .max_tokens = 200}));
    ASSERT_TRUE(Advance(*tenant, sessions.back().get(), 60).ok());
    steps.push_back({.session = sessions.back().get(), .tokens = 8});
  }
  SetTenant(8, *MakePolicySpec("full", {}));
  // What follows is told in one report.
  manager_.HoldAnswer();
  ASSERT_TRUE(Eventually([&] { return manager_.holds_answer(); }));
  // Each is handed over in a call of its own, and the first safe point waits for one of them only.
  ASSERT_TRUE(Eventually([&] {
    EXPECT_TRUE(tenant->SafePoint(steps).ok());
    return std::all_of(steps.begin(), steps.end(),
                       [](const Step& step) { return step.outcome.ok(); });
  }));
  for (const auto& session : sessions) EXPECT_LT(session->View(0).Length(0), 60u);
  manager_.Answer();
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).compactions == 4; }));
  EXPECT_EQ(manager_.Use(1).recovery_count, 4u);
  ASSERT_TRUE(Eventually([&] { return !manager_.Reclaims(1).empty(); }));
  EXPECT_THAT(manager_.Reclaims(1), testing::ElementsAre("2:1")) << "one batch, one record";
  EXPECT_THAT(manager_.Policies(1), testing::ElementsAre(ToString(opened_with)));
}

// Nothing presses: the lease has room for twice as much. int4 blocks of this geometry take half the
// room of native ones.
TEST_F(AgentTest, FullWithInt4HoldsEveryKeyInHalfTheBytes) {
  SetTenant(8, *MakePolicySpec("full", {{"format", "int4"}, {"open", 32}}));
  StartAgent();
  auto connection = Connect();
  auto tenant = *connection->Attach(kTenantToken, Options());
  auto session = *tenant->Open({.prompt_tokens = 512, .max_tokens = 1000});
  while (session->position() < 512) ASSERT_TRUE(Advance(*tenant, session.get(), 64).ok());
  while (session->position() < 900) {
    const absl::Status status = Advance(*tenant, session.get(), 1);
    ASSERT_TRUE(status.ok()) << status << " at " << session->position();
  }
  const SessionView view = session->View(0);
  for (uint32_t p = 0; p < 4; ++p) {
    EXPECT_EQ(view.Length(p), 900u);
    EXPECT_GE(view.SealedLength(p), 900u - 32 - 64 - 32);
  }
  const int64_t native = 57 * 8192;  // 900 / 16 pages
  const int64_t used = tenant->Statistics()->used_bytes;
  EXPECT_LE(used, native * 6 / 10);
  EXPECT_GE(used, native * 4 / 10);
  // A value's channels are all the same here, which 4 bits and a zero hold exactly.
  std::vector<float> key(32), value(32);
  for (uint32_t row = 0; row < 900; ++row) {
    ReadRow(tenant->layout(), tenant->base(), view, 3, row, key.data(), value.data());
    ASSERT_EQ(value[5], static_cast<float>(row % 128)) << row;
  }
  ASSERT_TRUE(Eventually([&] { return !manager_.Reclaims(1).empty(); }));
  for (const std::string& reclaim : manager_.Reclaims(1)) EXPECT_EQ(reclaim, "3:1");
  EXPECT_EQ(manager_.Use(1).compactions, 0u);
  session.reset();
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).used_bytes == 0; }));
}

// All come due at one safe point and there is one slab in reserve: they take turns, and none is
// left out, although the tenant has hardly a page that is free.
TEST_F(AgentTest, ABatchIsSealedThroughOneSlabInTurns) {
  SetTenant(6, *MakePolicySpec("full", {{"format", "int4"}, {"open", 0}}));
  StartAgent();
  auto connection = Connect();
  AttachOptions options = Options();
  options.chunk_tokens = 256;
  auto tenant = *connection->Attach(kTenantToken, options);
  std::vector<std::unique_ptr<Session>> sessions;
  std::vector<Step> steps;
  for (;;) {
    auto session = tenant->Open({.prompt_tokens = 256, .max_tokens = 272});
    if (!session.ok()) break;
    sessions.push_back(*std::move(session));
    ASSERT_TRUE(Advance(*tenant, sessions.back().get(), 256).ok());
    steps.push_back({.session = sessions.back().get(), .tokens = 1});
  }
  ASSERT_GE(sessions.size(), 4u);
  const int64_t before = tenant->Statistics()->used_bytes;
  // Sessions that come back early step without those that still wait.
  ASSERT_TRUE(Eventually([&] {
    return tenant->SafePoint(steps).ok() &&
           std::ranges::all_of(steps, [](const Step& step) { return step.outcome.ok(); });
  }));
  for (const auto& session : sessions) {
    for (uint32_t p = 0; p < 4; ++p) EXPECT_EQ(session->View(0).SealedLength(p), 256u);
  }
  EXPECT_LE(tenant->Statistics()->used_bytes * 3, before * 2);
  EXPECT_LE(manager_.Use(1).held_slabs, 6u);
  for (const auto& session : sessions) {
    EXPECT_TRUE(Advance(*tenant, session.get(), 1).ok()) << "the reserve is free again";
  }
}

TEST_F(AgentTest, WithoutAReserveAFormatIsRefusedByTheSettingsName) {
  SetTenant(8, *MakePolicySpec("full", {{"format", "int4"}}));
  agent_ = Process("kvpool-agent",
                   {"--name", "a", "--socket", socket_, "--manager", manager_.address(),
                    "--manager-token", FakeManager::kToken, "--http", "127.0.0.1:0", "--pool",
                    "4 MiB", "--slab-bytes", "256 KiB", "--reserve-slabs", "0"},
                   dir_ / "agent.log");
  ASSERT_TRUE(Eventually([this] { return manager_.reports() >= 2; }));
  auto connection = Connect();
  auto tenant = *connection->Attach(kTenantToken, Options());
  const absl::Status refused = tenant->Open({.prompt_tokens = 10, .max_tokens = 100}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  EXPECT_NE(refused.message().find("reserve_slabs is 0"), std::string::npos) << refused;
  SetTenant(8, *MakePolicySpec("full", {}));
  EXPECT_TRUE(tenant->Open({.prompt_tokens = 10, .max_tokens = 100}).ok());
}

// 17 granules of 512 bytes for a block of fp8 do not fit where a single head's 16 of bf16 were.
TEST_F(AgentTest, AFormatThatSavesNothingHereIsRefusedByTheNamesOfOthers) {
  SetTenant(8, *MakePolicySpec("full", {{"format", "fp8"}}));
  StartAgent();
  auto connection = Connect();
  AttachOptions options = Options();
  options.geometry.kv_heads = 1;
  options.geometry.key_dim = options.geometry.value_dim = 128;
  auto tenant = *connection->Attach(kTenantToken, options);
  const absl::Status refused = tenant->Open({.prompt_tokens = 10, .max_tokens = 100}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  EXPECT_NE(refused.message().find("must be native or int4"), std::string::npos) << refused;
  SetTenant(8, *MakePolicySpec("full", {{"format", "int4"}}));
  EXPECT_TRUE(tenant->Open({.prompt_tokens = 10, .max_tokens = 100}).ok());
}

TEST_F(AgentTest, AShrunkLeaseComesBackByEvacuationWhileSessionsGoOn) {
  SetTenant(8);
  StartAgent();
  auto connection = Connect();
  auto tenant = *connection->Attach(kTenantToken, Options());
  std::vector<std::unique_ptr<Session>> sessions;
  for (int i = 0; i < 12; ++i) {
    sessions.push_back(*tenant->Open({.prompt_tokens = 64, .max_tokens = 256}));
    for (int k = 0; k < 3; ++k) ASSERT_TRUE(Advance(*tenant, sessions.back().get(), 64).ok());
  }
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).held_slabs >= 5; }));
  // Every second one ends: the slabs are half empty, but none is free.
  for (size_t i = 0; i < sessions.size(); i += 2) sessions[i].reset();
  manager_.Set(1, {.name = "t", .token = kTenantToken, .lease_slabs = 4, .limit_slabs = 16});
  EXPECT_TRUE(Eventually([&] {
    for (size_t i = 1; i < sessions.size(); i += 2) {
      Step step{.session = sessions[i].get(), .tokens = 1};
      if (!tenant->SafePoint({&step, 1}).ok()) return false;
    }
    return manager_.Use(1).held_slabs <= 4 && manager_.Use(1).lease_slabs == 4;
  })) << manager_.Use(1).held_slabs;
  // Every row is still where its session says.
  std::vector<float> key(32), value(32);
  for (size_t i = 1; i < sessions.size(); i += 2) {
    const SessionView view = sessions[i]->View(0);
    ASSERT_EQ(view.Length(2), 192u);
    for (uint32_t row = 0; row < 192; ++row) {
      LoadRow(tenant->layout(), tenant->base(), view.BlockOf(tenant->layout(), 1, 0, row),
              view.RowInBlock(2, row), key.data(), value.data());
      ASSERT_EQ(value[3], static_cast<float>(row % 128)) << i << " " << row;
    }
    EXPECT_TRUE(Advance(*tenant, sessions[i].get(), 1).ok());
  }
}

TEST_F(AgentTest, AnIdleSessionIsCompactedByTheAgentItselfUnderPressure) {
  SetTenant(8, *MakePolicySpec("scissorhands", {{"budget", 256}, {"window", 64}}));
  StartAgent();
  auto connection = Connect();
  auto tenant = *connection->Attach(kTenantToken, Options());
  std::vector<std::unique_ptr<Session>> sessions;
  for (int i = 0; i < 4; ++i) {
    sessions.push_back(*tenant->Open({.prompt_tokens = 64, .max_tokens = 256}));
    for (int k = 0; k < 4; ++k) ASSERT_TRUE(Advance(*tenant, sessions.back().get(), 60).ok());
    sessions.back()->Park();
  }
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).used_bytes >= 4u * 15 * 8192; }));
  manager_.Set(1, {.name = "t",
                   .token = kTenantToken,
                   .lease_slabs = 1,
                   .limit_slabs = 16,
                   .policy = *MakePolicySpec("scissorhands", {{"budget", 256}, {"window", 64}})});
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).held_slabs <= 1; }))
      << manager_.Use(1).held_slabs << " slabs, " << manager_.Use(1).used_bytes << " bytes";
  EXPECT_GE(manager_.Use(1).compactions, 1u);
  for (auto& session : sessions) EXPECT_LE(session->View(0).Length(0), 256u);
}

TEST_F(AgentTest, AKilledWorkersMemoryComesBack) {
  SetTenant(8);
  StartAgent();
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  Process worker = Process::Fork([&] {
    auto connection = Connection::Open({.socket = socket_, .worker = "victim"});
    auto tenant = (*connection)->Attach(kTenantToken, Options());
    std::vector<std::unique_ptr<Session>> sessions;
    for (int i = 0; i < 4; ++i) {
      sessions.push_back(*(*tenant)->Open({.prompt_tokens = 64, .max_tokens = 512}));
      for (int k = 0; k < 8; ++k) (void)Advance(**tenant, sessions.back().get(), 64);
    }
    if (write(ready[1], "x", 1) != 1) return 1;
    pause();
    return 0;
  });
  close(ready[1]);  // so that a victim which dies early is noticed
  char byte;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).used_bytes == 4u * 32 * 8192; }));
  worker.Kill(SIGKILL);
  EXPECT_EQ(worker.Wait(), 128 + SIGKILL);
  EXPECT_TRUE(Eventually(
      [&] { return manager_.Use(1).used_bytes == 0 && manager_.Use(1).held_slabs == 0; }));
}

TEST_F(AgentTest, AWorkerIsToldThatItsAgentIsGone) {
  SetTenant(4);
  StartAgent();
  auto connection = Connect();
  auto tenant = *connection->Attach(kTenantToken, Options());
  agent_.Kill(SIGKILL);
  agent_.Wait();
  const absl::Status status = tenant->Ping();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), "the agent is gone");
}

TEST_F(AgentTest, AnOlderManagerEpochIsRefused) {
  SetTenant(4);
  manager_.SetEpoch(7);
  StartAgent();
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).lease_slabs == 4; }));
  manager_.SetEpoch(6);
  manager_.Set(1, {.name = "t", .token = kTenantToken, .lease_slabs = 9, .limit_slabs = 16});
  const uint64_t now = manager_.reports();
  ASSERT_TRUE(Eventually([&] { return manager_.reports() >= now + 5; }));
  EXPECT_EQ(manager_.Use(1).lease_slabs, 4u);
}

}  // namespace
}  // namespace kvpool
