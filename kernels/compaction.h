// In-place compaction of one session: plan (pure) and execution (copies rows and blocks).
//
// Step 1, inside each head's own blocks: the last kept rows fill the holes below the new length, so
// a head with k holes below its new length costs exactly k row moves, the fewest possible. Step 2,
// whole blocks: the pages with the most live blocks stay, live blocks elsewhere move into free
// places of those pages, so that whole pages come free with the fewest block moves. Step 3
// (evacuation): blocks of pages that must go, and for which step 2 found no place, move to given
// pages.
// Reads and writes of one step never overlap, so a step is parallel and can be run again from its
// plan. No free page is needed by steps 1 and 2.
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
#include "kernels/selection.h"
#include "kernels/session_view.h"

namespace kvpool {

struct RowMove {
  BlockId from, to;
  uint8_t from_row, to_row;  // < 16
};
struct BlockMove {
  BlockId from, to;
};

// The compacted segment that a plan leaves; the fresh segment is empty afterwards.
struct CompactedSegment {
  std::vector<uint32_t> lengths;             // [layers * kv_heads]
  std::vector<std::vector<BlockId>> blocks;  // [layers * kv_heads][ceil(length / 16)]
  std::vector<PageId> pages;                 // every page that holds one of those blocks
};

struct CompactionPlan {
  std::vector<RowMove> row_moves;      // step 1
  std::vector<BlockMove> block_moves;  // step 2
  std::vector<BlockMove> evacuations;  // step 3
  CompactedSegment result;
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

// Carries out step 1, 2 and 3 in that order.
void ExecuteCompaction(const Layout& layout, std::byte* base, const CompactionPlan& plan);

}  // namespace kvpool
