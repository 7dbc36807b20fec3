// Prompts that begin alike at a real agent: several workers, several tenants, a model that
// computes.
//
// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "client/kvpool.h"
#include "tests/integration/fake_manager.h"
#include "tests/integration/process.h"
#include "tests/integration/raw_worker.h"
#include "tests/worker/support.h"
#include "worker/llama.h"
#include "worker/pool_kv.h"

namespace kvpool {
namespace {

using testing::Contains;

constexpr char kParkedForTheLease[] = "1:2";  // step parked, reason leaseShrink
constexpr char kParkedForPages[] = "1:3";     // reason noPages
constexpr char kParkedTooLong[] = "1:1";      // reason scheduled

class PrefixTest : public testing::Test {
 protected:
  PrefixTest() : threads_(1), model_(config_, RandomWeights(config_, 3), &threads_) {}

  static LlamaConfig Config() {
    LlamaConfig config = TinyConfig();
    config.max_positions = 1024;
    return config;
  }

  // A page takes 6 KiB, so a slab of 64 KiB has ten; queries take the place of one.
  void StartAgent(const std::vector<std::string>& more = {}) {
    std::vector<std::string> args = {"--name",          "a",
                                     "--socket",        socket_,
                                     "--manager",       manager_.address(),
                                     "--manager-token", FakeManager::kToken,
                                     "--http",          "127.0.0.1:0",
                                     "--pool",          "1088 KiB",
                                     "--slab-bytes",    "64 KiB",
                                     "--reserve-slabs", "1"};
    args.insert(args.end(), more.begin(), more.end());
    agent_ = Process("kvpool-agent", args, dir_ / "agent.log");
    ASSERT_TRUE(Eventually([this] { return manager_.reports() >= 2; })) << "agent did not report";
  }

  void SetTenant(uint32_t id, uint32_t lease, const PolicySpec& policy = DefaultPolicySpec()) {
    manager_.Set(id, {.name = "t" + std::to_string(id),
                      .token = "kvp_" + std::to_string(id),
                      .lease_slabs = lease,
                      .limit_slabs = 16,
                      .policy = policy});
    const uint64_t now = manager_.reports();
    ASSERT_TRUE(now == 0 || Eventually([&] { return manager_.reports() >= now + 2; }));
  }

  // A worker of a tenant, with the model.
  struct Attached {
    std::unique_ptr<Connection> connection;
    std::unique_ptr<PoolKv> cache;
    Tenant* tenant = nullptr;
  };
  Attached Attach(uint32_t id, const std::string& model = "tiny") {
    Attached made;
    auto connection = Connection::Open({.socket = socket_});
    EXPECT_TRUE(connection.ok()) << connection.status();
    made.connection = *std::move(connection);
    auto tenant = made.connection->Attach("kvp_" + std::to_string(id),
                                          {.geometry = config_.CacheGeometry(Dtype::kF32),
                                           .max_sessions = 16,
                                           .max_running = 16,
                                           .max_session_tokens = 1024,
                                           .chunk_tokens = 64});
    EXPECT_TRUE(tenant.ok()) << tenant.status();
    made.tenant = tenant->get();
    made.cache = std::make_unique<PoolKv>(*std::move(tenant), std::vector<uint8_t>{}, model);
    return made;
  }

  std::vector<int32_t> Prompt(uint32_t count, uint32_t seed = 1) {
    std::mt19937 random(seed);
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random() % config_.vocab);
    return tokens;
  }

  std::unique_ptr<KvSession> Open(const Attached& worker, const std::vector<int32_t>& prompt,
                                  uint32_t max_tokens = 0) {
    const auto count = static_cast<uint32_t>(prompt.size());
    OpenResult opened = worker.cache->Open(
        {.prompt_tokens = count, .max_tokens = std::max(count + 40, max_tokens), .prompt = prompt});
    EXPECT_EQ(opened.outcome, OpenOutcome::kOpened) << opened.text;
    return std::move(opened.session);
  }

