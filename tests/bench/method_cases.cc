// See method_cases.h. The reference model decodes real text in this process, a batch for each seed
// method with its default parameters and one under `full` without scoring, in the pool of a real
// agent. What a method costs is what it costs more than `full`: in time, at the safe point and at
// the commit, where a step waits for drains and compactions and copies its queries; in processor
// time, that of the whole agent too. Sequences that miss a step, because the agent has them, make
// forward passes of fewer sequences, which take longer a token: that is the method's cost as well.
// Both are set against the forward passes of the same steps, less what they lost that way.
//
// That loss is not what the passes took more than those of `full`: a method's caches are shorter,
// and its attention cheaper, which is to hide nothing. Passes of each number of sequences are timed
// on the caches of `full`, and the numbers that a method ran are charged at those times.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/method_cases.h"

#include <time.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/bench/agent_rig.h"
#include "worker/checkpoint.h"
#include "worker/llama.h"
#include "worker/math.h"
#include "worker/pool_kv.h"
#include "worker/thread_pool.h"
#include "worker/token_classes.h"
#include "worker/tokenizer.h"

namespace kvpool::bench {
namespace {

using Seconds = std::chrono::duration<double>;

constexpr uint32_t kBatch = 8;
constexpr uint32_t kChunk = 64;
constexpr uint32_t kPromptTokens = 512;
constexpr uint32_t kStepsPerRound = 128;
constexpr int kRounds = 9;
constexpr uint32_t kRoundTokens = kBatch * kStepsPerRound;
constexpr uint32_t kLastContext = kPromptTokens + kStepsPerRound * kRounds;  // on average
constexpr uint32_t kMaxTokens = kLastContext + 128;  // of the sequence that missed the fewest steps
constexpr int kPassRepeats = 16;
constexpr uint32_t kSlabs = 32;
const char* const kMethods[] = {"scissorhands", "corm", "fastgen"};

// What a case counts.
enum class Kind : uint8_t { kTime, kProcessor };

// Of the calling thread.
Seconds Now(Kind kind) {
  timespec t;
  clock_gettime(kind == Kind::kTime ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &t);
  return std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec);
}

// Of some steps.
struct Cost {
  Seconds cache{};    // all that is not the model
  Seconds forward{};  // the model
  uint32_t tokens = 0;
  std::array<uint32_t, kBatch + 1> passes{};  // [sequences in it]
};

// A forward pass of a token for each of so many sequences.
using PassTimes = std::array<Seconds, kBatch + 1>;

// What the passes took more than the same tokens in passes of the whole batch would have.
Seconds LostToSmallPasses(const Cost& cost, const PassTimes& times) {
  Seconds charged{};
  for (uint32_t n = 1; n <= kBatch; ++n) charged += cost.passes[n] * times[n];
  return charged - cost.tokens * times[kBatch] / kBatch;
}

// A batch of sequences under one method, each fed its own part of a text.
class Batch {
 public:
  Batch(Kind kind, Llama* model, const AgentRig* agent, AgentRig::Attached attached,
        std::vector<uint8_t> token_flags, const std::vector<int32_t>* text)
      : kind_(kind),
        model_(model),
        agent_(agent),
        text_(text),
        connection_(std::move(attached.connection)),
        kv_(std::move(attached.tenant), std::move(token_flags)) {}

