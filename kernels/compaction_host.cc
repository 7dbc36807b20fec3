// Host twin of compaction: copies rows and blocks as a plan says.
//
// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "kernels/compaction.h"

namespace kvpool {
namespace {

void MoveRows(const Layout& layout, std::byte* base, const std::vector<RowMove>& moves) {
  const uint32_t key_bytes = layout.key_row_bytes(), value_bytes = layout.value_row_bytes();
  for (const RowMove& move : moves) {
    const std::byte* from = BlockAddress(base, move.from);
    std::byte* to = BlockAddress(base, move.to);
    std::memcpy(to + move.to_row * key_bytes, from + move.from_row * key_bytes, key_bytes);
    std::memcpy(to + layout.value_offset() + move.to_row * value_bytes,
                from + layout.value_offset() + move.from_row * value_bytes, value_bytes);
  }
}

void MoveBlocks(const Layout& layout, std::byte* base, const std::vector<BlockMove>& moves) {
  for (const BlockMove& move : moves) {
    std::memcpy(BlockAddress(base, move.to), BlockAddress(base, move.from), layout.block_bytes());
  }
}

}  // namespace

void ExecuteCompaction(const Layout& layout, std::byte* base, const CompactionPlan& plan) {
  MoveRows(layout, base, plan.row_moves);
  MoveBlocks(layout, base, plan.block_moves);
  MoveBlocks(layout, base, plan.evacuations);
}

}  // namespace kvpool
