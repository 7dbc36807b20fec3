// The whole manager in this process: operators over real HTTP, agents over real RPC, a real
// database; restarts included.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/manager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/json.hpp>

#include "manager/records.h"
#include "manager/sqlite_store.h"
#include "tests/common/policy_values.h"
#include "tests/manager/manager_fixture.h"

namespace kvpool {
namespace {

namespace json = boost::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;

TEST_F(ManagerTest, OnlyOperatorsMayAsk) {
  for (const char* token : {"", "wrong", "agent-token", "operator-token2"}) {
    const HttpResponse response = Call("GET", "/v1/tenants", "", token);
    EXPECT_THAT(Error(response, 401), HasSubstr("unauthenticated: a valid operator token"));
    EXPECT_EQ(Call("PUT", "/v1/tenants/a", "{}", token).status, 401);
  }
  EXPECT_EQ(Call("GET", "/v1/tenants", "", std::string(limits::kTokenBytes + 1, 'x')).status, 401);
  EXPECT_EQ(Call("GET", "/healthz", "", "").status, 200);
  EXPECT_EQ(Call("GET", "/readyz", "", "").status, 200);
  EXPECT_EQ(Call("GET", "/metrics", "", "").status, 200);
}

TEST_F(ManagerTest, AScopeIsAsFarAsAnOperatorGets) {
  Put("a", 0, 10);
  std::map<std::string, std::string> tokens;
  for (const std::string scope : {"read", "operate", "admin"}) {
    const HttpResponse created =
        Call("POST", "/v1/operators",
             json::serialize(json::object{{"name", scope + "-x"}, {"scope", scope}}));
    ASSERT_EQ(created.status, 201) << created.body;
    tokens[scope] = std::string(json::parse(created.body).at("token").as_string());
  }
  struct Case {
    std::string method, path, body, scope;  // the least that it takes
  };
  const std::string budget = R"({"guaranteed": 0, "limit": 1})";
  for (const Case& each : std::vector<Case>{
           {"GET", "/v1/tenants", "", "read"},
           {"GET", "/v1/tenants/a", "", "read"},
           {"GET", "/v1/tenants/a/reclaims", "", "read"},
           {"GET", "/v1/agents", "", "read"},
           {"GET", "/v1/agents/none", "", "read"},
           {"PUT", "/v1/tenants/a", budget, "operate"},
           {"DELETE", "/v1/tenants/none", "", "operate"},
           {"POST", "/v1/apply", "{}", "operate"},
           {"GET", "/v1/tenants/a/explain", "", "read"},
           {"POST", "/v1/agents/none/drain", "", "operate"},
           {"POST", "/v1/agents/none/undrain", "", "operate"},
           {"DELETE", "/v1/agents/none", "", "operate"},
           {"POST", "/v1/tenants/a/tokens", "", "admin"},
           {"DELETE", "/v1/tenants/a/tokens/none", "", "admin"},
           {"GET", "/v1/audit", "", "admin"},
           {"GET", "/v1/operators", "", "admin"},
           {"POST", "/v1/operators", "{}", "admin"},
           {"DELETE", "/v1/operators/none", "", "admin"},
       }) {
    bool allowed = false;
    for (const std::string scope : {"read", "operate", "admin"}) {
      allowed |= scope == each.scope;
      const HttpResponse response = Call(each.method, each.path, each.body, tokens[scope]);
      if (allowed) {
        EXPECT_NE(response.status, 403) << each.method << each.path << " " << response.body;
      } else {
        EXPECT_THAT(Error(response, 403),
                    AllOf(HasSubstr("forbidden: "), HasSubstr("takes the scope " + each.scope),
                          HasSubstr("\"" + scope + "-x\" has " + scope)));
      }
    }
  }
  EXPECT_EQ(Get("/v1/tenants/a").at("revision").as_int64(), 2) << "only the two that may";
}

TEST_F(ManagerTest, OperatorsComeAndGo) {
  const auto create = [&](const std::string& body) { return Call("POST", "/v1/operators", body); };
  const HttpResponse created = create(R"({"name": "ci", "scope": "read"})");
  EXPECT_EQ(created.status, 201);
  const std::string token(json::parse(created.body).at("token").as_string());
  EXPECT_THAT(Call("GET", "/v1/operators").body,
              AllOf(HasSubstr(R"("name":"ci","scope":"read")"), Not(HasSubstr(token)),
                    Not(HasSubstr("config"))));
  EXPECT_THAT(Error(create(R"({"name": "ci", "scope": "admin"})"), 409), HasSubstr("exists: "));
  EXPECT_THAT(Error(create(R"({"name": "c", "scope": "root"})"), 400), HasSubstr("no scope"));
  EXPECT_THAT(Error(create(R"({"name": "c"})"), 400), HasSubstr("scope"));
  EXPECT_THAT(Error(create(R"({"name": "c", "scope": "read", "x": 1})"), 400), HasSubstr("x"));

  StopManager();
  StartManager();
  EXPECT_EQ(Call("GET", "/v1/tenants", "", token).status, 200) << "after a restart";
  EXPECT_EQ(Call("DELETE", "/v1/operators/ci").status, 200);
  EXPECT_EQ(Call("GET", "/v1/tenants", "", token).status, 401) << "at once";
  EXPECT_EQ(Call("DELETE", "/v1/operators/ci").status, 404);
  EXPECT_THAT(Error(Call("DELETE", "/v1/operators/config"), 409), HasSubstr("operator_token_file"));
  for (uint32_t i = 0; i < limits::kOperators; ++i) {
    EXPECT_EQ(create(R"({"scope": "read", "name": "n)" + std::to_string(i) + "\"}").status, 201);
  }
  EXPECT_THAT(Error(create(R"({"name": "more", "scope": "read"})"), 422), HasSubstr("too_many"));
}

TEST_F(ManagerTest, PathsAndMethods) {
  for (const char* path : {"/", "/v1", "/v2/tenants", "/v1/cats", "/v1/cats/a", "/v1/tenants/a/b",
                           "/v1/tenants/a/reclaims/b", "/v1/tenants/a/tokens/b/c", "//"}) {
    EXPECT_EQ(Call("GET", path).status, 404) << path;
  }
  EXPECT_EQ(Call("DELETE", "/v1/tenants").status, 405);
  EXPECT_EQ(Call("GET", "/v1/apply").status, 405);
  EXPECT_EQ(Call("POST", "/v1/tenants/a").status, 405);
  EXPECT_EQ(Call("GET", "/v1/tenants/a/tokens").status, 405);
  EXPECT_EQ(Call("POST", "/v1/tenants/a/reclaims").status, 405);
  EXPECT_EQ(Call("POST", "/v1/agents/a").status, 405);
  EXPECT_EQ(Call("POST", "/metrics").status, 405);
  EXPECT_EQ(Call("PUT", "/v1/operators").status, 405);
}

TEST_F(ManagerTest, ATenantsLife) {
  const std::string body =
      R"({"guaranteed": "8 MiB", "limit": 25165824, "policy": {"name": "streaming", "recent": 60}})";
  json::value answer = json::parse(Call("PUT", "/v1/tenants/chat", body).body);
  EXPECT_EQ(json::serialize(answer),
            R"({"tenants":[{"name":"chat","change":"created","revision":1,"notes":[]}]})");
  EXPECT_THAT(Call("PUT", "/v1/tenants/chat", body).body, HasSubstr("unchanged"));

  json::value tenant = Get("/v1/tenants/chat");
  EXPECT_EQ(tenant.at("guaranteed").as_int64(), 8 * kMiB);
  EXPECT_EQ(tenant.at("limit").as_int64(), 24 * kMiB);
  EXPECT_EQ(
      json::serialize(tenant.at("policy")),
      R"({"name":"streaming","format":"native","open":128,"recent":60,"sinks":4,"slack":64})");
  EXPECT_EQ(tenant.at("leased").as_int64(), 0);
  EXPECT_TRUE(tenant.at("recovery").at("mean").is_null());

  const std::string stale = R"({"guaranteed": 0, "limit": 1, "revision": 7})";
  EXPECT_THAT(Error(Call("PUT", "/v1/tenants/chat", stale), 409), HasSubstr("stale_revision"));
  const std::string current = R"({"guaranteed": 0, "limit": 1, "revision": 1})";
  EXPECT_THAT(Call("PUT", "/v1/tenants/chat", current).body, HasSubstr("updated"));
  EXPECT_EQ(Get("/v1/tenants/chat").at("revision").as_int64(), 2);

  EXPECT_EQ(Call("DELETE", "/v1/tenants/chat").status, 200);
  EXPECT_THAT(Error(Call("GET", "/v1/tenants/chat"), 404), HasSubstr("not_found"));
  EXPECT_EQ(Call("DELETE", "/v1/tenants/chat").status, 404);
}

TEST_F(ManagerTest, EveryChangeIsOnRecord) {
  const auto entries = [&](const std::string& query = "") {
    return Get("/v1/audit" + query).at("entries").as_array();
  };
  EXPECT_EQ(entries().size(), 0u);
  Put("a", 0, 10);
  Put("a", 0, 10);  // changes nothing
  Put("a", 2, 12);
  const std::string made =
      Call("POST", "/v1/operators", R"({"name": "ci", "scope": "operate"})").body;
  const std::string token(json::parse(made).at("token").as_string());
  EXPECT_EQ(Call("PUT", "/v1/tenants/b", R"({"guaranteed": 0, "limit": 1})", token).status, 200);
  EXPECT_EQ(Call("PUT", "/v1/tenants/c", R"({"guaranteed": 2, "limit": 1})", token).status, 400);
  const std::string worker(
      json::parse(Call("POST", "/v1/tenants/a/tokens").body).at("id").as_string());
  EXPECT_EQ(Call("DELETE", "/v1/tenants/a/tokens/" + worker).status, 200);
  EXPECT_EQ(Call("DELETE", "/v1/tenants/b", "", token).status, 200);
  EXPECT_EQ(Call("DELETE", "/v1/operators/ci").status, 200);
  auto agent = std::make_unique<FakeAgent>(AgentOptions("gpu-0"));
  ASSERT_EQ(agent->Connect(), "ok");
  agent.reset();
  EXPECT_TRUE(Eventually([&] { return Call("DELETE", "/v1/agents/gpu-0").status == 200; }));
  StopManager();
  StartManager();

  std::string seen;
  for (const json::value& entry : entries()) {
    seen += std::string(entry.at("actor").as_string()) + " " +
            std::string(entry.at("action").as_string()) + " " +
            std::string(entry.at("name").as_string()) + " " +
            std::to_string(entry.at("revision").as_int64()) + "\n";
  }
  EXPECT_EQ(seen,
            "config tenant.create a 1\nconfig tenant.update a 2\nconfig operator.create ci 0\n"
            "ci tenant.create b 1\nconfig token.create a 2\nconfig token.revoke a 2\n"
            "ci tenant.delete b 0\nconfig operator.revoke ci 0\nconfig agent.forget gpu-0 0\n");
  const json::value update = entries().at(1);
  EXPECT_EQ(update.at("before").at("limit"), 10 * kMiB);
  EXPECT_EQ(update.at("after").at("limit"), 12 * kMiB);
  EXPECT_THAT(std::string(update.at("time").as_string()),
              MatchesRegex("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"));
  EXPECT_TRUE(entries().at(0).at("before").is_null());
  EXPECT_TRUE(entries().at(6).at("after").is_null());
  EXPECT_EQ(entries().at(4).at("after").at("token").as_string(), worker);
  EXPECT_EQ(entries().at(8).at("before").at("pool"), 40 * kMiB);
  EXPECT_THAT(json::serialize(entries()), Not(HasSubstr(token)));

  EXPECT_EQ(entries("?limit=2").at(0).at("seq"), 8) << "the newest";
  EXPECT_EQ(entries("?limit=2&after=3").at(0).at("seq"), 4) << "the next";
  EXPECT_EQ(entries("?after=9").size(), 0u);
  EXPECT_EQ(entries("?tenant=b").size(), 2u);
  Put("a", 0, 1);
  EXPECT_EQ(entries("?limit=1").at(0).at("seq"), 10) << "no number twice, restart or not";
  const auto error = [&](const std::string& query) {
    return Error(Call("GET", "/v1/audit?" + query), 400);
  };
  EXPECT_THAT(error("limit=" + std::to_string(limits::kAuditReply + 1)), HasSubstr("at most 256"));
  EXPECT_THAT(error("after=-1"), HasSubstr("\"after\" must be a whole number"));
  EXPECT_THAT(error("limit"), HasSubstr("once, with a value"));
  EXPECT_THAT(error("limit=1&limit=1"), HasSubstr("once, with a value"));
  EXPECT_THAT(error("since=1"), HasSubstr("there are: after, limit, tenant"));
  EXPECT_THAT(Error(Call("GET", "/v1/tenants?x=1"), 400), HasSubstr("there is none"));
}

TEST_F(ManagerTest, ADryRunIsCheckedAndWritesNothing) {
  const std::string body = R"({"guaranteed": 0, "limit": 1048576})";
  const json::value rehearsal = json::parse(Call("PUT", "/v1/tenants/a?dry_run=true", body).body);
  EXPECT_EQ(rehearsal.at("changes").at(0).at("action"), "tenant.create");
  EXPECT_EQ(rehearsal.at("changes").at(0).at("revision"), 1);
  EXPECT_EQ(json::serialize(rehearsal.at("leases")), "[]") << "nobody has anything to lose";
  EXPECT_EQ(json::serialize(Get("/v1/tenants").at("tenants")), "[]");
  EXPECT_EQ(Call("PUT", "/v1/tenants/a?dry_run=false", body).status, 200);
  EXPECT_EQ(Call("DELETE", "/v1/tenants/a?dry_run=true").status, 200);
  EXPECT_EQ(Get("/v1/tenants/a").at("revision"), 1);
  EXPECT_EQ(Get("/v1/audit").at("entries").as_array().size(), 1u);
  StopManager();
  StartManager();
  EXPECT_EQ(Get("/v1/tenants").at("tenants").as_array().size(), 1u);
  const std::string stale = R"({"guaranteed": 0, "limit": 1, "revision": 7})";
  EXPECT_EQ(Call("PUT", "/v1/tenants/a?dry_run=true", stale).status, 409);
  EXPECT_THAT(Error(Call("PUT", "/v1/tenants/a?dry_run=yes", body), 400),
              HasSubstr("true or false"));
  EXPECT_THAT(Error(Call("POST", "/v1/tenants/a/tokens?dry_run=true"), 400),
              HasSubstr("not known here"));
}

TEST_F(ManagerTest, WrongBodiesAreExplained) {
  const auto error = [&](const std::string& body) {
    return Error(Call("PUT", "/v1/tenants/a", body), 400);
  };
  EXPECT_THAT(error("{"), HasSubstr("invalid"));
  EXPECT_THAT(error("[]"), HasSubstr("invalid"));
  EXPECT_THAT(error(R"({"guaranteed": 0})"), HasSubstr("limit"));
  EXPECT_THAT(error(R"({"guaranteed": 0, "limit": -1})"), HasSubstr("limit"));
  EXPECT_THAT(error(R"({"guaranteed": 0, "limit": 1.5})"), HasSubstr("limit"));
  EXPECT_THAT(
      error(R"({"guaranteed": 0, "limit": )" + std::to_string(limits::kTenantBytes + 1) + "}"),
      HasSubstr("limit"));
  EXPECT_THAT(error(R"({"guaranteed": 0, "limit": "5 MB"})"), HasSubstr("MiB"));
  EXPECT_THAT(error(R"({"guaranteed": 2, "limit": 1})"), HasSubstr("2 B > 1 B"));
  EXPECT_THAT(error(R"({"guaranteed": 0, "limit": 1, "wait": 1})"), HasSubstr("wait"));
  EXPECT_THAT(error(R"({"guaranteed": 0, "limit": 1, "limit": 2})"), HasSubstr("limit"));
  EXPECT_THAT(error(R"({"name": "b", "guaranteed": 0, "limit": 1})"), HasSubstr("in the path"));
  EXPECT_THAT(error(R"({"guaranteed": 0, "limit": 1, "policy": {"name": "best"}})"),
              HasSubstr("not known"));
  EXPECT_THAT(error(R"({"guaranteed": 0, "limit": 1, "policy": {"name": "full", "x": 1}})"),
              HasSubstr("no parameter"));
  const auto policy_error = [&](const std::string& policy) {
    return error(R"({"guaranteed": 0, "limit": 1, "policy": )" + policy + "}");
  };
  EXPECT_THAT(policy_error(R"({"name": "h2o", "budget": 15})"), HasSubstr("16..1048576 tokens"));
  EXPECT_THAT(policy_error(R"({"name": "h2o", "budget": 64.5})"), HasSubstr("16..1048576 tokens"));
  EXPECT_THAT(policy_error(R"({"name": "adakv", "floor": -0.1})"), HasSubstr("must be 0..1"));
  EXPECT_THAT(policy_error(R"({"name": "corm", "threshold": 1})"),
              HasSubstr("inv_step or inv_cached"));
  EXPECT_THAT(policy_error(R"({"name": "tova", "recent": 1})"), HasSubstr("it has budget, slack"));
  EXPECT_THAT(policy_error(R"({"name": "pyramidkv", "budget": 16, "window": 17})"),
              HasSubstr("window must not exceed budget"));
  EXPECT_THAT(Error(Call("PUT", "/v1/tenants/A_b", R"({"guaranteed": 0, "limit": 1})"), 400),
              HasSubstr("not allowed"));
  EXPECT_EQ(Call("PUT", "/v1/tenants/a", std::string(limits::kHttpBodyBytes + 1, ' ')).status, 413);
  EXPECT_EQ(json::serialize(Get("/v1/tenants").at("tenants")), "[]");
  const std::string page = Call("GET", "/metrics", "", "").body;
  EXPECT_THAT(page, HasSubstr("kvpool_manager_http_requests_total{outcome=\"refused\"} 20"));
  EXPECT_THAT(page, HasSubstr("kvpool_manager_http_requests_total{outcome=\"bad\"} 1"));
}

TEST_F(ManagerTest, ApplyIsAllOrNothing) {
  FakeAgent agent(AgentOptions("a"));  // 40 MiB
  ASSERT_EQ(agent.Connect(), "ok");
  const std::string too_much = R"({"version": 1, "tenants": [
      {"name": "a", "guaranteed": "30 MiB", "limit": "30 MiB"},
      {"name": "b", "guaranteed": "20 MiB", "limit": "30 MiB"}]})";
  EXPECT_THAT(Error(Call("POST", "/v1/apply", too_much), 400),
              HasSubstr("a 30 MiB + b 20 MiB = 50 MiB, but the agents' pools hold 40 MiB"));
  EXPECT_EQ(json::serialize(Get("/v1/tenants").at("tenants")), "[]");

  const std::string fits = R"({"version": 1, "tenants": [
      {"name": "a", "guaranteed": "30 MiB", "limit": "30 MiB"},
      {"name": "b", "guaranteed": "10 MiB", "limit": "30 MiB"}]})";
  EXPECT_THAT(Call("POST", "/v1/apply", fits).body, HasSubstr("created"));
  EXPECT_THAT(Call("POST", "/v1/apply", fits).body, Not(HasSubstr("created")));
  EXPECT_THAT(Error(Call("POST", "/v1/apply", R"({"tenants": []})"), 400), HasSubstr("version"));
  EXPECT_THAT(Error(Call("POST", "/v1/apply", R"({"version": 1, "tenants": [7]})"), 400),
              HasSubstr("tenant"));
}

