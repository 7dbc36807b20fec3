// Real arrivals on a simulated cluster: the same requests, tenants and GPUs under one way to divide
// memory after the other, to count what each serves.
//
// Real are all cores that decide: the manager's Cluster, the agents' PoolLedger, TenantBook,
// PlanReclaim, admission and ParkedOrder, and the policies' PeakTokens, NextCompactAt and Compact.
// Imitated, coarser than in simulation.h and without faults, is what moves between them:
//
//   - a session appends its prompt in chunks of kReplayChunk tokens and its answer 16 tokens at a
//     time, each session at a speed of its own: no GPU is short of computing time
//   - a page is taken and returned at once, a slab that goes comes back after kSlabReturns, a
//     message takes kMessage; an agent reports as the real one does
//   - what a compaction keeps is the policy's own estimate (Selection::expected); where that
//     depends on what tokens say, ReplayKeeps in replay_agent.cc has what docs/quality.md measured
//   - a tenant's requests at an agent are admitted in the order in which they came; one that has
//     waited for `patience` is refused; one that is preempted waits anew and starts anew
//
// A value of options in, a value of results out. One thread a run; runs share nothing that changes.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/policy_spec.h"
#include "common/units.h"
#include "kernels/geometry.h"
#include "tests/sim/arrivals.h"
#include "tests/sim/prefix_cache.h"

namespace kvpool::sim {

inline constexpr uint32_t kReplayChunk = 512;
inline constexpr Bytes kReplaySlab = Bytes(int64_t{32} << 20);
inline constexpr Duration kSlabReturns = std::chrono::milliseconds(100);
inline constexpr Duration kMessage = std::chrono::milliseconds(1);

struct ReplayOptions {
  uint32_t agents = 4;
  uint32_t tenants = 8;
  Bytes pool;  // of each agent, what tenants can have of it
  Duration patience = std::chrono::seconds(30);
  uint32_t prompt_tokens_per_second = 8000;  // of each session
  uint32_t answer_tokens_per_second = 25;
};

// One way to divide memory.
struct Contender {
  std::string name;
  // kStatic: every tenant has the same part of every GPU, for ever. kBudgets: that part is its
  // guarantee there (a floor), its limit is kLimitTimes as much, and what it does not use is lent.
  enum class Division : uint8_t { kStatic, kBudgets } division = Division::kBudgets;
  PolicySpec policy = DefaultPolicySpec();
  Geometry geometry;
  ParkingRule parking = ParkingRule::kShipped;
};
inline constexpr int64_t kLimitTimes = 4;

// A request with its place: conversations stay at one tenant and one agent.
struct Request {
  Duration at{0};
  uint32_t prompt_tokens = 1, answer_tokens = 1;
  uint32_t tenant = 0, agent = 0;
  std::vector<PrefixKey> blocks;  // whole ones of the prompt
};

// Divides arrivals among tenants, tenant k (from 1) getting about 1/k of what the first gets, and
// among agents evenly, by a hash of how the conversation begins.
std::vector<Request> DivideArrivals(const Arrivals& arrivals, const ReplayOptions& options);

struct ReplayResult {
  std::string name;
  uint64_t requests = 0, served = 0, too_large = 0, impatient = 0;
  uint64_t preempted = 0;                        // times that a session was
  uint64_t compactions = 0;                      // times that one was shortened
  uint64_t prompt_tokens = 0, found_tokens = 0;  // of requests that started; in kept prefixes
  uint64_t served_tokens = 0;                    // prompts and answers
  // Most that a tenant held above its limit at any moment: in slabs, which is what leases count;
  // and with what its sessions are charged besides (planes, tables, windows).
  int64_t bytes_over = 0, bytes_over_with_overhead = 0;
  double mean_used = 0, mean_kept = 0;  // parts of the pools: sessions' pages; parked prefixes
  Duration wait_p50{0}, wait_p99{0};    // of served requests, for admission
  // Until a tenant that wants what it is guaranteed at an agent has the lease for it.
  uint64_t claims = 0;
  Duration claim_p50{0}, claim_p99{0}, claim_max{0};
  uint64_t events = 0;

  uint64_t refused() const { return too_large + impatient; }
  bool operator==(const ReplayResult&) const = default;
};

// InvalidArgument: the pool has no slab for each tenant, or no slab has room for a page.
absl::StatusOr<ReplayResult> Replay(const std::vector<Request>& requests,
                                    const ReplayOptions& options, const Contender& contender,
                                    std::atomic<uint64_t>* arrived);

}  // namespace kvpool::sim
