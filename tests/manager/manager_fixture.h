// A whole manager in the test's process, with a database of its own: operators over real HTTP,
// agents over real RPC. Test code; the test's thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <memory>
#include <string>

#include "common/http_client.h"
#include "common/rpc_thread.h"
#include "manager/manager.h"
#include "tests/integration/process.h"
#include "tests/manager/fake_agent.h"

namespace kvpool {

inline constexpr int64_t kMiB = 1 << 20;

class ManagerTest : public ::testing::Test {
 protected:
  ManagerTest() {
    config_.agents = config_.http = "127.0.0.1:0";
    config_.database = folder_ / "manager.db";
    StartManager();
  }
  ~ManagerTest() override { StopManager(); }

  void StartManager() {
    const absl::Status status = thread_.Call([this](kj::AsyncIoContext& io) -> kj::Promise<void> {
      auto manager = Manager::Start(io, config_, secrets_);
      EXPECT_TRUE(manager.ok()) << manager.status();
      manager_ = *std::move(manager);
      return kj::READY_NOW;
    });
    ASSERT_TRUE(status.ok()) << status;
  }
  void StopManager() {
    (void)thread_.Call([this](kj::AsyncIoContext&) -> kj::Promise<void> {
      manager_ = nullptr;
      return kj::READY_NOW;
    });
  }

  HttpResponse Call(const std::string& method, const std::string& path,
                    const std::string& body = "", const std::string& token = "operator-token") {
    const size_t question = std::min(path.find('?'), path.size());
    HttpRequest request{.method = method, .path = path.substr(0, question), .body = body};
    if (question < path.size()) request.query = path.substr(question + 1);
    if (!token.empty()) request.headers["authorization"] = "Bearer " + token;
    const auto response = HttpCall(manager_->http_address(), request, std::chrono::seconds(5));
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() ? *response : HttpResponse{.status = 0};
  }
  boost::json::value Get(const std::string& path) {
    const HttpResponse response = Call("GET", path);
    EXPECT_EQ(response.status, 200) << response.body;
    return boost::json::parse(response.body);
  }
  // The error's code and message.
  std::string Error(const HttpResponse& response, int status) {
    EXPECT_EQ(response.status, status) << response.body;
    const boost::json::value body = boost::json::parse(response.body);
    return std::string(body.at("error").at("code").as_string()) + ": " +
           std::string(body.at("error").at("message").as_string());
  }
  void Put(const std::string& name, int64_t guaranteed_mib, int64_t limit_mib) {
    const boost::json::object body{{"guaranteed", guaranteed_mib * kMiB},
                                   {"limit", limit_mib * kMiB}};
    const HttpResponse response = Call("PUT", "/v1/tenants/" + name, boost::json::serialize(body));
    EXPECT_EQ(response.status, 200) << response.body;
  }
  FakeAgentOptions AgentOptions(const std::string& name) {
    return {.manager = manager_->agents_address(), .name = name};
  }

  TempDir folder_;
  ManagerConfig config_;
  ManagerSecrets secrets_{.agent_token = "agent-token", .operator_token = "operator-token"};
  RpcThread thread_;
  std::unique_ptr<Manager> manager_;
};

}  // namespace kvpool