TEST_F(ManagerTest, TokensAreShownOnceAndReachTheAgents) {
  EXPECT_EQ(Call("POST", "/v1/tenants/a/tokens").status, 404);
  Put("a", 0, 10);
  const HttpResponse created = Call("POST", "/v1/tenants/a/tokens");
  EXPECT_EQ(created.status, 201);
  const json::value token = json::parse(created.body);
  const std::string text(token.at("token").as_string()), id(token.at("id").as_string());
  EXPECT_THAT(Call("GET", "/v1/tenants/a").body, AllOf(HasSubstr(id), Not(HasSubstr(text))));

  FakeAgent agent(AgentOptions("a"));
  ASSERT_EQ(agent.Connect(), "ok");
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_EQ(agent.tenant("a").tokens, 1u);
  EXPECT_EQ(agent.report_millis(), limits::kReportMillis);

  for (uint32_t i = 1; i < limits::kTokensPerTenant; ++i) {
    EXPECT_EQ(Call("POST", "/v1/tenants/a/tokens").status, 201);
  }
  EXPECT_THAT(Error(Call("POST", "/v1/tenants/a/tokens"), 422), HasSubstr("too_many"));
  EXPECT_EQ(Call("DELETE", "/v1/tenants/a/tokens/" + id).status, 200);
  EXPECT_EQ(Call("DELETE", "/v1/tenants/a/tokens/" + id).status, 404);
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_EQ(agent.tenant("a").tokens, limits::kTokensPerTenant - 1);
}