  // Feeds tokens from `first` on, in pieces of up to 64, and returns the logits of the last one.
  std::vector<float> Feed(const Attached& worker, KvSession* session,
                          const std::vector<int32_t>& tokens, uint32_t first) {
    std::vector<float> logits;
    while (first < tokens.size()) {
      const auto count = std::min<uint32_t>(64, static_cast<uint32_t>(tokens.size()) - first);
      const auto piece = std::span(tokens).subspan(first, count);
      KvStep step{.session = session, .tokens = count, .ids = piece};
      worker.cache->Prepare({&step, 1});
      EXPECT_EQ(step.readiness, Readiness::kReady) << step.text;
      if (step.readiness != Readiness::kReady) return {};
      const kvpool::Feed feed{.session = session, .position = first, .tokens = piece};
      const std::span<const float> out = model_.Forward({&feed, 1});
      logits.assign(out.begin(), out.end());
      session->Commit();
      first += count;
    }
    return logits;
  }

  TempDir dir_;
  const std::string socket_ = dir_ / "agent.sock";
  FakeManager manager_;
  Process agent_;
  const LlamaConfig config_ = Config();
  ThreadPool threads_;
  Llama model_;
};

TEST_F(PrefixTest, AnotherWorkerComputesTheSameLogitsFromSharedPagesChargedOnce) {
  SetTenant(1, 8);
  StartAgent();
  const std::vector<int32_t> prompt = Prompt(330);
  const Attached a = Attach(1);
  auto first = Open(a, prompt);
  EXPECT_EQ(first->shared_tokens(), 0u);
  const std::vector<float> alone = Feed(a, first.get(), prompt, 0);
  const uint64_t used_alone = a.tenant->Statistics()->used_bytes;

  const Attached b = Attach(1);
  auto second = Open(b, prompt);
  ASSERT_EQ(second->shared_tokens(), 320u);
  // The last 10 tokens pass alone where 64 passed together: rounding of matrix products differs.
  const std::vector<float> shared = Feed(b, second.get(), prompt, 320);
  ASSERT_EQ(shared.size(), alone.size());
  for (size_t i = 0; i < alone.size(); ++i) ASSERT_NEAR(shared[i], alone[i], 1e-4) << i;
  // Fed in the same pieces they are the same bit for bit.
  auto third = Open(a, prompt);
  ASSERT_EQ(third->shared_tokens(), 320u);
  EXPECT_EQ(Feed(a, third.get(), prompt, 320), shared);
  // Twenty pages once, and a last page each.
  const uint64_t page = static_cast<uint64_t>(a.tenant->layout().page_bytes().value());
  EXPECT_EQ(used_alone, 21 * page);
  EXPECT_EQ(a.tenant->Statistics()->used_bytes, 23 * page);
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).used_bytes == 23 * page; }));
}

TEST_F(PrefixTest, AParkedPrefixOutlivesItsSessionAndTheWorkerThatWroteIt) {
  SetTenant(1, 8);
  StartAgent();
  const std::vector<int32_t> prompt = Prompt(200);
  Attached a = Attach(1);
  const Attached b = Attach(1);
  const std::vector<float> alone = Feed(a, Open(a, prompt).get(), prompt, 0);
  a.cache.reset();
  a.connection.reset();
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).workers == 1; }));
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).used_bytes == 0; }));
  EXPECT_GT(manager_.Use(1).held_slabs, 0u);
  auto session = Open(b, prompt);
  ASSERT_EQ(session->shared_tokens(), 192u);
  const std::vector<float> shared = Feed(b, session.get(), prompt, 192);
  for (size_t i = 0; i < alone.size(); ++i) ASSERT_NEAR(shared[i], alone[i], 1e-4) << i;
  // Another model's prompts are others.
  const Attached c = Attach(1, "finetuned");
  EXPECT_EQ(Open(c, prompt)->shared_tokens(), 0u);
}

TEST_F(PrefixTest, TenantsNeverShare) {
  SetTenant(1, 4);
  SetTenant(2, 4);
  StartAgent();
  const std::vector<int32_t> prompt = Prompt(200);
  const Attached a = Attach(1), b = Attach(2);
  auto first = Open(a, prompt);
  Feed(a, first.get(), prompt, 0);
  auto other = Open(b, prompt);
  EXPECT_EQ(other->shared_tokens(), 0u);
  Feed(b, other.get(), prompt, 0);
  EXPECT_EQ(Open(a, prompt)->shared_tokens(), 192u);
  EXPECT_EQ(Open(b, prompt)->shared_tokens(), 192u) << "its own";
}

