// A lease that comes down under sessions that do not give way: the grace, what a tenant past its
// deadline still gets, and the end of sessions where the operator allows it. A real kvpool-agent
// process, the real client library, and a manager that does as it is told.
//
// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "client/kvpool.h"
#include "tests/integration/fake_manager.h"
#include "tests/integration/process.h"

namespace kvpool {
namespace {

using std::chrono::milliseconds;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kToken[] = "kvp_tenant";
constexpr char kPreempted[] = "6:2";         // step 6 for a lease that shrank
constexpr char kRefusedForShrink[] = "5:2";  // step 5 for the same
// Of a filled session: one token more fits its eight pages.
constexpr uint32_t kFilled = 8 * kPageTokens - 1;

class GraceTest : public testing::Test {
 protected:
  GraceTest() {
    Order(8, {});
    // Pages of this geometry have 8 KiB, so a slab of 256 KiB has 32.
    agent_ = Process("kvpool-agent",
                     {"--name", "a", "--socket", socket_, "--manager", manager_.address(),
                      "--manager-token", FakeManager::kToken, "--http", "127.0.0.1:0", "--pool",
                      "4 MiB", "--slab-bytes", "256 KiB", "--reserve-slabs", "0"},
                     dir_ / "agent.log");
    EXPECT_TRUE(Eventually([this] { return manager_.reports() >= 2; })) << "agent did not report";
    auto connection = Connection::Open({.socket = socket_, .worker = "test"});
    EXPECT_TRUE(connection.ok()) << connection.status();
    connection_ = *std::move(connection);
    auto tenant = connection_->Attach(kToken, {.geometry = {.layers = 2,
                                                            .query_heads = 4,
                                                            .kv_heads = 2,
                                                            .key_dim = 32,
                                                            .value_dim = 32,
                                                            .dtype = Dtype::kBf16,
                                                            .kv_of_layer = {0, 1}},
                                               .max_sessions = 32,
                                               .max_running = 32,
                                               .max_session_tokens = 256,
                                               .chunk_tokens = kFilled});
    EXPECT_TRUE(tenant.ok()) << tenant.status();
    tenant_ = *std::move(tenant);
  }

  struct Rules {
    milliseconds cold{300};
    milliseconds running{300};
    rpc::OverDeadline then = rpc::OverDeadline::HOLD;
  };
  void Order(uint32_t lease, const Rules& rules) {
    manager_.Set(1, {.name = "t",
                     .token = kToken,
                     .lease_slabs = lease,
                     .limit_slabs = 16,
                     .policy = *MakePolicySpec("full", {}),
                     .grace_cold_millis = static_cast<uint32_t>(rules.cold.count()),
                     .grace_running_millis = static_cast<uint32_t>(rules.running.count()),
                     .over_deadline = rules.then});
  }

  // Keys and values do not matter here, lengths do.
  absl::Status Advance(Session* session, uint32_t tokens) {
    Step step{.session = session, .tokens = tokens};
    if (absl::Status status = tenant_->SafePoint({&step, 1}); !status.ok()) return status;
    if (!step.outcome.ok()) return step.outcome;
    const std::vector<float> queries(size_t{tokens} * 2 * 4 * 32, 0.1f);
    return session->Commit(tokens, session->WantsQueries(tokens) ? queries.data() : nullptr);
  }

  // Sessions of 8 pages each, the oldest first: four fill a slab.
  void Fill(size_t count) {
    for (size_t i = 0; i < count; ++i) {
      auto session = tenant_->Open({.prompt_tokens = kFilled, .max_tokens = kFilled + 64});
      ASSERT_TRUE(session.ok()) << session.status();
      sessions_.push_back(*std::move(session));
      ASSERT_TRUE(Advance(sessions_.back().get(), kFilled).ok());
    }
    ASSERT_TRUE(Eventually([&] { return manager_.Use(1).used_bytes >= count * 8 * 8192; }));
  }

