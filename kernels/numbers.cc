// Bits of small floats. See numbers.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/numbers.h"

#include <algorithm>
#include <bit>

namespace kvpool {
namespace {

constexpr uint32_t kMagnitude = 0x7fffffff;

// Rounds away `shift` low bits of a magnitude, to nearest even.
constexpr uint32_t RoundBits(uint32_t magnitude, uint32_t shift) {
  return (magnitude + (1u << (shift - 1)) - 1 + (magnitude >> shift & 1)) >> shift;
}

}  // namespace

uint16_t ToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  // Rounding would carry some NaNs into infinity.
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float FromBf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

uint16_t ToF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & kMagnitude;
  uint32_t half = 0;
  if (value != value) {
    half = 0x7e00;
  } else if (magnitude >= std::bit_cast<uint32_t>(65520.0f)) {
    half = 0x7c00;
  } else if (magnitude < std::bit_cast<uint32_t>(0x1p-14f)) {
    // The unit in the last place of 0.5 is the smallest f16: the addition rounds.
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    half = std::bit_cast<uint32_t>(sum) - std::bit_cast<uint32_t>(0.5f);
  } else {
    half = RoundBits(magnitude - (112u << 23), 13);
  }
  return static_cast<uint16_t>(sign | half);
}

uint16_t ToF16Down(float value) {
  const uint16_t half = ToF16(value);
  if (FromF16(half) <= value) return half;
  return static_cast<uint16_t>(half & 0x8000 ? half + 1 : half - 1);
}

uint16_t ToF16Up(float value) { return ToF16Down(-value) ^ 0x8000; }

float FromF16(uint16_t bits) {
  const uint32_t sign = uint32_t{bits} << 16 & 0x80000000u, magnitude = bits & 0x7fffu;
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  uint32_t wide = std::bit_cast<uint32_t>(scaled);
  if (magnitude >= 0x7c00) wide |= 0x7f800000;  // infinity and NaN
  return std::bit_cast<float>(sign | wide);
}

uint8_t ToE4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 24 & 0x80, magnitude = bits & kMagnitude;
  uint32_t byte = 0;
  if (value != value) {
    byte = 0x7f;
  } else if (magnitude >= std::bit_cast<uint32_t>(kE4m3Max)) {
    byte = 0x7e;
  } else if (magnitude < std::bit_cast<uint32_t>(0x1p-6f)) {
    // The unit in the last place of 2 ** 14 is the smallest E4M3: the addition rounds.
    const float sum = std::bit_cast<float>(magnitude) + 0x1p14f;
    byte = std::bit_cast<uint32_t>(sum) - std::bit_cast<uint32_t>(0x1p14f);
  } else {
    byte = std::min(RoundBits(magnitude - (120u << 23), 20), 0x7eu);
  }
  return static_cast<uint8_t>(sign | byte);
}

float FromE4m3(uint8_t bits) {
  const uint32_t sign = uint32_t{bits} << 24 & 0x80000000u, magnitude = bits & 0x7fu;
  uint32_t wide = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 20) * 0x1p120f);
  if (magnitude == 0x7f) wide = 0x7fc00000;
  return std::bit_cast<float>(sign | wide);
}

}  // namespace kvpool