TEST_F(ManagerTest, WhyAgentsAreRefused) {
  const auto connect = [&](const FakeAgentOptions& options) {
    return FakeAgent(options).Connect();
  };
  FakeAgentOptions options = AgentOptions("a");
  options.token = "operator-token";
  EXPECT_EQ(connect(options), "badToken");
  options = AgentOptions("a");
  options.version = 77;
  EXPECT_EQ(connect(options), "badVersion");
  EXPECT_EQ(connect(AgentOptions("A b")), "badName");
  options = AgentOptions("a");
  options.slabs = 0;
  EXPECT_EQ(connect(options), "badPool");
  options.slabs = 1;
  options.slab_bytes = ~uint64_t{0};
  EXPECT_EQ(connect(options), "badPool");
  options = AgentOptions("a");
  options.highest_epoch = 2;
  EXPECT_EQ(connect(options), "staleEpoch");

  FakeAgent agent(AgentOptions("a"));
  ASSERT_EQ(agent.Connect(), "ok");
  options = AgentOptions("a");
  options.incarnation = 2;
  EXPECT_EQ(connect(options), "nameTaken");
  options = AgentOptions("b");
  options.slab_bytes = 1 << 20;
  EXPECT_EQ(connect(options), "badPool");
  EXPECT_TRUE(agent.Exchange().ok());
}

