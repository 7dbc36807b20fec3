// Shapes of sealed blocks: parts that do not overlap, and the bytes that formats promise.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/format.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "tests/kernels/test_session.h"

namespace kvpool {
namespace {

constexpr SealedFormat kAll[] = {SealedFormat::kFp8, SealedFormat::kInt8, SealedFormat::kInt4};

TEST(SealedShape, SizesOfAKnownGeometry) {
  // 128 + 128 elements a row, 32 rows: 8192 elements; bf16 takes 16384 bytes.
  const Geometry g = TestGeometry(32, 32, 8, 128, 128, Dtype::kBf16);
  const SealedShape int4 = ShapeOf(g, SealedFormat::kInt4);
  EXPECT_EQ(int4.bytes, 8192u / 2 + 128 * 4 + 32 * 4 * 4);
  EXPECT_EQ(int4.bytes * 8, 8192u * 5) << "5 bits an element, as KIVI with groups of 32";
  EXPECT_EQ(int4.granules, 10u);
  EXPECT_EQ(ShapeOf(g, SealedFormat::kInt8).bytes, 8192u + 128 * 4 + 32 * 4 * 4);
  EXPECT_EQ(ShapeOf(g, SealedFormat::kInt8).granules, 18u);
  EXPECT_EQ(ShapeOf(g, SealedFormat::kFp8).bytes, 8192u + 8);
  EXPECT_EQ(ShapeOf(g, SealedFormat::kFp8).granules, 17u);
}

TEST(SealedShape, PartsLieSideBySide) {
  for (SealedFormat format : kAll) {
    for (const auto& [key_dim, value_dim] : std::vector<std::pair<uint32_t, uint32_t>>{
             {32, 32}, {5, 3}, {80, 48}, {576, 0}, {1024, 1024}}) {
      const SealedShape s =
          ShapeOf(TestGeometry(1, 1, 1, key_dim, value_dim, Dtype::kBf16), format);
      const uint32_t rows = format == SealedFormat::kInt4 ? 16 : 32;
      const bool fp8 = format == SealedFormat::kFp8;
      const uint32_t groups = (value_dim + 31) / 32;
      EXPECT_EQ(s.value_groups, groups);
      std::vector<std::pair<uint32_t, uint32_t>> parts = {// offset, bytes
                                                          {s.key_codes, rows * key_dim},
                                                          {s.value_codes, rows * value_dim},
                                                          {s.key_scales, fp8 ? 4 : 2 * key_dim},
                                                          {s.value_scales, fp8 ? 4 : 64 * groups}};
      if (!fp8) {
        parts.emplace_back(s.key_zeros, 2 * key_dim);
        parts.emplace_back(s.value_zeros, 64 * groups);
      }
      std::sort(parts.begin(), parts.end());
      uint32_t at = 0;
      for (const auto& [offset, bytes] : parts) {
        EXPECT_EQ(offset, at) << NameOf(format) << " " << key_dim;
        at += bytes;
      }
      EXPECT_EQ(s.bytes, at);
      EXPECT_EQ(s.granules, (at + 511) / 512);
    }
  }
}

TEST(SealedFormat, HasAName) {
  EXPECT_STREQ(NameOf(SealedFormat::kNone), "native");
  EXPECT_STREQ(NameOf(SealedFormat::kFp8), "fp8");
  EXPECT_STREQ(NameOf(SealedFormat::kInt8), "int8");
  EXPECT_STREQ(NameOf(SealedFormat::kInt4), "int4");
}

}  // namespace
}  // namespace kvpool
