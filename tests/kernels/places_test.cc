// Places of pages: sealed blocks never overlap nor leave their page, and ids are told apart.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/places.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "tests/kernels/test_session.h"

namespace kvpool {
namespace {

constexpr SealedFormat kEvery[] = {SealedFormat::kNone, SealedFormat::kFp8, SealedFormat::kInt8,
                                   SealedFormat::kInt4};

TEST(PagePlaces, FitTheirPageAndComeBack) {
  for (SealedFormat format : kEvery) {
    const Geometry g = TestGeometry(3, 4, 4, 32, 32, Dtype::kBf16);
    const Layout one = *Layout::Make(g, 1_MiB);
    const Layout layout = *Layout::Make(g, one.page_bytes() * 3 + Bytes(5 * kGranuleBytes));
    const PagePlaces places(layout, format);
    ASSERT_GT(places.per_page(), 0u);
    std::set<uint32_t> taken, ids;
    for (uint32_t slab = 0; slab < 2; ++slab) {
      for (uint32_t p = 0; p < 3; ++p) {
        const PageId page = layout.Page(SlabIndex(slab), p);
        std::set<uint32_t> own;  // granules of the page
        for (uint32_t plane = 0; plane < g.planes(); ++plane) {
          const BlockId block = layout.Block(page, plane / 4, plane % 4);
          for (uint32_t i = 0; i < layout.block_granules(); ++i) own.insert(block.value() + i);
        }
        for (uint32_t i = 0; i < places.per_page(); ++i) {
          const BlockId block = places.At(page, i);
          ids.insert(block.value());
          EXPECT_EQ(places.PageOf(block), page);
          EXPECT_EQ(places.IndexOf(block), i);
          for (uint32_t j = 0; j < places.granules(); ++j) {
            EXPECT_TRUE(own.contains(block.value() + j)) << "outside its page";
            EXPECT_TRUE(taken.insert(block.value() + j).second) << "twice";
          }
        }
      }
    }
    for (uint32_t id = 0; id < 2 * layout.slab_bytes().value() / kGranuleBytes; ++id) {
      EXPECT_EQ(places.IsPlace(BlockId(id)), ids.contains(id)) << NameOf(format) << " " << id;
    }
  }
}

// What a format saves in pages, for the project's model and for a large one, both in bf16.
TEST(PagePlaces, RowsOfAPage) {
  const auto gain = [](const Geometry& g, SealedFormat format) {
    const Layout layout = *Layout::Make(g, 32_MiB);
    return static_cast<double>(RowsPerPage(layout, format)) /
           static_cast<double>(RowsPerPage(layout, SealedFormat::kNone));
  };
  const Geometry small = TestGeometry(4, 8, 4, 32, 32, Dtype::kBf16);
  EXPECT_EQ(gain(small, SealedFormat::kInt4), 2.5);
  EXPECT_EQ(gain(small, SealedFormat::kInt8), 1.5);
  EXPECT_EQ(gain(small, SealedFormat::kFp8), 1.5);
  const Geometry large = TestGeometry(32, 32, 8, 128, 128, Dtype::kBf16);
  EXPECT_EQ(gain(large, SealedFormat::kInt4), 3.0);
  EXPECT_EQ(gain(large, SealedFormat::kInt8), 1.75);
  EXPECT_EQ(gain(large, SealedFormat::kFp8), 1.75);
  // One KV head: 17 granules of fp8 do not fit where 16 of bf16 were.
  EXPECT_EQ(gain(TestGeometry(4, 8, 1, 128, 128, Dtype::kBf16), SealedFormat::kFp8), 0.0);
  EXPECT_EQ(gain(TestGeometry(4, 8, 1, 128, 128, Dtype::kBf16), SealedFormat::kInt4), 2.0);
}

// What a sealing of that many rows leaves and takes, counted in whole pages.
TEST(PagePlaces, RowsThatFreeAPageDo) {
  for (uint32_t heads : {1u, 2u, 3u, 8u}) {
    for (uint32_t dim : {8u, 32u, 72u, 128u}) {
      for (Dtype dtype : {Dtype::kBf16, Dtype::kF32}) {
        const Layout layout = *Layout::Make(TestGeometry(3, heads, heads, dim, dim, dtype), 32_MiB);
        for (SealedFormat format : kSealedFormats) {
          const uint32_t rows = RowsThatFreeAPage(layout, format);
          const bool saves = RowsPerPage(layout, format) > RowsPerPage(layout, SealedFormat::kNone);
          ASSERT_EQ(rows > 0, saves) << NameOf(format) << " " << heads << " " << dim;
          if (rows == 0) continue;
          ASSERT_EQ(rows % kSealedRows, 0u);
          for (uint32_t more = rows; more < 8 * rows; more += kSealedRows) {
            const uint32_t blocks = more / kSealedRows * layout.geometry().planes();
            ASSERT_LT(CeilDiv(blocks, PagePlaces(layout, format).per_page()), more / kPageTokens)
                << NameOf(format) << " " << heads << " " << dim;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvpool
