// Continuous batching: advances many sequences together, admits new ones as room comes free, and
// keeps the oldest going when memory is short.
//
// Every step each running sequence gets its next piece: up to `chunk` tokens that the cache has not
// seen yet (of a prompt; of a preempted sequence then those it had generated, no piece over both),
// or the one token sampled last. Pieces depend on nothing but the sequence itself, so a policy
// meets it at the same lengths whoever else runs.
//
// When memory is short, tenant by tenant:
// - refused at open: the request waits and asks again, after a back-off or when a session has
// ended;
// - refused before a step: the session pauses for the step; the oldest is always asked first;
// - the tenant's oldest refused for `preempt_after`: its youngest is dropped and queued again (its
//   tokens are kept and fed anew), and nobody is admitted until one of its sessions has finished;
// - a session ended by the owner of the memory: it is queued again likewise, and asks as any other;
// - its only session refused for `give_up_after`: that request fails with kNoSpace.
//
// One thread, which calls Step in a loop. Time comes from the Waiter; when nothing can go on, Step
// waits there for the next back-off to end.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"
#include "worker/kv_cache.h"
#include "worker/llama.h"
#include "worker/sampler.h"
#include "worker/waiter.h"

namespace kvpool {

enum class RequestKind : uint8_t {
  kGenerate,  // continue the prompt
  kScore,     // sum up the log-probability of each prompt token after the first; generate nothing
};

struct Request {
  uint64_t id = 0;    // the caller's
  size_t tenant = 0;  // index into the engine's caches
  RequestKind kind = RequestKind::kGenerate;
  std::vector<int32_t> prompt;  // at least one token (BOS)
  uint32_t max_new_tokens = 0;  // kGenerate: at least 1
  Sampling sampling;
};

enum class FinishReason : uint8_t {
  kStop,      // an end-of-sequence token was generated; it is not in `generated`
  kLength,    // max_new_tokens were generated
  kScored,    // kScore is done
  kTooLarge,  // can never fit the model's context or the tenant's memory
  kNoSpace,   // alone in its tenant and still refused
  kFailed,    // the cache failed
};
const char* ToString(FinishReason reason);

struct Result {
  uint64_t id = 0;
  size_t tenant = 0;
  FinishReason reason = FinishReason::kFailed;
  std::string text;  // for people, when it went wrong
  uint32_t prompt_tokens = 0;
  std::vector<int32_t> generated;
  double log_probability = 0;  // kScore: sum over scored tokens, natural logarithm
  uint32_t scored_tokens = 0;
};

// What happened to one tenant so far.
struct TenantStats {
  uint64_t finished = 0;          // requests with kStop, kLength or kScored
  uint64_t failed = 0;            // requests with another end
  uint64_t prompt_tokens = 0;     // of finished requests
  uint64_t generated_tokens = 0;  // by all requests
  uint64_t shared_tokens = 0;     // of prompts, that were in the cache and not fed
  uint64_t refused_opens = 0;     // times a session was refused for lack of space
  uint64_t paused_steps = 0;      // times a session was refused its next pages
  uint64_t preemptions = 0;       // sessions dropped and queued again, by us or by the agent
  uint64_t full_cache_bytes = 0;  // pages that finished requests take in a cache never compacted
};

struct EngineOptions {
  uint32_t batch = 16;  // most running sequences
  uint32_t chunk = 64;  // most tokens of a sequence in one step
  PromptMode prompt = PromptMode::kIterated;
  Duration preempt_after = std::chrono::milliseconds(50);
  Duration give_up_after = std::chrono::seconds(30);
};

class Engine {
 public:
  // One cache per tenant. Everything outlives the engine.
  Engine(Llama* model, std::vector<KvCache*> caches, Waiter* waiter, const EngineOptions& options,
         std::function<void(Result)> on_finished);
  ~Engine();

  // Requires a tenant below caches.size() and prompt tokens below the vocabulary.
  void Submit(Request request);

  // Advances everything once, or waits until something may go on. False when nothing is left.
  bool Step();

  uint64_t steps() const { return steps_; }
  // Tokens that went through the model: prompts, generated ones, and those fed anew.
  uint64_t fed_tokens() const { return fed_tokens_; }
  size_t running() const { return running_.size(); }
  const TenantStats& stats(size_t tenant) const { return tenants_[tenant].stats; }

 private:
  struct Sequence;
  struct Tenant {
    KvCache* cache = nullptr;
    std::deque<std::unique_ptr<Sequence>> queue;  // oldest first
    size_t running = 0;
    TimePoint retry_at{};  // no open before
    Duration back_off{};   // what the next refusal waits
    bool hold = false;     // after a preemption: no open until a session has finished
    std::optional<TimePoint> blocked_since;  // the oldest was refused its pages
    std::vector<KvStep> steps;               // of this step, oldest first
    std::vector<Sequence*> stepping;         // of each
    TenantStats stats;
  };

  void Admit();
  Tenant* NextToAdmit();
  void OpenFirst(Tenant& tenant);
  void PrepareBatch();
  void TakeReady(Tenant& tenant);
  void RequeuePreempted();
  // Drops its session and queues it again, before younger ones. It must not be in running_ any
  // more.
  void Requeue(std::unique_ptr<Sequence> sequence);
  void Forward();
  void Accept(Sequence& sequence, std::span<const float> logits);
  void ReapFinished();
  void RelieveBlocked();
  void PreemptYoungest(Tenant& tenant);
  void WaitForProgress();
  void Finish(Sequence& sequence, FinishReason reason, const std::string& text);

  Llama* const model_;
  Waiter* const waiter_;
  const EngineOptions options_;
  const std::function<void(Result)> on_finished_;
  std::vector<Tenant> tenants_;
  std::vector<std::unique_ptr<Sequence>> running_;  // oldest first
  uint64_t submitted_ = 0;
  uint64_t steps_ = 0;
  uint64_t fed_tokens_ = 0;
  // Scratch of one step.
  std::vector<Feed> feeds_;
  std::vector<Sequence*> fed_;  // of each feed
};

}  // namespace kvpool
