// Where the blocks of a page lie inside a slab. The only file that knows.
//
// A slab holds pages_per_slab() pages. Their blocks are laid out layer-major, (layer, page, head),
// so that one layer's blocks of one slab form an affine strided array that an engine can view:
// block (layer l, page p, head h) of a slab lies at ((l * P + p) * H + h) * block_bytes, with
// P = pages_per_slab() and H = kv_heads. What is left at the slab's end is waste_bytes().
//
// A block is keys [16, key_dim], then values [16, value_dim], in the geometry's dtype, padded to
// 512 bytes. A page's id is the id of its block (layer 0, head 0).
//
// Immutable value, any thread. Does not own or touch memory.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "common/units.h"
#include "kernels/geometry.h"

namespace kvpool {

// Which place in a page a block is: its layer and head when the page is fresh. A compacted
// session's blocks may sit in any place of any of its pages.
struct BlockPlace {
  PageId page;
  uint32_t layer = 0;
  uint32_t head = 0;
  bool operator==(const BlockPlace&) const = default;
};

class Layout {
 public:
  // InvalidArgument when the geometry is malformed, or its page does not fit a slab; then the
  // message names the page's bytes, the slab's bytes and the setting `slab_bytes`.
  static absl::StatusOr<Layout> Make(const Geometry& geometry, Bytes slab_bytes);

  const Geometry& geometry() const { return geometry_; }
  uint32_t block_bytes() const { return block_granules_ * kGranuleBytes; }
  uint32_t block_granules() const { return block_granules_; }
  uint32_t blocks_per_page() const { return geometry_.layers * geometry_.kv_heads; }
  Bytes page_bytes() const { return Bytes(int64_t{block_bytes()} * blocks_per_page()); }
  uint32_t pages_per_slab() const { return pages_per_slab_; }
  Bytes slab_bytes() const { return Bytes(int64_t{slab_granules_} * kGranuleBytes); }
  Bytes waste_bytes() const { return slab_bytes() - page_bytes() * pages_per_slab_; }
  uint32_t key_row_bytes() const { return geometry_.key_dim * ElementBytes(geometry_.dtype); }
  uint32_t value_row_bytes() const { return geometry_.value_dim * ElementBytes(geometry_.dtype); }
  // Byte offset of the first value row inside a block.
  uint32_t value_offset() const { return kPageTokens * key_row_bytes(); }

  // page `index` (< pages_per_slab()) of a slab.
  PageId Page(SlabIndex slab, uint32_t index) const {
    return PageId(slab.value() * slab_granules_ + index * geometry_.kv_heads * block_granules_);
  }
  SlabIndex SlabOf(PageId page) const { return SlabIndex(page.value() / slab_granules_); }
  SlabIndex SlabOf(BlockId block) const { return SlabIndex(block.value() / slab_granules_); }
  // Index of a page inside its slab. Requires IsPage(page).
  uint32_t PageIndex(PageId page) const;
  // Whether any 32-bit value is the id of a page of some slab. Takes untrusted values.
  bool IsPage(PageId page) const;
  // Whether any 32-bit value is the id of a block of some page. Takes untrusted values.
  bool IsBlock(BlockId block) const;

  // Requires IsPage(page), layer < layers, head < kv_heads.
  BlockId Block(PageId page, uint32_t layer, uint32_t head) const {
    return BlockId(page.value() +
                   (layer * pages_per_slab_ * geometry_.kv_heads + head) * block_granules_);
  }
  // Inverse of Block. Requires IsBlock(block).
  BlockPlace PlaceOf(BlockId block) const;

  bool operator==(const Layout&) const = default;

 private:
  Geometry geometry_;
  uint32_t slab_granules_ = 0;
  uint32_t block_granules_ = 0;
  uint32_t pages_per_slab_ = 0;
};

// Address of a block in a process that has the pool's range reserved at `base`.
inline std::byte* BlockAddress(std::byte* base, BlockId block) {
  return base + uint64_t{block.value()} * kGranuleBytes;
}
inline const std::byte* BlockAddress(const std::byte* base, BlockId block) {
  return base + uint64_t{block.value()} * kGranuleBytes;
}

// Writes one token's key and value of one (layer, head) into row `row` (< 16) of a block,
// converting to the geometry's dtype (to nearest even). key [key_dim], value
// [value_dim].
void StoreRow(const Layout& layout, std::byte* base, BlockId block, uint32_t row, const float* key,
              const float* value);
// Reads it back as f32.
void LoadRow(const Layout& layout, const std::byte* base, BlockId block, uint32_t row, float* key,
             float* value);

}  // namespace kvpool
