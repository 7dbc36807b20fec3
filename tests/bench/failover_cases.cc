// See failover_cases.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/failover_cases.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <iterator>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/bench/agent_rig.h"
#include "tests/integration/decode_load.h"
#include "tests/integration/failover_rig.h"

namespace kvpool::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kSlabBytes = 256 << 10;
constexpr uint32_t kAgentSlabs = 24;
constexpr const char* kAgents[] = {"a", "b"};
constexpr const char* kTenants[] = {"chat", "batch"};
// A tenant's four workers want more together than its limit, so leases wander between the agents.
constexpr int kTenantLimitMib = 4;
constexpr int kWorkers = 2;                // of a tenant at an agent
constexpr uint32_t kSessionTokens = 2048;  // 1 MiB and what admission charges beside

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Looks all the time at what every tenant holds at every agent, against limits and pools. The
// agents' pages are read one after the other, so of a moment in which the first one changed
// meanwhile nothing is said.
class Watch {
 public:
  explicit Watch(const FailoverRig& rig) : rig_(rig) {
    thread_ = std::thread([this] {
      while (!stop_) Look();
    });
  }
  ~Watch() {
    stop_ = true;
    thread_.join();
  }

  uint64_t looks() const { return looks_; }
  // What was found above a limit or a pool first; empty while nothing was.
  std::string violation() const {
    const std::lock_guard lock(mutex_);
    return violation_;
  }

 private:
  double Held(const char* agent, const char* tenant) const {
    return rig_
        .AgentMetric(agent, absl::StrCat("kvpool_agent_tenant_held_bytes{tenant=\"", tenant, "\"}"))
        .value_or(0);
  }

  void Look() {
    for (const char* tenant : kTenants) {
      const double before = Held(kAgents[0], tenant);
      const double other = Held(kAgents[1], tenant);
      if (Held(kAgents[0], tenant) != before) continue;
      ++looks_;
      Check(before + other, kTenantLimitMib * double{1 << 20}, tenant);
    }
    for (const char* agent : kAgents) {
      // The slabs of a pool are counted by one page of one moment: free ones and all others.
      const auto free = rig_.AgentMetric(agent, "kvpool_agent_slabs{state=\"free\"}");
      if (free.has_value())
        Check((kAgentSlabs - *free) * kSlabBytes, kAgentSlabs * kSlabBytes, agent);
    }
  }

  void Check(double held, double most, const char* whose) {
    if (held <= most) return;
    const std::lock_guard lock(mutex_);
    if (!violation_.empty()) return;
    violation_ = absl::StrFormat("%s held %.0f bytes, at most %.0f may be", whose, held, most);
  }

  const FailoverRig& rig_;
  std::atomic<bool> stop_ = false;
  std::atomic<uint64_t> looks_ = 0;
  mutable std::mutex mutex_;
  std::string violation_;  // guarded by mutex_
  std::thread thread_;
};

// Two managers, two agents, and restless workers of each tenant at each agent.
struct Scene {
  FailoverRig rig;
  std::vector<std::unique_ptr<DecodeLoad>> loads;  // tenant by tenant
  std::unique_ptr<Watch> watch;
  double longest_step = 0;  // seconds, over all rounds
};

absl::Status StartLoad(Scene& scene) {
  const std::optional<size_t> leader = scene.rig.AwaitLeader();
  if (!leader.has_value()) return absl::DeadlineExceededError("no manager came to lead");
  for (const char* agent : kAgents) scene.rig.StartAgent(agent, kAgentSlabs);
  for (const char* agent : kAgents) {
    absl::Status up = Await("an agent's registration", [&] {
      return scene.rig.Call(*leader, "GET", absl::StrCat("/v1/agents/", agent)).status == 200;
    });
    if (!up.ok()) return up;
  }
  for (const char* tenant : kTenants) {
    const std::string path = absl::StrCat("/v1/tenants/", tenant);
    const HttpResponse put = scene.rig.Call(
        *leader, "PUT", path,
        absl::StrCat(R"({"guaranteed": "2 MiB", "limit": ")", kTenantLimitMib, R"( MiB"})"));
    const HttpResponse token = scene.rig.Call(*leader, "POST", path + "/tokens");
    if (put.status != 200 || token.status != 201) return absl::InternalError(put.body + token.body);
    for (size_t i = 0; i < kWorkers * std::size(kAgents); ++i) {
      const char* agent = kAgents[i % std::size(kAgents)];
      scene.loads.push_back(std::make_unique<DecodeLoad>(
          scene.rig.Socket(agent),
          std::string(boost::json::parse(token.body).at("token").as_string()), kSessionTokens));
    }
  }
  scene.watch = std::make_unique<Watch>(scene.rig);
  return absl::OkStatus();
}

