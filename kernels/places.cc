// The arithmetic of places.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/places.h"

namespace kvpool {

PagePlaces::PagePlaces(const Layout& layout, SealedFormat format)
    : layout_(layout),
      granules_(format == SealedFormat::kNone ? layout.block_granules()
                                              : ShapeOf(layout.geometry(), format).granules),
      per_layer_(layout.geometry().kv_heads * layout.block_granules() / granules_) {}

bool PagePlaces::IsPlace(BlockId block) const {
  // The native block around it has a page and a layer, if it is inside a page at all.
  const uint32_t slab = static_cast<uint32_t>(layout_.slab_bytes().value() / kGranuleBytes);
  const uint32_t inside = block.value() % slab % layout_.block_granules();
  if (!layout_.IsBlock(BlockId(block.value() - inside))) return false;
  const BlockPlace place = layout_.PlaceOf(block);
  const uint32_t offset = block.value() - layout_.Block(place.page, place.layer, 0).value();
  return offset % granules_ == 0 && offset / granules_ < per_layer_;
}

uint32_t PagePlaces::IndexOf(BlockId block) const {
  const BlockPlace place = layout_.PlaceOf(block);
  const uint32_t offset = block.value() - layout_.Block(place.page, place.layer, 0).value();
  return place.layer * per_layer_ + offset / granules_;
}

uint64_t RowsPerPage(const Layout& layout, SealedFormat format) {
  const uint32_t rows = format == SealedFormat::kNone ? kPageTokens : kSealedRows;
  return uint64_t{PagePlaces(layout, format).per_page()} * rows;
}

uint32_t RowsThatFreeAPage(const Layout& layout, SealedFormat format) {
  const uint32_t planes = layout.geometry().planes();
  const uint32_t twice = 2 * PagePlaces(layout, format).per_page();
  if (twice <= planes) return 0;
  // n blocks of every head leave 2 n pages and take ceil(n * planes / per_page), which is less as
  // soon as n * (2 - planes / per_page) is a whole page.
  return CeilDiv(twice / 2, twice - planes) * kSealedRows;
}

}  // namespace kvpool
