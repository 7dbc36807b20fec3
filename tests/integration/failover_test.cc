// Two managers on one etcd, real processes throughout: the leader is killed, stopped and woken,
// loses etcd; agents and workers go on, and never obey one that leads no longer.
//
// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <memory>

#include "client/cli/api_client.h"
#include "tests/integration/decode_load.h"
#include "tests/integration/failover_rig.h"
#include "tests/manager/fake_agent.h"

namespace kvpool {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr milliseconds kTwoTtl = 2 * FailoverRig::kTtl;

class FailoverTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!EtcdServer::Installed()) GTEST_SKIP() << EtcdServer::kProgram << " is not installed";
    rig_ = std::make_unique<FailoverRig>();
    const auto leader = rig_->AwaitLeader();
    ASSERT_TRUE(leader.has_value()) << "nobody leads";
    leader_ = *leader;
    ASSERT_TRUE(Eventually([&] { return rig_->Call(other(), "GET", "/healthz").status == 200; }))
        << "the other one does not run";
  }

  size_t other() const { return 1 - leader_; }
  uint64_t EpochOf(size_t manager) const {
    const auto* epoch = Find(rig_->Get(manager, "/v1/tenants"), "epoch");
    return epoch == nullptr ? 0 : epoch->to_number<uint64_t>();
  }
  static const boost::json::value* Find(const boost::json::object& object, const char* field) {
    static boost::json::value found;
    const boost::json::value* value = object.if_contains(field);
    if (value == nullptr) return nullptr;
    found = *value;
    return &found;
  }
  int64_t Leased(size_t manager, const std::string& tenant) const {
    const auto* leased = Find(rig_->Get(manager, "/v1/tenants/" + tenant), "leased");
    return leased == nullptr ? -1 : leased->to_number<int64_t>();
  }
  // A tenant, and its worker token.
  std::string MakeTenant(const std::string& name, const std::string& json) {
    EXPECT_EQ(rig_->Call(leader_, "PUT", "/v1/tenants/" + name, json).status, 200);
    const HttpResponse token = rig_->Call(leader_, "POST", "/v1/tenants/" + name + "/tokens");
    EXPECT_EQ(token.status, 201) << token.body;
    return std::string(boost::json::parse(token.body).at("token").as_string());
  }
  void StartAgent() {
    rig_->StartAgent("a", 32);
    ASSERT_TRUE(Eventually([&] { return AgentFollows(leader_); })) << "the agent did not register";
  }
  bool AgentFollows(size_t manager) const {
    const auto* connected = Find(rig_->Get(manager, "/v1/agents/a"), "connected");
    return connected != nullptr && connected->as_bool();
  }
  double AgentEpoch() const {
    return rig_->AgentMetric("a", "kvpool_agent_manager_epoch_info").value_or(0);
  }

  std::unique_ptr<FailoverRig> rig_;
  size_t leader_ = 0;
};

TEST_F(FailoverTest, AStandbyIsHealthyAndNamesTheLeader) {
  EXPECT_EQ(rig_->Call(other(), "GET", "/healthz").status, 200);
  const HttpResponse ready = rig_->Call(other(), "GET", "/readyz");
  EXPECT_EQ(ready.status, 503);
  EXPECT_THAT(ready.body, AllOf(HasSubstr("standby"), HasSubstr(rig_->http_address(leader_))));
  const HttpResponse api =
      rig_->Call(other(), "PUT", "/v1/tenants/t", R"({"guaranteed": 0, "limit": 1})");
  EXPECT_EQ(api.status, 503);
  EXPECT_THAT(api.body, AllOf(HasSubstr("not_leader"), HasSubstr(rig_->http_address(leader_))));
  EXPECT_EQ(rig_->ManagerMetric(other(), "kvpool_manager_leads"), 0.0);
  EXPECT_EQ(rig_->ManagerMetric(leader_, "kvpool_manager_leads"), 1.0);

  FakeAgent agent(
      {.manager = *ParseAddress(rig_->agents_address(other())), .token = FailoverRig::kAgentToken});
  EXPECT_EQ(agent.Connect(), "notLeader");
}

TEST_F(FailoverTest, OperatorsNameAllManagersAndTheLeaderAnswers) {
  const HostPort standby = *ParseHostPort(rig_->http_address(other()));
  const HostPort leader = *ParseHostPort(rig_->http_address(leader_));
  const HostPort nobody{"127.0.0.1", FreePort()};
  const ApiClient api({nobody, standby, leader}, FailoverRig::kOperatorToken);
  const auto put = api.Put("/v1/tenants/t", {{"guaranteed", 0}, {"limit", 1 << 20}});
  EXPECT_TRUE(put.ok()) << put.status();
  EXPECT_TRUE(api.Get("/v1/tenants/t").ok());
  EXPECT_EQ(api.Get("/v1/tenants/u").status().code(), absl::StatusCode::kNotFound)
      << "an answer of the leader is final";
  const ApiClient lost({nobody, standby}, FailoverRig::kOperatorToken);
  const absl::Status status = lost.Get("/v1/tenants/t").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr(ToString(leader)));
}

