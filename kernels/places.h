// The places of a page that blocks of one format can take.
//
// A page holds blocks of one format at a time: native ones, or sealed ones of one shape. In each
// layer the page's native blocks lie side by side (layout.h); that stretch of kv_heads * native
// granules is cut into as many sealed places as fit, from its start. Any head's block may take any
// place, so pages stay the unit of all bookkeeping outside: a ledger counts pages whatever they
// hold.
//
// Immutable value, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/ids.h"
#include "kernels/format.h"
#include "kernels/layout.h"

namespace kvpool {

class PagePlaces {
 public:
  // kNone: native blocks. Keeps a reference to the layout.
  PagePlaces(const Layout& layout, SealedFormat format);

  // Places in a page; 0 when a layer's stretch is too small for a single sealed block.
  uint32_t per_page() const { return layout_.geometry().layers * per_layer_; }
  uint32_t granules() const { return granules_; }  // of a block
  // Requires index < per_page(). In order of addresses inside a layer, layer after layer.
  BlockId At(PageId page, uint32_t index) const {
    return BlockId(layout_.Block(page, index / per_layer_, 0).value() +
                   index % per_layer_ * granules_);
  }
  // Whether any 32-bit value is the id of a place of some page. Takes untrusted values.
  bool IsPlace(BlockId block) const;
  // Inverse of At. Both require IsPlace(block).
  PageId PageOf(BlockId block) const { return layout_.PlaceOf(block).page; }
  uint32_t IndexOf(BlockId block) const;

 private:
  const Layout& layout_;
  uint32_t granules_;
  uint32_t per_layer_;
};

// Rows that a page holds for each (layer, head) on average, times its (layer, head) pairs: what
// says how much smaller a format makes a session. kNone gives 16 * layers * kv_heads.
uint64_t RowsPerPage(const Layout& layout, SealedFormat format);

// How many rows of every head to seal together, in whole sealed blocks, so that pages surely come
// free; 0: they never do, because a page takes no more rows of this format than native ones.
// Requires format != kNone.
uint32_t RowsThatFreeAPage(const Layout& layout, SealedFormat format);

}  // namespace kvpool
