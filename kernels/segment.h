// The compacted segment of a session as planners leave it, and moves of whole blocks. Values, any
// thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "common/ids.h"
#include "kernels/format.h"

namespace kvpool {

struct CompactedSegment {
  std::vector<uint32_t> lengths;              // [layers * kv_heads], sealed and open rows
  std::vector<std::vector<BlockId>> blocks;   // [layers * kv_heads]: sealed blocks, then open ones
  std::vector<PageId> pages;                  // every page that holds one of those blocks
  SealedFormat format = SealedFormat::kNone;  // of the sealed blocks; kNone: there are none
  std::vector<uint32_t> sealed_lengths;       // [layers * kv_heads]
};

struct BlockMove {
  BlockId from, to;
  uint32_t granules = 0;  // of 512 bytes
};

}  // namespace kvpool
