// The geometry of integration tests that need no model: pages of 8 KiB, 32 in a slab of 256 KiB.
// Test code.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/geometry.h"

namespace kvpool {

inline Geometry SmallGeometry() {
  return {.layers = 2,
          .query_heads = 4,
          .kv_heads = 2,
          .key_dim = 32,
          .value_dim = 32,
          .dtype = Dtype::kBf16,
          .kv_of_layer = {0, 1}};
}

}  // namespace kvpool
