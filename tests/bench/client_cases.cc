// See client_cases.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/client_cases.h"

#include <chrono>
#include <memory>
#include <span>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "client/tenant.h"
#include "tests/bench/agent_rig.h"

namespace kvpool::bench {
namespace {

using Clock = std::chrono::steady_clock;

double Nanoseconds(Clock::duration time) {
  return std::chrono::duration<double, std::nano>(time).count();
}

// Pages of 512 bytes, the smallest there are: 4096 in a slab of 2 MiB.
constexpr uint32_t kPagesPerSlab = 4096;
Geometry SmallPages() {
  return {.layers = 1,
          .query_heads = 1,
          .kv_heads = 1,
          .key_dim = 8,
          .value_dim = 8,
          .dtype = Dtype::kBf16,
          .kv_of_layer = {0}};
}

// A round trip of `tenant`'s connection: median of a few hundred.
absl::StatusOr<double> PingNanoseconds(Tenant& tenant) {
  std::vector<double> times;
  for (int i = 0; i < 500; ++i) {
    const auto start = Clock::now();
    if (absl::Status status = tenant.Ping(); !status.ok()) return status;
    times.push_back(Nanoseconds(Clock::now() - start));
  }
  return Median(std::move(times));
}

// An agent and one attached tenant that holds a few slabs of small pages.
struct ClientRig {
  std::unique_ptr<AgentRig> agent;
  AgentRig::Attached attached;
};

absl::StatusOr<std::shared_ptr<ClientRig>> MakeClientRig(uint32_t lease_slabs) {
  absl::StatusOr<std::unique_ptr<AgentRig>> agent =
      AgentRig::Start({.slab_bytes = 2_MiB, .slabs = lease_slabs});
  if (!agent.ok()) return agent.status();
  absl::Status leased = (*agent)->Lease(1, lease_slabs, *MakePolicySpec("full", {}));
  if (!leased.ok()) return leased;
  constexpr uint32_t kTokens = 3 * kPagesPerSlab * kPageTokens;
  absl::StatusOr<AgentRig::Attached> attached = (*agent)->Attach(1, {.geometry = SmallPages(),
                                                                     .max_sessions = 16,
                                                                     .max_running = 16,
                                                                     .max_session_tokens = kTokens,
                                                                     .chunk_tokens = kTokens / 3});
  if (!attached.ok()) return attached.status();
  // Slabs come when pages are missing, so a session that takes three slabs' pages brings them.
  auto session = attached->tenant->Open({.prompt_tokens = 1, .max_tokens = kTokens});
  if (!session.ok()) return session.status();
  for (int i = 0; i < 3; ++i) {
    Step step{.session = session->get(), .tokens = kTokens / 3};
    absl::Status status = attached->tenant->SafePoint({&step, 1});
    if (status.ok()) status = step.outcome;
    if (status.ok()) status = (*session)->Commit(kTokens / 3, nullptr);
    if (!status.ok()) return status;
  }
  return std::make_shared<ClientRig>(ClientRig{*std::move(agent), *std::move(attached)});
}

// ---- page_cycle ---------------------------------------------------------------------------------

constexpr int kCycles = 10'000'000;

absl::Status CyclePages(Magazine& magazine) {
  const auto deadline = Clock::now() + std::chrono::seconds(10);
  const auto overdue = [&deadline] {
    std::this_thread::yield();
    return Clock::now() > deadline;
  };
  for (int i = 0; i < kCycles; ++i) {
    PageId page;
    while (!magazine.Take({&page, 1})) {
      if (overdue()) return absl::DeadlineExceededError("the agent did not fill the magazine");
    }
    while (!magazine.Return({&page, 1})) {
      if (overdue()) return absl::DeadlineExceededError("the agent did not collect the pages");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Instance> PreparePageCycle() {
  absl::StatusOr<std::shared_ptr<ClientRig>> rig = MakeClientRig(128);
  if (!rig.ok()) return rig.status();
  struct Sums {
    double agent = 0, wall = 0;  // nanoseconds
    int rounds = 0;
  };
  auto sums = std::make_shared<Sums>();
  const auto cycle = [rig = *rig, sums]() -> absl::StatusOr<double> {
    const auto cpu = rig->agent->CpuTime();
    const auto start = Clock::now();
    absl::Status status = CyclePages(static_cast<TenantImpl&>(*rig->attached.tenant).magazine());
    if (!status.ok()) return status;
    const double wall = Nanoseconds(Clock::now() - start);
    sums->wall += wall;
    sums->agent += static_cast<double>((rig->agent->CpuTime() - cpu).count());
    ++sums->rounds;
    return wall / kCycles;
  };
  return Instance{.value = cycle,
                  .yardstick = [rig = *rig] { return PingNanoseconds(*rig->attached.tenant); },
                  .note =
                      [sums] {
                        return absl::StrFormat(
                            "agent's CPU: %.1f ns a cycle, %.0f %% of a core meanwhile",
                            sums->agent / sums->rounds / kCycles, 100 * sums->agent / sums->wall);
                      }};
}

// ---- session_open -------------------------------------------------------------------------------

constexpr uint32_t kHeldPages = 64;

// Median over sessions, each of which is closed again, untimed.
absl::StatusOr<double> OpenNanoseconds(Tenant& tenant) {
  constexpr uint32_t kTokens = kHeldPages * kPageTokens;
  std::vector<double> times;
  for (int i = 0; i < 500; ++i) {
    const auto start = Clock::now();
    auto session = tenant.Open({.prompt_tokens = kTokens, .max_tokens = kTokens});
    if (!session.ok()) return session.status();
    Step step{.session = session->get(), .tokens = kTokens};
    absl::Status status = tenant.SafePoint({&step, 1});
    if (status.ok()) status = step.outcome;
    if (!status.ok()) return status;
    times.push_back(Nanoseconds(Clock::now() - start));
    session->reset();
    if (status = tenant.Ping(); !status.ok()) return status;  // the close has arrived
  }
  return Median(std::move(times));
}

absl::StatusOr<Instance> PrepareSessionOpen() {
  absl::StatusOr<std::shared_ptr<ClientRig>> rig = MakeClientRig(8);
  if (!rig.ok()) return rig.status();
  return Instance{.value = [rig = *rig] { return OpenNanoseconds(*rig->attached.tenant); },
                  .yardstick = [rig = *rig] { return PingNanoseconds(*rig->attached.tenant); },
                  .note = {}};
}

}  // namespace

std::vector<Case> ClientCases() {
  return {{.name = "page_cycle",
           .unit = "ns",
           .what = "take and return of a page through the magazine, worker and agent as two "
                   "processes, against one RPC a page",
           .prepare = PreparePageCycle},
          {.name = "session_open",
           .unit = "ns",
           .what = "open a session and take 64 pages, median, against a ping of the connection",
           .prepare = PrepareSessionOpen}};
}

}  // namespace kvpool::bench
