// The arithmetic of layout.h, and rows in and out of a block as f32.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/layout.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/numbers.h"

namespace kvpool {
namespace {

void StoreVector(Dtype dtype, std::byte* to, const float* from, uint32_t dim) {
  if (dtype == Dtype::kF32) {
    std::copy_n(reinterpret_cast<const std::byte*>(from), dim * sizeof(float), to);
    return;
  }
  for (uint32_t i = 0; i < dim; ++i) {
    const uint16_t half = dtype == Dtype::kF16 ? ToF16(from[i]) : ToBf16(from[i]);
    std::memcpy(to + i * sizeof(half), &half, sizeof(half));
  }
}

void LoadVector(Dtype dtype, const std::byte* from, float* to, uint32_t dim) {
  if (dtype == Dtype::kF32) {
    std::copy_n(from, dim * sizeof(float), reinterpret_cast<std::byte*>(to));
    return;
  }
  for (uint32_t i = 0; i < dim; ++i) {
    uint16_t half;
    std::memcpy(&half, from + i * sizeof(half), sizeof(half));
    to[i] = dtype == Dtype::kF16 ? FromF16(half) : FromBf16(half);
  }
}

}  // namespace

absl::StatusOr<Layout> Layout::Make(const Geometry& geometry, Bytes slab_bytes) {
  if (absl::Status status = CheckGeometry(geometry); !status.ok()) return status;
  constexpr int64_t kMaxSlab = int64_t{std::numeric_limits<uint32_t>::max()} * kGranuleBytes;
  if (slab_bytes.value() <= 0 || slab_bytes.value() % kGranuleBytes != 0 ||
      slab_bytes.value() > kMaxSlab) {
    return absl::InvalidArgumentError(absl::StrCat("slab_bytes = ", slab_bytes.value(),
                                                   " must be a positive multiple of ",
                                                   kGranuleBytes, ", at most ", kMaxSlab));
  }
  Layout layout;
  layout.geometry_ = geometry;
  layout.slab_granules_ = static_cast<uint32_t>(slab_bytes.value() / kGranuleBytes);
  layout.block_granules_ =
      CeilDiv(kPageTokens * (geometry.key_dim + geometry.value_dim) * ElementBytes(geometry.dtype),
              kGranuleBytes);
  layout.pages_per_slab_ = static_cast<uint32_t>(slab_bytes / layout.page_bytes());
  if (layout.pages_per_slab_ == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a page of this geometry takes ", layout.page_bytes().value(),
        " bytes and does not fit a slab of ", slab_bytes.value(), " bytes; raise slab_bytes"));
  }
  return layout;
}

uint32_t Layout::PageIndex(PageId page) const {
  return page.value() % slab_granules_ / (geometry_.kv_heads * block_granules_);
}

bool Layout::IsPage(PageId page) const {
  const uint32_t offset = page.value() % slab_granules_;
  return offset % (geometry_.kv_heads * block_granules_) == 0 && PageIndex(page) < pages_per_slab_;
}

bool Layout::IsBlock(BlockId block) const {
  const uint32_t offset = block.value() % slab_granules_;
  return offset % block_granules_ == 0 &&
         offset / block_granules_ < blocks_per_page() * pages_per_slab_;
}

BlockPlace Layout::PlaceOf(BlockId block) const {
  const uint32_t index = block.value() % slab_granules_ / block_granules_;
  const uint32_t row = index / geometry_.kv_heads;  // (layer, page)
  return {.page = Page(SlabOf(block), row % pages_per_slab_),
          .layer = row / pages_per_slab_,
          .head = index % geometry_.kv_heads};
}

void StoreRow(const Layout& layout, std::byte* base, BlockId block, uint32_t row, const float* key,
              const float* value) {
  const Geometry& g = layout.geometry();
  std::byte* at = BlockAddress(base, block);
  StoreVector(g.dtype, at + row * layout.key_row_bytes(), key, g.key_dim);
  StoreVector(g.dtype, at + layout.value_offset() + row * layout.value_row_bytes(), value,
              g.value_dim);
}

void LoadRow(const Layout& layout, const std::byte* base, BlockId block, uint32_t row, float* key,
             float* value) {
  const Geometry& g = layout.geometry();
  const std::byte* at = BlockAddress(base, block);
  LoadVector(g.dtype, at + row * layout.key_row_bytes(), key, g.key_dim);
  LoadVector(g.dtype, at + layout.value_offset() + row * layout.value_row_bytes(), value,
             g.value_dim);
}

}  // namespace kvpool
