// Layout against its own definition, place by place, and rows through both dtypes.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "tests/kernels/test_session.h"

namespace kvpool {
namespace {

TEST(Layout, SizesOfAKnownGeometry) {
  // 8 heads of 128 in bf16: a block is 16 * (128 + 128) * 2 = 8 KiB, a page of 32 layers 2 MiB.
  const Layout layout = *Layout::Make(TestGeometry(32, 16, 8, 128, 128, Dtype::kBf16), 32_MiB);
  EXPECT_EQ(layout.block_bytes(), 8192u);
  EXPECT_EQ(layout.page_bytes(), 2_MiB);
  EXPECT_EQ(layout.pages_per_slab(), 16u);
  EXPECT_EQ(layout.waste_bytes(), 0_B);
  EXPECT_EQ(layout.value_offset(), 4096u);
}

TEST(Layout, BlocksArePaddedToGranules) {
  const Layout layout = *Layout::Make(TestGeometry(1, 1, 1, 5, 3, Dtype::kBf16), 2_KiB);
  EXPECT_EQ(layout.block_bytes(), 512u);  // 16 * 8 * 2 = 256
  EXPECT_EQ(layout.pages_per_slab(), 4u);
}

// Every 32-bit id of two slabs and a bit: exactly the blocks of the definition are blocks.
TEST(Layout, EveryIdIsWhatTheDefinitionSays) {
  const Geometry g = TestGeometry(3, 4, 2, 16, 24, Dtype::kF32);
  const Layout layout = *Layout::Make(g, Bytes(3 * 6 * 2560 + 3 * 512));
  ASSERT_EQ(layout.block_bytes(), 2560u);
  ASSERT_EQ(layout.pages_per_slab(), 3u);
  ASSERT_EQ(layout.waste_bytes(), Bytes(3 * 512));
  std::set<uint32_t> blocks, pages;
  for (uint32_t s = 0; s < 2; ++s) {
    for (uint32_t p = 0; p < 3; ++p) {
      const PageId page = layout.Page(SlabIndex(s), p);
      pages.insert(page.value());
      EXPECT_EQ(layout.PageIndex(page), p);
      EXPECT_EQ(layout.SlabOf(page), SlabIndex(s));
      for (uint32_t l = 0; l < 3; ++l) {
        for (uint32_t h = 0; h < 2; ++h) {
          const BlockId block = layout.Block(page, l, h);
          const uint64_t offset = layout.slab_bytes().value() * s + ((l * 3 + p) * 2 + h) * 2560;
          EXPECT_EQ(uint64_t{block.value()} * kGranuleBytes, offset);
          EXPECT_EQ(layout.PlaceOf(block), (BlockPlace{page, l, h}));
          EXPECT_EQ(layout.SlabOf(block), SlabIndex(s));
          EXPECT_TRUE(blocks.insert(block.value()).second);
        }
      }
      EXPECT_EQ(layout.Block(page, 0, 0).value(), page.value());
    }
  }
  for (uint32_t id = 0; id < 2 * layout.slab_bytes().value() / kGranuleBytes; ++id) {
    EXPECT_EQ(layout.IsBlock(BlockId(id)), blocks.contains(id)) << id;
    EXPECT_EQ(layout.IsPage(PageId(id)), pages.contains(id)) << id;
  }
}

TEST(Layout, RefusesWhatDoesNotFitAndSaysWhatToChange) {
  const Geometry g = TestGeometry(32, 16, 8, 128, 128, Dtype::kBf16);
  const auto small = Layout::Make(g, 1_MiB);
  EXPECT_EQ(small.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(small.status().message()),
              testing::AllOf(testing::HasSubstr("2097152"), testing::HasSubstr("1048576"),
                             testing::HasSubstr("slab_bytes")));
  EXPECT_FALSE(Layout::Make(g, 0_B).ok());
  EXPECT_FALSE(Layout::Make(g, Bytes(-512)).ok());
  EXPECT_FALSE(Layout::Make(g, 2_MiB + 1_B).ok());
  EXPECT_FALSE(Layout::Make(g, 4096_GiB).ok());
  Geometry bad = g;
  bad.kv_heads = 3;
  EXPECT_FALSE(Layout::Make(bad, 32_MiB).ok());
}

TEST(Layout, RowsComeBackAndTouchNothingElse) {
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16}) {
    const Layout layout = *Layout::Make(TestGeometry(1, 1, 1, 6, 4, dtype), 4_KiB);
    const uint32_t size = layout.block_bytes();
    std::vector<std::byte> pool(2 * size, std::byte{0x5a});
    const BlockId block(layout.block_granules());
    const float key[] = {1, -2, 3, -4, 5, 0.5f}, value[] = {7, 8, -9, 10};
    StoreRow(layout, pool.data(), block, 15, key, value);
    float key_back[6], value_back[4];
    LoadRow(layout, pool.data(), block, 15, key_back, value_back);
    EXPECT_THAT(key_back, testing::ElementsAreArray(key));
    EXPECT_THAT(value_back, testing::ElementsAreArray(value));
    const uint32_t key_at = 15 * layout.key_row_bytes(),
                   value_at = layout.value_offset() + 15 * layout.value_row_bytes();
    for (uint32_t i = 0; i < 2 * size; ++i) {
      const uint32_t at = i - size;
      if (i >= size && at >= key_at && at < key_at + layout.key_row_bytes()) continue;
      if (i >= size && at >= value_at && at < value_at + layout.value_row_bytes()) continue;
      EXPECT_EQ(pool[i], std::byte{0x5a}) << i;
    }
  }
}

TEST(Layout, Bf16RoundsToNearestEven) {
  const Layout layout = *Layout::Make(TestGeometry(1, 1, 1, 1, 1, Dtype::kBf16), 512_B);
  std::vector<std::byte> pool(512);
  const auto round = [&](float x) {
    float key, value;
    StoreRow(layout, pool.data(), BlockId(0), 3, &x, &x);
    LoadRow(layout, pool.data(), BlockId(0), 3, &key, &value);
    return key;
  };
  constexpr float kUlp = 1.0f / 128;  // of bf16 at 1
  EXPECT_EQ(round(1 + 0.49f * kUlp), 1.0f);
  EXPECT_EQ(round(1 + 0.51f * kUlp), 1 + kUlp);
  EXPECT_EQ(round(1 + 0.5f * kUlp), 1.0f);            // tie to even
  EXPECT_EQ(round(1 + 1.5f * kUlp), 1 + 2 * kUlp);    // tie to even
  EXPECT_EQ(round(-1 - 1.5f * kUlp), -1 - 2 * kUlp);  // symmetric
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(round(inf), inf);
  EXPECT_EQ(round(std::numeric_limits<float>::max()), inf);
  EXPECT_TRUE(std::isnan(round(std::nanf(""))));
  EXPECT_TRUE(std::isnan(round(std::bit_cast<float>(0x7fffffffu))));  // rounding would wrap it
  EXPECT_TRUE(std::isnan(round(std::bit_cast<float>(0x7f800001u))));  // and make this infinite
}

}  // namespace
}  // namespace kvpool