TEST_F(PrefixTest, ParkedPagesAreTheFirstToGoWhenTheLeaseShrinks) {
  SetTenant(1, 8);
  StartAgent();
  const std::vector<int32_t> prompt = Prompt(200), other = Prompt(200, 2);
  const Attached a = Attach(1);
  Feed(a, Open(a, prompt).get(), prompt, 0);
  auto session = Open(a, other);
  const std::vector<float> before = Feed(a, session.get(), other, 0);
  // Of 25 pages twelve are parked, ten of them in a slab of their own.
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).held_slabs == 3; }));
  SetTenant(1, 2);
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).held_slabs == 2; }));
  EXPECT_THAT(manager_.Reclaims(1), Contains(kParkedForTheLease));
  SetTenant(1, 8);
  EXPECT_LT(Open(a, prompt)->shared_tokens(), 192u) << "dropped, but for what is elsewhere";
  EXPECT_EQ(Open(a, other)->shared_tokens(), 192u) << "a session has it";
  EXPECT_EQ(Feed(a, session.get(), Prompt(201, 2), 200).size(), before.size());
}

TEST_F(PrefixTest, ParkedPagesGiveWayToASessionThatNeedsTheirPlace) {
  SetTenant(1, 5);
  StartAgent();
  const Attached a = Attach(1);
  for (uint32_t seed = 1; seed <= 3; ++seed) {
    const std::vector<int32_t> prompt = Prompt(200, seed);
    Feed(a, Open(a, prompt).get(), prompt, 0);
  }
  // 36 pages of 40 are parked, and a session needs as many.
  const std::vector<int32_t> large = Prompt(560, 9);
  auto session = Open(a, large, 570);
  ASSERT_NE(session, nullptr);
  EXPECT_FALSE(Feed(a, session.get(), large, 0).empty());
  EXPECT_TRUE(Eventually([&] {
    const auto reclaims = manager_.Reclaims(1);
    return std::count(reclaims.begin(), reclaims.end(), kParkedForPages) > 0;
  }));
  session.reset();
  EXPECT_EQ(Open(a, large)->shared_tokens(), 544u);
}

TEST_F(PrefixTest, WhatNobodyAsksForGoesAfterItsTime) {
  SetTenant(1, 8);
  StartAgent({"--parked-ttl", "1 s"});
  const std::vector<int32_t> prompt = Prompt(200);
  const Attached a = Attach(1);
  Feed(a, Open(a, prompt).get(), prompt, 0);
  EXPECT_EQ(Open(a, prompt)->shared_tokens(), 192u);
  EXPECT_TRUE(Eventually([&] {
    const auto reclaims = manager_.Reclaims(1);
    return std::count(reclaims.begin(), reclaims.end(), kParkedTooLong) > 0;
  }));
  EXPECT_EQ(Open(a, prompt)->shared_tokens(), 0u);
}

TEST_F(PrefixTest, WithoutAWorkerOfItsLayoutNothingIsKept) {
  SetTenant(1, 8);
  StartAgent();
  Attached a = Attach(1);
  const std::vector<int32_t> prompt = Prompt(200);
  Feed(a, Open(a, prompt).get(), prompt, 0);
  a.cache.reset();
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).held_slabs == 0; }));
  const Attached b = Attach(1);
  EXPECT_EQ(Open(b, prompt)->shared_tokens(), 0u);
}

