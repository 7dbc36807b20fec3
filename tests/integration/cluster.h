// The real thing on one machine: kvpool-manager and kvpool-agent as processes in a scratch folder,
// spoken to as an operator does. Test code, one thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <chrono>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "common/http_client.h"
#include "tests/integration/process.h"

namespace kvpool {

class Cluster {
 public:
  static constexpr char kOperatorToken[] = "kvp_operator_of_the_test";

  Cluster() : agents_port_(FreePort()), http_port_(FreePort()) {
    WriteSecret("operator.token", kOperatorToken);
    WriteSecret("agent.token", "kvp_agent_of_the_test");
    StartManager();
  }

  void StartManager() {
    manager_ = Process("kvpool-manager",
                       {"--agents", "127.0.0.1:" + std::to_string(agents_port_), "--http",
                        "127.0.0.1:" + std::to_string(http_port_), "--database",
                        dir_ / "manager.sqlite", "--agent-token-file", dir_ / "agent.token",
                        "--operator-token-file", dir_ / "operator.token", "--learning", "1 s"},
                       dir_ / "manager.log");
    EXPECT_TRUE(Eventually([this] { return Call("GET", "/readyz").status == 200; }))
        << "the manager did not become ready";
  }
  void StopManager() { manager_ = Process(); }

  // Slabs of 2 MiB, and one in reserve.
  void StartAgent(const std::string& name, uint32_t slabs) {
    const uint16_t http = FreePort();
    agents_.push_back(
        {name, http,
         Process("kvpool-agent",
                 {"--name", name, "--socket", Socket(name), "--manager",
                  "127.0.0.1:" + std::to_string(agents_port_), "--manager-token-file",
                  dir_ / "agent.token", "--http", "127.0.0.1:" + std::to_string(http), "--pool",
                  std::to_string(slabs * 2 + 2) + " MiB", "--reserve-slabs", "1"},
                 dir_ / (name + ".log"))});
    EXPECT_TRUE(Eventually([&] {
      const HttpResponse answer = Call("GET", "/v1/agents/" + name);
      return answer.status == 200 && Json(answer).at("connected").as_bool();
    })) << name
        << " did not register";
  }

  std::string Socket(const std::string& agent) const { return dir_ / (agent + ".sock"); }
  std::string File(const std::string& name) const { return dir_ / name; }
  std::string http() const { return "127.0.0.1:" + std::to_string(http_port_); }
  std::string agent_http(const std::string& name) const {
    for (const Agent& agent : agents_) {
      if (agent.name == name) return "127.0.0.1:" + std::to_string(agent.http);
    }
    return "";
  }

  // A request to the manager's API; status 0 when it cannot be reached.
  HttpResponse Call(const std::string& method, const std::string& path,
                    const std::string& body = "") const {
    return CallAt(http(), method, path, body);
  }
  static HttpResponse CallAt(const std::string& address, const std::string& method,
                             const std::string& path, const std::string& body = "") {
    absl::StatusOr<HttpResponse> answer =
        HttpCall(*ParseHostPort(address),
                 {.method = method,
                  .path = path,
                  .headers = {{"authorization", std::string("Bearer ") + kOperatorToken}},
                  .body = body},
                 std::chrono::seconds(5));
    return answer.ok() ? *std::move(answer) : HttpResponse{.status = 0};
  }
  static boost::json::object Json(const HttpResponse& response) {
    return boost::json::parse(response.body).as_object();
  }

  // Creates or changes a tenant; `json` as in PUT /v1/tenants/NAME.
  void PutTenant(const std::string& name, const std::string& json) {
    const HttpResponse answer = Call("PUT", "/v1/tenants/" + name, json);
    EXPECT_EQ(answer.status / 100, 2) << answer.body;
  }
  boost::json::object GetTenant(const std::string& name) const {
    return Json(Call("GET", "/v1/tenants/" + name));
  }
  // A new worker token, and the file that holds it.
  std::string MakeToken(const std::string& tenant) {
    const HttpResponse answer = Call("POST", "/v1/tenants/" + tenant + "/tokens");
    EXPECT_EQ(answer.status / 100, 2) << answer.body;
    const std::string token(Json(answer).at("token").as_string());
    WriteSecret(tenant + ".token", token);
    return token;
  }
  std::string TokenFile(const std::string& tenant) const { return dir_ / (tenant + ".token"); }

  void WriteSecret(const std::string& name, const std::string& text) {
    std::ofstream(dir_ / name) << text << "\n";
    chmod((dir_ / name).c_str(), 0600);
  }

 private:
  struct Agent {
    std::string name;
    uint16_t http;
    Process process;
  };

  // A port that nobody listens on right now.
  static uint16_t FreePort() {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
    close(fd);
    return ntohs(address.sin_port);
  }

  TempDir dir_;
  const uint16_t agents_port_, http_port_;
  Process manager_;
  std::vector<Agent> agents_;
};

}  // namespace kvpool
