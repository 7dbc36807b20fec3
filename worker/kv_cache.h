// Where a model's keys and values live: the one interface that the engine and the forward pass
// know. private_kv.h keeps them in this process; the pool-backed twin keeps them in an agent's
// slabs.
//
// A step of the engine is: KvCache::Prepare on each cache (the safe point); one forward pass that
// stores rows into the prepared places, reads through View and fills the query slots;
// KvSession::Commit. What must wait is answered with kBusy or kNoSpace and asked again. All methods
// are called on the engine's thread; what View points to holds still until the next Prepare and is
// read by several threads meanwhile.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kernels/layout.h"
#include "kernels/profile.h"
#include "kernels/session_view.h"

namespace kvpool {

// Whether a session can advance in this step.
enum class Readiness : uint8_t {
  kReady,      // all pages of the step are taken
  kNoSpace,    // none is taken: no room within the tenant's lease, now
  kBusy,       // being compacted or waiting for a drain: ask again at the next step
  kPreempted,  // ended by whoever owns the memory: drop it, open another, feed it again
  kFailed,     // lost for good: see KvStep::text
};

// Both are nullptr when queries are not wanted.
struct QuerySlot {
  float* queries = nullptr;  // [model_layers][query_heads][key_dim], post-RoPE
  // [model_layers][query_heads] log-sum-exp of their scaled logits over the keys attended.
  float* lses = nullptr;
};

// The cache of one sequence. Dropping it frees its memory. Keys are stored post-RoPE at their
// original positions; positions are the caller's count and go on when a policy shortens the cache.
class KvSession {
 public:
  virtual ~KvSession() = default;

  virtual const Layout& layout() const = 0;
  virtual std::byte* base() const = 0;

  // Tokens of the prompt that need not be fed: they were in the cache when it was opened.
  virtual uint32_t shared_tokens() const { return 0; }

  // The segments as they are now. After kReady for n tokens the last n fresh rows are the new
  // tokens' places in every (layer, head).
  virtual SessionView View() const = 0;

  // Where to put what new token `index` (< the tokens prepared) asked in every layer.
  virtual QuerySlot SlotOf(uint32_t index) = 0;

  // Whether the prepared tokens' attention is wanted: then the forward pass calls Profile once for
  // each model layer and KV head, straight after that layer's attention, different heads at once
  // if it likes.
  virtual bool WantsProfile() const = 0;
  virtual void Profile(const AttendedChunk& chunk) = 0;

  // The prepared tokens' rows are stored and their query slots filled. Must follow kReady.
  virtual void Commit() = 0;
};

// What a session is to do in the next step.
struct KvStep {
  KvSession* session = nullptr;
  uint32_t tokens = 1;                        // that it appends, at least 1
  std::span<const int32_t> ids;               // [tokens] which tokens they are
  Readiness readiness = Readiness::kNoSpace;  // the answer
  std::string text;                           // with kPreempted and kFailed: why, for people
};

struct OpenRequest {
  uint32_t prompt_tokens = 0;  // at least 1
  uint32_t max_tokens = 0;     // longest the session can get, prompt included
  // The prompt, where a beginning that the cache knows need not be fed; else empty.
  std::span<const int32_t> prompt;
};

enum class OpenOutcome : uint8_t {
  kOpened,
  kNoSpace,   // try again when a session has ended
  kTooLarge,  // can never fit
  kFailed,    // the cache is gone
};

struct OpenResult {
  OpenOutcome outcome = OpenOutcome::kFailed;
  std::unique_ptr<KvSession> session;  // only with kOpened
  std::string text;                    // for people, otherwise
};

// One tenant's memory for one model. Outlives its sessions.
class KvCache {
 public:
  virtual ~KvCache() = default;

  virtual OpenResult Open(const OpenRequest& request) = 0;

  // The safe point before a step of these sessions, no forward pass being under way: hands over
  // those that are due, takes up what has changed, and takes pages in the order given. Each step
  // gets all its pages or none; later ones still try. Fills in `readiness`.
  // Sessions of this cache that are not named rest.
  virtual void Prepare(std::span<KvStep> steps) = 0;
};

}  // namespace kvpool
