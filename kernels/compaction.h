// In-place compaction of one session: plan (pure) and execution (copies rows and blocks).
//
// Sealed rows come first: a sealed block that keeps all its 32 rows is not touched, one that keeps
// none is dropped, and of the others the kept rows are sealed anew, 32 to a block, in the places of
// those blocks (step 0). Such rows are rounded again: fp8 keeps their bits (format.h), of int8 and
// int4 each time may cost up to half a scale. Sealed rows stay sealed and native rows stay native;
// what seals rows is sealing.h.
//
// Step 1, inside each head's own blocks: the last kept rows fill the holes below the new length, so
// a head with k holes below its new length costs exactly k row moves, the fewest possible. Step 2,
// whole blocks: the pages with the most live blocks stay, live blocks elsewhere move into free
// places of those pages, so that whole pages come free with the fewest block moves. Step 3
// (evacuation): blocks of pages that must go, and for which step 2 found no place, move to given
// pages.
// Reads and writes of steps 1, 2 and 3 never overlap, so each is parallel and can be run again from
// its plan. Step 0 reads a row before it writes its place, in its own order: it is parallel over
// heads and cannot be run again. No free page is needed but by step 3.
//
// Planning is pure. Execute runs on any thread while the session is BUSY.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/layout.h"
#include "kernels/sealing.h"
#include "kernels/segment.h"
#include "kernels/selection.h"
#include "kernels/session_view.h"

namespace kvpool {

struct RowMove {
  BlockId from, to;
  uint8_t from_row, to_row;  // < 16
};

struct CompactionPlan {
  std::vector<SealMove> remakes;               // step 0
  std::vector<RowMove> row_moves;              // step 1
  std::vector<BlockMove> block_moves;          // step 2
  std::vector<BlockMove> evacuations;          // step 3
  CompactedSegment result;                     // the fresh segment is empty afterwards
  std::vector<PageId> freed;                   // the session's pages that are free afterwards
  std::vector<std::vector<uint32_t>> sources;  // [layers * kv_heads][new length]: old row of each
                                               // new row, for Planes::Gather and positions
};

struct CompactionInput {
  const Layout* layout = nullptr;
  SessionView session;
  std::vector<PageId> session_pages;  // every page the session owns, compacted and fresh
  // Rows that stay, per (layer, head); nullptr keeps every row (a move only).
  const std::vector<KeepRows>* keep = nullptr;
  std::vector<PageId> evacuate;      // of session_pages: these must not be used afterwards
  std::vector<PageId> replacements;  // free pages to move them to; as many as turn out to be needed
};

// FailedPrecondition when evacuation needs more replacement pages than given; the message says how
// many. Pages in `replacements` that were not needed are absent from result.pages.
absl::StatusOr<CompactionPlan> PlanCompaction(const CompactionInput& input);

// Carries out steps 0 to 3 in that order.
void ExecuteCompaction(const Layout& layout, std::byte* base, const CompactionPlan& plan);

}  // namespace kvpool