  // Opens the sessions and feeds them their prompts.
  absl::Status Prefill() {
    for (uint32_t i = 0; i < kBatch; ++i) {
      OpenResult opened = kv_.Open({.prompt_tokens = kPromptTokens, .max_tokens = kMaxTokens});
      if (opened.outcome != OpenOutcome::kOpened) return absl::InternalError(opened.text);
      sessions_.push_back(std::move(opened.session));
    }
    Cost ignored;
    while (*std::min_element(fed_.begin(), fed_.end()) < kPromptTokens) {
      if (absl::Status status = Step(kPromptTokens, kChunk, &ignored); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // A round of single tokens, so many that sequences which miss no step get kStepsPerRound each.
  // Those that missed one stay behind: a server waits for none either, and passes at the end of a
  // round, of those alone, would cost what no server pays.
  absl::StatusOr<Cost> Decode() {
    Cost cost;
    const Seconds before = agent_->CpuTime();
    while (cost.tokens < kRoundTokens) {
      if (absl::Status status = Step(kMaxTokens, 1, &cost); !status.ok()) return status;
    }
    if (kind_ == Kind::kProcessor) cost.cache += agent_->CpuTime() - before;
    return cost;
  }

  // Medians over passes of the sequences' next tokens, which are not committed. For `full`, of
  // which every sequence is always ready.
  absl::StatusOr<PassTimes> TimePasses() {
    std::vector<Feed> feeds;
    if (absl::Status status = Prepare(kMaxTokens, 1, &feeds); !status.ok()) return status;
    if (feeds.size() < kBatch) return absl::InternalError("a sequence is with the agent");
    std::array<std::vector<double>, kBatch + 1> seconds;
    for (int i = 0; i < kPassRepeats; ++i) {
      for (uint32_t n = 1; n <= kBatch; ++n) {
        std::rotate(feeds.begin(), feeds.begin() + 1, feeds.end());
        const Seconds start = Now(kind_);
        (void)model_->Forward(std::span(feeds).first(n));
        seconds[n].push_back((Now(kind_) - start).count());
      }
    }
    PassTimes times{};
    for (uint32_t n = 1; n <= kBatch; ++n) times[n] = Seconds(Median(seconds[n]));
    return times;
  }

 private:
  // The next tokens, up to `end`, of those that can step. As in the engine, whoever is with the
  // agent misses a step.
  absl::Status Prepare(uint32_t end, uint32_t chunk, std::vector<Feed>* feeds) {
    std::vector<KvStep> steps;
    std::vector<uint32_t> sequences;
    for (uint32_t i = 0; i < kBatch; ++i) {
      if (fed_[i] == end) continue;
      const uint32_t count = std::min(chunk, end - fed_[i]);
      steps.push_back({.session = sessions_[i].get(),
                       .tokens = count,
                       .ids = std::span(*text_).subspan(i * kMaxTokens + fed_[i], count)});
      sequences.push_back(i);
    }
    kv_.Prepare(steps);
    for (size_t i = 0; i < steps.size(); ++i) {
      if (steps[i].readiness == Readiness::kBusy) continue;
      if (steps[i].readiness != Readiness::kReady) {
        return absl::InternalError(absl::StrCat("a sequence was held up: ", steps[i].text));
      }
      feeds->push_back(
          {.session = steps[i].session, .position = fed_[sequences[i]], .tokens = steps[i].ids});
    }
    return absl::OkStatus();
  }

  absl::Status Step(uint32_t end, uint32_t chunk, Cost* cost) {
    const Seconds start = Now(kind_);
    std::vector<Feed> feeds;
    if (absl::Status status = Prepare(end, chunk, &feeds); !status.ok()) return status;
    const Seconds prepared = Now(kind_);
    (void)model_->Forward(feeds);
    const Seconds forwarded = Now(kind_);
    for (const Feed& feed : feeds) feed.session->Commit();
    cost->forward += forwarded - prepared;
    cost->cache += prepared - start + (Now(kind_) - forwarded);
    ++cost->passes[feeds.size()];
    for (const Feed& feed : feeds) {
      const auto fed = static_cast<uint32_t>(feed.tokens.size());
      cost->tokens += fed;
      fed_[IndexOf(feed)] += fed;
    }
    return absl::OkStatus();
  }

  uint32_t IndexOf(const Feed& feed) const {
    const auto found = std::find_if(sessions_.begin(), sessions_.end(),
                                    [&](const auto& one) { return one.get() == feed.session; });
    return static_cast<uint32_t>(found - sessions_.begin());
  }

  const Kind kind_;
  Llama* const model_;
  const AgentRig* const agent_;
  const std::vector<int32_t>* const text_;  // kBatch * kMaxTokens
  const std::unique_ptr<Connection> connection_;
  PoolKv kv_;
  std::vector<std::unique_ptr<KvSession>> sessions_;
  std::vector<uint32_t> fed_ = std::vector<uint32_t>(kBatch);  // tokens, of each sequence
};

struct MethodRig {
  ThreadPool threads{1};
  std::unique_ptr<Llama> model;
  std::vector<int32_t> text;
  std::unique_ptr<AgentRig> agent;
  std::vector<std::unique_ptr<Batch>> methods;
  std::unique_ptr<Batch> full;
  // [method][round] cost of the method as a share of the model's, and what small passes are of it.
  std::vector<std::vector<double>> shares{std::size(kMethods)};
  std::vector<std::vector<double>> lost_shares{std::size(kMethods)};
  Cost round;             // mean over the methods, a token
  bool measured = false;  // this round, by the first that asked for a part of it

  // The case asks for the cost and for its yardstick one after the other, in either order.
  absl::Status Measure() {
    if (std::exchange(measured, !measured)) return absl::OkStatus();
    const absl::StatusOr<Cost> base = full->Decode();
    if (!base.ok()) return base.status();
    const absl::StatusOr<PassTimes> times = full->TimePasses();
    if (!times.ok()) return times.status();
    round = {};
    for (size_t m = 0; m < methods.size(); ++m) {
      const absl::StatusOr<Cost> cost = methods[m]->Decode();
      if (!cost.ok()) return cost.status();
      const Seconds lost = LostToSmallPasses(*cost, *times) / cost->tokens;
      const Seconds more = cost->cache / cost->tokens - base->cache / base->tokens + lost;
      const Seconds forward = cost->forward / cost->tokens - lost;
      shares[m].push_back(more / forward);
      lost_shares[m].push_back(lost / forward);
      round.cache += more / std::size(kMethods);
      round.forward += forward / std::size(kMethods);
    }
    return absl::OkStatus();
  }

  std::string Note() const {
    std::string note = absl::StrCat(kBatch, " sequences of each, contexts of ", kPromptTokens,
                                    " to ", kLastContext, " tokens;");
    for (size_t m = 0; m < shares.size(); ++m) {
      absl::StrAppendFormat(&note, " %s %.1f %% (small passes: %.1f)", kMethods[m],
                            100 * Median(shares[m]), 100 * Median(lost_shares[m]));
    }
    return note;
  }
};

absl::Status LoadModel(MethodRig* rig, std::vector<uint8_t>* token_flags) {
  auto model = Llama::Load(SourcePath(kModel), &rig->threads);
  if (!model.ok()) return model.status();
  rig->model = *std::move(model);
  auto text = ReadTextFile(SourcePath("worker/demo/text.txt"));
  if (!text.ok()) return text.status();
  std::string error;
  const auto tokenizer = Tokenizer::Load(SourcePath(kModel) + "/tokenizer.model", &error);
  if (tokenizer == nullptr) return absl::InvalidArgumentError(error);
  *token_flags = TokenClasses(*tokenizer, rig->model->config().vocab);
  const std::vector<int32_t> once = tokenizer->Encode(*text);
  for (size_t i = 0; i < kBatch * kMaxTokens; ++i) rig->text.push_back(once[i % once.size()]);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Batch>> MakeBatch(Kind kind, uint32_t tenant,
                                                 const PolicySpec& policy,
                                                 const std::vector<uint8_t>& token_flags,
                                                 const MethodRig& rig) {
  absl::Status status = rig.agent->Lease(tenant, kSlabs, policy);
  if (!status.ok()) return status;
  auto attached =
      rig.agent->Attach(tenant, {.geometry = rig.model->config().CacheGeometry(Dtype::kBf16),
                                 .max_sessions = kBatch,
                                 .max_running = kBatch,
                                 .max_session_tokens = kMaxTokens,
                                 .chunk_tokens = kChunk});
  if (!attached.ok()) return attached.status();
  auto batch = std::make_unique<Batch>(kind, rig.model.get(), rig.agent.get(), *std::move(attached),
                                       token_flags, &rig.text);
  if (status = batch->Prefill(); !status.ok()) return status;
  return batch;
}

absl::StatusOr<Instance> PrepareMethods(Kind kind) {
  auto rig = std::make_shared<MethodRig>();
  SetMathThreads(1);
  std::vector<uint8_t> token_flags;
  if (absl::Status status = LoadModel(rig.get(), &token_flags); !status.ok()) return status;
  constexpr uint32_t kTenants = 1 + std::size(kMethods);
  auto agent = AgentRig::Start({.slabs = kSlabs * kTenants});
  if (!agent.ok()) return agent.status();
  rig->agent = *std::move(agent);
  auto full = MakeBatch(kind, kTenants, *MakePolicySpec("full", {{"recovery_every", 0}}),
                        token_flags, *rig);
  if (!full.ok()) return full.status();
  rig->full = *std::move(full);
  for (uint32_t m = 0; m < std::size(kMethods); ++m) {
    auto method = MakeBatch(kind, m + 1, *MakePolicySpec(kMethods[m], {}), token_flags, *rig);
    if (!method.ok()) return method.status();
    rig->methods.push_back(*std::move(method));
  }
  const auto microseconds = [rig](Seconds Cost::*part) -> absl::StatusOr<double> {
    if (absl::Status status = rig->Measure(); !status.ok()) return status;
    return (rig->round.*part).count() * 1e6;
  };
  return Instance{.value = [microseconds] { return microseconds(&Cost::cache); },
                  .yardstick = [microseconds] { return microseconds(&Cost::forward); },
                  .note = [rig] { return rig->Note(); }};
}

}  // namespace

std::vector<Case> MethodCases() {
  return {{.name = "method_overhead",
           .unit = "us/token",
           .what = "time that decoding loses to scoring, policy and compaction: at the safe points "
                   "and commits under a seed method with its default parameters, less that under "
                   "`full` without scoring, and in forward passes without those sequences that "
                   "the agent has, charged as on the caches of `full`; against the forward "
                   "passes less that charge",
           .prepare = [] { return PrepareMethods(Kind::kTime); },
           .rounds = kRounds},
          {.name = "method_processor",
           .unit = "us/token",
           .what = "the same in processor time, with all that the agent's process takes meanwhile",
           .prepare = [] { return PrepareMethods(Kind::kProcessor); },
           .rounds = kRounds}};
}

}  // namespace kvpool::bench
