// Host twin of compaction: copies rows and blocks as a plan says.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "kernels/compaction.h"

namespace kvpool {
namespace {

// Rows lie scattered, so the processor does not see them coming: this many moves ahead are fetched.
constexpr size_t kMovesAhead = 12;
constexpr uint32_t kCacheLine = 64;

void PrefetchRow(const std::byte* from, const std::byte* to, uint32_t bytes) {
  for (uint32_t i = 0; i < bytes; i += kCacheLine) {
    __builtin_prefetch(from + i, 0, 2);
    __builtin_prefetch(to + i, 1, 2);
  }
}

void MoveRows(const Layout& layout, std::byte* base, const std::vector<RowMove>& moves) {
  const uint32_t key_bytes = layout.key_row_bytes(), value_bytes = layout.value_row_bytes();
  const uint32_t values = layout.value_offset();
  for (size_t i = 0; i < moves.size(); ++i) {
    const RowMove& ahead = moves[std::min(i + kMovesAhead, moves.size() - 1)];
    const std::byte* next_from = BlockAddress(base, ahead.from);
    const std::byte* next_to = BlockAddress(base, ahead.to);
    PrefetchRow(next_from + ahead.from_row * key_bytes, next_to + ahead.to_row * key_bytes,
                key_bytes);
    PrefetchRow(next_from + values + ahead.from_row * value_bytes,
                next_to + values + ahead.to_row * value_bytes, value_bytes);
    const std::byte* from = BlockAddress(base, moves[i].from);
    std::byte* to = BlockAddress(base, moves[i].to);
    std::memcpy(to + moves[i].to_row * key_bytes, from + moves[i].from_row * key_bytes, key_bytes);
    std::memcpy(to + values + moves[i].to_row * value_bytes,
                from + values + moves[i].from_row * value_bytes, value_bytes);
  }
}

void MoveBlocks(std::byte* base, const std::vector<BlockMove>& moves) {
  for (const BlockMove& move : moves) {
    std::memcpy(BlockAddress(base, move.to), BlockAddress(base, move.from),
                size_t{move.granules} * kGranuleBytes);
  }
}

}  // namespace

void ExecuteCompaction(const Layout& layout, std::byte* base, const CompactionPlan& plan) {
  Seal(layout, base, plan.result.format, plan.remakes);
  MoveRows(layout, base, plan.row_moves);
  MoveBlocks(base, plan.block_moves);
  MoveBlocks(base, plan.evacuations);
}

}  // namespace kvpool
