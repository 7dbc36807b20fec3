// Sealing: a session's native rows become sealed (quantised) ones, or sealed rows change their
// format. Plan (pure) and execution. Out of place: blocks are written into free pages, into places
// that earlier blocks have left, and to begin with into a few pages of a reserve, which are left
// again at the end: so a session needs no free page of its own, and room for one block of every
// head in the reserve, whatever its length.
//
// The segment must be compacted first, all rows of it (a compaction that keeps every row does), so
// that open rows lie in full native blocks. A head's oldest open rows (by row number) are sealed,
// 32 to a block; less than 32 and those asked to stay open remain native. Rows keep their numbers,
// so planes and positions stay as they are. Sealed blocks of the format already are not touched but
// for a last one that is not full: its rows are rounded again together with the new ones.
//
// Planning is pure. Execution runs on any thread while the session is BUSY.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/format.h"
#include "kernels/layout.h"
#include "kernels/segment.h"

namespace kvpool {

// What a policy wants sealed: all rows of a head but the last `open_rows`.
struct SealRule {
  SealedFormat format = SealedFormat::kNone;  // kNone: nothing
  uint32_t open_rows = 0;
  bool operator==(const SealRule&) const = default;
};

// A row, sealed or native (kNone).
struct RowAt {
  BlockId block;
  uint8_t row;
  SealedFormat format;
};

// Seals up to 32 rows into one block.
struct SealMove {
  BlockId to;
  std::vector<RowAt> rows;
};

struct SealingInput {
  const Layout* layout = nullptr;
  const CompactedSegment* segment = nullptr;  // all rows of the session: nothing is fresh
  SealedFormat format = SealedFormat::kNone;  // to seal to
  uint32_t open_rows = 0;                     // the last rows of each head that stay native
  std::vector<PageId> spare;                  // free pages of the session, which may keep them
  std::vector<PageId> reserve;                // free pages of nobody, to go through
};

struct SealingPlan {
  std::vector<SealMove> moves;
  // Index of the first move of each slice. Inside a slice nothing is read that is written: it is
  // parallel and can be run again; slices follow each other.
  std::vector<uint32_t> slices;
  std::vector<BlockMove> block_moves;  // afterwards: native blocks that stay, into fewer pages
  std::vector<BlockMove> last_moves;   // after those: out of the reserve, into freed pages
  CompactedSegment result;             // nothing of it lies in the reserve
  std::vector<PageId> freed;           // the session's pages that are free afterwards

  // Slices and moves, one after the other.
  size_t steps() const { return slices.size() + 2; }
};

// Seals all rows that it may, or, when the free pages do not suffice for that, an equal number of
// the oldest of every head, to be planned again with the pages it freed. A change of format is done
// as a whole or not at all. Pages in `spare` that were not needed are absent from result.pages.
// FailedPrecondition: a page has no place for a block of this format; or the free pages do not
// suffice for one block of every head, or for the change of format; or too few pages would come
// free to take what lies in the reserve, so that the session would grow.
absl::StatusOr<SealingPlan> PlanSealing(const SealingInput& input);

// Requires step < plan.steps(): a slice of the moves, then the native blocks' moves, then those out
// of the reserve.
void ExecuteSealingStep(const Layout& layout, std::byte* base, const SealingPlan& plan,
                        size_t step);

// Carries out moves in their order. Each reads its rows before it writes its block.
void Seal(const Layout& layout, std::byte* base, SealedFormat format,
          std::span<const SealMove> moves);

}  // namespace kvpool
