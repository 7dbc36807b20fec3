// See method_cases.h. The reference model decodes real text in this process, a batch for each seed
// method with its default parameters and one under `full` without scoring, in the pool of a real
// agent. What a method costs is what it costs more than `full`: in time, at the safe point and at
// the commit, where a step waits for drains and compactions and copies its queries; in processor
// time, that of the whole agent too. Both are set against the forward passes of the same steps.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/method_cases.h"

#include <time.h>

#include <algorithm>
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
constexpr uint32_t kMaxTokens = kPromptTokens + kStepsPerRound * kRounds;
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
};

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
    return FeedUpTo(kPromptTokens, kChunk, &ignored);
  }

  // A round of single tokens.
  absl::StatusOr<Cost> Decode() {
    Cost cost;
    const Seconds before = agent_->CpuTime();
    if (absl::Status status = FeedUpTo(fed_.front() + kStepsPerRound, 1, &cost); !status.ok()) {
      return status;
    }
    if (kind_ == Kind::kProcessor) cost.cache += agent_->CpuTime() - before;
    return cost;
  }

 private:
  // Steps until every sequence has `end` tokens. As in the engine, whoever is with the agent misses
  // a step.
  absl::Status FeedUpTo(uint32_t end, uint32_t chunk, Cost* cost) {
    while (*std::min_element(fed_.begin(), fed_.end()) < end) {
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
      if (absl::Status status = Step(steps, sequences, cost); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status Step(std::vector<KvStep>& steps, const std::vector<uint32_t>& sequences,
                    Cost* cost) {
    const Seconds start = Now(kind_);
    kv_.Prepare(steps);
    std::vector<Feed> feeds;
    for (size_t i = 0; i < steps.size(); ++i) {
      if (steps[i].readiness == Readiness::kBusy) continue;
      if (steps[i].readiness != Readiness::kReady) {
        return absl::InternalError(absl::StrCat("a sequence was held up: ", steps[i].text));
      }
      feeds.push_back(
          {.session = steps[i].session, .position = fed_[sequences[i]], .tokens = steps[i].ids});
      fed_[sequences[i]] += steps[i].tokens;
    }
    const Seconds prepared = Now(kind_);
    (void)model_->Forward(feeds);
    const Seconds forwarded = Now(kind_);
    for (const Feed& feed : feeds) feed.session->Commit();
    cost->forward += forwarded - prepared;
    cost->cache += prepared - start + (Now(kind_) - forwarded);
    return absl::OkStatus();
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
  // [method][round] cost of the method as a share of the model's.
  std::vector<std::vector<double>> shares{std::size(kMethods)};
  Cost round;             // mean over the methods, a token
  bool measured = false;  // this round, by the first that asked for a part of it

  // The case asks for the cost and for its yardstick one after the other, in either order.
  absl::Status Measure() {
    if (std::exchange(measured, !measured)) return absl::OkStatus();
    const absl::StatusOr<Cost> base = full->Decode();
    if (!base.ok()) return base.status();
    round = {};
    for (size_t m = 0; m < methods.size(); ++m) {
      const absl::StatusOr<Cost> cost = methods[m]->Decode();
      if (!cost.ok()) return cost.status();
      const Seconds more = cost->cache - base->cache;
      shares[m].push_back(more / cost->forward);
      constexpr double kTokens = 1.0 * std::size(kMethods) * kBatch * kStepsPerRound;
      round.cache += more / kTokens;
      round.forward += cost->forward / kTokens;
    }
    return absl::OkStatus();
  }

  std::string Note() const {
    std::string note = absl::StrCat(kBatch, " sequences of each, contexts of ", kPromptTokens,
                                    " to ", kMaxTokens, " tokens;");
    for (size_t m = 0; m < shares.size(); ++m) {
      absl::StrAppendFormat(&note, " %s %.1f %%", kMethods[m], 100 * Median(shares[m]));
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
                   "`full` without scoring; against the forward passes",
           .prepare = [] { return PrepareMethods(Kind::kTime); },
           .rounds = kRounds},
          {.name = "method_processor",
           .unit = "us/token",
           .what = "the same in processor time, with all that the agent's process takes meanwhile",
           .prepare = [] { return PrepareMethods(Kind::kProcessor); },
           .rounds = kRounds}};
}

}  // namespace kvpool::bench