TEST_F(ManagerTest, LeasesFollowDemandAndComeBackByAcknowledgement) {
  Put("a", 0, 40);
  Put("b", 20, 40);
  FakeAgent agent(AgentOptions("gpu-0"));  // 20 slabs of 2 MiB
  ASSERT_EQ(agent.Connect(), "ok");
  ASSERT_TRUE(agent.Exchange().ok());
  agent.tenant("a").wanted = 30;
  ASSERT_TRUE(agent.Exchange().ok());
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_GE(agent.tenant("a").lease, 18u);
  agent.tenant("a").held = agent.tenant("a").lease;
  agent.tenant("b").wanted = 10;
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_EQ(agent.tenant("a").lease, 10u) << "the guarantee is taken back";
  EXPECT_LE(agent.tenant("b").lease, 2u) << "but it is still held";
  EXPECT_GE(Get("/v1/tenants/a").at("leased").as_int64(), 36 * kMiB);

  agent.tenant("a").held = 14;
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_EQ(agent.tenant("b").lease, 6u);
  agent.tenant("a").held = 10;
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_EQ(agent.tenant("b").lease, 10u);
  EXPECT_EQ(Get("/v1/tenants/a").at("leased").as_int64(), 20 * kMiB);

  const json::value seen = Get("/v1/agents/gpu-0");
  EXPECT_TRUE(seen.at("connected").as_bool());
  EXPECT_EQ(seen.at("leased").as_int64(), 40 * kMiB);
  EXPECT_EQ(seen.at("free").as_int64(), 20 * kMiB);
}

TEST_F(ManagerTest, ALimitBelowUseIsShownUntilItIsReached) {
  Put("a", 0, 40);
  FakeAgent agent(AgentOptions("gpu-0"));
  ASSERT_EQ(agent.Connect(), "ok");
  ASSERT_TRUE(agent.Exchange().ok());
  agent.tenant("a").wanted = 20;
  ASSERT_TRUE(agent.Exchange().ok());
  agent.tenant("a").held = 20;
  ASSERT_TRUE(agent.Exchange().ok());
  Put("a", 0, 10);
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_EQ(agent.tenant("a").lease, 5u);
  EXPECT_EQ(Get("/v1/tenants/a").at("overage").as_int64(), 30 * kMiB);
  EXPECT_EQ(Get("/v1/tenants/a").at("ordered").as_int64(), 10 * kMiB);

  agent.tenant("a").held = 5;
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_EQ(Get("/v1/tenants/a").at("overage").as_int64(), 0);
  agent.tenant("a").held = 0;
  Put("a", 0, 0);
  ASSERT_TRUE(agent.Exchange().ok());
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_EQ(Call("DELETE", "/v1/tenants/a").status, 200);
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_TRUE(agent.complete());
  EXPECT_FALSE(agent.Knows("a"));
}

TEST_F(ManagerTest, ATenantInUseLeavesFirstAcrossARestart) {
  Put("a", 10, 40);
  FakeAgent agent(AgentOptions("gpu-0"));
  ASSERT_EQ(agent.Connect(), "ok");
  ASSERT_TRUE(agent.Exchange().ok());
  agent.tenant("a").wanted = agent.tenant("a").held = 20;
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_THAT(Call("DELETE", "/v1/tenants/a?dry_run=true").body,
              HasSubstr(R"("leases":[{"tenant":"a","leased":41943040,"after":0}])"));
  EXPECT_FALSE(Get("/v1/tenants/a").at("leaving").as_bool());

  HttpResponse response = Call("DELETE", "/v1/tenants/a");
  EXPECT_EQ(response.status, 202);
  const json::value left = json::parse(response.body);
  EXPECT_TRUE(left.at("leaving").as_bool());
  EXPECT_EQ(left.at("leased"), 40 * kMiB);
  EXPECT_EQ(left.at("requested").at("limit"), 0);
  EXPECT_EQ(left.at("revision"), 2);
  EXPECT_EQ(Call("DELETE", "/v1/tenants/a").status, 202) << "again";
  EXPECT_EQ(Get("/v1/tenants/a").at("revision"), 2);
  EXPECT_THAT(Error(Call("POST", "/v1/tenants/a/tokens"), 409), HasSubstr("being deleted"));
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_EQ(agent.tenant("a").lease, 0u);

  StopManager();
  StartManager();
  agent.options().manager = manager_->agents_address();
  ASSERT_EQ(agent.Connect(), "ok");
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_TRUE(Get("/v1/tenants/a").at("leaving").as_bool());
  agent.tenant("a").held = agent.tenant("a").wanted = 0;
  EXPECT_TRUE(Eventually(
      [&] { return agent.Exchange().ok() && Call("GET", "/v1/tenants/a").status == 404; }));
  const json::array entries = Get("/v1/audit").at("entries").as_array();
  ASSERT_EQ(entries.size(), 3u);
  EXPECT_EQ(entries[1].at("action"), "tenant.delete");
  EXPECT_EQ(entries[2].at("action"), "tenant.gone");
  EXPECT_EQ(entries[2].at("actor"), "manager");
  StopManager();
  StartManager();
  EXPECT_EQ(Call("GET", "/v1/tenants/a").status, 404);
}