TEST_F(PrefixTest, SessionsThatAreCompactedLeaveWhatOthersShare) {
  // Compacted to 96 rows before a step would pass 112. Two sessions of ten pages, and six shared.
  SetTenant(1, 6, *MakePolicySpec("streaming", {{"sinks", 4}, {"recent", 92}, {"slack", 16}}));
  StartAgent();
  const Attached a = Attach(1), b = Attach(1);
  const std::vector<int32_t> text = Prompt(300);
  const std::vector<int32_t> prompt(text.begin(), text.begin() + 100);
  for (uint32_t seed = 5; seed < 8; ++seed) {  // parked, and in the way
    const std::vector<int32_t> other = Prompt(100, seed);
    Feed(a, Open(a, other).get(), other, 0);
  }
  const auto feed_one_by_one = [&](const Attached& worker, KvSession* session, uint32_t first,
                                   uint32_t end) {
    std::vector<float> logits;
    for (uint32_t i = first; i < end; ++i) {
      logits = Feed(worker, session, {text.begin(), text.begin() + i + 1}, i);
      if (logits.empty()) break;
    }
    return logits;
  };
  auto alone = Open(a, prompt, 260);
  ASSERT_EQ(alone->shared_tokens(), 0u);
  Feed(a, alone.get(), prompt, 0);
  const std::vector<float> expected = feed_one_by_one(a, alone.get(), 100, 250);
  ASSERT_FALSE(expected.empty());
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).compactions > 0; }));
  alone.reset();
  auto first = Open(a, prompt, 260), second = Open(b, prompt, 260);
  ASSERT_EQ(first->shared_tokens(), 96u);
  ASSERT_EQ(second->shared_tokens(), 96u);
  const std::vector<float> one = feed_one_by_one(a, first.get(), 96, 250);
  const std::vector<float> two = feed_one_by_one(b, second.get(), 96, 250);
  ASSERT_EQ(one.size(), expected.size());
  EXPECT_EQ(one, two);
  for (size_t i = 0; i < one.size(); ++i) ASSERT_NEAR(one[i], expected[i], 1e-4) << i;
}

// Under `auto` sessions share, too, and whoever climbs copies what others hold first.
TEST_F(PrefixTest, SessionsOfALadderShareForkAndClimb) {
  const std::vector<PolicySpec> rungs = {
      DefaultPolicySpec(),
      *MakePolicySpec("streaming", {{"sinks", 4}, {"recent", 92}, {"slack", 16}})};
  const auto order = [&](uint32_t rung) {
    manager_.Set(1, {.name = "t1",
                     .token = "kvp_1",
                     .lease_slabs = 14,
                     .limit_slabs = 16,
                     .policy = rungs[rung],
                     .ladder = PolicyLadder{.min_recovery = 0, .rungs = rungs},
                     .rung = rung});
  };
  order(0);
  StartAgent();
  const Attached a = Attach(1), b = Attach(1);
  const std::vector<int32_t> prompt = Prompt(150);
  auto first = Open(a, prompt, 300);
  const std::vector<float> alone = Feed(a, first.get(), prompt, 0);
  // What it leaves is parked when the agent has closed it.
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).sessions == 1; }));
  first.reset();
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).sessions == 0; }));
  // Every rung must be able to take over: the second compacts before a step would pass 112.
  auto second = Open(b, prompt, 300);
  ASSERT_EQ(second->shared_tokens(), 112u);
  const std::vector<float> shared = Feed(b, second.get(), prompt, 112);
  ASSERT_EQ(shared.size(), alone.size());
  for (size_t i = 0; i < alone.size(); ++i) ASSERT_NEAR(shared[i], alone[i], 1e-4) << i;
  auto third = Open(a, prompt, 300);
  ASSERT_EQ(third->shared_tokens(), 112u);
  EXPECT_EQ(Feed(a, third.get(), prompt, 112), shared);

  const uint64_t page = static_cast<uint64_t>(a.tenant->layout().page_bytes().value());
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).used_bytes == (7 + 2 * 3) * page; }));
  order(1);
  const auto on_rung_1 = [&] {
    const FakeUse use = manager_.Use(1);
    return use.rungs.size() == 2 && use.rungs[1].sessions == 2;
  };
  ASSERT_TRUE(Eventually(on_rung_1));
  std::vector<int32_t> text = prompt;
  text.push_back(1);
  // One climbs while the other holds the same pages; then the other has them alone.
  const std::vector<float> climbed = Feed(b, second.get(), text, 150);
  ASSERT_FALSE(climbed.empty());
  EXPECT_EQ(Feed(a, third.get(), text, 150), climbed);
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).rungs[1].compactions == 2; }));
  // A later one begins with what is parked or shared still, on its rung from the start.
  auto fourth = Open(a, prompt, 300);
  Feed(a, fourth.get(), prompt, fourth->shared_tokens());
  fourth.reset();
  second.reset();
  third.reset();
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).used_bytes == 0; }));
}

