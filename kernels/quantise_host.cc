// Host twin of quantisation. See quantise.h for what it promises.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/ids.h"
#include "kernels/numbers.h"
#include "kernels/quantise.h"

namespace kvpool {
namespace {

// Comparisons with NaN are false.
bool IsFinite(float x) { return std::abs(x) <= std::numeric_limits<float>::max(); }
float Clamp(float x) { return std::min(std::max(x, -kF16Max), kF16Max); }
float NanToZero(float x) { return x == x ? x : 0.0f; }

// What `count` elements, `step` floats apart, are quantised by.
struct Grid {
  float scale = 0, zero = 0;  // both are f16 numbers

  uint32_t CodeOf(float x, float codes) const {
    if (scale == 0) return 0;
    const float code = (NanToZero(x) - zero) / scale;
    return static_cast<uint32_t>(std::min(std::max(code, 0.0f), codes) + 0.5f);
  }
};

class Range {
 public:
  void Add(float x) {
    if (!IsFinite(x)) return;
    low_ = std::min(low_, Clamp(x));
    high_ = std::max(high_, Clamp(x));
  }
  // Covers the whole range: the zero is rounded down, then the scale up.
  Grid GridOf(float codes) const {
    if (low_ > high_) return {};
    const float zero = FromF16(ToF16Down(low_));
    return {.scale = FromF16(ToF16Up((high_ - zero) / codes)), .zero = zero};
  }

 private:
  float low_ = kF16Max, high_ = -kF16Max;
};

void StoreHalf(std::byte* at, uint32_t index, float value) {
  const uint16_t half = ToF16(value);
  std::memcpy(at + index * sizeof(half), &half, sizeof(half));
}
float LoadHalf(const std::byte* at, uint32_t index) {
  uint16_t half;
  std::memcpy(&half, at + index * sizeof(half), sizeof(half));
  return FromF16(half);
}

// The codes of a block's keys or values.
class Codes {
 public:
  Codes(const SealedShape& shape, uint32_t offset, uint32_t dim)
      : int4_(shape.format == SealedFormat::kInt4), offset_(offset), dim_(dim) {}

  void Put(std::byte* block, uint32_t row, uint32_t d, uint32_t code) const {
    std::byte& byte = block[At(row, d)];
    byte |= static_cast<std::byte>(int4_ && row >= kSealedRows / 2 ? code << 4 : code);
  }
  uint32_t Get(const std::byte* block, uint32_t row, uint32_t d) const {
    const auto byte = std::to_integer<uint32_t>(block[At(row, d)]);
    if (!int4_) return byte;
    return row < kSealedRows / 2 ? byte & 15 : byte >> 4;
  }

