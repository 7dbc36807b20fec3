// From an operator's request to the last agent that does as it says: one manager, four agents as
// processes, and two workers at each that never stop wanting a session. The low limit has room for
// one session at every agent, the high one for both.
//
// Raised, every worker that waited must have its session: bytes are free. Lowered, the agents
// together must hold no more than the new limit: a running session must end at each, once its
// tenant's grace has passed.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/budget_cases.h"

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <chrono>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/kvpool.h"
#include "common/http_client.h"
#include "tests/bench/agent_rig.h"
#include "tests/integration/process.h"
#include "tests/integration/small_geometry.h"

namespace kvpool::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kAgents = 4;
constexpr int kWorkersPerAgent = 2;
constexpr int kSlabKib = 256;
constexpr int kPoolSlabs = 24;
// Pages of 8 KiB: 1 MiB of them, and what admission charges beside.
constexpr uint32_t kSessionTokens = 2048;
constexpr int kLowSlabs = 5 * kAgents, kHighSlabs = 2 * kLowSlabs;
constexpr int kSlabsFilled = 7 * kAgents;  // fewer than two full sessions at each agent hold
constexpr std::chrono::milliseconds kGrace(500);
constexpr std::chrono::seconds kPromised(1);  // besides the grace
constexpr std::chrono::milliseconds kBetweenSteps(2);
constexpr char kOperatorToken[] = "kvp_operator_of_the_bench";

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

// A worker with one session as often as it can have one: fills it and keeps it running until the
// agent ends it.
class Holder {
 public:
  Holder(std::string socket, std::string token)
      : socket_(std::move(socket)), token_(std::move(token)), thread_([this] { Finish(Run()); }) {}
  ~Holder() {
    stop_ = true;
    thread_.join();
  }

  bool holds() const { return holds_; }
  // Of what ended it; OK while it goes on.
  absl::Status status() const {
    const std::lock_guard lock(mutex_);
    return status_;
  }

 private:
  void Finish(absl::Status status) {
    const std::lock_guard lock(mutex_);
    status_ = std::move(status);
  }

  absl::Status Run() {
    auto connection = Connection::Open({.socket = socket_, .worker = "holder"});
    if (!connection.ok()) return connection.status();
    auto tenant = (*connection)
                      ->Attach(token_, {.geometry = SmallGeometry(),
                                        .max_sessions = 1,
                                        .max_running = 1,
                                        .max_session_tokens = kSessionTokens,
                                        .chunk_tokens = 64});
    if (!tenant.ok()) return tenant.status();
    while (!stop_) {
      auto session = (*tenant)->Open({.prompt_tokens = 1, .max_tokens = kSessionTokens});
      if (session.ok()) {
        holds_ = true;
        absl::Status held = Hold(**tenant, **session);
        holds_ = false;
        if (!held.ok()) return held;
      } else if (!absl::IsResourceExhausted(session.status())) {
        return session.status();
      }
      std::this_thread::sleep_for(kBetweenSteps);
    }
    return absl::OkStatus();
  }

