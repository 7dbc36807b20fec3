// A real manager with its database, and a thousand agents that speak the real protocol to it over
// TCP and have no memory: each reports every second what its tenants want, which changes each time,
// and follows its orders. What is timed is a lease: from the report that wants it to the orders
// that answer it. The manager lives on one thread, all agents on another.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/manager_cases.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/http_client.h"
#include "common/rpc_connect.h"
#include "common/rpc_thread.h"
#include "manager/manager.h"
#include "proto/manager.capnp.h"
#include "tests/integration/process.h"

namespace kvpool::bench {
namespace {

using std::chrono::milliseconds;

constexpr uint32_t kAgents = 1000;
constexpr uint32_t kConnectingAtOnce = 20;
static_assert(kAgents % kConnectingAtOnce == 0);
constexpr uint32_t kTenants = 32;
constexpr uint32_t kTenantsPerAgent = 4;  // that want something there
constexpr uint32_t kSlabs = 64;
constexpr uint64_t kSlabBytes = 2 << 20;
constexpr milliseconds kInterval(1000);
constexpr milliseconds kRound(10'000);
constexpr double kLeastServed = 0.99;  // of the reports that are due in a round
constexpr char kAgentToken[] = "agent-token";
constexpr char kOperatorToken[] = "operator-token";

// One agent: its connection, its leases, and its loop of reports.
class ReportingAgent {
 public:
  ReportingAgent(uint32_t index, std::vector<double>* latencies)
      : index_(index), random_(index), latencies_(latencies) {}

  kj::Promise<void> Start(kj::AsyncIoContext& io, const Address& manager) {
    timer_ = &io.provider->getTimer();
    return RpcConnect(io, manager)
        .then([this](kj::Own<RpcClient> client) {
          client_ = kj::mv(client);
          auto request = client_->Bootstrap().castAs<rpc::Manager>().registerRequest();
          auto params = request.initParams();
          params.setProtocolVersion(limits::kProtocolVersion);
          params.setToken(kAgentToken);
          params.setAgent("agent-" + std::to_string(index_));
          params.setIncarnation(index_ + 1);
          params.setPoolBytes(kSlabs * kSlabBytes);
          params.setSlabBytes(kSlabBytes);
          params.setDevice("none");
          return request.send();
        })
        .then([this](auto&& response) {
          KJ_REQUIRE(response.getResult().isLink(), "the manager refuses an agent");
          link_ = response.getResult().getLink();
          const kj::Duration first =
              kInterval.count() * kj::MILLISECONDS * index_ / kAgents;  // spread over the interval
          loop_ = timer_->afterDelay(first)
                      .then([this] { return ReportForever(); })
                      .eagerlyEvaluate([](kj::Exception&&) {});  // ends with the connection
        });
  }

 private:
  struct Lease {
    uint64_t epoch = 0, seq = 0;
    uint32_t slabs = 0, wanted = 0;
  };

  kj::Promise<void> ReportForever() {
    const kj::TimePoint next = timer_->now() + kInterval.count() * kj::MILLISECONDS;
    return Exchange().then([this, next] { return timer_->atTime(next); }).then([this] {
      return ReportForever();
    });
  }

  kj::Promise<void> Exchange() {
    for (auto& [tenant, lease] : leases_) {
      const bool here = (tenant + index_) % kTenants < kTenantsPerAgent;
      lease.wanted = here ? static_cast<uint32_t>(random_() % (kSlabs / 2)) : 0;
    }
    auto request = KJ_ASSERT_NONNULL(link_).exchangeRequest();
    auto report = request.initReport();
    report.setSeq(++seq_);
    auto lines = report.initTenants(static_cast<unsigned>(leases_.size()));
    unsigned i = 0;
    for (const auto& [tenant, lease] : leases_) {
      auto line = lines[i++];
      line.setTenant(tenant);
      line.setLeaseEpoch(lease.epoch);
      line.setLeaseSeq(lease.seq);
      line.setLeaseSlabs(lease.slabs);
      line.setWantedSlabs(lease.wanted);
      line.setRecoveryMin(1);
    }
    const auto start = std::chrono::steady_clock::now();
    return request.send().then([this, start](auto&& response) {
      const std::chrono::duration<double, std::milli> took =
          std::chrono::steady_clock::now() - start;
      latencies_->push_back(took.count());
      const auto orders = response.getOrders();
      for (const auto order : orders.getTenants()) {
        leases_[order.getTenant()] = {
            .epoch = orders.getEpoch(), .seq = order.getSeq(), .slabs = order.getLeaseSlabs()};
      }
    });
  }

  const uint32_t index_;
  std::minstd_rand random_;
  std::vector<double>* const latencies_;
  kj::Timer* timer_ = nullptr;
  kj::Own<RpcClient> client_;
  kj::Maybe<rpc::Link::Client> link_;
  std::map<uint32_t, Lease> leases_;
  uint64_t seq_ = 0;
  kj::Promise<void> loop_ = nullptr;
};

class ManagerRig {
 public:
  ~ManagerRig() {
    (void)agents_thread_.Call([this](kj::AsyncIoContext&) -> kj::Promise<void> {
      agents_.clear();
      return kj::READY_NOW;
    });
    (void)manager_thread_.Call([this](kj::AsyncIoContext&) -> kj::Promise<void> {
      manager_ = nullptr;
      return kj::READY_NOW;
    });
  }

  absl::Status Start() {
    config_.agents = config_.http = "127.0.0.1:0";
    config_.database = folder_ / "manager.db";
    absl::Status started =
        manager_thread_.Call([this](kj::AsyncIoContext& io) -> kj::Promise<void> {
          auto manager = Manager::Start(io, config_, secrets_);
          KJ_REQUIRE(manager.ok(), manager.status().ToString());
          manager_ = *std::move(manager);
          return kj::READY_NOW;
        });
    if (!started.ok()) return started;
    if (started = MakeTenants(); !started.ok()) return started;
    return agents_thread_.Call([this](kj::AsyncIoContext& io) { return ConnectAgents(io); });
  }

  // The latencies of a round, ascending, in milliseconds.
  absl::StatusOr<std::vector<double>> Round() {
    std::vector<double> taken;
    const absl::Status done = agents_thread_.Call([&](kj::AsyncIoContext& io) {
      latencies_.clear();
      return io.provider->getTimer().afterDelay(kRound.count() * kj::MILLISECONDS).then([&] {
        taken = std::exchange(latencies_, {});
      });
    });
    if (!done.ok()) return done;
    const double due = static_cast<double>(kAgents) * (kRound / kInterval);
    if (static_cast<double>(taken.size()) < kLeastServed * due) {
      return absl::DeadlineExceededError(
          absl::StrFormat("only %d of %.0f reports were answered", taken.size(), due));
    }
    std::sort(taken.begin(), taken.end());
    return taken;
  }

 private:
  // A few at a time: it is not the storm after a manager's start that is measured.
  kj::Promise<void> ConnectAgents(kj::AsyncIoContext& io) {
    if (agents_.size() == kAgents) return kj::READY_NOW;
    auto connecting = kj::heapArrayBuilder<kj::Promise<void>>(kConnectingAtOnce);
    for (uint32_t i = 0; i < kConnectingAtOnce; ++i) {
      const auto index = static_cast<uint32_t>(agents_.size());
      agents_.push_back(std::make_unique<ReportingAgent>(index, &latencies_));
      connecting.add(agents_.back()->Start(io, manager_->agents_address()));
    }
    return kj::joinPromises(connecting.finish()).then([this, &io] { return ConnectAgents(io); });
  }

  absl::Status MakeTenants() {
    for (uint32_t t = 0; t < kTenants; ++t) {
      HttpRequest request{
          .method = "PUT",
          .path = absl::StrFormat("/v1/tenants/tenant-%d", t),
          .body = absl::StrFormat(R"({"guaranteed": %d, "limit": %d, "weight": %d})",
                                  500 * kSlabBytes, 3000 * kSlabBytes, 1 + t % 4)};
      request.headers["authorization"] = std::string("Bearer ") + kOperatorToken;
      const auto response = HttpCall(manager_->http_address(), request, std::chrono::seconds(5));
      if (!response.ok()) return response.status();
      if (response->status != 200) return absl::InternalError(response->body);
    }
    return absl::OkStatus();
  }

  TempDir folder_;
  ManagerConfig config_;
  ManagerSecrets secrets_{.agent_token = kAgentToken, .operator_token = kOperatorToken};
  RpcThread manager_thread_;
  std::unique_ptr<Manager> manager_;
  RpcThread agents_thread_;
  std::vector<std::unique_ptr<ReportingAgent>> agents_;
  std::vector<double> latencies_;
};

absl::StatusOr<Instance> PrepareReports() {
  auto rig = std::make_shared<ManagerRig>();
  if (absl::Status status = rig->Start(); !status.ok()) return status;
  // The first reports find no leases yet.
  if (auto warm = rig->Round(); !warm.ok()) return warm.status();
  auto median = std::make_shared<double>(0);
  return Instance{
      .value = [rig, median]() -> absl::StatusOr<double> {
        const auto latencies = rig->Round();
        if (!latencies.ok()) return latencies.status();
        *median = (*latencies)[latencies->size() / 2];
        return (*latencies)[latencies->size() * 99 / 100];
      },
      .note = [median] { return absl::StrFormat("median of the last round %.2f ms", *median); }};
}

}  // namespace

std::vector<Case> ManagerCases() {
  return {{.name = "manager_reports",
           .unit = "ms",
           .what = absl::StrFormat(
               "from a report to the orders that answer it, 99th percentile; %d agents that report "
               "every second over TCP, %d tenants of which %d want another number of slabs at an "
               "agent each time; manager with its database on one thread, all agents on another",
               kAgents, kTenants, kTenantsPerAgent),
           .prepare = PrepareReports}};
}

}  // namespace kvpool::bench