TEST_F(ManagerTest, ATenantThatLeavesCanBeKept) {
  Put("a", 0, 40);
  auto agent = std::make_unique<FakeAgent>(AgentOptions("gpu-0"));
  ASSERT_EQ(agent->Connect(), "ok");
  ASSERT_TRUE(agent->Exchange().ok());
  agent->tenant("a").held = 2;
  ASSERT_TRUE(agent->Exchange().ok());
  EXPECT_EQ(Call("DELETE", "/v1/tenants/a").status, 202);
  Put("a", 0, 40);
  ASSERT_TRUE(agent->Exchange().ok());
  EXPECT_FALSE(Get("/v1/tenants/a").at("leaving").as_bool());
  EXPECT_EQ(Call("DELETE", "/v1/tenants/a").status, 202);
  agent.reset();
  EXPECT_TRUE(Eventually([&] { return Call("DELETE", "/v1/agents/gpu-0").status == 200; }));
  EXPECT_TRUE(Eventually([&] { return Call("GET", "/v1/tenants/a").status == 404; }))
      << "its last lease was forgotten";
}

TEST_F(ManagerTest, AnAgentDrains) {
  Put("a", 0, 40);
  FakeAgent agent(AgentOptions("gpu-0"));
  ASSERT_EQ(agent.Connect(), "ok");
  ASSERT_TRUE(agent.Exchange().ok());
  agent.tenant("a").wanted = agent.tenant("a").held = 10;
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_EQ(Call("POST", "/v1/agents/none/drain").status, 404);
  EXPECT_THAT(Call("POST", "/v1/agents/gpu-0/drain?dry_run=true").body,
              HasSubstr(R"("field":"draining","before":false,"after":true)"));
  EXPECT_FALSE(Get("/v1/agents/gpu-0").at("draining").as_bool());

  EXPECT_EQ(Call("POST", "/v1/agents/gpu-0/drain").status, 200);
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_EQ(agent.tenant("a").lease, 0u);
  ASSERT_TRUE(agent.Exchange().ok());  // it tells that it has followed
  const json::value draining = Get("/v1/agents/gpu-0");
  EXPECT_TRUE(draining.at("draining").as_bool());
  EXPECT_EQ(draining.at("requested"), 40 * kMiB);
  EXPECT_EQ(draining.at("effective"), 0);
  EXPECT_EQ(draining.at("overage"), 20 * kMiB) << "what is still held";
  EXPECT_EQ(draining.at("tenants").at(0).at("overage"), 20 * kMiB);
  EXPECT_EQ(draining.at("revision"), 1);
  EXPECT_EQ(Call("POST", "/v1/agents/gpu-0/drain").status, 200);
  EXPECT_EQ(Get("/v1/agents/gpu-0").at("revision"), 1) << "nothing changed";
  const json::value why = Get("/v1/tenants/a/explain");
  EXPECT_THAT(json::serialize(why.at("why")), HasSubstr("the agent is draining"));
  EXPECT_EQ(why.at("short").at(0).at("agent"), "gpu-0");

  StopManager();
  StartManager();
  EXPECT_TRUE(Get("/v1/agents/gpu-0").at("draining").as_bool());
  EXPECT_EQ(Call("POST", "/v1/agents/gpu-0/undrain").status, 200);
  agent.options().manager = manager_->agents_address();
  ASSERT_EQ(agent.Connect(), "ok");
  EXPECT_TRUE(Eventually([&] { return agent.Exchange().ok() && agent.tenant("a").lease >= 10; }));
  EXPECT_EQ(Get("/v1/audit?limit=1").at("entries").at(0).at("action"), "agent.undrain");
}

