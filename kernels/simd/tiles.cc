// Tiles of 16 rows as f32, and their products with many vectors, compiled once for each target:
// what scores of rows are made from that are no attention.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/simd/rows.h"
#include "kernels/simd/sealed.h"

namespace kvpool::simd::KVPOOL_SIMD_TARGET {

uint32_t ReadTile(const TileArgs& args) {
  const HeadRows& head = args.head;
  const uint32_t end = head.sealed.rows + head.open.rows + head.fresh.rows;
  uint32_t rows = 0;
  InFormat(head.dtype, [&]<typename Format>() {
    rows = LoadTile<Format>(head, args.first, end, args.keys, args.values);
  });
  return rows;
}

void Multiply(const ProductArgs& args) {
  constexpr uint32_t kRows = 8;  // whose sums stay in registers
  const uint32_t width = args.blocks * kMaxLanes;
  for (uint32_t column = 0; column < width; column += kLanes) {
    const float* const vectors =
        args.columns + size_t{column / kMaxLanes} * args.dim * kMaxLanes + column % kMaxLanes;
    for (uint32_t first = 0; first < kTileRows; first += kRows) {
      Floats sums[kRows] = {};
      for (uint32_t d = 0; d < args.dim; ++d) {
        const Floats v = Load(vectors + size_t{d} * kMaxLanes);
        for (uint32_t i = 0; i < kRows; ++i) sums[i] += v * args.rows[(first + i) * args.dim + d];
      }
      for (uint32_t i = 0; i < kRows; ++i) {
        Store(args.out + size_t{first + i} * width + column, sums[i]);
      }
    }
  }
}

}  // namespace kvpool::simd::KVPOOL_SIMD_TARGET
