// See worker_cases.h. The worker's engine runs in this process, twice on one set of weights: with
// its KV in a real agent's pool, and private.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/worker_cases.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/bench/agent_rig.h"
#include "worker/checkpoint.h"
#include "worker/engine.h"
#include "worker/llama.h"
#include "worker/math.h"
#include "worker/pool_kv.h"
#include "worker/private_kv.h"
#include "worker/thread_pool.h"
#include "worker/tokenizer.h"

namespace kvpool::bench {
namespace {

constexpr uint32_t kThreads = 1;
constexpr uint32_t kBatch = 8;
constexpr uint32_t kChunk = 64;
constexpr uint32_t kPromptTokens = 1024;     // contexts at the first round
constexpr int kStepsPerRound = kPageTokens;  // every sequence takes one page a round
constexpr int kRounds = 31;
constexpr uint32_t kMaxTokens = kPromptTokens + kStepsPerRound * kRounds + 1;

// One engine that decodes kBatch sequences.
class Decoder {
 public:
  Decoder(Llama* model, std::unique_ptr<KvCache> cache)
      : cache_(std::move(cache)),
        engine_(model, {cache_.get()}, &waiter_, {.batch = kBatch, .chunk = kChunk},
                [this](const kvpool::Result&) { ++finished_; }) {}

  // Feeds a prompt each, cut from `tokens` at different places.
  absl::Status Prefill(const std::vector<int32_t>& tokens) {
    for (uint32_t i = 0; i < kBatch; ++i) {
      Request request{.id = i, .max_new_tokens = kMaxTokens - kPromptTokens};
      for (uint32_t k = 0; k < kPromptTokens; ++k) {
        request.prompt.push_back(tokens[(i * 131 + k) % tokens.size()]);
      }
      engine_.Submit(std::move(request));
    }
    while (engine_.fed_tokens() < kBatch * kPromptTokens) {
      if (!engine_.Step() || finished_ > 0) return absl::InternalError("the prompts did not fit");
    }
    return absl::OkStatus();
  }

  // Tokens a second.
  absl::StatusOr<double> Decode() {
    const uint64_t fed = engine_.fed_tokens();
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kStepsPerRound; ++i) (void)engine_.Step();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (engine_.fed_tokens() - fed != kBatch * kStepsPerRound) {
      return absl::InternalError("a sequence ended or paused before its time");
    }
    return kBatch * kStepsPerRound / seconds.count();
  }

 private:
  std::unique_ptr<KvCache> cache_;
  BootWaiter waiter_;
  int finished_ = 0;
  Engine engine_;
};

struct WorkerRig {
  ThreadPool threads{kThreads};
  std::unique_ptr<Llama> model;
  std::unique_ptr<AgentRig> agent;
  std::unique_ptr<Connection> connection;
  std::unique_ptr<Decoder> pool, own;
};

absl::StatusOr<std::vector<int32_t>> SomeTokens() {
  absl::StatusOr<std::string> text = ReadTextFile(SourcePath("worker/demo/text.txt"));
  if (!text.ok()) return text.status();
  std::string error;
  const auto tokenizer = Tokenizer::Load(SourcePath(kModel) + "/tokenizer.model", &error);
  if (tokenizer == nullptr) return absl::InvalidArgumentError(error);
  return tokenizer->Encode(*text);
}

// A pool that holds the sequences, under `full` without queries.
absl::StatusOr<std::unique_ptr<KvCache>> MakePool(const Geometry& geometry, WorkerRig* rig) {
  constexpr uint32_t kSlabs = 64;
  auto agent = AgentRig::Start({.slabs = kSlabs});
  if (!agent.ok()) return agent.status();
  rig->agent = *std::move(agent);
  absl::Status leased =
      rig->agent->Lease(1, kSlabs, *MakePolicySpec("full", {{"recovery_every", 0}}));
  if (!leased.ok()) return leased;
  auto attached = rig->agent->Attach(1, {.geometry = geometry,
                                         .max_sessions = kBatch,
                                         .max_running = kBatch,
                                         .max_session_tokens = kMaxTokens,
                                         .chunk_tokens = kChunk});
  if (!attached.ok()) return attached.status();
  rig->connection = std::move(attached->connection);
  return std::make_unique<PoolKv>(std::move(attached->tenant));
}

absl::StatusOr<Instance> PrepareWorkerOnPool() {
  auto rig = std::make_shared<WorkerRig>();
  SetMathThreads(kThreads);
  auto model = Llama::Load(SourcePath(kModel), &rig->threads);
  if (!model.ok()) return model.status();
  rig->model = *std::move(model);
  const Geometry geometry = rig->model->config().CacheGeometry(Dtype::kBf16);
  auto pool = MakePool(geometry, rig.get());
  if (!pool.ok()) return pool.status();
  auto own =
      PrivateKv::Make({.geometry = geometry, .max_pages = kBatch * (kMaxTokens / kPageTokens + 1)});
  if (!own.ok()) return own.status();
  auto tokens = SomeTokens();
  if (!tokens.ok()) return tokens.status();
  rig->pool = std::make_unique<Decoder>(rig->model.get(), *std::move(pool));
  rig->own = std::make_unique<Decoder>(rig->model.get(), *std::move(own));
  for (Decoder* decoder : {rig->pool.get(), rig->own.get()}) {
    if (absl::Status status = decoder->Prefill(*tokens); !status.ok()) return status;
  }
  return Instance{.value = [rig] { return rig->pool->Decode(); },
                  .yardstick = [rig] { return rig->own->Decode(); },
                  .note =
                      [] {
                        return absl::StrCat(kBatch, " sequences, contexts of ", kPromptTokens,
                                            " to ", kMaxTokens - 1, " tokens, ", kThreads,
                                            " thread");
                      }};
}

}  // namespace

std::vector<Case> WorkerCases() {
  return {{.name = "worker_on_pool",
           .unit = "tokens/s",
           .what = "decode throughput of the worker's engine, KV in the pool under `full` without "
                   "scoring, against the same on private memory",
           .prepare = PrepareWorkerOnPool,
           .rounds = kRounds}};
}

}  // namespace kvpool::bench