TEST_F(ManagerTest, AnAgentIsToldTheGraceAndATenantsOverageIsShown) {
  Put("a", 0, 40);
  Put("b", 0, 40);
  ASSERT_EQ(Call("PUT", "/v1/tenants/b",
                 R"({"guaranteed":0,"limit":"40 MiB","grace":{"cold":"250 ms","running":"3 s"},)"
                 R"("over_deadline":"preempt"})")
                .status,
            200);
  FakeAgent agent(AgentOptions("gpu-0")), other(AgentOptions("gpu-1"));
  ASSERT_EQ(agent.Connect(), "ok");
  ASSERT_EQ(other.Connect(), "ok");
  ASSERT_TRUE(agent.Exchange().ok());
  ASSERT_TRUE(other.Exchange().ok());
  EXPECT_EQ(agent.tenant("a").grace_cold_millis, 2000u);
  EXPECT_EQ(agent.tenant("a").grace_running_millis, 15'000u);
  EXPECT_EQ(agent.tenant("a").over_deadline, rpc::OverDeadline::HOLD);
  EXPECT_EQ(agent.tenant("b").grace_cold_millis, 250u);
  EXPECT_EQ(agent.tenant("b").grace_running_millis, 3000u);
  EXPECT_EQ(agent.tenant("b").over_deadline, rpc::OverDeadline::PREEMPT);

  agent.tenant("a").held = other.tenant("a").held = 2;
  const auto report = [](FakeAgent& from, uint64_t over_millis, bool past_deadline) {
    return from.Exchange([=](rpc::Report::Builder report) {
      report.getTenants()[0].setOverMillis(over_millis);
      report.getTenants()[0].setPastDeadline(past_deadline);
    });
  };
  ASSERT_TRUE(report(agent, 700, false).ok());
  ASSERT_TRUE(report(other, 16'000, true).ok());
  json::value tenant = Get("/v1/tenants/a");
  EXPECT_EQ(tenant.at("over_ms").as_int64(), 16'000) << "the longest of all agents";
  EXPECT_TRUE(tenant.at("past_deadline").as_bool());
  EXPECT_EQ(tenant.at("over_deadline").as_string(), "hold");
  EXPECT_EQ(tenant.at("agents").at(0).at("over_ms").as_int64(), 700);
  EXPECT_FALSE(tenant.at("agents").at(0).at("past_deadline").as_bool());
  EXPECT_TRUE(tenant.at("agents").at(1).at("past_deadline").as_bool());
  EXPECT_FALSE(Get("/v1/tenants/b").at("past_deadline").as_bool());
  const std::string metrics = Call("GET", "/metrics").body;
  EXPECT_THAT(metrics, HasSubstr("kvpool_tenant_over_deadline{tenant=\"a\"} 1\n"));
  EXPECT_THAT(metrics, HasSubstr("kvpool_tenant_over_deadline{tenant=\"b\"} 0\n"));
  ASSERT_TRUE(report(other, ~uint64_t{0}, true).ok());
  EXPECT_EQ(Get("/v1/tenants/a").at("over_ms").as_int64(), int64_t{365} * 24 * 3600 * 1000);
  ASSERT_TRUE(report(agent, 0, false).ok());
  ASSERT_TRUE(report(other, 0, false).ok());
  tenant = Get("/v1/tenants/a");
  EXPECT_EQ(tenant.at("over_ms").as_int64(), 0);
  EXPECT_FALSE(tenant.at("past_deadline").as_bool());
}

TEST_F(ManagerTest, ReclaimsCanBeAskedFor) {
  Put("a", 0, 40);
  FakeAgent agent(AgentOptions("gpu-0"));
  ASSERT_EQ(agent.Connect(), "ok");
  ASSERT_TRUE(agent.Exchange().ok());
  agent.AddReclaim("a", 7);
  ASSERT_TRUE(agent.Exchange().ok());
  ASSERT_TRUE(agent
                  .Exchange([&](rpc::Report::Builder report) {
                    auto refusal = report.initReclaims(1)[0];
                    refusal.setTenant(agent.tenant("a").id);
                    refusal.setStep(rpc::ReclaimStep::REFUSAL);
                    refusal.setReason(rpc::ReclaimReason::LEASE_GROWING);
                    refusal.setCount(3);
                    refusal.setRecovery(-1);
                  })
                  .ok());
  for (uint32_t i = 0; i < 5; ++i) agent.AddReclaim("a", 10);
  ASSERT_TRUE(agent.Exchange().ok());
  const json::value reclaims = Get("/v1/tenants/a/reclaims");
  ASSERT_EQ(reclaims.at("reclaims").as_array().size(), 2u);
  const json::value& refusal = reclaims.at("reclaims").at(1);
  EXPECT_EQ(refusal.at("reason").as_string(), "lease-growing");
  EXPECT_EQ(refusal.at("count").as_int64(), 3);
  EXPECT_TRUE(refusal.at("bytes_before").is_null()) << "nothing got smaller";
  EXPECT_TRUE(refusal.at("bytes_after").is_null());
  EXPECT_TRUE(refusal.at("recovery").is_null());
  EXPECT_TRUE(refusal.at("recovery_min").is_null());
  EXPECT_TRUE(refusal.at("cumulative_recovery").is_null());
  const json::value& last = reclaims.at("reclaims").at(0);
  EXPECT_EQ(last.at("count").as_int64(), 6);
  EXPECT_EQ(last.at("bytes").as_int64(), 57);
  EXPECT_EQ(last.at("bytes_before").as_int64(), 57 * 4);
  EXPECT_EQ(last.at("bytes_after").as_int64(), 57 * 3);
  EXPECT_GE(last.at("first_age_ms").as_int64(), last.at("age_ms").as_int64());
  EXPECT_EQ(last.at("step").as_string(), "compaction");
  EXPECT_EQ(last.at("reason").as_string(), "lease-shrink");
  EXPECT_EQ(last.at("agent").as_string(), "gpu-0");
  EXPECT_EQ(last.at("recovery").as_double(), 0.5);
  EXPECT_EQ(last.at("recovery_min").as_double(), 0.25);
  EXPECT_EQ(last.at("cumulative_recovery").as_double(), 0.125);
  EXPECT_EQ(last.at("cumulative_recovery_min").as_double(), 0.0625);
  EXPECT_EQ(Call("GET", "/v1/tenants/b/reclaims").status, 404);
}

TEST_F(ManagerTest, ARecordWeighsAsManyCompactionsAsItMeasured) {
  Put("a", 0, 40);
  FakeAgent agent(AgentOptions("gpu-0"));
  ASSERT_EQ(agent.Connect(), "ok");
  ASSERT_TRUE(agent.Exchange().ok());
  ASSERT_TRUE(agent
                  .Exchange([&](rpc::Report::Builder report) {
                    auto reclaims = report.initReclaims(2);
                    for (auto reclaim : reclaims) {
                      reclaim.setTenant(agent.tenant("a").id);
                      reclaim.setStep(rpc::ReclaimStep::COMPACTION);
                    }
                    reclaims[0].setRecovery(0.9);
                    reclaims[0].setMeasured(8);
                    reclaims[1].setRecovery(0.45);  // of an agent that does not tell how many
                  })
                  .ok());
  const json::value reclaims = Get("/v1/tenants/a/reclaims");
  ASSERT_EQ(reclaims.at("reclaims").as_array().size(), 1u);
  EXPECT_NEAR(reclaims.at("reclaims").at(0).at("recovery").as_double(), 0.85, 1e-12);
}

TEST_F(ManagerTest, AnImpossibleReportCutsItsAgentOff) {
  Put("a", 0, 40);
  using Edit = std::function<void(rpc::Report::Builder)>;
  const std::vector<Edit> edits = {
      [](rpc::Report::Builder report) { report.getTenants()[0].setTenant(0); },
      [](rpc::Report::Builder report) { report.getTenants()[0].setLeaseSlabs(21); },
      [](rpc::Report::Builder report) { report.getTenants()[0].setHeldSlabs(21); },
      [](rpc::Report::Builder report) { report.getTenants()[0].setChargedSlabs(21); },
      [](rpc::Report::Builder report) { report.getTenants()[0].setUsedBytes(~uint64_t{0}); },
      [](rpc::Report::Builder report) { report.getTenants()[0].setRecoverySum(0.0 / 0.0); },
      [](rpc::Report::Builder report) { report.getTenants()[0].setRecoveryMin(-1); },
      [](rpc::Report::Builder report) { report.getTenants()[0].setOverMillis(1); },
      [](rpc::Report::Builder report) { report.getTenants()[0].setPastDeadline(true); },
      [](rpc::Report::Builder report) { report.initTenants(limits::kTenants + 1); },
      [](rpc::Report::Builder report) { report.initReclaims(limits::kReclaimsPerReport + 1); },
      [](rpc::Report::Builder report) { report.initReclaims(1)[0].setBytes(~uint64_t{0}); },
      [](rpc::Report::Builder report) { report.initReclaims(1)[0].setBytesBefore(~uint64_t{0}); },
      [](rpc::Report::Builder report) {  // freed more than there was
        auto reclaim = report.initReclaims(1)[0];
        reclaim.setBytes(10);
        reclaim.setBytesBefore(9);
      },
      [](rpc::Report::Builder report) {
        auto twice = report.initTenants(2);
        for (auto line : twice) {
          line.setTenant(1);
          line.setRecoveryMin(1);
        }
      },
  };
  FakeAgent other(AgentOptions("other"));
  ASSERT_EQ(other.Connect(), "ok");
  for (size_t i = 0; i < edits.size(); ++i) {
    FakeAgent agent(AgentOptions("a"));
    ASSERT_EQ(agent.Connect(), "ok");
    ASSERT_TRUE(agent.Exchange().ok());
    EXPECT_FALSE(agent.Exchange(edits[i]).ok()) << i;
    EXPECT_FALSE(agent.Exchange().ok()) << i;
    EXPECT_TRUE(other.Exchange().ok()) << i;
  }
  EXPECT_THAT(
      Call("GET", "/metrics").body,
      HasSubstr("kvpool_manager_reports_total{outcome=\"bad\"} " + std::to_string(edits.size())));
}

TEST_F(ManagerTest, LongTextOfAnAgentIsCutAndMadePrintable) {
  Put("a", 0, 40);
  FakeAgentOptions options = AgentOptions("a");
  options.device = "gpu\x1b" + std::string(limits::kPolicyTextBytes, 'x');
  FakeAgent agent(options);
  ASSERT_EQ(agent.Connect(), "ok");
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_EQ(Get("/v1/agents/a").at("device").as_string(),
            "gpu?" + std::string(limits::kPolicyTextBytes - 4, 'x'));
  agent.AddReclaim("a", 1);
  ASSERT_TRUE(agent
                  .Exchange([](rpc::Report::Builder report) {
                    report.getReclaims()[0].setPolicy(
                        std::string(limits::kPolicyTextBytes + 1, 'p'));
                  })
                  .ok());
  EXPECT_EQ(Get("/v1/tenants/a/reclaims").at("reclaims").at(0).at("policy").as_string(),
            std::string(limits::kPolicyTextBytes, 'p'));
}

TEST_F(ManagerTest, AMessageThatIsTooLargeCutsItsAgentAndIsCounted) {
  FakeAgent other(AgentOptions("other"));
  ASSERT_EQ(other.Connect(), "ok");
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const sockaddr_in name{.sin_family = AF_INET,
                         .sin_port = htons(std::get<HostPort>(manager_->agents_address()).port),
                         .sin_addr = {htonl(INADDR_LOOPBACK)}};
  ASSERT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&name), sizeof(name)), 0);
  const uint32_t frame[] = {0, limits::kMessageWords + 1, 0, 0};
  ASSERT_EQ(send(fd, frame, sizeof(frame), MSG_NOSIGNAL), static_cast<ssize_t>(sizeof(frame)));
  EXPECT_TRUE(Eventually([&] {
    return Call("GET", "/metrics", "", "")
               .body.find("kvpool_manager_connections_refused_total{reason=\"garbage\"} 1") !=
           std::string::npos;
  }));
  close(fd);
  EXPECT_TRUE(other.Exchange().ok());
}

TEST_F(ManagerTest, ANewerConnectionTakesOver) {
  FakeAgent old(AgentOptions("a")), fresh(AgentOptions("a"));
  ASSERT_EQ(old.Connect(), "ok");
  ASSERT_EQ(fresh.Connect(), "ok");
  EXPECT_FALSE(old.Exchange().ok());
  EXPECT_TRUE(fresh.Exchange().ok());
  EXPECT_TRUE(Get("/v1/agents/a").at("connected").as_bool());
}

TEST_F(ManagerTest, AgentsCanBeForgotten) {
  auto agent = std::make_unique<FakeAgent>(AgentOptions("a"));
  ASSERT_EQ(agent->Connect(), "ok");
  EXPECT_THAT(Error(Call("DELETE", "/v1/agents/a"), 409), HasSubstr("is connected"));
  agent.reset();
  EXPECT_TRUE(Eventually([&] { return Call("DELETE", "/v1/agents/a").status == 200; }));
  EXPECT_EQ(Call("GET", "/v1/agents/a").status, 404);
}

TEST_F(ManagerTest, ARestartKeepsTenantsAndLearnsLeases) {
  Put("a", 10, 40);
  FakeAgent one(AgentOptions("one")), two(AgentOptions("two"));
  for (FakeAgent* agent : {&one, &two}) {
    ASSERT_EQ(agent->Connect(), "ok");
    ASSERT_TRUE(agent->Exchange().ok());
    agent->tenant("a").wanted = 10;
  }
  for (FakeAgent* agent : {&one, &two, &one, &two, &one, &two, &one, &two}) {
    ASSERT_TRUE(agent->Exchange().ok());  // head-room comes back at its pace
  }
  const uint32_t before = one.tenant("a").lease;
  EXPECT_EQ(before, 10u);

  StopManager();
  StartManager();
  EXPECT_EQ(Get("/v1/tenants").at("epoch").as_int64(), 2);
  EXPECT_EQ(Get("/v1/tenants/a").at("guaranteed").as_int64(), 10 * kMiB);
  EXPECT_THAT(Error(Call("GET", "/readyz"), 503), HasSubstr("learning"));
  for (FakeAgent* agent : {&one, &two}) agent->options().manager = manager_->agents_address();
  ASSERT_EQ(one.Connect(), "ok");
  ASSERT_TRUE(one.Exchange().ok());
  EXPECT_FALSE(one.complete());
  EXPECT_TRUE(one.Knows("a"));
  ASSERT_EQ(two.Connect(), "ok");
  ASSERT_TRUE(two.Exchange().ok());
  EXPECT_EQ(Call("GET", "/readyz").status, 200);
  ASSERT_TRUE(one.Exchange().ok());
  EXPECT_TRUE(one.complete());
  EXPECT_EQ(one.tenant("a").lease, before);
  EXPECT_EQ(one.tenant("a").epoch, 2u);
}

// Every tenant there can be, with every token, and the longest ladder of the policy that has most
// parameters.
TEST_F(ManagerTest, TheLargestOrdersFitIntoAMessage) {
  const PolicySchema& largest =
      *std::max_element(PolicySchemas().begin(), PolicySchemas().end(),
                        [](const PolicySchema& a, const PolicySchema& b) {
                          const auto size = [](const PolicySchema& schema) {
                            return schema.acts == Acts::kGrowth ? schema.parameters.size() : 0;
                          };
                          return size(a) < size(b);
                        });
  PolicyLadder ladder{.min_recovery = 0.5};
  for (uint32_t rung = 0; rung < limits::kRungs; ++rung) {
    PolicyValues values = WithoutDefaults(largest).parameters;
    values["budget"] = int64_t{10'000} - rung;
    ladder.rungs.push_back(*MakePolicySpec(largest.name, values));
  }
  json::array tenants;
  std::vector<Tenant> stored;
  for (uint32_t i = 0; i < limits::kTenants; ++i) {
    const std::string name = std::string(limits::kNameBytes - 4, 'x') + std::to_string(1000 + i);
    Tenant tenant{.id = TenantId(i + 1), .spec = {.name = name}, .revision = 1};
    SetLadder(ladder, &tenant.spec);
    for (uint32_t t = 0; t < limits::kTokensPerTenant; ++t) {
      tenant.tokens.push_back(Sha256(name + std::to_string(t)));
    }
    stored.push_back(std::move(tenant));
  }
  StopManager();
  auto store = SqliteStore::Open(config_.database);
  ASSERT_TRUE(store.ok());
  ASSERT_TRUE((*store)->Write(SaveTenants(stored, TenantId(1))).ok());
  store->reset();
  StartManager();
  FakeAgent agent(AgentOptions("a"));
  ASSERT_EQ(agent.Connect(), "ok");
  for (int i = 0; i < 2; ++i) {
    const absl::Status status = agent.Exchange();
    ASSERT_TRUE(status.ok()) << status;
  }
  EXPECT_TRUE(agent.complete());
  EXPECT_EQ(agent.tenant_count(), limits::kTenants);
}

TEST_F(ManagerTest, ATenantThatIsPressedClimbsAndAnotherManagerGoesOnThere) {
  const std::string body = R"({"guaranteed": 0, "limit": 4194304, "policy": {"name": "auto",
      "min_recovery": 0.9, "allowed": ["full", "int8"]}})";
  ASSERT_EQ(Call("PUT", "/v1/tenants/chat", body).status, 200);
  FakeAgent agent(AgentOptions("a"));
  ASSERT_EQ(agent.Connect(), "ok");
  ASSERT_TRUE(agent.Exchange().ok());
  agent.tenant("chat").wanted = 4;
  ASSERT_TRUE(Eventually([&] {
    EXPECT_TRUE(agent.Exchange().ok());
    return agent.tenant("chat").policy.find("format=int8") != std::string::npos;
  })) << agent.tenant("chat").policy;
  const json::value entry = Get("/v1/audit?tenant=chat").at("entries").as_array().back();
  EXPECT_EQ(entry.at("actor"), "manager");
  EXPECT_EQ(entry.at("action"), "policy.climb");
  EXPECT_EQ(entry.at("before").at("rung"), 0);
  EXPECT_EQ(entry.at("after").at("rung"), 1);
  EXPECT_EQ(entry.at("after").at("reason"), "it wants 8 MiB where it is given 4 MiB");
  EXPECT_THAT(Call("GET", "/metrics", "", "").body,
              HasSubstr("kvpool_tenant_rung_changes_total{direction=\"climb\",tenant=\"chat\"} 1"));
  EXPECT_EQ(Get("/v1/tenants/chat").at("revision"), 1);
  StopManager();
  StartManager();
  EXPECT_EQ(Get("/v1/tenants/chat").at("ladder").at("rung"), 1);
  EXPECT_THAT(Call("GET", "/v1/tenants/chat/explain").body,
              HasSubstr("because it wants 8 MiB where it is given 4 MiB"));
}

