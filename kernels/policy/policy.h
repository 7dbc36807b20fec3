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

#include "common/policy_spec.h"
#include "kernels/planes.h"
#include "kernels/selection.h"

namespace kvpool {

// Which queries a worker must push. Only kExact makes a worker wait for a full window.
enum class QueryNeed : uint8_t { kNone = 0, kSampled = 1, kExact = 2 };

// Queries sampled by policies that need none for themselves: one in this many, for recovery.
inline constexpr uint32_t kRecoverySampleEvery = 16;

struct PolicyNeeds {
  PlaneSet planes;
  QueryNeed queries = QueryNeed::kSampled;
  uint32_t sample_every = 1;  // kSampled: one query in this many, for recovery only
  uint32_t prompt_rows = 0;   // last queries of each prompt chunk to push
};

class Policy {
 public:
  virtual ~Policy() = default;
  virtual PolicyNeeds Needs() const = 0;
  // Longest cache in tokens of a session that may become `max_tokens` long, when it is fed in
  // chunks of at most `chunk` tokens: what admission charges.
  virtual uint32_t PeakTokens(uint32_t max_tokens, uint32_t chunk) const = 0;
  // Cache length in tokens at which a session must be handed over before its next append;
  // nullopt: never.
  virtual std::optional<uint32_t> CompactAt() const = 0;
  // What stays when a session whose longest head has `length` rows is compacted now, because it is
  // due or because its tenant is pressed; nullopt: nothing can go under this policy's parameters.
  virtual std::optional<Selection> Compact(uint32_t length) const = 0;
};

// Requires a spec made by MakePolicySpec.
std::unique_ptr<const Policy> MakePolicy(const PolicySpec& spec);

}  // namespace kvpool
