// Tiles, products and softmax against the plain way, on every target.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/scores/parts.h"

#include <gtest/gtest.h>

#include "kernels/simd/targets.h"
#include "tests/kernels/scores/score_rig.h"
#include "tests/kernels/vector_targets.h"

namespace kvpool {
namespace {

TEST(ScoreParts, TilesAreTheRowsInTheirOrder) {
  uint32_t seed = 0;
  for (const SessionShape& shape : ScoreShapes()) {
    for (Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16}) {
      ScoreRig rig(TestGeometry(2, 2, 2, 20, 37, dtype), shape, ++seed);
      const Geometry& g = rig.geometry();
      std::vector<float> keys(simd::kTileRows * g.key_dim), values(simd::kTileRows * g.value_dim);
      for (const simd::Target& target : simd::Targets()) {
        for (uint32_t p = 0; p < g.planes(); ++p) {
          const simd::HeadRows head = simd::RowsOf(rig.session.layout(), rig.session.base(),
                                                   rig.session.View(), p / 2, p % 2);
          for (uint32_t first = 0; first < rig.rows(p);) {
            const uint32_t rows = target.read_tile(
                {.head = head, .first = first, .keys = keys.data(), .values = values.data()});
            ASSERT_GE(rows, 1u);
            ASSERT_LE(first + rows, rig.rows(p));
            for (uint32_t i = 0; i < rows; ++i) {
              for (uint32_t d = 0; d < g.key_dim; ++d) {
                ASSERT_NEAR(keys[i * g.key_dim + d], rig.session.key(p, first + i)[d], 1e-5)
                    << target.name << " seed " << seed << " row " << first + i;
              }
              for (uint32_t d = 0; d < g.value_dim; ++d) {
                ASSERT_NEAR(values[i * g.value_dim + d], rig.session.value(p, first + i)[d], 1e-5)
                    << target.name << " seed " << seed << " row " << first + i;
              }
            }
            first += rows;
          }
        }
      }
    }
  }
}

TEST(ScoreParts, ProductsOnEveryTarget) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  for (uint32_t dim : {1u, 16u, 37u, 128u}) {
    for (uint32_t blocks : {1u, 3u}) {
      const uint32_t width = blocks * simd::kMaxLanes;
      std::vector<float> rows(simd::kTileRows * dim), columns(width * dim);
      for (float& x : rows) x = normal(random);
      for (float& x : columns) x = normal(random);
      for (const simd::Target& target : simd::Targets()) {
        std::vector<float> out(simd::kTileRows * width);
        target.multiply({.rows = rows.data(),
                         .columns = columns.data(),
                         .dim = dim,
                         .blocks = blocks,
                         .out = out.data()});
        for (uint32_t row = 0; row < simd::kTileRows; ++row) {
          for (uint32_t c = 0; c < width; ++c) {
            double sum = 0, size = 0;
            for (uint32_t d = 0; d < dim; ++d) {
              const double term = double{rows[row * dim + d]} *
                                  columns[(c / 16 * dim + d) * simd::kMaxLanes + c % 16];
              sum += term;
              size += std::abs(term);
            }
            ASSERT_NEAR(out[row * width + c], sum, 1e-5 * size) << target.name << " dim " << dim;
          }
        }
      }
    }
  }
}

TEST(ScoreParts, ColumnsLieAsProductsReadThem) {
  Columns columns(17, 2);
  const float one[] = {1, 10}, other[] = {2, 20};
  columns.Set(0, one);
  columns.Set(16, other);
  ASSERT_EQ(columns.width(), 32u);
  std::vector<float> rows(simd::kTileRows * 2), out(simd::kTileRows * 32);
  rows[2] = 3;  // row 1
  rows[3] = 5;
  columns.Multiply(rows.data(), out.data());
  EXPECT_EQ(out[32], 53);
  EXPECT_EQ(out[32 + 16], 106);
  EXPECT_EQ(out[32 + 1], 0);
  EXPECT_EQ(out[0], 0);
}

TEST(ScoreParts, SoftmaxLeavesOutWhatIsNotFinite) {
  std::vector<double> numbers = {1000, NAN, 1000 + std::log(3), INFINITY, -INFINITY};
  EXPECT_EQ(Softmax(&numbers), 2u);
  EXPECT_NEAR(numbers[0], 0.25, 1e-12);
  EXPECT_NEAR(numbers[2], 0.75, 1e-12);
  EXPECT_EQ(numbers[1] + numbers[3] + numbers[4], 0);
  numbers = {NAN, NAN};
  EXPECT_EQ(Softmax(&numbers), 0u);
  EXPECT_EQ(numbers, (std::vector<double>{0, 0}));
}

}  // namespace
}  // namespace kvpool
