// Rows into a sealed block and back, one block at a time. Attention and scoring read sealed blocks
// by themselves (simd/sealed.h); the way back here is for moves, a change of format and tests.
//
// Error of an element x that is finite and within +-65504 (the range of f16; beyond it, elements
// are clamped to it first): int8 and int4 at most half the scale of its group, and a scale is the
// group's range / 255 or / 15, rounded up to an f16. fp8 at most |x| / 16 or 2 ** -10 of the
// scale, whichever is more; a scale is less than twice the largest of the block's keys (or values)
// / 448.
//
// Elements that are not finite never trap and never count for a scale, so no other element feels
// them: infinities become the largest (smallest) number of their group, NaN the number nearest to
// 0.
//
// Pure functions but for the block they write; any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/format.h"

namespace kvpool {

// Writes a whole block, its padding as zeros. keys [rows][key_dim], values [rows][value_dim], rows
// 1..32; rows past `rows` hold some finite number and count for no scale. `to` may not overlap.
void QuantiseBlock(const SealedShape& shape, const float* keys, const float* values, uint32_t rows,
                   std::byte* to);

// Reads row `row` < 32. key [key_dim], value [value_dim].
void DequantiseRow(const SealedShape& shape, const std::byte* block, uint32_t row, float* key,
                   float* value);

}  // namespace kvpool
