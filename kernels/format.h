// The formats in which keys and values are stored, and the shape of a sealed (quantised) block.
//
// Native formats fill pages and are what a worker writes: blocks of 16 rows (layout.h). Sealed
// formats hold what a policy or pressure has quantised: blocks of 32 rows of one (layer, head),
// each complete in itself, with its scales, so that a block can be moved, dropped or read alone. 32
// and not 16, because keys have a scale and a zero for each channel (KIVI, arXiv 2402.02750,
// section 3: groups of 32 along time): over 16 rows those two would cost 2 bits an element of a
// key, over 32 they cost 1.
//
//   fp8    E4M3. One scale for the block's keys and one for its values, powers of two, so that a
//          row which is quantised again keeps its bits unless it is too small for the new scale.
//   int8   Asymmetric, x = zero + scale * code, zero and scale in f16. Keys: for each channel, over
//   int4   the block's rows. Values: for each row, over 32 channels. int4 is 5 bits an element.
//
// Data and one pure function; any thread. simd/ includes this file, so it has no inline function.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace kvpool {

struct Geometry;

// Native formats of a cache.
enum class Dtype : uint8_t { kF32 = 1, kBf16 = 2, kF16 = 3 };

enum class SealedFormat : uint8_t { kNone = 0, kFp8 = 1, kInt8 = 2, kInt4 = 3 };

// Every one but kNone.
inline constexpr SealedFormat kSealedFormats[] = {SealedFormat::kFp8, SealedFormat::kInt8,
                                                  SealedFormat::kInt4};

inline constexpr uint32_t kSealedRows = 32;     // rows of a sealed block
inline constexpr uint32_t kValueChannels = 32;  // channels of a row that share a scale and a zero

// Where the parts of a sealed block lie: byte offsets from its start.
//
// Codes of fp8 and int8 are bytes [32][dim]. Codes of int4 are bytes [16][dim]: row r in the low
// half and row r + 16 in the high half of byte [r][d], so that 16 rows of any dim unpack without
// moving elements. Scales and zeros of int8 and int4 are f16: for keys [key_dim], for values
// [32][value_groups]. fp8 has two f32 scales and no zeros.
struct SealedShape {
  SealedFormat format = SealedFormat::kNone;
  uint32_t key_dim = 0, value_dim = 0;
  uint32_t value_groups = 0;  // ceil(value_dim / 32)
  uint32_t key_codes = 0, value_codes = 0;
  uint32_t key_scales = 0, key_zeros = 0;
  uint32_t value_scales = 0, value_zeros = 0;
  uint32_t bytes = 0;     // used
  uint32_t granules = 0;  // of 512 bytes, that it takes
};

// Requires format != kNone.
SealedShape ShapeOf(const Geometry& geometry, SealedFormat format);

// "fp8", "int8", "int4"; "native" for kNone.
const char* NameOf(SealedFormat format);

}  // namespace kvpool