  // A safe point of every session that has not ended. True when the tenant is within its lease.
  bool StepAll(uint32_t lease) {
    for (auto& session : sessions_) {
      if (session == nullptr) continue;
      Step step{.session = session.get(), .tokens = 1};
      EXPECT_TRUE(tenant_->SafePoint({&step, 1}).ok());
      if (absl::IsCancelled(step.outcome)) session.reset();
    }
    return manager_.Use(1).held_slabs <= lease;
  }
  std::vector<bool> Alive() const {
    std::vector<bool> alive;
    for (const auto& session : sessions_) alive.push_back(session != nullptr);
    return alive;
  }

  TempDir dir_;
  const std::string socket_ = dir_ / "agent.sock";
  FakeManager manager_;
  Process agent_;
  std::unique_ptr<Connection> connection_;
  std::unique_ptr<Tenant> tenant_;
  std::vector<std::unique_ptr<Session>> sessions_;
};

TEST_F(GraceTest, UnderHoldRunningSessionsStayAndNothingNewIsGiven) {
  Fill(10);  // 80 pages: three slabs
  const uint32_t held = manager_.Use(1).held_slabs;
  ASSERT_GE(held, 3u);
  sessions_[9].reset();  // free pages in slabs that it still holds
  Order(1, {});
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).over_millis > 0; }));
  ASSERT_TRUE(Eventually([&] {
    StepAll(1);
    return manager_.Use(1).past_deadline;
  }));
  EXPECT_GE(manager_.Use(1).over_millis, 300u);
  EXPECT_GT(manager_.Use(1).held_slabs, 1u);
  // Nothing new, although there are free pages and slots.
  const absl::Status opened = tenant_->Open({.prompt_tokens = 1, .max_tokens = 16}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(opened)) << opened;
  EXPECT_THAT(opened.ToString(), HasSubstr("longer than its grace: no new session until it fits"));
  EXPECT_TRUE(Advance(sessions_[0].get(), 1).ok()) << "there is room in its last page";
  const absl::Status page = Advance(sessions_[0].get(), 1);
  EXPECT_TRUE(absl::IsResourceExhausted(page)) << page;
  EXPECT_THAT(page.ToString(), HasSubstr("no new page until it fits"));
  EXPECT_TRUE(Eventually([&] {
    const auto reclaims = manager_.Reclaims(1);
    return std::count(reclaims.begin(), reclaims.end(), kRefusedForShrink) > 0;
  }));
  EXPECT_GE(manager_.Use(1).refusals, 1u);
  EXPECT_THAT(manager_.Reclaims(1), Not(Contains(kPreempted)));
  // Everybody is still there; when enough have ended, what is left goes on.
  for (size_t i = 0; i < 9; ++i) ASSERT_NE(sessions_[i], nullptr) << i;
  for (size_t i = 3; i < 9; ++i) sessions_[i].reset();
  EXPECT_TRUE(Eventually([&] { return StepAll(1); })) << manager_.Use(1).held_slabs;
  EXPECT_TRUE(Eventually([&] { return !manager_.Use(1).past_deadline; }));
  EXPECT_EQ(manager_.Use(1).over_millis, 0u);
  EXPECT_TRUE(Advance(sessions_[0].get(), 1).ok());
}

TEST_F(GraceTest, UnderPreemptTheYoungestEndAndTheOldestGoesOn) {
  Fill(10);
  constexpr milliseconds kGrace(400);
  const auto start = std::chrono::steady_clock::now();
  Order(2, {.cold = kGrace, .running = kGrace, .then = rpc::OverDeadline::PREEMPT});
  ASSERT_TRUE(Eventually([&] { return StepAll(2); })) << manager_.Use(1).held_slabs;
  const auto took = std::chrono::steady_clock::now() - start;
  EXPECT_GE(took, kGrace) << "not before its time";
  EXPECT_LE(took, kGrace + std::chrono::seconds(1));
  // 64 of 80 pages fit: two sessions had to go.
  std::vector<bool> expected(10, true);
  expected[8] = expected[9] = false;
  EXPECT_EQ(Alive(), expected);
  EXPECT_TRUE(Eventually(
      [&] { return !manager_.Use(1).past_deadline && manager_.Use(1).lease_slabs == 2; }));
  EXPECT_THAT(manager_.Reclaims(1), Contains(kPreempted));
  EXPECT_EQ(manager_.Use(1).sessions, 8u);
  EXPECT_EQ(sessions_[0]->View(0).Length(0), kFilled);
  Order(4, {});
  EXPECT_TRUE(Eventually([&] { return Advance(sessions_[0].get(), 1).ok(); }));
}

