// What a kernel reads of one session: its segments in order, compacted then fresh. A view: owns
// nothing, and everything it points to must hold still while a kernel runs. Ids in it are checked
// copies, never read from a worker's memory. Pages that sessions share are fresh ones to a kernel.
//
// A head's rows are numbered 0..: first its compacted rows, sealed (quantised) before open
// (native), then the fresh ones. With blocks = compacted_blocks + (l * kv_heads + h) *
// compacted_stride and s = sealed_lengths[l * kv_heads + h], sealed row i of (l, h) is row i % 32
// of the sealed block blocks[i / 32]; open row i is row i % 16 of block blocks[ceil(s / 32) + i /
// 16]; fresh row i is row i % 16 of block Layout::Block(fresh_pages[i / 16], l, h). Sealed and
// compacted lengths may differ from head to head, the fresh length and the sealed format are the
// same for all. Only the last sealed block of a head may hold less than 32 rows.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/ids.h"
#include "kernels/format.h"
#include "kernels/layout.h"

namespace kvpool {

struct SessionView {
  // [layers * kv_heads], sealed and open rows together; nullptr: no compacted segment
  const uint32_t* compacted_lengths = nullptr;
  const BlockId* compacted_blocks = nullptr;  // [layers * kv_heads][compacted_stride]
  uint32_t compacted_stride = 0;              // blocks a (layer, head) row has room for
  // [layers * kv_heads][positions_stride], of each compacted row; nullptr: not told
  const uint32_t* compacted_positions = nullptr;
  uint32_t positions_stride = 0;
  // [layers * kv_heads], each at most the compacted length; nullptr: no row is sealed
  const uint32_t* sealed_lengths = nullptr;
  SealedFormat sealed_format = SealedFormat::kNone;
  const PageId* fresh_pages = nullptr;  // [ceil(fresh_tokens / 16)]
  uint32_t fresh_tokens = 0;

  uint32_t CompactedLength(uint32_t plane) const {
    return compacted_lengths == nullptr ? 0 : compacted_lengths[plane];
  }
  uint32_t SealedLength(uint32_t plane) const {
    return sealed_lengths == nullptr ? 0 : sealed_lengths[plane];
  }
  // Rows of (layer, head) number `plane` = layer * kv_heads + head.
  uint32_t Length(uint32_t plane) const { return CompactedLength(plane) + fresh_tokens; }

  // The block, sealed or native, that holds row `row` of (layer, head).
  BlockId BlockOf(const Layout& layout, uint32_t layer, uint32_t head, uint32_t row) const {
    const uint32_t plane = layer * layout.geometry().kv_heads + head;
    const uint32_t compacted = CompactedLength(plane), sealed = SealedLength(plane);
    if (row >= compacted) {
      return layout.Block(fresh_pages[(row - compacted) / kPageTokens], layer, head);
    }
    const uint32_t index = row < sealed
                               ? row / kSealedRows
                               : CeilDiv(sealed, kSealedRows) + (row - sealed) / kPageTokens;
    return compacted_blocks[uint64_t{plane} * compacted_stride + index];
  }
  // Which row of that block.
  uint32_t RowInBlock(uint32_t plane, uint32_t row) const {
    const uint32_t compacted = CompactedLength(plane), sealed = SealedLength(plane);
    if (row < sealed) return row % kSealedRows;
    return (row < compacted ? row - sealed : row - compacted) % kPageTokens;
  }
};

// Reads any row of a session as f32. key [key_dim], value [value_dim].
void ReadRow(const Layout& layout, const std::byte* base, const SessionView& session,
             uint32_t plane, uint32_t row, float* key, float* value);

}  // namespace kvpool
