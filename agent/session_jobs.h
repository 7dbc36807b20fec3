// The two things an agent does to a session's memory, as values: score queries (drain) and compact.
// A job is made on the RPC thread, run on a kernel thread, and its result taken back on the RPC
// thread. A job owns or pins all it reads; it knows no ledger, session table or RPC.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "common/ids.h"
#include "kernels/compaction.h"
#include "kernels/layout.h"
#include "kernels/planes.h"
#include "kernels/selection.h"
#include "kernels/session_view.h"

namespace kvpool {

// A session's rows as a job reads them: the compacted lists lie in the agent's own table memory,
// which does not change while the session is pinned; the fresh pages are a checked copy.
struct SessionRows {
  SessionView compacted;            // fresh part unset
  std::vector<PageId> fresh_pages;  // checked
  uint32_t fresh_start = 0;         // logical position of the first fresh token
  uint32_t fresh_tokens = 0;

  SessionView View() const;
};

// Scores queries against the rows and folds the result into the planes.
struct DrainJob {
  const Layout* layout = nullptr;
  const std::byte* base = nullptr;
  SessionRows rows;
  Planes planes;                    // one entry a row
  std::vector<uint32_t> positions;  // [count]; clamped here to what is committed
  std::vector<float> queries;       // [count][model_layers][query_heads][key_dim]
  std::vector<float> lses;          // [count][model_layers][query_heads]; empty, or NaN: not told

  void Run();
};

// Selects, plans and moves, in place. `selection` unset: only moves out of `evacuate`.
struct CompactionJob {
  const Layout* layout = nullptr;
  std::byte* base = nullptr;
  SessionRows rows;
  Planes planes;
  std::vector<PageId> session_pages;
  std::optional<Selection> selection;
  std::vector<PageId> evacuate;
  std::vector<PageId> replacements;

  // Results.
  absl::Status status;
  CompactionPlan plan;
  float recovery_mean = -1;  // over the heads where it could be measured; negative: none
  float recovery_min = -1;

  void Run();
};

}  // namespace kvpool
