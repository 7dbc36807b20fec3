// Reading the rows of a head: where they are, and their elements as pairs of vectors.
// Included by the vector kernels only.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/simd/args.h"
#include "kernels/simd/vector.h"

namespace kvpool::simd::KVPOOL_SIMD_TARGET {

inline constexpr uint32_t kCacheLine = 64;

inline uint32_t Min(uint32_t a, uint32_t b) { return a < b ? a : b; }

// Addresses of up to 16 consecutive rows. A tile counts from the head's first native row (or its
// first sealed one) whatever the blocks are, so the order of summation does not depend on where
// rows lie.
struct Tile {
  uint32_t rows = 0;
  const std::byte* key[kTileRows];
  const std::byte* value[kTileRows];
};

// The native rows first .. first + 15 or up to `end`; `first` < `end`. Addresses past the last row
// repeat it, so that they can be prefetched.
inline void Locate(const HeadRows& head, uint32_t first, uint32_t end, Tile* tile) {
  const uint32_t key_bytes = head.key_dim * head.element_bytes;
  const uint32_t value_bytes = head.value_dim * head.element_bytes;
  tile->rows = Min(kTileRows, end - first);
  for (uint32_t i = 0; i < tile->rows;) {
    const bool open = first + i < head.open.rows;
    const Run& run = open ? head.open : head.fresh;
    const uint32_t row = first + i - (open ? 0 : head.open.rows);
    const uint32_t place = row % kTileRows;
    const uint32_t n = Min(Min(tile->rows - i, kTileRows - place), run.rows - row);
    const std::byte* block = head.base + (uint64_t{run.ids[row / kTileRows]} + run.offset) * 512;
    const std::byte* key = block + place * key_bytes;
    const std::byte* value = block + kTileRows * key_bytes + place * value_bytes;
    for (uint32_t j = 0; j < n; ++j) {
      tile->key[i + j] = key + j * key_bytes;
      tile->value[i + j] = value + j * value_bytes;
    }
    i += n;
  }
  for (uint32_t i = tile->rows; i < kTileRows; ++i) {
    tile->key[i] = tile->key[tile->rows - 1];
    tile->value[i] = tile->value[tile->rows - 1];
  }
}

// 2 * kLanes elements of a row. Which element is in which lane depends on the format: Index() says.
struct Pair {
  Floats a, b;
};
inline constexpr uint32_t kPairElements = 2 * kLanes;

// A format loads a Pair (Load2), or kLanes elements in their order (Load1).
struct F32 {
  static constexpr uint32_t kBytes = 4;
  static constexpr uint32_t Index(uint32_t half, uint32_t lane) { return half * kLanes + lane; }
  static Floats Load1(const std::byte* from) {
    Floats v;
    __builtin_memcpy(&v, from, sizeof(v));
    return v;
  }
  static Pair Load2(const std::byte* from) { return {Load1(from), Load1(from + sizeof(Floats))}; }
};

struct Bf16 {
  static constexpr uint32_t kBytes = 2;
  static constexpr uint32_t Index(uint32_t half, uint32_t lane) { return 2 * lane + half; }
  static Floats Load1(const std::byte* from) {
    using Halves [[gnu::vector_size(kLanes * 2)]] = uint16_t;
    Halves halves;
    __builtin_memcpy(&halves, from, sizeof(halves));
    return reinterpret_cast<Floats>(__builtin_convertvector(halves, Words) << 16);
  }
  // Even elements in a, odd ones in b: each takes one instruction after one load.
  static Pair Load2(const std::byte* from) {
    Words words;
    __builtin_memcpy(&words, from, sizeof(words));
    return {reinterpret_cast<Floats>(words << 16), reinterpret_cast<Floats>(words & 0xffff0000u)};
  }
};

struct F16 {
  static constexpr uint32_t kBytes = 2;
  static constexpr uint32_t Index(uint32_t half, uint32_t lane) { return Bf16::Index(half, lane); }
  // `halves`: f16 bits in the low half of each word, the high half is ignored.
  static Floats Widen(Words halves) {
    // The exponent moves by a multiplication, which also makes small numbers normal.
    const Words magnitude = halves & 0x7fffu;
    const Words bits =
        reinterpret_cast<Words>(reinterpret_cast<Floats>(magnitude << 13) * 0x1p112f);
    const Words special = magnitude >= 0x7c00u ? bits | 0x7f800000u : bits;  // infinity and NaN
    return reinterpret_cast<Floats>(special | (halves & 0x8000u) << 16);
  }
  static Floats Load1(const std::byte* from) {
    using Halves [[gnu::vector_size(kLanes * 2)]] = uint16_t;
    Halves halves;
    __builtin_memcpy(&halves, from, sizeof(halves));
    return Widen(__builtin_convertvector(halves, Words));
  }
  static Pair Load2(const std::byte* from) {
    Words words;
    __builtin_memcpy(&words, from, sizeof(words));
    return {Widen(words), Widen(words >> 16)};
  }
};

// Calls function.template operator()<Format>() with the format of `dtype`.
template <typename Function>
inline void InFormat(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::kF32:
      return function.template operator()<F32>();
    case Dtype::kBf16:
      return function.template operator()<Bf16>();
    case Dtype::kF16:
      return function.template operator()<F16>();
  }
}

// The last `elements` < kPairElements elements of a row, zeroes after them, to load from.
template <typename Format>
struct Tail {
  Tail(const std::byte* from, uint32_t elements) {
    for (uint32_t i = 0; i < elements * Format::kBytes; ++i) bytes[i] = from[i];
  }
  std::byte bytes[kPairElements * Format::kBytes] = {};
};

// To the second level: the first has too few misses in flight to keep memory busy.
template <typename Format>
inline void Prefetch2(const std::byte* address) {
  for (uint32_t i = 0; i < kPairElements * Format::kBytes; i += kCacheLine) {
    __builtin_prefetch(address + i, 0, 2);
  }
}

// A row as f32, in element order.
template <typename Format>
inline void Widen(const std::byte* from, uint32_t dim, float* to) {
  uint32_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) Store(to + i, Format::Load1(from + i * Format::kBytes));
  if (i == dim) return;
  const Floats tail = Format::Load1(Tail<Format>(from + i * Format::kBytes, dim - i).bytes);
  for (uint32_t lane = 0; i < dim; ++i, ++lane) to[i] = tail[lane];
}

// acc[i] += sum over n of vectors[n] * scalars[i * stride + n * step]: kCount sums at a time, one
// load of a vector for all of them.
template <int kCount>
inline void MultiplyAdd(const float* vectors, const float* scalars, size_t stride, size_t step,
                        uint32_t n, Floats* acc) {
  Floats sum[kCount];
  for (int i = 0; i < kCount; ++i) sum[i] = acc[i];
  for (uint32_t k = 0; k < n; ++k) {
    const Floats v = Load(vectors + k * kLanes);
    for (int i = 0; i < kCount; ++i) sum[i] += v * scalars[i * stride + k * step];
  }
  for (int i = 0; i < kCount; ++i) acc[i] = sum[i];
}

// logits[row] for 16 rows of f32 keys [16][dim] and one vector of lanes, queries [dim][kLanes].
inline void TileLogits(const float* keys, const float* queries, uint32_t dim, Floats* logits) {
  for (uint32_t row = 0; row < kTileRows; row += 8) {
    for (uint32_t i = 0; i < 8; ++i) logits[row + i] = Floats{};
    MultiplyAdd<8>(queries, keys + row * dim, dim, 1, dim, logits + row);
  }
}

}  // namespace kvpool::simd::KVPOOL_SIMD_TARGET