  // Until the session has been ended.
  absl::Status Hold(Tenant& tenant, Session& session) {
    while (!stop_) {
      Step step{.session = &session, .tokens = 16};
      if (absl::Status status = tenant.SafePoint({&step, 1}); !status.ok()) return status;
      if (absl::IsCancelled(step.outcome)) return absl::OkStatus();
      const bool waits = absl::IsResourceExhausted(step.outcome) || absl::IsAborted(step.outcome);
      if (!waits && !step.outcome.ok()) return step.outcome;
      // The last step is never committed, so that there is always one to come.
      if (waits || session.position() + 32 > kSessionTokens) {
        std::this_thread::sleep_for(kBetweenSteps);
        continue;
      }
      const Geometry& g = tenant.layout().geometry();
      const std::vector<float> queries(size_t{16} * g.model_layers() * g.query_heads * g.key_dim,
                                       0.1f);
      absl::Status status = session.Commit(16, session.WantsQueries(16) ? queries.data() : nullptr);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  const std::string socket_, token_;
  std::atomic<bool> stop_ = false, holds_ = false;
  mutable std::mutex mutex_;
  absl::Status status_;  // guarded by mutex_
  std::thread thread_;
};

class BudgetScene {
 public:
  absl::Status Start() {
    WriteSecret("operator.token", kOperatorToken);
    WriteSecret("agent.token", FakeManager::kToken);
    manager_ = Process("kvpool-manager",
                       {"--agents", Local(agents_port_), "--http", Local(http_port_), "--database",
                        dir_ / "manager.sqlite", "--agent-token-file", dir_ / "agent.token",
                        "--operator-token-file", dir_ / "operator.token", "--learning", "1 s"},
                       dir_ / "manager.log");
    absl::Status up = Await("the manager", [&] { return Call("GET", "/readyz").status == 200; });
    for (int i = 0; i < kAgents && up.ok(); ++i) up = StartAgent(i);
    if (!up.ok()) return up;
    if (absl::Status put = PutLimit(kLowSlabs); !put.ok()) return put;
    const HttpResponse token = Call("POST", "/v1/tenants/chat/tokens");
    if (token.status != 201) return absl::InternalError(token.body);
    const std::string text(boost::json::parse(token.body).at("token").as_string());
    for (int i = 0; i < kAgents * kWorkersPerAgent; ++i) {
      holders_.push_back(std::make_unique<Holder>(agents_[i % kAgents].socket, text));
    }
    return AwaitHolders(kAgents);
  }

  // Seconds from the request until every worker has a session.
  absl::StatusOr<double> Raise() {
    const auto start = Clock::now();
    if (absl::Status put = PutLimit(kHighSlabs); !put.ok()) return put;
    if (absl::Status all = AwaitHolders(holders_.size()); !all.ok()) return all;
    return Seconds(Clock::now() - start);
  }

  // Seconds from the request until the agents together hold no more than it says.
  absl::StatusOr<double> Lower() {
    const absl::Status filled = Await("full sessions", [&] { return HeldSlabs() > kSlabsFilled; });
    if (!filled.ok()) return filled;
    const auto start = Clock::now();
    if (absl::Status put = PutLimit(kLowSlabs); !put.ok()) return put;
    const absl::Status within = Await("the lower limit", [&] { return HeldSlabs() <= kLowSlabs; });
    const auto took = Clock::now() - start;
    if (!within.ok()) return within;
    if (absl::Status one = AwaitHolders(kAgents); !one.ok()) return one;
    return Seconds(took);
  }

 private:
  struct Agent {
    std::string socket;
    uint16_t http;
    Process process;
  };

  static std::string Local(uint16_t port) { return absl::StrCat("127.0.0.1:", port); }

  void WriteSecret(const std::string& name, const std::string& text) {
    std::ofstream(dir_ / name) << text << "\n";
    chmod((dir_ / name).c_str(), 0600);
  }

  absl::Status StartAgent(int i) {
    const std::string name = absl::StrCat("a", i);
    Agent agent{.socket = dir_ / (name + ".sock"), .http = FreePort()};
    agent.process =
        Process("kvpool-agent",
                {"--name", name, "--socket", agent.socket, "--manager", Local(agents_port_),
                 "--manager-token-file", dir_ / "agent.token", "--http", Local(agent.http),
                 "--pool", absl::StrCat(kPoolSlabs * kSlabKib, " KiB"), "--slab-bytes",
                 absl::StrCat(kSlabKib, " KiB"), "--reserve-slabs", "0"},
                dir_ / (name + ".log"));
    agents_.push_back(std::move(agent));
    return Await("an agent's registration",
                 [&] { return Call("GET", absl::StrCat("/v1/agents/", name)).status == 200; });
  }

  HttpResponse Call(const std::string& method, const std::string& path,
                    const std::string& body = "") const {
    const auto answer =
        HttpCall({"127.0.0.1", http_port_},
                 {.method = method,
                  .path = path,
                  .headers = {{"authorization", std::string("Bearer ") + kOperatorToken}},
                  .body = body},
                 std::chrono::seconds(5));
    return answer.ok() ? *answer : HttpResponse{.status = 0};
  }

  absl::Status PutLimit(int slabs) {
    const HttpResponse put = Call(
        "PUT", "/v1/tenants/chat",
        absl::StrFormat(R"({"guaranteed": "%d KiB", "limit": "%d KiB", "over_deadline": "preempt",)"
                        R"( "grace": {"cold": "%d ms", "running": "%d ms"}})",
                        kLowSlabs * kSlabKib, slabs * kSlabKib, kGrace.count(), kGrace.count()));
    return put.status == 200 ? absl::OkStatus() : absl::InternalError(put.body);
  }

  absl::Status AwaitHolders(size_t count) {
    const auto all_ok = [&] {
      return std::all_of(holders_.begin(), holders_.end(),
                         [](const auto& holder) { return holder->status().ok(); });
    };
    absl::Status reached = Await(absl::StrCat(count, " workers with a session"), [&] {
      const auto holding = std::count_if(holders_.begin(), holders_.end(),
                                         [](const auto& holder) { return holder->holds(); });
      return static_cast<size_t>(holding) == count || !all_ok();
    });
    for (const auto& holder : holders_) reached.Update(holder->status());
    return reached;
  }

  // By the agents' own word, over all of them; more than any limit when one does not answer.
  double HeldSlabs() const {
    constexpr char kSeries[] = "\nkvpool_agent_tenant_held_bytes{tenant=\"chat\"} ";
    double bytes = 0;
    for (const Agent& agent : agents_) {
      const auto page =
          HttpCall({"127.0.0.1", agent.http}, {.path = "/metrics"}, std::chrono::milliseconds(500));
      const size_t at = page.ok() ? page->body.find(kSeries) : std::string::npos;
      if (at == std::string::npos) return kAgents * kPoolSlabs + 1;
      bytes += std::stod(page->body.substr(at + sizeof(kSeries) - 1));
    }
    return bytes / (kSlabKib << 10);
  }

  TempDir dir_;
  const uint16_t agents_port_ = FreePort(), http_port_ = FreePort();
  Process manager_;
  std::vector<Agent> agents_;
  std::vector<std::unique_ptr<Holder>> holders_;
};

absl::StatusOr<std::shared_ptr<BudgetScene>> MakeScene() {
  auto scene = std::make_shared<BudgetScene>();
  if (absl::Status status = scene->Start(); !status.ok()) return status;
  return scene;
}

absl::StatusOr<Instance> PrepareFree() {
  auto scene = MakeScene();
  if (!scene.ok()) return scene.status();
  return Instance{.value = [scene = *scene]() -> absl::StatusOr<double> {
                    const auto raised = scene->Raise();
                    if (!raised.ok()) return raised;
                    const auto lowered = scene->Lower();
                    return lowered.ok() ? raised : lowered;
                  },
                  .yardstick = []() -> absl::StatusOr<double> { return Seconds(kPromised); }};
}

absl::StatusOr<Instance> PrepareReclaim() {
  auto scene = MakeScene();
  if (!scene.ok()) return scene.status();
  return Instance{
      .value = [scene = *scene]() -> absl::StatusOr<double> {
        const auto raised = scene->Raise();
        return raised.ok() ? scene->Lower() : raised;
      },
      .yardstick = []() -> absl::StatusOr<double> { return Seconds(kGrace + kPromised); }};
}

}  // namespace

std::vector<Case> BudgetCases() {
  return {{.name = "budget_change_free",
           .unit = "s",
           .what = "a limit raised by request, until every worker that waited at four agents has "
                   "its session, worst round, against 1 s",
           .prepare = PrepareFree,
           .summary = Summary::kMaximum},
          {.name = "budget_change_reclaim",
           .unit = "s",
           .what = "a limit lowered by request under running sessions, until the four agents hold "
                   "no more, worst round, against a grace of 0.5 s and 1 s",
           .prepare = PrepareReclaim,
           .summary = Summary::kMaximum}};
}

}  // namespace kvpool::bench