uint64_t StepsOf(const Scene& scene, size_t tenant) {
  constexpr size_t kEach = kWorkers * std::size(kAgents);
  uint64_t steps = 0;
  for (size_t i = 0; i < kEach; ++i) steps += scene.loads[tenant * kEach + i]->steps();
  return steps;
}

// That every tenant makes steps now, and no worker has failed.
absl::Status AwaitSteps(const Scene& scene) {
  for (size_t tenant = 0; tenant < std::size(kTenants); ++tenant) {
    const uint64_t before = StepsOf(scene, tenant);
    absl::Status steps =
        Await("a tenant's steps", [&] { return StepsOf(scene, tenant) > before + 100; });
    if (!steps.ok()) return steps;
  }
  for (const auto& load : scene.loads) {
    if (!load->status().ok()) return load->status();
  }
  return absl::OkStatus();
}

// Kills the leader, waits for the next one to lead and to have learned, and starts the killed one
// again.
absl::StatusOr<double> Failover(Scene& scene) {
  const std::optional<size_t> leader = scene.rig.AwaitLeader();
  if (!leader.has_value()) return absl::DeadlineExceededError("no manager came to lead");
  if (absl::Status status = AwaitSteps(scene); !status.ok()) return status;
  for (const auto& load : scene.loads) (void)load->TakeLongestStep();
  const auto killed = Clock::now();
  scene.rig.KillManager(*leader);
  absl::Status led = Await("a new leader", [&] { return scene.rig.Leads(1 - *leader); });
  if (!led.ok()) return led;
  const double seconds = SecondsSince(killed);
  if (absl::Status status = AwaitSteps(scene); !status.ok()) return status;
  if (!scene.rig.AwaitLeader().has_value()) return absl::DeadlineExceededError("it never learned");
  if (absl::Status status = AwaitSteps(scene); !status.ok()) return status;
  for (const auto& load : scene.loads) {
    const std::chrono::duration<double> longest = load->TakeLongestStep();
    scene.longest_step = std::max(scene.longest_step, longest.count());
  }
  if (const std::string found = scene.watch->violation(); !found.empty()) {
    return absl::InternalError(found);
  }
  scene.rig.StartManager(*leader);
  return seconds;
}

absl::StatusOr<Instance> PrepareFailover() {
  if (!EtcdServer::Installed()) return absl::NotFoundError("etcd-server is not installed");
  auto scene = std::make_shared<Scene>();
  if (absl::Status status = StartLoad(*scene); !status.ok()) return status;
  return Instance{
      .value = [scene] { return Failover(*scene); },
      .yardstick = []() -> absl::StatusOr<double> {
        return std::chrono::duration<double>(2 * FailoverRig::kTtl).count();
      },
      .note =
          [scene] {
            uint64_t steps = 0;
            for (const auto& load : scene->loads) steps += load->steps();
            return absl::StrFormat(
                "%d looks at what is held, none above a limit or a pool; %d steps of %d workers, "
                "none failed, the longest across a failover %.0f ms",
                scene->watch->looks(), steps, scene->loads.size(), scene->longest_step * 1000);
          }};
}

}  // namespace

std::vector<Case> FailoverCases() {
  return {{.name = "leader_failover",
           .unit = "s",
           .what =
               "leader killed under load, until another manager answers as leader, worst round, "
               "against twice the leadership's TTL",
           .prepare = PrepareFailover,
           .summary = Summary::kMaximum}};
}

}  // namespace kvpool::bench