 private:
  size_t At(uint32_t row, uint32_t d) const {
    return offset_ + size_t{int4_ ? row % (kSealedRows / 2) : row} * dim_ + d;
  }
  const bool int4_;
  const uint32_t offset_, dim_;
};

float HighestCode(const SealedShape& shape) {
  return shape.format == SealedFormat::kInt4 ? 15.0f : 255.0f;
}

void QuantiseKeys(const SealedShape& shape, const float* keys, uint32_t rows, std::byte* to) {
  const float codes = HighestCode(shape);
  const Codes put(shape, shape.key_codes, shape.key_dim);
  for (uint32_t d = 0; d < shape.key_dim; ++d) {
    Range range;
    for (uint32_t row = 0; row < rows; ++row) range.Add(keys[row * shape.key_dim + d]);
    const Grid grid = range.GridOf(codes);
    StoreHalf(to + shape.key_scales, d, grid.scale);
    StoreHalf(to + shape.key_zeros, d, grid.zero);
    for (uint32_t row = 0; row < rows; ++row) {
      put.Put(to, row, d, grid.CodeOf(keys[row * shape.key_dim + d], codes));
    }
  }
}

void QuantiseValues(const SealedShape& shape, const float* values, uint32_t rows, std::byte* to) {
  const float codes = HighestCode(shape);
  const Codes put(shape, shape.value_codes, shape.value_dim);
  for (uint32_t row = 0; row < rows; ++row) {
    const float* const value = values + size_t{row} * shape.value_dim;
    for (uint32_t group = 0; group < shape.value_groups; ++group) {
      const uint32_t first = group * kValueChannels;
      const uint32_t end = std::min(first + kValueChannels, shape.value_dim);
      Range range;
      for (uint32_t d = first; d < end; ++d) range.Add(value[d]);
      const Grid grid = range.GridOf(codes);
      StoreHalf(to + shape.value_scales, row * shape.value_groups + group, grid.scale);
      StoreHalf(to + shape.value_zeros, row * shape.value_groups + group, grid.zero);
      for (uint32_t d = first; d < end; ++d) put.Put(to, row, d, grid.CodeOf(value[d], codes));
    }
  }
}

// The smallest power of two by which `highest` is at most the largest E4M3.
float Fp8Scale(float highest) {
  if (highest == 0) return 1.0f;
  int exponent;
  const float fraction = std::frexp(highest, &exponent);  // highest = fraction * 2 ** exponent
  // 448 = 0.875 * 2 ** 9. Scales stay normal numbers whatever the input.
  return std::ldexp(1.0f, std::max(exponent - (fraction <= 0.875f ? 9 : 8), -100));
}

void QuantiseFp8(const float* from, uint32_t count, std::byte* codes, std::byte* scale_at) {
  float highest = 0;
  for (uint32_t i = 0; i < count; ++i) {
    if (IsFinite(from[i])) highest = std::max(highest, std::abs(Clamp(from[i])));
  }
  const float scale = Fp8Scale(highest);
  std::memcpy(scale_at, &scale, sizeof(scale));
  const float limit = highest / scale;
  for (uint32_t i = 0; i < count; ++i) {
    const float x = std::min(std::max(NanToZero(from[i]) / scale, -limit), limit);
    codes[i] = static_cast<std::byte>(ToE4m3(x));
  }
}

void DequantiseFp8(const std::byte* codes, uint32_t count, const std::byte* scale_at, float* to) {
  float scale;
  std::memcpy(&scale, scale_at, sizeof(scale));
  for (uint32_t i = 0; i < count; ++i) {
    to[i] = FromE4m3(std::to_integer<uint8_t>(codes[i])) * scale;
  }
}

}  // namespace

void QuantiseBlock(const SealedShape& shape, const float* keys, const float* values, uint32_t rows,
                   std::byte* to) {
  std::memset(to, 0, size_t{shape.granules} * kGranuleBytes);
  if (shape.format == SealedFormat::kFp8) {
    QuantiseFp8(keys, rows * shape.key_dim, to + shape.key_codes, to + shape.key_scales);
    QuantiseFp8(values, rows * shape.value_dim, to + shape.value_codes, to + shape.value_scales);
    return;
  }
  QuantiseKeys(shape, keys, rows, to);
  QuantiseValues(shape, values, rows, to);
}

void DequantiseRow(const SealedShape& shape, const std::byte* block, uint32_t row, float* key,
                   float* value) {
  if (shape.format == SealedFormat::kFp8) {
    DequantiseFp8(block + shape.key_codes + row * shape.key_dim, shape.key_dim,
                  block + shape.key_scales, key);
    DequantiseFp8(block + shape.value_codes + row * shape.value_dim, shape.value_dim,
                  block + shape.value_scales, value);
    return;
  }
  const Codes keys(shape, shape.key_codes, shape.key_dim);
  for (uint32_t d = 0; d < shape.key_dim; ++d) {
    key[d] = LoadHalf(block + shape.key_zeros, d) +
             LoadHalf(block + shape.key_scales, d) * static_cast<float>(keys.Get(block, row, d));
  }
  const Codes values(shape, shape.value_codes, shape.value_dim);
  for (uint32_t d = 0; d < shape.value_dim; ++d) {
    const uint32_t group = row * shape.value_groups + d / kValueChannels;
    value[d] =
        LoadHalf(block + shape.value_zeros, group) +
        LoadHalf(block + shape.value_scales, group) * static_cast<float>(values.Get(block, row, d));
  }
}

}  // namespace kvpool
