// The two things an agent does to a session's memory, as values: score queries (drain), and compact
// and seal (quantise).
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
#include "kernels/sealing.h"
#include "kernels/selection.h"
#include "kernels/session_view.h"

namespace kvpool {

class SharedRegions;

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

// A profile that was just taken up: where the frequencies of its heads are to be read.
struct ProfileSource {
  SharedRegions* regions = nullptr;  // nullptr: there is none
  uint32_t slot = 0;
  std::vector<uint8_t> classes;  // checked, [planes]
  uint32_t tokens = 0;           // checked
};

// What a compaction must leave of a session: it is not carried out when the product of recovery, as
// the mean over the heads that were measured, would come to less, or when none was.
struct RecoveryFloor {
  double min_recovery = 0;     // 0: whatever it comes to
  std::vector<float> product;  // [planes] of the compactions before; empty: there was none
};

// Copies the page's blocks. Requires two pages of the layout.
void CopyPage(const Layout& layout, std::byte* base, PageId from, PageId to);

// Selects, plans and moves, in place; then seals, out of place, slice after slice. `selection`
// unset: keeps every row, and only moves out of `evacuate`.
struct CompactionJob {
  const Layout* layout = nullptr;
  std::byte* base = nullptr;
  SessionRows rows;
  Planes planes;
  std::vector<PageId> session_pages;
  std::optional<Selection> selection;
  uint32_t selected_step = 0;  // tokens fed when the session last lost rows
  RecoveryFloor floor;
  ProfileSource profile;
  std::vector<PageId> evacuate;
  std::vector<PageId> replacements;  // free pages, for `evacuate`
  // Pages that others hold too, and the session's own that they are copied to first: then `rows`
  // names these instead.
  std::vector<PageId> shared;
  std::vector<PageId> copies;
  SealRule seal;
  std::vector<PageId> reserve;  // nobody's pages, to seal through; pages freed before serve too

  // Results. Of session_pages and replacements, those absent from result.pages are free.
  absl::Status status;
  // kHeld: the floor did not allow the selection, which is unset now; all else was done as without
  // it. kUntouched: likewise, and there was nothing else: there is no result.
  enum class Verdict : uint8_t { kGood, kHeld, kUntouched } verdict = Verdict::kGood;
  CompactedSegment result;
  uint32_t pages_before_sealing = 0;
  absl::Status sealed;          // not ok: nothing (more) was sealed, and why; the session is whole
  std::vector<float> recovery;  // [planes]; negative where it could not be measured

  void Run();

 private:
  std::vector<KeepRows> Choose();
  void Seal(const CompactionPlan& plan);
};

}  // namespace kvpool
