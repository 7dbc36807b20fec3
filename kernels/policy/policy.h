// One interface for every policy, pure: what it needs, when it is due, what stays.
//
// A policy is one small file with its paper, section and parameters in the header; it is made from
// a PolicySpec by MakePolicy. Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "common/policy_spec.h"
#include "kernels/geometry.h"
#include "kernels/planes.h"
#include "kernels/profile.h"
#include "kernels/sealing.h"
#include "kernels/selection.h"

namespace kvpool {

// Which queries a worker must push. It waits for room in its window for those that a policy cannot
// do without: all that kExact names, and the prompt's of kPrompt.
enum class QueryNeed : uint8_t {
  kNone = 0,
  kSampled = 1,  // one in sample_every
  kExact = 2,    // every one of a single token, the last prompt_rows of each longer chunk
  kPrompt = 3,   // the last prompt_rows of the prompt, one in sample_every of those after it
};

// prompt_rows of a policy that needs every query of a prompt.
inline constexpr uint32_t kAllPromptRows = 1 << 20;

// Queries sampled by policies that need none for themselves: one in this many, for recovery.
inline constexpr uint32_t kRecoverySampleEvery = 16;

struct PolicyNeeds {
  PlaneSet planes;
  QueryNeed queries = QueryNeed::kSampled;
  uint32_t sample_every = 1;  // kSampled, kPrompt: one query in this many, for recovery only
  uint32_t prompt_rows = 0;   // kExact, kPrompt
  // How the worker is to profile the prompt. Then prompt_rows are the prompt's last ones, because
  // the profile has counted the rows before them, and all queries after it are pushed.
  std::optional<ProfileRule> profile;
};

// What was agreed when a session was opened.
struct SessionPlan {
  uint32_t prompt_tokens = 1;
  uint32_t max_tokens = 1;  // prompt included
  uint32_t chunk = 1;       // most tokens of one append
};

// A session as a policy sees it.
struct PolicyState {
  const Geometry* geometry = nullptr;
  SessionPlan plan;
  uint64_t session = 0;           // its number: the same session, the same choices
  uint32_t step = 0;              // absolute step: tokens fed so far
  uint32_t length = 0;            // rows of the longest head
  uint32_t compacted_step = 0;    // absolute step of the last compaction; 0: none yet
  uint32_t compacted_length = 0;  // rows of the longest head that it left
  uint64_t observed = 0;          // queries scored so far
  // What a policy that profiles its prompt found, [layers * kv_heads]; empty: not yet, or never.
  std::vector<uint8_t> head_classes;
};

class Policy {
 public:
  virtual ~Policy() = default;
  virtual PolicyNeeds Needs() const = 0;
  // Most tokens of cache that a session can come to hold, as the mean over its heads: what
  // admission charges.
  virtual uint32_t PeakTokens(const SessionPlan& plan) const = 0;
  // Rows of the longest head at which the session must be handed over before its next append;
  // nullopt: not before something else compacts it. Asked when the session is opened and after
  // every hand-over.
  virtual std::optional<uint32_t> NextCompactAt(const PolicyState& state) const = 0;
  // What stays when the session is compacted now, because it is due or because its tenant is
  // pressed; nullopt: nothing can go under this policy's parameters.
  virtual std::optional<Selection> Compact(const PolicyState& state) const = 0;
};

// Requires a spec made by MakePolicySpec. Never nullptr: a test holds the registry against the
// table of schemas.
std::unique_ptr<const Policy> MakePolicy(const PolicySpec& spec);

// What the parameters `format` and `open`, which every policy has, want sealed. Requires a spec
// made by MakePolicySpec.
SealRule SealRuleOf(const PolicySpec& spec);

}  // namespace kvpool
