// What a kernel reads of one session: its segments in order, compacted then fresh. A view: owns
// nothing, and everything it points to must hold still while a kernel runs. Ids in it are checked
// copies, never read from a worker's memory. Frozen segments will come before `compacted`.
//
// A head's rows are numbered 0..: first its compacted rows, then the fresh ones. Compacted row i of
// (l, h) is row i % 16 of block compacted_blocks[(l * kv_heads + h) * compacted_stride + i / 16].
// Fresh row i is row i % 16 of block Layout::Block(fresh_pages[i / 16], l, h); compacted lengths
// may differ from head to head, the fresh length is the same for all.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/ids.h"
#include "kernels/layout.h"

namespace kvpool {

struct SessionView {
  const uint32_t* compacted_lengths =
      nullptr;                                // [layers * kv_heads]; nullptr: no compacted segment
  const BlockId* compacted_blocks = nullptr;  // [layers * kv_heads][compacted_stride]
  uint32_t compacted_stride = 0;              // blocks a (layer, head) row has room for
  const PageId* fresh_pages = nullptr;        // [ceil(fresh_tokens / 16)]
  uint32_t fresh_tokens = 0;

  uint32_t CompactedLength(uint32_t plane) const {
    return compacted_lengths == nullptr ? 0 : compacted_lengths[plane];
  }
  // Rows of (layer, head) number `plane` = layer * kv_heads + head.
  uint32_t Length(uint32_t plane) const { return CompactedLength(plane) + fresh_tokens; }

  // The block that holds row `row` of (layer, head); row % 16 of it for fresh and compacted alike
  // counts from the segment's start.
  BlockId BlockOf(const Layout& layout, uint32_t layer, uint32_t head, uint32_t row) const {
    const uint32_t plane = layer * layout.geometry().kv_heads + head;
    const uint32_t compacted = CompactedLength(plane);
    if (row < compacted) {
      return compacted_blocks[uint64_t{plane} * compacted_stride + row / kPageTokens];
    }
    return layout.Block(fresh_pages[(row - compacted) / kPageTokens], layer, head);
  }
  uint32_t RowInBlock(uint32_t plane, uint32_t row) const {
    const uint32_t compacted = CompactedLength(plane);
    return (row < compacted ? row : row - compacted) % kPageTokens;
  }
};

}  // namespace kvpool
