// Reading sealed blocks: 16 rows at a time become f32 in a tile that stays in the first cache,
// never whole blocks in memory. Included by the vector kernels only.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

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

// `n` <= kLanes bytes, one in each lane.
inline Words LoadBytes(const std::byte* from, uint32_t n) {
  using ByteLanes [[gnu::vector_size(kLanes)]] = uint8_t;
  ByteLanes bytes = {};
  if (n == kLanes) {
    __builtin_memcpy(&bytes, from, sizeof(bytes));
  } else {
    __builtin_memcpy(&bytes, from, n);
  }
  return __builtin_convertvector(bytes, Words);
}

// `n` <= kLanes numbers of f16.
inline Floats LoadHalves(const std::byte* from, uint32_t n) {
  if (n == kLanes) return F16::Load1(from);
  std::byte halves[kLanes * F16::kBytes] = {};
  __builtin_memcpy(halves, from, n * F16::kBytes);
  return F16::Load1(halves);
}

inline void StoreFirst(float* to, Floats v, uint32_t n) {
  if (n == kLanes) return Store(to, v);
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
    const std::byte* const codes = block_ + shape_.key_codes + FirstRow() * dim;
    const Floats fp8_scale = Fill(Fp8Scale(shape_.key_scales));
    for (uint32_t d = 0; d < dim; d += kLanes) {
      const uint32_t n = Min(kLanes, dim - d);
      Floats scale = fp8_scale, zero = {};
      if constexpr (kFormat != SealedFormat::kFp8) {
        scale = LoadHalves(block_ + shape_.key_scales + d * F16::kBytes, n);
        zero = LoadHalves(block_ + shape_.key_zeros + d * F16::kBytes, n);
      }
      for (uint32_t row = 0; row < kTileRows; ++row) {
        StoreFirst(to + row * dim + d, zero + scale * Numbers(codes + row * dim + d, n), n);
      }
    }
  }

  // [16][value_dim]
  void Values(float* to) const {
    const uint32_t dim = shape_.value_dim;
    const std::byte* const codes = block_ + shape_.value_codes + FirstRow() * dim;
    const float fp8_scale = Fp8Scale(shape_.value_scales);
    float scales[kTileRows * kMaxGroups], zeros[kTileRows * kMaxGroups];
    if constexpr (kFormat != SealedFormat::kFp8) {
      ValueGrids(shape_.value_scales, scales);
      ValueGrids(shape_.value_zeros, zeros);
    }
    for (uint32_t row = 0; row < kTileRows; ++row) {
      for (uint32_t d = 0; d < dim; d += kLanes) {
        const uint32_t n = Min(kLanes, dim - d);
        const Floats numbers = Numbers(codes + row * dim + d, n);
        if constexpr (kFormat == SealedFormat::kFp8) {
          StoreFirst(to + row * dim + d, numbers * fp8_scale, n);
        } else {
          const uint32_t group = row * shape_.value_groups + d / kValueChannels;
          StoreFirst(to + row * dim + d, zeros[group] + numbers * scales[group], n);
        }
      }
    }
  }

 private:
  static constexpr uint32_t kMaxGroups = 1024 / kValueChannels;  // of the widest value

  // Row of codes where this half begins; both halves of int4 share their bytes.
  uint32_t FirstRow() const { return kFormat == SealedFormat::kInt4 ? 0 : half_ * kTileRows; }

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
  Floats Numbers(const std::byte* from, uint32_t n) const {
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

}  // namespace kvpool::simd::KVPOOL_SIMD_TARGET
