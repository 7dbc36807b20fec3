// Small floating-point formats, one number at a time: bf16, f16 (IEEE binary16) and fp8 E4M3 (OCP
// 8-bit floating point, the "fn" variant: no infinities, largest 448). The vector kernels have
// their own copies (simd/rows.h, simd/sealed.h).
//
// Pure functions, any thread. All round to nearest, ties to even, unless they say otherwise.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace kvpool {

inline constexpr float kF16Max = 65504.0f;
inline constexpr float kE4m3Max = 448.0f;

uint16_t ToBf16(float value);
float FromBf16(uint16_t bits);

// Past kF16Max by half a step or more: infinity. NaN stays NaN.
uint16_t ToF16(float value);
// The largest f16 that is not above `value`, and the smallest that is not below. |value| <=
// kF16Max.
uint16_t ToF16Down(float value);
uint16_t ToF16Up(float value);
float FromF16(uint16_t bits);

// Saturates at kE4m3Max; NaN stays NaN.
uint8_t ToE4m3(float value);
float FromE4m3(uint8_t bits);

}  // namespace kvpool
