// Several managers of which one leads, on one machine: etcd, kvpool-manager and kvpool-agent as
// processes in a scratch folder. Test code, one thread; says with values what went wrong, so that
// benchmarks stand on it too.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/stat.h>

#include <array>
#include <boost/json.hpp>
#include <chrono>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/http_client.h"
#include "tests/integration/etcd_server.h"
#include "tests/integration/process.h"

namespace kvpool {

class FailoverRig {
 public:
  static constexpr std::chrono::seconds kTtl{2};  // of a leadership
  static constexpr char kAgentToken[] = "kvp_agent_of_the_test";
  static constexpr char kOperatorToken[] = "kvp_operator_of_the_test";

  // Managers 0 and 1 run; one of them leads or is about to.
  FailoverRig() {
    WriteSecret("operator.token", kOperatorToken);
    WriteSecret("agent.token", kAgentToken);
    for (size_t i = 0; i < managers_.size(); ++i) StartManager(i);
  }

  void StartManager(size_t i) {
    managers_[i].process =
        Process("kvpool-manager",
                {"--store", "etcd", "--etcd-endpoints", ToString(etcd_.address()), "--etcd-ttl",
                 std::to_string(kTtl.count()) + " s", "--agents", agents_address(i), "--http",
                 http_address(i), "--agent-token-file", dir_ / "agent.token",
                 "--operator-token-file", dir_ / "operator.token"},
                dir_ / ("manager-" + std::to_string(i) + ".log"));
  }
  // Kill -9 and waited for.
  void KillManager(size_t i) {
    managers_[i].process.Kill(SIGKILL);
    managers_[i].process.Wait();
  }
  void SignalManager(size_t i, int signal) const { managers_[i].process.Kill(signal); }

  // Slabs of 256 KiB. It knows both managers.
  void StartAgent(const std::string& name, uint32_t slabs) {
    Agent& agent = agents_[name];
    agent.http = FreePort();
    agent.process = Process(
        "kvpool-agent",
        {"--name", name, "--socket", Socket(name), "--manager",
         agents_address(0) + "," + agents_address(1), "--manager-token-file", dir_ / "agent.token",
         "--http", "127.0.0.1:" + std::to_string(agent.http), "--pool",
         std::to_string(slabs * 256) + " KiB", "--slab-bytes", "256 KiB", "--reserve-slabs", "0"},
        dir_ / (name + ".log"));
  }

  // Whoever answers operators now.
  std::optional<size_t> Leader() const {
    for (size_t i = 0; i < managers_.size(); ++i) {
      if (Leads(i)) return i;
    }
    return std::nullopt;
  }
  bool Leads(size_t i) const { return Call(i, "GET", "/v1/tenants").status == 200; }
  // The one that leads and is done learning, once there is one.
  std::optional<size_t> AwaitLeader() const {
    std::optional<size_t> leader;
    (void)Eventually(
        [&] {
          leader = Leader();
          return leader.has_value() && Call(*leader, "GET", "/readyz").status == 200;
        },
        std::chrono::seconds(30));
    return leader;
  }

  // A request to a manager's API; status 0 when it does not answer.
  HttpResponse Call(size_t i, const std::string& method, const std::string& path,
                    const std::string& body = "") const {
    const auto answer =
        HttpCall({"127.0.0.1", managers_[i].http},
                 {.method = method,
                  .path = path,
                  .headers = {{"authorization", std::string("Bearer ") + kOperatorToken}},
                  .body = body},
                 std::chrono::milliseconds(500));
    return answer.ok() ? *answer : HttpResponse{.status = 0};
  }
  boost::json::object Get(size_t i, const std::string& path) const {
    const HttpResponse answer = Call(i, "GET", path);
    return answer.status == 200 ? boost::json::parse(answer.body).as_object()
                                : boost::json::object();
  }

  // A number of an agent's or a manager's metrics page; none when it is not there.
  std::optional<double> AgentMetric(const std::string& agent, const std::string& series) const {
    return Metric(agents_.at(agent).http, series);
  }
  std::optional<double> ManagerMetric(size_t i, const std::string& series) const {
    return Metric(managers_[i].http, series);
  }

  std::string Socket(const std::string& agent) const { return dir_ / (agent + ".sock"); }
  std::string agents_address(size_t i) const {
    return "127.0.0.1:" + std::to_string(managers_[i].agents);
  }
  std::string http_address(size_t i) const {
    return "127.0.0.1:" + std::to_string(managers_[i].http);
  }
  EtcdServer& etcd() { return etcd_; }
  std::string File(const std::string& name) const { return dir_ / name; }

 private:
  struct Manager {
    uint16_t agents = FreePort(), http = FreePort();
    Process process;
  };
  struct Agent {
    uint16_t http = 0;
    Process process;
  };

  static std::optional<double> Metric(uint16_t port, const std::string& series) {
    const auto page =
        HttpCall({"127.0.0.1", port}, {.path = "/metrics"}, std::chrono::milliseconds(500));
    if (!page.ok()) return std::nullopt;
    const size_t at = page->body.find("\n" + series + " ");
    if (at == std::string::npos) return std::nullopt;
    return std::stod(page->body.substr(at + series.size() + 2));
  }

  void WriteSecret(const std::string& name, const std::string& text) {
    std::ofstream(dir_ / name) << text << "\n";
    chmod((dir_ / name).c_str(), 0600);
  }

  TempDir dir_;
  EtcdServer etcd_;
  std::array<Manager, 2> managers_;
  std::map<std::string, Agent> agents_;
};

}  // namespace kvpool