TEST_F(PrefixTest, AForkUnderALadderIsOnItsTenantsRung) {
  const std::vector<PolicySpec> rungs = {
      DefaultPolicySpec(),
      *MakePolicySpec("streaming", {{"sinks", 4}, {"recent", 92}, {"slack", 16}})};
  FakeTenant tenant{.name = "t1",
                    .token = "kvp_1",
                    .lease_slabs = 12,
                    .limit_slabs = 16,
                    .policy = rungs[0],
                    .ladder = PolicyLadder{.min_recovery = 0, .rungs = rungs}};
  manager_.Set(1, tenant);
  StartAgent();
  auto connection = *Connection::Open({.socket = socket_});
  auto attached = *connection->Attach("kvp_1", {.geometry = config_.CacheGeometry(Dtype::kF32),
                                                .max_sessions = 4,
                                                .max_running = 4,
                                                .max_session_tokens = 256});
  const auto feed = [&](Session* session, uint32_t tokens) {
    Step step{.session = session, .tokens = tokens};
    if (absl::Status status = attached->SafePoint({&step, 1}); !status.ok()) return status;
    if (!step.outcome.ok()) return step.outcome;
    const Geometry& g = attached->layout().geometry();
    const std::vector<float> queries(size_t{tokens} * g.model_layers() * g.query_heads * g.key_dim,
                                     0.1f);
    return session->Commit(tokens, session->WantsQueries(tokens) ? queries.data() : nullptr);
  };
  auto parent = *attached->Open({.prompt_tokens = 40, .max_tokens = 256});
  ASSERT_TRUE(feed(parent.get(), 40).ok());
  auto fork = attached->Fork(*parent, 256);
  ASSERT_TRUE(fork.ok()) << fork.status();
  EXPECT_EQ((*fork)->View(0).Length(0), 40u);
  tenant.rung = 1;
  tenant.policy = rungs[1];
  manager_.Set(1, tenant);
  ASSERT_TRUE(Eventually([&] {
    const FakeUse use = manager_.Use(1);
    return use.rungs.size() == 2 && use.rungs[1].sessions == 2;
  }));
  for (int i = 0; i < 120; ++i) {
    ASSERT_TRUE(feed(fork->get(), 1).ok()) << i;
    ASSERT_TRUE(feed(parent.get(), 1).ok()) << i;
  }
  EXPECT_LE((*fork)->View(0).Length(0), 112u);
  EXPECT_LE(parent->View(0).Length(0), 112u);
  // What was opened under one policy is no beginning for another one.
  auto last = *attached->Open({.prompt_tokens = 16, .max_tokens = 64});
  ASSERT_TRUE(feed(last.get(), 16).ok());
  tenant.ladder.reset();
  tenant.rung = 0;
  manager_.Set(1, tenant);
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).rungs.empty(); }));
  const absl::Status refused = attached->Fork(*last, 64).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
}

TEST_F(PrefixTest, APolicyThatMustSeeThePromptSharesNothing) {
  SetTenant(1, 8, *MakePolicySpec("fastgen", {}));
  StartAgent();
  const Attached a = Attach(1);
  const std::vector<int32_t> prompt = Prompt(100);
  auto first = Open(a, prompt);
  EXPECT_EQ(Open(a, prompt)->shared_tokens(), 0u);
}

