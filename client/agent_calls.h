// What the client's shared-memory half needs of its RPC half, in plain C++: implemented over Cap'n
// Proto in remote.cc, and by a fake in tests. Errors are those of kvpool.h.
//
// Called by the decode thread; every call but Drain and Close blocks for a round trip.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/kvpool.h"

namespace kvpool {

enum class QueryWish : uint8_t { kNone, kSampled, kExact, kPrompt };

struct OpenedSession {
  uint64_t handle = 0;  // names the session's capability to Close
  uint32_t slot = 0;    // in both shared memories
  QueryWish queries = QueryWish::kNone;
  uint32_t sample_every = 1;
  uint32_t prompt_rows = 0;
  bool token_flags = false;            // whether the policy wants them
  std::optional<ProfileRule> profile;  // how to profile the prompt, if at all
  uint32_t shared_tokens = 0;          // committed already; their pages begin the page list
};

struct DrainRequest {
  uint32_t slot = 0;
  uint32_t window = 0;
  uint64_t first = 0;  // sequence number of the first query
  uint32_t count = 0;
};

class AgentCalls {
 public:
  virtual ~AgentCalls() = default;
  virtual absl::Status Reserve(uint32_t pages) = 0;
  virtual absl::StatusOr<OpenedSession> Open(const OpenOptions& options) = 0;
  virtual absl::StatusOr<OpenedSession> Fork(uint32_t slot, uint32_t max_tokens) = 0;
  // Does not wait.
  virtual void Close(uint64_t handle) = 0;
  // These do not wait either: `done` is called once, on the RPC thread, with one status for each
  // item in order. At most limits::kBatchItems.
  using Done = std::function<void(const std::vector<absl::Status>&)>;
  virtual void Drain(const std::vector<DrainRequest>& requests, Done done) = 0;
  virtual void HandOver(const std::vector<uint32_t>& slots, Done done) = 0;
  virtual absl::Status Ping() = 0;
  virtual absl::StatusOr<TenantStatistics> Statistics() = 0;
};

}  // namespace kvpool
