// What the worker's tests share: a small random model, a clock that moves only when waited on, a
// cache whose answers a test scripts, and where the committed model and the shared texts lie.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/paths.h"
#include "worker/engine.h"
#include "worker/llama.h"
#include "worker/private_kv.h"

namespace kvpool {

inline const std::string kModelDirectory = SourcePath("worker/models/prose-5m");

// An odd shape: head_dim is not hidden / heads, three query heads share a KV head, head untied.
inline LlamaConfig TinyConfig() {
  return {.hidden = 24,
          .intermediate = 20,
          .layers = 3,
          .query_heads = 6,
          .kv_heads = 2,
          .head_dim = 6,
          .vocab = 50,
          .max_positions = 128,
          .norm_eps = 1e-5f,
          .rope_theta = 100,
          .bos = 1,
          .eos = {2}};
}

inline std::vector<float> RandomFloats(std::mt19937& random, size_t count, float center,
                                       float spread) {
  std::uniform_real_distribution<float> uniform(center - spread, center + spread);
  std::vector<float> values(count);
  for (float& value : values) value = uniform(random);
  return values;
}

inline LlamaWeights RandomWeights(const LlamaConfig& c, uint32_t seed) {
  std::mt19937 random(seed);
  LlamaWeights weights;
  weights.embedding = RandomFloats(random, c.vocab * c.hidden, 0, 1);
  for (uint32_t layer = 0; layer < c.layers; ++layer) {
    LayerWeights& w = weights.layers.emplace_back();
    w.attention_norm = RandomFloats(random, c.hidden, 1, 0.3f);
    w.query = RandomFloats(random, c.query_width() * c.hidden, 0, 0.5f);
    if (c.layer_types.ComputesKv(layer)) {
      w.key_value = RandomFloats(random, 2 * c.kv_width() * c.hidden, 0, 0.5f);
    }
    w.attention_out = RandomFloats(random, c.hidden * c.query_width(), 0, 0.5f);
    w.mlp_norm = RandomFloats(random, c.hidden, 1, 0.3f);
    w.gate_up = RandomFloats(random, 2 * c.intermediate * c.hidden, 0, 0.5f);
    w.down = RandomFloats(random, c.hidden * c.intermediate, 0, 0.5f);
  }
  weights.norm = RandomFloats(random, c.hidden, 1, 0.3f);
  weights.untied_head = RandomFloats(random, c.vocab * c.hidden, 0, 0.5f);
  return weights;
}

inline std::unique_ptr<PrivateKv> MakePrivateKv(const LlamaConfig& config, uint32_t pages,
                                                Dtype dtype = Dtype::kF32) {
  return PrivateKv::Make({.geometry = config.CacheGeometry(dtype), .max_pages = pages}).value();
}

class ManualWaiter final : public Waiter {
 public:
  TimePoint Now() override { return now_; }
  void Wait(Duration time) override {
    now_ += time;
    ++waits;
  }

  int waits = 0;

 private:
  TimePoint now_{};
};

// What one token asked in every layer, as a worker tells it.
struct Asked {
  explicit Asked(const LlamaConfig& config)
      : queries(config.layers * config.query_width(), NAN),
        lses(config.layers * config.query_heads, INFINITY) {}
  QuerySlot slot() { return {.queries = queries.data(), .lses = lses.data()}; }

  std::vector<float> queries;  // [layers][width]
  std::vector<float> lses;     // [layers][query_heads]
};

// Private memory whose answers a test may change on their way, and whose query slots it may see.
class ScriptedKv final : public KvCache {
 public:
  explicit ScriptedKv(std::unique_ptr<PrivateKv> kv) : kv_(std::move(kv)) {}

  std::function<OpenOutcome(const OpenRequest&)> on_open;
  // Called with the session's number (in order of opening) and its step; kReady: ask the memory.
  std::function<Readiness(int, const KvStep&)> on_prepare;
  // Where the queries of a session's new token go.
  std::function<QuerySlot(int, uint32_t)> on_query;

  OpenResult Open(const OpenRequest& request) override {
    if (on_open) {
      const OpenOutcome outcome = on_open(request);
      if (outcome != OpenOutcome::kOpened) return {.outcome = outcome, .text = "scripted"};
    }
    OpenResult result = kv_->Open(request);
    if (result.session) {
      result.session = std::make_unique<Session>(this, opened_++, std::move(result.session));
    }
    return result;
  }

  void Prepare(std::span<KvStep> steps) override {
    for (KvStep& step : steps) {
      auto* const session = static_cast<Session*>(step.session);
      step.readiness = on_prepare ? on_prepare(session->number, step) : Readiness::kReady;
      if (step.readiness == Readiness::kFailed) step.text = "scripted failure";
      if (step.readiness == Readiness::kPreempted) step.text = "scripted preemption";
      if (step.readiness != Readiness::kReady) continue;
      KvStep inner{.session = session->inner.get(), .tokens = step.tokens};
      kv_->Prepare({&inner, 1});
      step.readiness = inner.readiness;
    }
  }

  const PrivateKv& memory() const { return *kv_; }

 private:
  struct Session final : KvSession {
    Session(ScriptedKv* kv, int n, std::unique_ptr<KvSession> s)
        : owner(kv), number(n), inner(std::move(s)) {}
    const Layout& layout() const override { return inner->layout(); }
    std::byte* base() const override { return inner->base(); }
    SessionView View() const override { return inner->View(); }
    QuerySlot SlotOf(uint32_t index) override {
      return owner->on_query ? owner->on_query(number, index) : QuerySlot{};
    }
    bool WantsProfile() const override { return inner->WantsProfile(); }
    void Profile(const AttendedChunk& chunk) override { inner->Profile(chunk); }
    void Commit() override { inner->Commit(); }

    ScriptedKv* owner;
    int number;
    std::unique_ptr<KvSession> inner;
  };

  std::unique_ptr<PrivateKv> kv_;
  int opened_ = 0;
};

// Runs requests to their end on an engine of its own; results by id.
inline std::map<uint64_t, Result> RunAll(Llama& model, std::vector<KvCache*> caches,
                                         const std::vector<Request>& requests,
                                         const EngineOptions& options,
                                         std::vector<TenantStats>* stats = nullptr,
                                         int max_steps = 100'000) {
  std::map<uint64_t, Result> results;
  ManualWaiter waiter;
  Engine engine(&model, caches, &waiter, options,
                [&](Result result) { results[result.id] = std::move(result); });
  for (const Request& request : requests) engine.Submit(request);
  while (max_steps-- > 0 && engine.Step()) {
  }
  if (stats != nullptr) {
    for (size_t i = 0; i < caches.size(); ++i) stats->push_back(engine.stats(i));
  }
  return results;
}

}  // namespace kvpool
