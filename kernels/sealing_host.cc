// Host twin of sealing: rows to f32 in a tile of one block, the tile to a sealed block.
//
// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <vector>

#include "kernels/quantise.h"
#include "kernels/sealing.h"

namespace kvpool {

void Seal(const Layout& layout, std::byte* base, SealedFormat format,
          std::span<const SealMove> moves) {
  if (moves.empty()) return;
  const Geometry& g = layout.geometry();
  const SealedShape shape = ShapeOf(g, format);
  std::vector<float> keys(size_t{kSealedRows} * g.key_dim),
      values(size_t{kSealedRows} * g.value_dim);
  for (const SealMove& move : moves) {
    for (size_t i = 0; i < move.rows.size(); ++i) {
      const RowAt& from = move.rows[i];
      float* const key = keys.data() + i * g.key_dim;
      float* const value = values.data() + i * g.value_dim;
      if (from.format == SealedFormat::kNone) {
        LoadRow(layout, base, from.block, from.row, key, value);
      } else {
        DequantiseRow(from.format == format ? shape : ShapeOf(g, from.format),
                      BlockAddress(base, from.block), from.row, key, value);
      }
    }
    QuantiseBlock(shape, keys.data(), values.data(), static_cast<uint32_t>(move.rows.size()),
                  BlockAddress(base, move.to));
  }
}

void ExecuteSealingStep(const Layout& layout, std::byte* base, const SealingPlan& plan,
                        size_t step) {
  const size_t slices = plan.slices.size();
  if (step < slices) {
    const size_t first = plan.slices[step];
    const size_t end = step + 1 < slices ? plan.slices[step + 1] : plan.moves.size();
    Seal(layout, base, plan.result.format, std::span(plan.moves).subspan(first, end - first));
    return;
  }
  for (const BlockMove& move : step == slices ? plan.block_moves : plan.last_moves) {
    std::memcpy(BlockAddress(base, move.to), BlockAddress(base, move.from),
                size_t{move.granules} * kGranuleBytes);
  }
}

}  // namespace kvpool
