// Reading sealed blocks: 16 rows at a time become f32 in a tile that stays in the first cache,
// never whole blocks in memory; and tiles of any rows, sealed or native. Included by the vector
// kernels only.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <immintrin.h>

#include <type_traits>

#include "kernels/simd/rows.h"

namespace kvpool::simd::KVPOOL_SIMD_TARGET {

static_assert(kSealedRows == 2 * kTileRows && kValueChannels % kLanes == 0);

// An f32 tile row, loaded as the format Format loads its pairs.
template <typename Format>
struct Unpacked {
  static constexpr uint32_t kBytes = 4;
  static Pair Load2(const std::byte* from) {
    const Pair pair = F32::Load2(from);
    return Shuffled(pair, std::make_index_sequence<kLanes>());
  }

 private:
  template <size_t... I>
  static Pair Shuffled(const Pair& pair, std::index_sequence<I...>) {
    return {__builtin_shufflevector(pair.a, pair.b, Format::Index(0, I)...),
            __builtin_shufflevector(pair.a, pair.b, Format::Index(1, I)...)};
  }
};

// kLanes bytes, one in each lane. The vector extensions take a dozen instructions for what
// processors do in one; kN is kLanes, a parameter so that only its own branch is compiled.
template <int kN>
inline Words WidenBytes(const std::byte* from) {
  Words words;
  if constexpr (kN == 16) {
    const auto* bytes = reinterpret_cast<const __m128i*>(from);
    // The form without a mask warns of uninitialised lanes in GCC 12.
    const __m512i wide = _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(bytes));
    __builtin_memcpy(&words, &wide, sizeof(words));
  } else if constexpr (kN == 8) {
    const auto* bytes = reinterpret_cast<const __m128i*>(from);
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes));
    __builtin_memcpy(&words, &wide, sizeof(words));
  } else {
    for (int i = 0; i < kN; ++i) words[i] = static_cast<uint32_t>(from[i]);
  }
  return words;
}

// How many lanes are used: all of them, known when compiling, or those of a row's last vector.
using AllLanes = std::integral_constant<uint32_t, kLanes>;

inline Words LoadBytes(const std::byte* from, AllLanes) { return WidenBytes<kLanes>(from); }
inline Words LoadBytes(const std::byte* from, uint32_t n) {
  Words words = {};
  for (uint32_t i = 0; i < n; ++i) words[i] = static_cast<uint32_t>(from[i]);
  return words;
}

// Numbers of f16.
inline Floats LoadHalves(const std::byte* from, AllLanes) { return F16::Load1(from); }
inline Floats LoadHalves(const std::byte* from, uint32_t n) {
  std::byte halves[kLanes * F16::kBytes] = {};
  for (uint32_t i = 0; i < n * F16::kBytes; ++i) halves[i] = from[i];
  return F16::Load1(halves);
}

inline void StoreLanes(float* to, Floats v, AllLanes) { Store(to, v); }
inline void StoreLanes(float* to, Floats v, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i) to[i] = v[i];
}

// One half of a sealed block: its rows 16 * half .. 16 * half + 15.
template <SealedFormat kFormat>
class HalfBlock {
 public:
  HalfBlock(const SealedShape& shape, const std::byte* block, uint32_t half)
      : shape_(shape), block_(block), half_(half) {}

