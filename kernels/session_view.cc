// Rows by their number. See session_view.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/session_view.h"

#include "kernels/quantise.h"

namespace kvpool {

void ReadRow(const Layout& layout, const std::byte* base, const SessionView& session,
             uint32_t plane, uint32_t row, float* key, float* value) {
  const Geometry& g = layout.geometry();
  const BlockId block = session.BlockOf(layout, plane / g.kv_heads, plane % g.kv_heads, row);
  const uint32_t place = session.RowInBlock(plane, row);
  if (row < session.SealedLength(plane)) {
    DequantiseRow(ShapeOf(g, session.sealed_format), BlockAddress(base, block), place, key, value);
  } else {
    LoadRow(layout, base, block, place, key, value);
  }
}

}  // namespace kvpool
