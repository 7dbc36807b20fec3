// Sealed blocks: bounds on the error of every element, for every kind of input, and what rubbish
// does. Bounds are computed in float64 from the input alone.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/quantise.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/numbers.h"
#include "tests/kernels/test_session.h"

namespace kvpool {
namespace {

constexpr SealedFormat kAll[] = {SealedFormat::kFp8, SealedFormat::kInt8, SealedFormat::kInt4};

struct Dims {
  uint32_t key, value;
};
constexpr Dims kDims[] = {{32, 32}, {128, 128}, {5, 3}, {80, 48}, {40, 100}, {576, 0}};

struct Block {
  SealedShape shape;
  uint32_t rows;
  std::vector<float> keys, values;
  std::vector<std::byte> bytes;

  Block(SealedFormat format, Dims dims, uint32_t row_count)
      : shape(ShapeOf(TestGeometry(1, 1, 1, dims.key, dims.value, Dtype::kBf16), format)),
        rows(row_count),
        keys(size_t{row_count} * dims.key),
        values(size_t{row_count} * dims.value),
        bytes(size_t{shape.granules} * kGranuleBytes + 1, std::byte{0xff}) {}

  void Quantise() { QuantiseBlock(shape, keys.data(), values.data(), rows, bytes.data()); }
  // [32][dim]
  std::pair<std::vector<float>, std::vector<float>> Back() const {
    std::vector<float> k(size_t{kSealedRows} * shape.key_dim),
        v(size_t{kSealedRows} * shape.value_dim);
    for (uint32_t row = 0; row < kSealedRows; ++row) {
      DequantiseRow(shape, bytes.data(), row, k.data() + row * shape.key_dim,
                    v.data() + row * shape.value_dim);
    }
    return {k, v};
  }
};

// The scale that a group of numbers needs at most: its range / codes, with what rounding the zero
// and the scale to f16 may add.
double ScaleLimit(const std::vector<double>& group, double codes) {
  const auto [low, high] = std::minmax_element(group.begin(), group.end());
  const double zero_step = std::max(std::abs(*low) * 0x1p-10, 0x1p-24);
  const double scale = (*high - *low + zero_step) / codes;
  return (scale + std::max(scale * 0x1p-10, 0x1p-24)) * 1.0001;
}

void ExpectIntBound(const Block& block, const std::vector<float>& input,
                    const std::vector<float>& back, uint32_t dim,
                    const std::function<std::vector<double>(uint32_t, uint32_t)>& group_of) {
  const double codes = block.shape.format == SealedFormat::kInt4 ? 15 : 255;
  for (uint32_t row = 0; row < block.rows; ++row) {
    for (uint32_t d = 0; d < dim; ++d) {
      const double x = input[row * dim + d];
      const double bound = ScaleLimit(group_of(row, d), codes) / 2 + std::abs(x) * 0x1p-22;
      ASSERT_LE(std::abs(x - back[row * dim + d]), bound)
          << NameOf(block.shape.format) << " row " << row << " element " << d << " = " << x;
    }
  }
}

void ExpectFp8Bound(const Block& block, const std::vector<float>& input,
                    const std::vector<float>& back) {
  double highest = 0;
  for (float x : input) highest = std::max(highest, std::abs(double{x}));
  for (size_t i = 0; i < input.size(); ++i) {
    const double x = input[i];
    const double bound = std::max({std::abs(x) / 16, highest * 2 / 448 * 0x1p-10, 0x1p-110});
    ASSERT_LE(std::abs(x - back[i]), bound) << "of " << block.rows << " rows, element " << i;
  }
}

void ExpectBounds(Block& block) {
  block.Quantise();
  ASSERT_EQ(block.bytes.back(), std::byte{0xff}) << "wrote past its granules";
  const auto [keys, values] = block.Back();
  if (block.shape.format == SealedFormat::kFp8) {
    ExpectFp8Bound(block, block.keys, keys);
    ExpectFp8Bound(block, block.values, values);
    return;
  }
  const uint32_t key_dim = block.shape.key_dim, value_dim = block.shape.value_dim;
  ExpectIntBound(block, block.keys, keys, key_dim, [&](uint32_t, uint32_t d) {
    std::vector<double> channel;
    for (uint32_t row = 0; row < block.rows; ++row)
      channel.push_back(block.keys[row * key_dim + d]);
    return channel;
  });
  ExpectIntBound(block, block.values, values, value_dim, [&](uint32_t row, uint32_t d) {
    const uint32_t first = d / 32 * 32, end = std::min(first + 32, value_dim);
    return std::vector<double>(block.values.begin() + row * value_dim + first,
                               block.values.begin() + row * value_dim + end);
  });
}

using Fill = std::function<float(std::mt19937&, uint32_t row, uint32_t d)>;
float Normal(std::mt19937& random) { return std::normal_distribution<float>()(random); }

struct Input {
  std::string name;
  Fill fill;
};
const std::vector<Input>& Inputs() {
  static const std::vector<Input> inputs = {
      {"normal", [](auto& r, uint32_t, uint32_t) { return Normal(r); }},
      {"outlier channels",
       [](auto& r, uint32_t, uint32_t d) { return Normal(r) + (d % 7 == 3 ? 60.0f : 0.0f); }},
      {"outlier elements",
       [](auto& r, uint32_t, uint32_t) { return r() % 97 == 0 ? 300 * Normal(r) : Normal(r); }},
      {"constant", [](auto&, uint32_t, uint32_t) { return 3.14159f; }},
      {"constant channels",
       [](auto&, uint32_t, uint32_t d) { return 0.1f * static_cast<float>(d); }},
      {"zeros", [](auto&, uint32_t, uint32_t) { return 0.0f; }},
      {"f16 denormals", [](auto& r, uint32_t, uint32_t) { return 1e-6f * Normal(r); }},
      {"f32 denormals", [](auto& r, uint32_t, uint32_t) { return 1e-40f * Normal(r); }},
      {"large", [](auto& r, uint32_t,
                   uint32_t) { return std::min(std::max(30000 * Normal(r), -kF16Max), kF16Max); }},
      {"offset", [](auto& r, uint32_t, uint32_t) { return 1000 + 0.01f * Normal(r); }},
      {"one sign", [](auto& r, uint32_t, uint32_t) { return -std::abs(Normal(r)); }},
  };
  return inputs;
}

TEST(Quantise, EveryElementIsWithinItsBound) {
  uint32_t seed = 0;
  for (SealedFormat format : kAll) {
    for (const Dims& dims : kDims) {
      for (const Input& input : Inputs()) {
        for (uint32_t rows : {1u, 5u, 16u, 17u, 31u, 32u}) {
          std::mt19937 random(++seed);
          Block block(format, dims, rows);
          for (uint32_t i = 0; i < block.keys.size(); ++i) {
            block.keys[i] = input.fill(random, i / dims.key, i % dims.key);
          }
          for (uint32_t i = 0; i < block.values.size(); ++i) {
            block.values[i] = input.fill(random, i / dims.value, i % dims.value);
          }
          ExpectBounds(block);
          if (HasFatalFailure()) {
            FAIL() << NameOf(format) << ", " << input.name << ", " << rows << " rows, seed "
                   << seed;
          }
          const auto [keys, values] = block.Back();
          for (float x : keys) ASSERT_TRUE(std::isfinite(x)) << "also in rows that are not there";
          for (float x : values) ASSERT_TRUE(std::isfinite(x));
        }
      }
    }
  }
}

TEST(Quantise, ConstantsThatAnF16HoldsAreExact) {
  for (SealedFormat format : {SealedFormat::kInt8, SealedFormat::kInt4}) {
    Block block(format, {40, 40}, 32);
    std::fill(block.keys.begin(), block.keys.end(), -2.5f);
    std::fill(block.values.begin(), block.values.end(), 0.75f);
    block.Quantise();
    const auto [keys, values] = block.Back();
    EXPECT_EQ(keys, block.keys);
    EXPECT_EQ(values, block.values);
  }
}

// A channel (keys) or a row's 32 channels (values) with rubbish in it does not touch the others,
// and in its own group only the rubbish itself is changed.
TEST(Quantise, RubbishStaysWhereItIs) {
  for (SealedFormat format : kAll) {
    for (float rubbish : {std::nanf(""), INFINITY, -INFINITY}) {
      std::mt19937 random(4);
      Block clean(format, {64, 64}, 32);
      for (float& x : clean.keys) x = Normal(random);
      for (float& x : clean.values) x = Normal(random);
      // Not an extreme of its group, so that the group's scale is the same without it.
      clean.keys[9 * 64 + 7] = clean.values[9 * 64 + 7] = 0.01f;
      clean.Quantise();
      Block block = clean;
      block.keys[9 * 64 + 7] = block.values[9 * 64 + 7] = rubbish;
      block.Quantise();
      const auto [keys, values] = block.Back();
      const auto [clean_keys, clean_values] = clean.Back();
      for (size_t i = 0; i < keys.size(); ++i) {
        if (i == 9 * 64 + 7) continue;
        ASSERT_EQ(keys[i], clean_keys[i]) << NameOf(format);
        ASSERT_EQ(values[i], clean_values[i]) << NameOf(format);
      }
      const float key = keys[9 * 64 + 7], value = values[9 * 64 + 7];
      ASSERT_TRUE(std::isfinite(key) && std::isfinite(value));
      if (std::isnan(rubbish)) {
        EXPECT_NEAR(key, 0, 0.2);
        EXPECT_NEAR(value, 0, 0.2);
      } else {
        const auto [low, high] =
            std::minmax_element(values.begin() + 9 * 64, values.begin() + 9 * 64 + 32);
        if (format != SealedFormat::kFp8) {
          EXPECT_EQ(value, rubbish > 0 ? *high : *low);
        } else {
          EXPECT_EQ(value, rubbish > 0 ? *std::max_element(values.begin(), values.end())
                                       : -*std::max_element(values.begin(), values.end(),
                                                            [](float a, float b) {
                                                              return std::abs(a) < std::abs(b);
                                                            }));
        }
      }
    }
  }
}

TEST(Quantise, NothingButRubbishGivesFiniteRows) {
  for (SealedFormat format : kAll) {
    for (float rubbish : {std::nanf(""), INFINITY, -INFINITY, 3e38f, -3e38f}) {
      Block block(format, {33, 20}, 32);
      std::fill(block.keys.begin(), block.keys.end(), rubbish);
      std::fill(block.values.begin(), block.values.end(), rubbish);
      block.Quantise();
      const auto [keys, values] = block.Back();
      for (float x : keys) ASSERT_TRUE(std::isfinite(x));
      for (float x : values) ASSERT_TRUE(std::isfinite(x));
      if (std::isfinite(rubbish)) {
        EXPECT_NEAR(keys[0], std::copysign(kF16Max, rubbish), kF16Max / 16);
      }
    }
  }
}

// An fp8 row that goes into another block keeps its bits unless it is small there.
TEST(Quantise, Fp8TwiceIsFp8Once) {
  std::mt19937 random(6);
  Block first(SealedFormat::kFp8, {64, 32}, 32);
  for (float& x : first.keys) x = Normal(random) * 17;
  for (float& x : first.values) x = Normal(random) / 300;
  first.Quantise();
  const auto [keys, values] = first.Back();
  Block second(SealedFormat::kFp8, {64, 32}, 32);
  std::copy(keys.begin(), keys.end(), second.keys.begin());
  std::copy(values.begin(), values.end(), second.values.begin());
  second.keys[5] = 900;  // another scale
  second.Quantise();
  const auto [again, values_again] = second.Back();
  EXPECT_EQ(values_again, values);
  for (size_t i = 0; i < again.size(); ++i) {
    if (i == 5 || std::abs(keys[i]) < 0.1f) continue;
    ASSERT_EQ(again[i], keys[i]);
  }
}

}  // namespace
}  // namespace kvpool