  // [16][key_dim]
  void Keys(float* to) const {
    const uint32_t dim = shape_.key_dim;
    const float fp8_scale = Fp8Scale(shape_.key_scales);
    uint32_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) KeyColumns(d, AllLanes(), fp8_scale, to + d);
    if (d < dim) KeyColumns(d, dim - d, fp8_scale, to + d);
  }

  // [16][value_dim]
  void Values(float* to) const {
    const uint32_t dim = shape_.value_dim;
    const float fp8_scale = Fp8Scale(shape_.value_scales);
    float scales[kTileRows * kMaxGroups], zeros[kTileRows * kMaxGroups];
    if constexpr (kFormat != SealedFormat::kFp8) {
      ValueGrids(shape_.value_scales, scales);
      ValueGrids(shape_.value_zeros, zeros);
    }
    for (uint32_t row = 0; row < kTileRows; ++row) {
      const std::byte* const codes = block_ + shape_.value_codes + (FirstRow() + row) * dim;
      const auto value = [&](uint32_t d, auto n) {
        const Floats numbers = Numbers(codes + d, n);
        if constexpr (kFormat == SealedFormat::kFp8) {
          StoreLanes(to + row * dim + d, numbers * fp8_scale, n);
        } else {
          const uint32_t group = row * shape_.value_groups + d / kValueChannels;
          StoreLanes(to + row * dim + d, zeros[group] + numbers * scales[group], n);
        }
      };
      uint32_t d = 0;
      for (; d + kLanes <= dim; d += kLanes) value(d, AllLanes());
      if (d < dim) value(d, dim - d);
    }
  }

 private:
  static constexpr uint32_t kMaxGroups = 1024 / kValueChannels;  // of the widest value

  // Row of codes where this half begins; both halves of int4 share their bytes.
  uint32_t FirstRow() const { return kFormat == SealedFormat::kInt4 ? 0 : half_ * kTileRows; }

  // Channels d .. of all 16 rows: their scales and zeros are read once.
  template <typename Lanes>
  void KeyColumns(uint32_t d, Lanes n, float fp8_scale, float* to) const {
    const uint32_t dim = shape_.key_dim;
    const std::byte* const codes = block_ + shape_.key_codes + FirstRow() * dim + d;
    if constexpr (kFormat == SealedFormat::kFp8) {
      for (uint32_t row = 0; row < kTileRows; ++row) {
        StoreLanes(to + row * dim, Numbers(codes + row * dim, n) * fp8_scale, n);
      }
    } else {
      const Floats scale = LoadHalves(block_ + shape_.key_scales + d * F16::kBytes, n);
      const Floats zero = LoadHalves(block_ + shape_.key_zeros + d * F16::kBytes, n);
      for (uint32_t row = 0; row < kTileRows; ++row) {
        StoreLanes(to + row * dim, zero + scale * Numbers(codes + row * dim, n), n);
      }
    }
  }

  float Fp8Scale(uint32_t offset) const {
    float scale = 0;
    if constexpr (kFormat == SealedFormat::kFp8) {
      __builtin_memcpy(&scale, block_ + offset, sizeof(scale));
    }
    return scale;
  }

  // [16][value_groups] from f16; their number is a multiple of kLanes.
  void ValueGrids(uint32_t offset, float* to) const {
    const uint32_t count = kTileRows * shape_.value_groups;
    const std::byte* const from = block_ + offset + half_ * count * F16::kBytes;
    for (uint32_t i = 0; i < count; i += kLanes) {
      Store(to + i, F16::Load1(from + i * F16::kBytes));
    }
  }

  // What the codes at `from` are before scale and zero.
  template <typename Lanes>
  Floats Numbers(const std::byte* from, Lanes n) const {
    const Words bytes = LoadBytes(from, n);
    if constexpr (kFormat == SealedFormat::kFp8) {
      const Floats magnitude = reinterpret_cast<Floats>((bytes & 0x7fu) << 20) * 0x1p120f;
      return reinterpret_cast<Floats>(reinterpret_cast<Words>(magnitude) | (bytes & 0x80u) << 24);
    } else if constexpr (kFormat == SealedFormat::kInt4) {
      const Words codes = (half_ == 0 ? bytes : bytes >> 4) & 15u;
      return __builtin_convertvector(reinterpret_cast<Ints>(codes), Floats);
    } else {
      return __builtin_convertvector(reinterpret_cast<Ints>(bytes), Floats);
    }
  }

  const SealedShape& shape_;
  const std::byte* const block_;
  const uint32_t half_;
};

// Sealed rows first .. first + 15 of a head (`first` a multiple of 16) as f32: keys [16][key_dim],
// and values [16][value_dim] unless nullptr. Rows past the run's end hold finite numbers. Half of
// the block that is read next is prefetched.
inline void UnpackTile(const HeadRows& head, uint32_t first, float* keys, float* values) {
  const SealedShape& shape = head.sealed.shape;
  const uint32_t index = first / kSealedRows, half = first % kSealedRows / kTileRows;
  const std::byte* const block = head.base + uint64_t{head.sealed.ids[index]} * 512;
  if ((index + 1) * kSealedRows < head.sealed.rows) {
    const std::byte* const next = head.base + uint64_t{head.sealed.ids[index + 1]} * 512;
    const uint32_t middle = shape.granules * 512 / 2, from = half * middle;
    for (uint32_t i = from; i < from + middle; i += kCacheLine) {
      __builtin_prefetch(next + i, 0, 2);
    }
  }
  const auto unpack = [&]<SealedFormat kFormat>() {
    const HalfBlock<kFormat> rows(shape, block, half);
    rows.Keys(keys);
    if (values != nullptr) rows.Values(values);
  };
  switch (shape.format) {
    case SealedFormat::kFp8:
      return unpack.template operator()<SealedFormat::kFp8>();
    case SealedFormat::kInt8:
      return unpack.template operator()<SealedFormat::kInt8>();
    case SealedFormat::kInt4:
      return unpack.template operator()<SealedFormat::kInt4>();
    case SealedFormat::kNone:
      return;
  }
}

// The rows `first` .. of a head as f32, sealed or native, up to `end`: keys [16][key_dim], and
// values [16][value_dim] unless nullptr. Returns how many: 16, or fewer where the sealed rows or
// those before `end` end; past them are numbers that mean nothing, and no row is read. `first` is
// less than `end`, and where the tile before ended.
template <typename Format>
inline uint32_t LoadTile(const HeadRows& head, uint32_t first, uint32_t end, float* keys,
                         float* values) {
  const uint32_t sealed = head.sealed.rows;
  if (first < sealed) {
    UnpackTile(head, first, keys, values);
    return Min(kTileRows, Min(sealed, end) - first);
  }
  Tile tile;
  Locate(head, first - sealed, end - sealed, &tile);
  for (uint32_t row = 0; row < kTileRows; ++row) {
    Widen<Format>(tile.key[row], head.key_dim, keys + row * head.key_dim);
    if (values == nullptr) continue;
    Widen<Format>(tile.value[row], head.value_dim, values + row * head.value_dim);
  }
  return tile.rows;
}

}  // namespace kvpool::simd::KVPOOL_SIMD_TARGET
