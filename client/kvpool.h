// The C++ client: what an inference worker includes to keep its KV cache in memory that an agent
// owns. Plain C++ and absl::Status; no RPC type appears here.
//
//   auto agent = *kvpool::Connection::Open({.socket = "/run/kvpool/agent.sock"});
//   auto tenant = *agent->Attach(token, {.geometry = geometry, .max_sessions = 64, ...});
//   auto session = *tenant->Open({.prompt_tokens = 20, .max_tokens = 500});
//   for each step:
//     tenant->SafePoint(steps)       hand over what is due, drain windows, take pages
//     ... write K and V through session->WriteBlock(), attend over session->View(),
//         profile a prompt's attention where session->WantsProfile() ...
//     session->Commit(n, queries)    publish, push queries
//
// Threads: a Connection runs one background thread for RPC. A Tenant and its Sessions belong to one
// caller thread (the decode loop); View() and WriteBlock() may be read by many threads between two
// safe points. Destroying a Session frees its cache, destroying a Tenant all of its own.
//
// Errors of every call, as absl::StatusCode:
//   ResourceExhausted   no room within the tenant's lease now: wait for a session to end
//   OutOfRange          it can never fit: larger than the tenant's limit or a fixed maximum
//   InvalidArgument     a value is wrong; the text says which and what is allowed
//   Unauthenticated     no tenant has this token
//   FailedPrecondition  wrong state or version, or a policy's format that cannot be had here
//   Aborted             the agent has the session: ask again at the next safe point
//   Cancelled           the agent has ended the session, because its tenant held more than its
//   lease
//                       for longer than its grace: drop it, open another, feed it again
//   DataLoss            the session's page list was damaged; the session is lost
//   Unavailable         the agent is gone or shutting down
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/ids.h"
#include "kernels/geometry.h"
#include "kernels/layout.h"
#include "kernels/profile.h"
#include "kernels/session_view.h"

namespace kvpool {

class Tenant;
class Session;

struct ConnectOptions {
  std::string socket;                         // path of the agent's unix socket
  std::string worker = "worker";              // name for people and logs
  std::chrono::milliseconds timeout{10'000};  // for connecting and for each call
};

// Whether the worker can give the agent its queries, which many policies choose keys by.
enum class GivenQueries : uint8_t { kAll, kNone };

struct AttachOptions {
  Geometry geometry;
  uint32_t max_sessions = 64;          // sessions open at once
  uint32_t max_running = 64;           // sessions that step at once
  uint32_t max_session_tokens = 2048;  // longest session
  uint32_t chunk_tokens = 64;          // most tokens appended between two safe points
  // kNone: Open() refuses sessions of a tenant whose policy cannot do without (InvalidArgument).
  GivenQueries queries = GivenQueries::kAll;
};

// A connection to one agent.
class Connection {
 public:
  static absl::StatusOr<std::unique_ptr<Connection>> Open(const ConnectOptions& options);
  virtual ~Connection() = default;
  // Trades a tenant's token for its memory. Once per tenant that this worker serves. The tenant
  // must not outlive the connection.
  virtual absl::StatusOr<std::unique_ptr<Tenant>> Attach(const std::string& token,
                                                         const AttachOptions& options) = 0;
};

// What a session does in the next step.
struct Step {
  Session* session = nullptr;
  uint32_t tokens = 1;  // tokens it appends, at most chunk_tokens
  // Token flags (kernels/token_flags.h) of the first of these tokens; the rest have none. Policies
  // that keep special tokens or punctuation know them by these alone.
  std::span<const uint8_t> flags;
  absl::Status outcome;  // set by SafePoint: Ok, or why this session must not step
};

struct OpenOptions {
  uint32_t prompt_tokens = 1;  // what a policy profiles
  uint32_t max_tokens = 1;     // longest the session can get, prompt included
  // The prompt's token ids: what the agent knows of its beginning is in the new session's cache
  // already. Empty: nothing is shared.
  std::span<const int32_t> prompt;
  // What keys and values depend on besides: the weights, an adapter. Only prompts told with the
  // same name and in the same geometry are shared. At most 256 bytes.
  std::string model;
};

struct TenantStatistics {
  uint32_t lease_slabs = 0;
  uint32_t held_slabs = 0;
  uint64_t used_bytes = 0;  // bytes of pages in sessions, of this tenant at this agent
};

// One tenant's memory at one agent, as seen by this worker.
class Tenant {
 public:
  virtual ~Tenant() = default;
  virtual const Layout& layout() const = 0;
  // Where this process has the pool's range; block ids count from here.
  virtual std::byte* base() const = 0;
  virtual const std::string& policy() const = 0;  // the tenant's policy at attach, for people

