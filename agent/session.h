// One session as the agent knows it: its place in shared memory, its segments as last checked, its
// planes, and what has been done to it. Plain state; the rules are in attachment.h.
//
// Lives on the RPC thread. While `job` is set, a job has the planes and the rows are pinned.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "agent/admission.h"
#include "agent/ladder.h"
#include "agent/prefix_keys.h"
#include "agent/tenant_book.h"
#include "common/ids.h"
#include "kernels/planes.h"
#include "kernels/policy/policy.h"
#include "kernels/sealing.h"

namespace kvpool {

// What a session is opened under.
struct SessionTerms {
  Charge charge;
  SessionLadder ladder;  // of a policy `auto`; then the charge is that of its tenant's rung
  bool copies = false;   // as AgentSession::copies
};

// Of a session of this tenant as its policy is now; `can_have` as for LadderFor.
SessionTerms TermsFor(const Layout& layout, const TenantState& tenant, const SessionPlan& plan,
                      const std::function<bool(SealedFormat)>& can_have);

struct AgentSession {
  SessionId id;
  uint32_t slot = 0;
  SessionPlan plan;
  std::shared_ptr<const Policy> policy;
  std::string policy_text;
  PolicyNeeds needs;
  SealRule seal;
  Charge charge;
  SessionLadder ladder;      // of a policy `auto`; then the four above are of its rung
  uint32_t rung = 0;         // of the ladder
  uint32_t wanted_rung = 0;  // to climb to when it has no job
  bool held = false;         // by the floor, until it is due or on another rung
  uint32_t held_at = 0;      // tokens fed when that was seen last
  bool whole = false;        // by the floor, for good: charged its whole length, never compacted

  Planes planes;
  uint64_t epoch = 0;
  std::vector<PageId> compacted_pages;  // sorted; a worker must not list them as fresh
  uint32_t compacted_tokens = 0;        // rows of the longest head in the compacted segment
  uint32_t open_tokens = 0;             // most rows of a head there that are not sealed
  uint32_t fresh_start = 0;             // logical position of the first fresh token
  uint32_t committed = 0;               // as last checked; planes have a row for each below it
  std::vector<PageId> fresh_pages;      // as last checked
  uint32_t selected_step = 0;           // tokens fed when its policy last compacted it
  uint32_t selected_tokens = 0;         // rows of the longest head that this left
  uint64_t selected_observed = 0;       // queries scored until then
  SealedFormat sealed_format = SealedFormat::kNone;  // of its sealed rows
  std::optional<uint32_t> policy_at;  // rows of the longest head at which its policy is due
  bool policy_asked = false;          // by the last hand-over
  uint32_t failed_sealings = 0;       // one after the other
  // Of the whole pages of its prompt, as far as its worker told the tokens and they are shared.
  std::vector<PageKey> keys;
  // Its first pages, as far as it holds them with other sessions or leaves them to others: written
  // by none. They begin the fresh pages until the session is compacted or moved, and are rows of it
  // ever after. The first of them are in the index, by these keys; forks alone know the others.
  std::vector<PageId> frozen;
  size_t indexed = 0;
  // Its policy compacts: then it is charged for shared pages as if they were its own, because what
  // stays of them is copied, and it leaves its own to others only where that takes nothing from it.
  bool copies = false;
  uint64_t drained = 0;                 // number of the next query to drain
  std::vector<float> recovery_product;  // [planes] over its compactions; negative: never measured
  std::vector<uint8_t> head_classes;    // what its policy found in the prompt; see PolicyState
  uint32_t profiled = 0;                // as last read: prompt tokens that its profile covers
  bool bad_profile = false;             // it was offered one that did not check out
  bool missing_profile = false;         // its prompt ended without one

  // kWaiting: BUSY, for its turn at the reserve or for room; nothing runs.
  enum class Job : uint8_t { kNone, kDrain, kWaiting, kCompaction } job = Job::kNone;
  bool closed = false;  // its capability is gone; freed when the job ends
  bool failed = false;
  bool ending = false;  // to be ended when it is handed over
  bool ended = false;   // has failed that way: its pages and its charge are gone

  // Most rows of a head that are not sealed, by what was last checked.
  uint32_t open_now() const { return open_tokens + committed - fresh_start; }
  // Sealed rows of the longest head, at least: another one may have more open rows.
  uint32_t sealed_tokens() const { return compacted_tokens - open_tokens; }
  // What more it may come to be charged, because the floor may hold it at any length.
  Charge Growth() const { return whole ? Charge() : ladder.Growth(charge); }
  // Rows of a head that a sealing would seal now, for the first time; in whole blocks.
  uint32_t sealable_tokens() const {
    const uint32_t open = open_now();
    if (seal.format == SealedFormat::kNone || open < seal.open_rows) return 0;
    return (open - seal.open_rows) / kSealedRows * kSealedRows;
  }
  // Rows that are sealed in another format than its rule's, because it has climbed since.
  uint32_t other_format_tokens() const {
    const bool other = sealed_format != SealedFormat::kNone && sealed_format != seal.format;
    return other ? sealed_tokens() : 0;
  }
  // Rows of the longest head.
  uint32_t cache_tokens() const { return compacted_tokens + committed - fresh_start; }
  PolicyState State(const Geometry& geometry) const {
    return {.geometry = &geometry,
            .plan = plan,
            .session = id.value(),
            .step = committed,
            .length = cache_tokens(),
            .compacted_step = selected_step,
            .compacted_length = selected_tokens,
            .observed = planes.observed(),
            .head_classes = head_classes};
  }
};

}  // namespace kvpool