TEST_F(PrefixTest, AForkHasTheRowsOfItsParentAndItsOwnAfterThem) {
  SetTenant(1, 8);
  StartAgent();
  auto connection = *Connection::Open({.socket = socket_});
  auto tenant = *connection->Attach("kvp_1", {.geometry = config_.CacheGeometry(Dtype::kF32),
                                              .max_sessions = 4,
                                              .max_running = 4,
                                              .max_session_tokens = 256});
  const Layout& layout = tenant->layout();
  const Geometry& g = layout.geometry();
  const auto feed = [&](Session* session, uint32_t tokens, float value) {
    Step step{.session = session, .tokens = tokens};
    EXPECT_TRUE(tenant->SafePoint({&step, 1}).ok());
    ASSERT_TRUE(step.outcome.ok()) << step.outcome;
    const std::vector<float> row(g.key_dim + g.value_dim, value);
    for (uint32_t i = 0; i < tokens; ++i) {
      for (uint32_t l = 0; l < g.layers; ++l) {
        for (uint32_t h = 0; h < g.kv_heads; ++h) {
          StoreRow(layout, tenant->base(), session->WriteBlock(l, h, i), session->WriteRow(i),
                   row.data(), row.data());
        }
      }
    }
    ASSERT_TRUE(session->Commit(tokens, nullptr).ok());
  };
  const auto value_at = [&](Session* session, uint32_t row) {
    std::vector<float> key(g.key_dim), value(g.value_dim);
    ReadRow(layout, tenant->base(), session->View(0), 3, row, key.data(), value.data());
    return value[0];
  };
  auto parent = *tenant->Open({.prompt_tokens = 40, .max_tokens = 200});
  feed(parent.get(), 40, 1);
  auto fork = tenant->Fork(*parent, 200);
  ASSERT_TRUE(fork.ok()) << fork.status();
  feed(fork->get(), 20, 2);
  feed(parent.get(), 20, 3);
  for (uint32_t row = 0; row < 60; ++row) {
    EXPECT_EQ(value_at(fork->get(), row), row < 40 ? 1 : 2) << row;
    EXPECT_EQ(value_at(parent.get(), row), row < 40 ? 1 : 3) << row;
  }
  // Two shared pages, and two more each.
  EXPECT_EQ(tenant->Statistics()->used_bytes,
            6 * static_cast<uint64_t>(layout.page_bytes().value()));
  EXPECT_EQ(tenant->Fork(*parent, 59).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(tenant->Fork(*parent, 300).status().code(), absl::StatusCode::kOutOfRange);
  parent.reset();
  fork->reset();
  EXPECT_TRUE(Eventually([&] { return tenant->Statistics()->used_bytes == 0; }));
}

TEST_F(PrefixTest, ASlotThatIsNotOnesOwnIsNotForked) {
  SetTenant(1, 8);
  SetTenant(2, 8);
  StartAgent();
  RpcThread thread;
  RawWorker a(thread, socket_), b(thread, socket_);
  ASSERT_EQ(a.Authenticate("kvp_1"), "ok");
  ASSERT_EQ(b.Authenticate("kvp_2"), "ok");
  ASSERT_EQ(a.Attach(config_.CacheGeometry(Dtype::kF32)), "ok");
  ASSERT_EQ(b.Attach(config_.CacheGeometry(Dtype::kF32)), "ok");
  ASSERT_EQ(a.Open(20, 30), "ok");
  EXPECT_EQ(b.Fork(0, 30), "badState") << "of another worker, and tenant";
  EXPECT_EQ(a.Fork(1, 30), "badState");
  EXPECT_EQ(a.Fork(~0u, 30), "badState");
  EXPECT_EQ(a.Fork(0, 10), "badArgument") << "shorter than the prompt";
  EXPECT_EQ(a.Fork(0, 1 << 20), "tooLarge");
  EXPECT_EQ(a.Fork(0, 30), "ok");
  EXPECT_EQ(a.Fork(0, 30), "ok");
  EXPECT_EQ(a.Fork(0, 30), "ok");
  EXPECT_EQ(a.Fork(0, 30), "tooMany") << "it has four slots";
}

TEST_F(PrefixTest, ListsThatAreTooLongAreRefusedAndAnyNumbersAreTokens) {
  SetTenant(1, 8);
  StartAgent();
  RpcThread thread;
  RawWorker worker(thread, socket_);
  ASSERT_EQ(worker.Authenticate("kvp_1"), "ok");
  ASSERT_EQ(worker.Attach(config_.CacheGeometry(Dtype::kF32)), "ok");
  const std::vector<uint32_t> any = {0, ~0u, 1u << 31, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7};
  EXPECT_EQ(worker.Open(20, 30, any), "ok");
  EXPECT_EQ(worker.Open(16, 30, any), "badArgument") << "more than its prompt has";
  EXPECT_EQ(worker.Open(20, 30, any, std::string(limits::kPrefixModelBytes, 'm')), "ok");
  EXPECT_EQ(worker.Open(20, 30, any, std::string(limits::kPrefixModelBytes + 1, 'm')),
            "badArgument");
  const std::vector<uint32_t> most(limits::kPrefixTokens + 1, 3);
  EXPECT_EQ(worker.Open(1 << 20, 1 << 20, most), "badArgument");
  const std::vector<uint32_t> allowed(limits::kPrefixTokens, 3);
  EXPECT_EQ(worker.Open(1 << 20, 1 << 20, allowed), "tooLarge") << "the session is";
}

}  // namespace
}  // namespace kvpool
