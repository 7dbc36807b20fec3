// See allocator_cases.h. The hardest cluster of its size: every tenant wants something at every
// agent, all together half as much again as there is; guarantees take 60 % of it.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/allocator_cases.h"

#include <time.h>

#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "manager/allocator.h"

namespace kvpool::bench {
namespace {

constexpr int64_t kAgentSlabs = 4000;
constexpr int kTenants = 1000;

AllocatorInput Contended(int tenants, int agents) {
  std::mt19937 random(tenants * 1000 + agents);
  const auto below = [&](int64_t n) {
    return std::uniform_int_distribution<int64_t>(0, n)(random);
  };
  AllocatorInput input{.capacity = std::vector<int64_t>(agents, kAgentSlabs)};
  const int64_t share = kAgentSlabs * agents / tenants;  // of the cluster, each tenant's
  const int64_t most_wanted = 3 * share / agents;        // at an agent
  for (int t = 0; t < tenants; ++t) {
    AllocatorInput::Tenant tenant{.guaranteed = share / 5 + below(share * 4 / 5),
                                  .floors = std::vector<int64_t>(agents),
                                  .limit = 2 * share + below(share),
                                  .weight = 1 + below(3),
                                  .priority = static_cast<int>(below(2)),
                                  .demand = std::vector<int64_t>(agents)};
    for (int64_t& slabs : tenant.demand) slabs = below(most_wanted);
    tenant.floors[below(agents - 1)] = tenant.guaranteed / 10;
    input.tenants.push_back(std::move(tenant));
  }
  return input;
}

double ProcessorMillis() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) / 1e6;
}

absl::StatusOr<double> MillisToAllocate(const AllocatorInput& input) {
  const double start = ProcessorMillis();
  const std::vector<std::vector<int64_t>> leases = Allocate(input);
  const double millis = ProcessorMillis() - start;
  int64_t idle = kAgentSlabs * static_cast<int64_t>(input.capacity.size());
  for (const std::vector<int64_t>& row : leases) {
    idle = std::accumulate(row.begin(), row.end(), idle, std::minus<>());
  }
  if (idle == 0) return millis;
  return absl::InternalError(absl::StrFormat("%d slabs of a contended cluster are idle", idle));
}

Case AllocatorCase(int agents) {
  return {.name = absl::StrFormat("allocator_%dx%d", kTenants, agents),
          .unit = "ms",
          .what = absl::StrFormat(
              "leases of %d tenants that all want something at each of %d agents, contended, with "
              "floors, weights and three priorities, against half the tenants at half the agents: "
              "a ratio of 4 is growth as tenants x agents; processor time of one thread",
              kTenants, agents),
          .prepare = [agents]() -> absl::StatusOr<Instance> {
            const auto whole = std::make_shared<AllocatorInput>(Contended(kTenants, agents));
            const auto half = std::make_shared<AllocatorInput>(Contended(kTenants / 2, agents / 2));
            return Instance{.value = [whole] { return MillisToAllocate(*whole); },
                            .yardstick = [half] { return MillisToAllocate(*half); }};
          }};
}

}  // namespace

std::vector<Case> AllocatorCases() { return {AllocatorCase(256), AllocatorCase(64)}; }

}  // namespace kvpool::bench