TEST_F(GraceTest, AnEndedSessionSaysWhyAsLongAsItIsThere) {
  Fill(6);
  for (auto& session : sessions_) session->Park();
  Order(1, {.cold = milliseconds(1), .then = rpc::OverDeadline::PREEMPT});
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).held_slabs <= 1; }));
  // Idle ones end as soon as their grace has passed, without a step of the worker's.
  for (int again = 0; again < 2; ++again) {
    for (size_t i = 0; i < sessions_.size(); ++i) {
      Step step{.session = sessions_[i].get(), .tokens = 1};
      ASSERT_TRUE(tenant_->SafePoint({&step, 1}).ok());
      EXPECT_EQ(absl::IsCancelled(step.outcome), i >= 4) << i << " " << step.outcome;
      sessions_[i]->Park();
    }
  }
  EXPECT_EQ(manager_.Use(1).sessions, 6u) << "its worker has not let go of them";
  sessions_.clear();
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).sessions == 0; }));
}

TEST_F(GraceTest, OnlyColdBytesAreDueBeforeTheGraceOfRunningOnes) {
  Fill(10);
  for (size_t i = 0; i < 4; ++i) sessions_[i]->Park();  // the oldest
  Order(1, {.cold = milliseconds(100),
            .running = std::chrono::minutes(10),
            .then = rpc::OverDeadline::PREEMPT});
  // 48 pages of running sessions: two slabs, which stay.
  ASSERT_TRUE(Eventually([&] {
    for (size_t i = 4; i < sessions_.size(); ++i) {
      Step step{.session = sessions_[i].get(), .tokens = 1};
      EXPECT_TRUE(tenant_->SafePoint({&step, 1}).ok());
      EXPECT_FALSE(absl::IsCancelled(step.outcome)) << i;
    }
    return manager_.Use(1).held_slabs <= 2;
  })) << manager_.Use(1).held_slabs;
  EXPECT_FALSE(manager_.Use(1).past_deadline);
  EXPECT_GT(manager_.Use(1).over_millis, 0u);
  EXPECT_THAT(manager_.Reclaims(1), Contains(kPreempted));
}

TEST_F(GraceTest, AWorkerThatNeverStepsIsHeld) {
  Fill(6);
  const uint32_t held = manager_.Use(1).held_slabs;
  Order(1, {.then = rpc::OverDeadline::PREEMPT});
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).past_deadline; }));
  // Long enough for dozens of plans.
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).over_millis > 1000; }));
  EXPECT_TRUE(manager_.Use(1).past_deadline);
  EXPECT_GE(manager_.Use(1).held_slabs, std::min(held, 2u));
  EXPECT_EQ(manager_.Use(1).used_bytes, 6u * 8 * 8192);
  EXPECT_THAT(manager_.Reclaims(1), Not(Contains(kPreempted)));
  // At its next safe point it gives way after all.
  EXPECT_TRUE(Eventually([&] { return StepAll(1); }));
  EXPECT_EQ(Alive(), (std::vector<bool>{true, true, true, true, false, false}));
}

TEST_F(GraceTest, AnOlderManagerSetsNoDeadline) {
  Fill(6);
  Order(1, {.cold = {}, .running = {}, .then = rpc::OverDeadline::UNKNOWN});
  ASSERT_TRUE(Eventually([&] { return manager_.Use(1).over_millis > 200; }));
  StepAll(1);
  EXPECT_FALSE(manager_.Use(1).past_deadline);
  EXPECT_EQ(Alive(), std::vector<bool>(6, true));
}

TEST_F(GraceTest, OrdersWithAGraceThatCannotBeAreIgnored) {
  Order(1, {.running = std::chrono::hours(2)});
  const uint64_t now = manager_.reports();
  ASSERT_TRUE(Eventually([&] { return manager_.reports() >= now + 5; }));
  EXPECT_EQ(manager_.Use(1).lease_slabs, 8u);
  Order(1, {});
  EXPECT_TRUE(Eventually([&] { return manager_.Use(1).lease_slabs == 1; }));
}

}  // namespace
}  // namespace kvpool