TEST_F(FailoverTest, AKilledLeaderIsReplacedAndNoWorkerNotices) {
  StartAgent();
  const std::string token = MakeTenant("t", R"({"guaranteed": "2 MiB", "limit": "4 MiB"})");
  DecodeLoad load(rig_->Socket("a"), token, 1024);
  ASSERT_TRUE(Eventually([&] { return load.steps() > 100; })) << load.status();
  const uint64_t epoch = EpochOf(leader_);
  const auto held = rig_->AgentMetric("a", "kvpool_agent_tenant_held_bytes{tenant=\"t\"}");

  const auto killed = std::chrono::steady_clock::now();
  rig_->KillManager(leader_);
  ASSERT_TRUE(Eventually([&] { return rig_->Leads(other()); }, kTwoTtl));
  EXPECT_LT(std::chrono::steady_clock::now() - killed, kTwoTtl);
  EXPECT_GT(EpochOf(other()), epoch);
  // Nothing is ordered before the agent has told what it has; then it follows the new epoch.
  ASSERT_TRUE(Eventually([&] { return AgentEpoch() > static_cast<double>(epoch); }));
  ASSERT_TRUE(Eventually([&] { return rig_->Call(other(), "GET", "/readyz").status == 200; }));
  const int64_t leased = Leased(other(), "t");
  EXPECT_GE(leased, static_cast<int64_t>(held.value_or(0)));
  EXPECT_LE(leased, 4 << 20);

  const uint64_t steps = load.steps();
  ASSERT_TRUE(Eventually([&] { return load.steps() > steps + 100; }));
  EXPECT_TRUE(load.status().ok()) << load.status();
  EXPECT_EQ(rig_->Call(other(), "PUT", "/v1/tenants/u", R"({"guaranteed": 0, "limit": 1})").status,
            200);
}

TEST_F(FailoverTest, AStoppedLeaderThatWakesUpGivesNoOrders) {
  StartAgent();
  MakeTenant("t", R"({"guaranteed": "2 MiB", "limit": "4 MiB"})");
  FakeAgent agent({.manager = *ParseAddress(rig_->agents_address(leader_)),
                   .name = "b",
                   .token = FailoverRig::kAgentToken,
                   .slab_bytes = 256 << 10});
  ASSERT_EQ(agent.Connect(), "ok");
  ASSERT_TRUE(agent.Exchange().ok());
  const uint64_t epoch = EpochOf(leader_);

  rig_->SignalManager(leader_, SIGSTOP);
  ASSERT_TRUE(Eventually([&] { return rig_->Leads(other()); }, kTwoTtl));
  rig_->SignalManager(leader_, SIGCONT);
  EXPECT_FALSE(agent.Exchange().ok()) << "the first thing that it hears when it wakes";
  EXPECT_EQ(agent.Connect(), "notLeader");
  const HttpResponse api = rig_->Call(leader_, "GET", "/v1/tenants");
  EXPECT_EQ(api.status, 503) << api.body;
  ASSERT_TRUE(Eventually([&] {
    return rig_->Call(leader_, "GET", "/readyz").body.find(rig_->http_address(other())) !=
           std::string::npos;
  })) << "it stands by and knows who leads";
  ASSERT_TRUE(Eventually([&] { return AgentFollows(other()); }));
  EXPECT_GT(EpochOf(other()), epoch);
  EXPECT_EQ(rig_->ManagerMetric(leader_, "kvpool_manager_epoch"), 0.0);
}

TEST_F(FailoverTest, ALeaderThatIsStoppedProperlyLeavesAtOnce) {
  rig_->SignalManager(leader_, SIGTERM);
  EXPECT_TRUE(Eventually([&] { return rig_->Leads(other()); }, FailoverRig::kTtl));
}

TEST_F(FailoverTest, WithoutEtcdNobodyLeadsAndLeasesStay) {
  StartAgent();
  const std::string token = MakeTenant("t", R"({"guaranteed": "2 MiB", "limit": "4 MiB"})");
  DecodeLoad load(rig_->Socket("a"), token, 1024);
  ASSERT_TRUE(Eventually([&] { return load.steps() > 100; })) << load.status();
  const uint64_t epoch = EpochOf(leader_);
  rig_->etcd().Kill();
  ASSERT_TRUE(Eventually([&] { return !rig_->Leader().has_value(); }));
  EXPECT_THAT(rig_->Call(leader_, "GET", "/readyz").body, HasSubstr("standby"));
  EXPECT_GT(rig_->AgentMetric("a", "kvpool_agent_tenant_lease_bytes{tenant=\"t\"}").value_or(0), 0);
  const uint64_t steps = load.steps();
  ASSERT_TRUE(Eventually([&] { return load.steps() > steps + 100; }));
  rig_->KillManager(other());
  rig_->StartManager(other());
  ASSERT_TRUE(Eventually([&] { return rig_->Call(other(), "GET", "/healthz").status == 200; }))
      << "a manager may be started before etcd";

  rig_->etcd().Start();
  const auto leader = rig_->AwaitLeader();
  ASSERT_TRUE(leader.has_value());
  ASSERT_TRUE(Eventually([&] { return AgentFollows(*leader); }));
  EXPECT_GT(EpochOf(*leader), epoch);
  EXPECT_GT(Leased(*leader, "t"), 0);
  EXPECT_TRUE(load.status().ok()) << load.status();
}

}  // namespace
}  // namespace kvpool
