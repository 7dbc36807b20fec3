// See reclaim_cases.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/reclaim_cases.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "tests/bench/agent_rig.h"

namespace kvpool::bench {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Pages of 32 KiB, 64 in a slab of 2 MiB.
constexpr Bytes kSlabBytes = 2_MiB;
constexpr uint32_t kPagesPerSlab = 64;
Geometry MediumPages() {
  return {.layers = 4,
          .query_heads = 8,
          .kv_heads = 4,
          .key_dim = 32,
          .value_dim = 32,
          .dtype = Dtype::kBf16,
          .kv_of_layer = {0, 1, 2, 3}};
}

using Sessions = std::vector<std::unique_ptr<Session>>;

// A safe point and one step of all sessions. The cache's bytes are left as they are.
absl::Status Advance(Tenant& tenant, const Sessions& sessions, uint32_t tokens) {
  std::vector<Step> steps;
  for (const auto& session : sessions)
    steps.push_back({.session = session.get(), .tokens = tokens});
  if (absl::Status status = tenant.SafePoint(steps); !status.ok()) return status;
  const Geometry& g = tenant.layout().geometry();
  const std::vector<float> queries(tokens * g.model_layers() * g.query_heads * g.key_dim, 0.1f);
  for (size_t i = 0; i < sessions.size(); ++i) {
    if (!steps[i].outcome.ok()) return steps[i].outcome;
    const bool wanted = sessions[i]->WantsQueries(tokens);
    absl::Status status = sessions[i]->Commit(tokens, wanted ? queries.data() : nullptr);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<Sessions> OpenSessions(Tenant& tenant, uint32_t count, const OpenOptions& options) {
  Sessions sessions;
  for (uint32_t i = 0; i < count; ++i) {
    auto session = tenant.Open(options);
    if (!session.ok()) return session.status();
    sessions.push_back(*std::move(session));
  }
  return sessions;
}

// ---- kill_reclaim -------------------------------------------------------------------------------

constexpr uint32_t kVictimSlabs = 128;  // 256 MiB
constexpr uint32_t kVictimSessions = 64;
constexpr uint32_t kVictimTokens = kVictimSlabs * kPagesPerSlab / kVictimSessions * kPageTokens;

// The victim: takes every page of its lease, writes to all of them, says so and waits for its end.
int HoldEverything(const AgentRig& rig, int ready) {
  auto attached = rig.Attach(1, {.geometry = MediumPages(),
                                 .max_sessions = kVictimSessions,
                                 .max_running = kVictimSessions,
                                 .max_session_tokens = kVictimTokens,
                                 .chunk_tokens = kVictimTokens});
  if (!attached.ok()) return 1;
  Tenant& tenant = *attached->tenant;
  auto sessions = OpenSessions(tenant, kVictimSessions,
                               {.prompt_tokens = kVictimTokens, .max_tokens = kVictimTokens});
  if (!sessions.ok()) return 1;
  std::vector<Step> steps;
  for (const auto& session : *sessions) {
    steps.push_back({.session = session.get(), .tokens = kVictimTokens});
  }
  if (!tenant.SafePoint(steps).ok()) return 1;
  const Layout& layout = tenant.layout();
  const Geometry& g = layout.geometry();
  const size_t block_bytes = layout.page_bytes().value() / g.planes();
  for (const Step& step : steps) {
    if (!step.outcome.ok()) return 1;
    for (uint32_t token = 0; token < kVictimTokens; token += kPageTokens) {
      for (uint32_t plane = 0; plane < g.planes(); ++plane) {
        const BlockId block =
            step.session->WriteBlock(plane / g.kv_heads, plane % g.kv_heads, token);
        std::memset(tenant.base() + size_t{block.value()} * kGranuleBytes, 1, block_bytes);
      }
    }
    if (!step.session->Commit(kVictimTokens, nullptr).ok()) return 1;
  }
  if (write(ready, "x", 1) != 1) return 1;
  pause();
  return 0;
}

absl::StatusOr<double> KillRound(AgentRig& rig) {
  const size_t files = rig.OpenFiles();
  int ready[2];
  if (pipe2(ready, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe");
  Process victim = Process::Fork([&] { return HoldEverything(rig, ready[1]); });
  close(ready[1]);
  char byte;
  const bool holds = read(ready[0], &byte, 1) == 1;
  close(ready[0]);
  if (!holds) return absl::InternalError("the victim did not get its pages");
  constexpr uint64_t kBytes = uint64_t{kVictimSlabs} << 21;
  absl::Status held = Await("256 MiB in use", [&] { return rig.Use(1).used_bytes == kBytes; });
  if (!held.ok()) return held;

  const auto start = Clock::now();
  victim.Kill(SIGKILL);
  // The agent counts a slab as held until its memory has been seen to be gone.
  absl::Status back = Await("all pages and slabs back", [&] {
    const FakeUse use = rig.Use(1);
    return use.used_bytes == 0 && use.held_slabs == 0;
  });
  const double seconds = SecondsSince(start);
  if (!back.ok()) return back;
  victim.Wait();
  absl::Status closed = Await("the agent's files closed", [&] { return rig.OpenFiles() <= files; });
  if (!closed.ok()) return closed;
  return seconds;
}

absl::StatusOr<Instance> PrepareKillReclaim() {
  // The pool is what a victim takes and is charged for its tables: what leaks is soon missed.
  constexpr uint32_t kOverheadSlabs = 8;
  constexpr uint32_t kLease = kVictimSlabs + kOverheadSlabs;
  auto rig = AgentRig::Start({.slab_bytes = kSlabBytes, .slabs = kLease});
  if (!rig.ok()) return rig.status();
  const PolicySpec policy = *MakePolicySpec("full", {{"recovery_every", 0}});
  absl::Status leased = (*rig)->Lease(1, kLease, policy);
  if (!leased.ok()) return leased;
  std::shared_ptr<AgentRig> shared = *std::move(rig);
  return Instance{.value = [shared] { return KillRound(*shared); },
                  .yardstick = {},
                  .note =
                      [shared] {
                        return absl::StrFormat("after the last: %d slabs held, %d files open",
                                               shared->Use(1).held_slabs, shared->OpenFiles());
                      }};
}

// ---- bytes_freed --------------------------------------------------------------------------------

constexpr uint32_t kGroupTenants = 2;
constexpr uint32_t kGroupSessions = 32;
constexpr uint32_t kGroupBudget = 512;
constexpr uint32_t kGroupSlabs = 32;  // leased to a tenant

PolicySpec GroupPolicy() {
  return *MakePolicySpec("scissorhands",
                         {{"budget", kGroupBudget}, {"drop", kGroupBudget / 2}, {"window", 64}});
}

// Of one tenant, in slabs.
struct Freed {
  double used_before = 0, used_after = 0;
  uint32_t held_before = 0, held_after = 0;
  // What is left above half of what was in use.
  double excess() const {
    return std::max(used_after - used_before / 2, held_after - held_before / 2.0);
  }
};

absl::StatusOr<Freed> FreeHalf(AgentRig& rig, uint32_t id) {
  absl::Status leased = rig.Lease(id, kGroupSlabs, GroupPolicy());
  if (!leased.ok()) return leased;
  constexpr uint32_t kChunk = 64;
  auto attached = rig.Attach(id, {.geometry = MediumPages(),
                                  .max_sessions = kGroupSessions,
                                  .max_running = kGroupSessions,
                                  .max_session_tokens = 2 * kGroupBudget,
                                  .chunk_tokens = kChunk});
  if (!attached.ok()) return attached.status();
  Tenant& tenant = *attached->tenant;
  auto sessions = OpenSessions(tenant, kGroupSessions,
                               {.prompt_tokens = kGroupBudget, .max_tokens = 2 * kGroupBudget});
  if (!sessions.ok()) return sessions.status();
  for (uint32_t tokens = 0; tokens < kGroupBudget; tokens += kChunk) {
    if (absl::Status status = Advance(tenant, *sessions, kChunk); !status.ok()) return status;
  }
  const auto slabs = [](uint64_t bytes) { return static_cast<double>(bytes) / kSlabBytes.value(); };
  Freed freed;
  auto before = tenant.Statistics();
  if (!before.ok()) return before.status();
  freed.used_before = slabs(before->used_bytes);
  freed.held_before = before->held_slabs;
  // The next token is one too many for the budget: every session is compacted to half first.
  if (absl::Status status = Advance(tenant, *sessions, 1); !status.ok()) return status;
  auto after = tenant.Statistics();
  if (!after.ok()) return after.status();
  freed.used_after = slabs(after->used_bytes);
  // The lease follows, and whole slabs come back.
  const uint32_t half = freed.held_before / 2 + 1;
  rig.Order(id, half, GroupPolicy());
  absl::Status back = Await("half of the slabs", [&] {
    std::vector<Step> rest;
    for (const auto& session : *sessions) rest.push_back({.session = session.get(), .tokens = 1});
    return tenant.SafePoint(rest).ok() && rig.Use(id).held_slabs <= half;
  });
  if (!back.ok()) return back;
  freed.held_after = rig.Use(id).held_slabs;
  return freed;
}

absl::StatusOr<Instance> PrepareBytesFreed() {
  auto started = AgentRig::Start({.slab_bytes = kSlabBytes, .slabs = kGroupTenants * kGroupSlabs});
  if (!started.ok()) return started.status();
  std::shared_ptr<AgentRig> rig = *std::move(started);
  auto last = std::make_shared<Freed>();
  return Instance{.value = [rig, last]() -> absl::StatusOr<double> {
                    double worst = 0;
                    for (uint32_t id = 1; id <= kGroupTenants; ++id) {
                      absl::StatusOr<Freed> freed = FreeHalf(*rig, id);
                      if (!freed.ok()) return freed.status();
                      worst = std::max(worst, freed->excess());
                      *last = *freed;
                    }
                    return worst;
                  },
                  .yardstick = {},
                  .note =
                      [last] {
                        return absl::StrFormat(
                            "a tenant's slabs: in use %.1f -> %.1f, held %d -> %d",
                            last->used_before, last->used_after, last->held_before,
                            last->held_after);
                      }};
}

// ---- limit_cut ----------------------------------------------------------------------------------

constexpr uint32_t kCutSlabs = 18;

// kvpool-worker with more prompts than it can run at once, for as long as the object lives.
class Load {
 public:
  Load(const AgentRig& rig, const std::string& model) {
    std::ofstream(dir_ / "token") << RigToken(1) << "\n";
    std::ofstream prompts(dir_ / "prompts");
    for (int i = 0; i < 1000; ++i) {
      for (int word = 0; word < 400; ++word) prompts << "night ";
      prompts << "number " << i << "\n";
    }
    prompts.close();
    std::filesystem::permissions(dir_ / "token", std::filesystem::perms::owner_read);
    worker_ = Process("kvpool-worker",
                      {"--agent", rig.socket(), "--token-file", dir_ / "token", "--model", model,
                       "--prompts", dir_ / "prompts", "--max-tokens", "600", "--batch", "16"},
                      dir_ / "worker.log");
  }
  bool Running() const { return worker_.Running(); }

 private:
  TempDir dir_;
  Process worker_;
};

struct CutRig {
  std::unique_ptr<AgentRig> agent;
  std::unique_ptr<Load> load;
  uint32_t least_held = kCutSlabs;  // when a limit was cut
};

PolicySpec CutPolicy() {
  return *MakePolicySpec("scissorhands", {{"budget", 512}, {"window", 64}});
}

absl::StatusOr<double> CutRound(CutRig& rig) {
  rig.agent->Order(1, kCutSlabs, CutPolicy());
  absl::Status grown = Await("the load to use its lease", [&] {
    const FakeUse use = rig.agent->Use(1);
    return use.lease_slabs == kCutSlabs && use.held_slabs >= kCutSlabs * 2 / 3;
  });
  if (!grown.ok()) return grown;
  rig.least_held = std::min(rig.least_held, rig.agent->Use(1).held_slabs);
  const auto start = Clock::now();
  rig.agent->Order(1, kCutSlabs / 2, CutPolicy());
  absl::Status cut = Await("the acknowledgement", [&] {
    const FakeUse use = rig.agent->Use(1);
    return use.lease_slabs == kCutSlabs / 2 && use.held_slabs <= kCutSlabs / 2;
  });
  const double seconds = SecondsSince(start);
  if (!cut.ok()) return cut;
  if (!rig.load->Running()) return absl::InternalError("the load has ended");
  return seconds;
}

absl::StatusOr<Instance> PrepareLimitCut() {
  auto rig = std::make_shared<CutRig>();
  auto agent = AgentRig::Start({.slab_bytes = kSlabBytes, .slabs = kCutSlabs});
  if (!agent.ok()) return agent.status();
  rig->agent = *std::move(agent);
  absl::Status leased = rig->agent->Lease(1, kCutSlabs, CutPolicy());
  if (!leased.ok()) return leased;
  rig->load = std::make_unique<Load>(*rig->agent, SourcePath(kModel));
  return Instance{.value = [rig] { return CutRound(*rig); },
                  .yardstick = {},
                  .note =
                      [rig] {
                        return absl::StrFormat(
                            "%d slabs cut to %d while at least %d were held; %d compactions, %d "
                            "refusals",
                            kCutSlabs, kCutSlabs / 2, rig->least_held,
                            rig->agent->Use(1).compactions, rig->agent->Use(1).refusals);
                      }};
}

}  // namespace

std::vector<Case> ReclaimCases() {
  return {{.name = "kill_reclaim",
           .unit = "s",
           .what = "kill() of a worker that holds 256 MiB until its pages are free and its slabs "
                   "zeroed, maximum of 50",
           .prepare = PrepareKillReclaim,
           .rounds = 50,
           .summary = Summary::kMaximum},
          {.name = "bytes_freed",
           .unit = "slabs",
           .what = "bytes above half of what they were, in use and held, after groups of sessions "
                   "were compacted to half: maximum over tenants",
           .prepare = PrepareBytesFreed,
           .summary = Summary::kMaximum},
          {.name = "limit_cut",
           .unit = "s",
           .what = "a limit lowered by half under load until the agent acknowledges the lease and "
                   "holds no more than it",
           .prepare = PrepareLimitCut,
           .summary = Summary::kMaximum}};
}

}  // namespace kvpool::bench
