// Vectors of KVPOOL_SIMD_LANES floats: GCC's vector extensions, which compile for any instruction
// set. Included by the vector kernels only; everything is in the namespace of their target.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace kvpool::simd::KVPOOL_SIMD_TARGET {

inline constexpr int kLanes = KVPOOL_SIMD_LANES;
inline constexpr float kInfinity = __builtin_inff();

using Floats [[gnu::vector_size(kLanes * 4)]] = float;
using Ints [[gnu::vector_size(kLanes * 4)]] = int32_t;
using Words [[gnu::vector_size(kLanes * 4)]] = uint32_t;

inline Floats Load(const float* from) {
  Floats v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}
inline void Store(float* to, Floats v) { __builtin_memcpy(to, &v, sizeof(v)); }

inline Floats Fill(float x) { return x - Floats{}; }  // keeps the sign of -0
inline Floats Max(Floats a, Floats b) { return a > b ? a : b; }

template <size_t... I>
inline Ints CountUp(std::index_sequence<I...>) {
  return Ints{static_cast<int32_t>(I)...};
}
// 0, 1, 2, ...
inline Ints LaneNumbers() { return CountUp(std::make_index_sequence<kLanes>()); }

// 2 ** x for x <= 127, 0 below -126; NaN for NaN. Relative error below 2e-7.
inline Floats Exp2(Floats x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2 ** 23: adding it rounds to an integer
  const Floats clamped = x < -126.0f ? Fill(-126.0f) : x;
  const Floats rounded = clamped + kRound;
  const Floats f = clamped - (rounded - kRound);
  // Taylor series of 2 ** f on [-0.5, 0.5].
  Floats p = Fill(1.5252734e-5f);
  p = p * f + 1.5403530e-4f;
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  // The integer is in the low bits of `rounded`: it goes straight into the exponent.
  const Words bits = reinterpret_cast<Words>(p) + (reinterpret_cast<Words>(rounded) << 23);
  return x < -126.0f ? Floats{} : reinterpret_cast<Floats>(bits);
}

template <int kStep, size_t... I>
inline Floats SwapLanes(Floats v, std::index_sequence<I...>) {
  return __builtin_shufflevector(v, v, (I ^ kStep)...);
}

// Largest lane.
template <int kStep = kLanes / 2>
inline float MaxLane(Floats v) {
  if constexpr (kStep == 0) {
    return v[0];
  } else {
    return MaxLane<kStep / 2>(Max(v, SwapLanes<kStep>(v, std::make_index_sequence<kLanes>())));
  }
}

// a and b hold partial sums of kLanes / kWidth rows each, kWidth lanes a row. The result holds a's
// rows and then b's, half as many lanes a row.
constexpr int HalfLane(int lane, int width, int half) {
  const int row = lane / (width / 2), rows = kLanes / width;
  return row / rows * kLanes + row % rows * width + half * (width / 2) + lane % (width / 2);
}
template <int kWidth, size_t... I>
inline Floats AddHalves(Floats a, Floats b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, HalfLane(I, kWidth, 0)...) +
         __builtin_shufflevector(a, b, HalfLane(I, kWidth, 1)...);
}

// Sums the lanes of each of kCount vectors: afterwards v[0], v[1], ... hold the kCount sums in
// order.
template <int kCount, int kWidth = kLanes>
inline void SumLanes(Floats* v) {
  if constexpr (kWidth > 1) {
    for (int i = 0; i < kCount / 2; ++i) {
      v[i] = AddHalves<kWidth>(v[2 * i], v[2 * i + 1], std::make_index_sequence<kLanes>());
    }
    SumLanes<kCount / 2, kWidth / 2>(v);
  }
}

}  // namespace kvpool::simd::KVPOOL_SIMD_TARGET