  // ResourceExhausted: admission refused it for now. OutOfRange: never. InvalidArgument: the policy
  // needs queries, and AttachOptions offers none. FailedPrecondition: the policy's format cannot be
  // had on the agent's device or for this geometry.
  virtual absl::StatusOr<std::unique_ptr<Session>> Open(const OpenOptions& options) = 0;

  // A session that begins as this one is now and goes on by itself: it shares every full page, and
  // has a copy of the last one. Errors as Open(); FailedPrecondition also when the session has been
  // compacted or moved, or its policy must see the whole prompt: then open one and feed it the
  // tokens. Aborted: the agent has the session. It must not be in the middle of a step.
  virtual absl::StatusOr<std::unique_ptr<Session>> Fork(Session& session, uint32_t max_tokens) = 0;

  // The safe point before a step of these sessions: hands over those that are due or asked for
  // (outcome Aborted until the agent gives them back, while the others step; when none can, it
  // waits for the first), starts drains of windows that fill up, and takes every page that each
  // step needs, in the order given: a step gets all its pages or none (outcome ResourceExhausted)
  // and later ones still try. A session that the agent has ended never steps again (outcome
  // Cancelled). Of more sessions than max_running whose queries are wanted the last
  // ones do not step (outcome FailedPrecondition). The returned status is about the connection.
  // Sessions of the tenant that are not named must not be in the middle of a step.
  virtual absl::Status SafePoint(std::span<Step> steps) = 0;

  // A round trip; for health checks and as a yardstick.
  virtual absl::Status Ping() = 0;
  virtual absl::StatusOr<TenantStatistics> Statistics() = 0;
};

// The cache of one sequence.
class Session {
 public:
  virtual ~Session() = default;

  // Tokens of the prompt that were in the cache when the session was opened, a multiple of 16 and
  // less than the prompt, or all that a forked session had: feeding begins behind them.
  virtual uint32_t shared_tokens() const = 0;

  // Tokens committed so far: the logical position of the next token. Not the cache's length.
  virtual uint32_t position() const = 0;
  // The segments to attend, including `appended` tokens of the step under way (0 .. its tokens).
  // Valid until the next safe point.
  virtual SessionView View(uint32_t appended) const = 0;
  // Block and row for the i-th token of the step under way: written with StoreRow().
  virtual BlockId WriteBlock(uint32_t layer, uint32_t head, uint32_t i) const = 0;
  virtual uint32_t WriteRow(uint32_t i) const = 0;

  // Whether the step under way is part of a prompt that the policy wants profiled: then, straight
  // after each model layer's attention, Profile is called once for each KV head, with all the
  // step's tokens (several heads at once if you like), and the step is committed whole. A prompt
  // that is not profiled like that has no profile, and a policy that needs one drops nothing.
  virtual bool WantsProfile() const = 0;
  virtual void Profile(const AttendedChunk& chunk) = 0;

  // Ends the step: `tokens` of it are accepted (the rest was scratch). The device must have
  // finished the step. `queries`: the step's post-RoPE queries, [tokens][model_layers][query_heads]
  // [key_dim], or nullptr when WantsQueries() is false. Waits only for a full window of a policy
  // that needs every query. `lses`: for each of those queries and heads, [tokens][model_layers]
  // [query_heads], the log-sum-exp of its scaled logits over the keys that it attended, when the
  // worker's attention tells it: the agent then scores in one pass; or nullptr.
  virtual absl::Status Commit(uint32_t tokens, const float* queries, const float* lses) = 0;
  absl::Status Commit(uint32_t tokens, const float* queries) {
    return Commit(tokens, queries, nullptr);
  }
  // Whether the next step's queries are wanted at all.
  virtual bool WantsQueries(uint32_t tokens) const = 0;

  // Nothing will touch the session for a while: the agent may compact or move it. SafePoint takes
  // it back.
  virtual void Park() = 0;
};

}  // namespace kvpool