TEST_F(ManagerTest, AnAgentWithImpossibleRungsIsCutOff) {
  Put("chat", 0, 4);
  const auto report = [&](std::function<void(rpc::TenantUse::Builder)> edit) {
    FakeAgent agent(AgentOptions("a"));
    EXPECT_EQ(agent.Connect(), "ok");
    EXPECT_TRUE(agent.Exchange().ok());
    return agent.Exchange([&](rpc::Report::Builder report) { edit(report.getTenants()[0]); }).ok();
  };
  EXPECT_TRUE(report([](rpc::TenantUse::Builder use) { use.initRungs(limits::kRungs); }));
  EXPECT_FALSE(report([](rpc::TenantUse::Builder use) { use.initRungs(limits::kRungs + 1); }));
  EXPECT_FALSE(
      report([](rpc::TenantUse::Builder use) { use.initRungs(1)[0].setCumulativeSum(0.5); }));
  EXPECT_FALSE(
      report([](rpc::TenantUse::Builder use) { use.initRungs(1)[0].setCumulativeSum(-1); }));
}

TEST_F(ManagerTest, MetricsHaveATenantsNumbersWhileItExists) {
  Put("chat", 4, 10);
  FakeAgent agent(AgentOptions("a"));
  ASSERT_EQ(agent.Connect(), "ok");
  ASSERT_TRUE(agent.Exchange().ok());
  agent.tenant("chat").used = 5;
  agent.tenant("chat").held = 1;
  agent.tenant("chat").charged = 2;
  agent.tenant("chat").wanted = 2;
  ASSERT_TRUE(agent.Exchange().ok());
  const std::string page = Call("GET", "/metrics", "", "").body;
  for (const char* line : {"kvpool_tenant_guaranteed_bytes{tenant=\"chat\"} 4194304",
                           "kvpool_tenant_limit_bytes{tenant=\"chat\"} 10485760",
                           "kvpool_tenant_leased_bytes{tenant=\"chat\"} 6291456",
                           "kvpool_tenant_held_bytes{tenant=\"chat\"} 2097152",
                           "kvpool_tenant_used_bytes{tenant=\"chat\"} 5",
                           "kvpool_tenant_charged_bytes{tenant=\"chat\"} 4194304",
                           "kvpool_tenant_wanted_bytes{tenant=\"chat\"} 4194304",
                           "kvpool_manager_agents{state=\"connected\"} 1", "kvpool_manager_epoch 1",
                           "kvpool_manager_learning 0", "kvpool_manager_capacity_bytes 41943040"}) {
    EXPECT_THAT(page, HasSubstr(line));
  }
  Put("chat", 0, 0);
  agent.tenant("chat") = {.id = agent.tenant("chat").id};
  ASSERT_TRUE(agent.Exchange().ok());
  ASSERT_TRUE(agent.Exchange().ok());
  ASSERT_EQ(Call("DELETE", "/v1/tenants/chat").status, 200);
  EXPECT_THAT(Call("GET", "/metrics", "", "").body, Not(HasSubstr("tenant=\"chat\"")));
}

TEST_F(ManagerTest, AFirstOperatorTokenIsMadeOnce) {
  StopManager();
  secrets_.operator_token.reset();
  StartManager();
  ASSERT_TRUE(manager_->new_operator_token().has_value());
  const std::string token = *manager_->new_operator_token();
  EXPECT_EQ(Call("GET", "/v1/tenants", "", token).status, 200);
  EXPECT_EQ(Call("GET", "/v1/tenants", "", "operator-token").status, 401);
  StopManager();
  StartManager();
  EXPECT_FALSE(manager_->new_operator_token().has_value());
  EXPECT_EQ(Call("GET", "/v1/tenants", "", token).status, 200);
  const HttpResponse operators = Call("GET", "/v1/operators", "", token);
  const std::string name(json::parse(operators.body).at("operators").at(0).at("name").as_string());
  EXPECT_EQ(name, "admin-" + TokenId(Sha256(token)));
  EXPECT_THAT(Error(Call("DELETE", "/v1/operators/" + name, "", token), 409),
              HasSubstr("last admin"));
}

}  // namespace
}  // namespace kvpool
