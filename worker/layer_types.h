// Which layers of a model compute keys and values, and which use those of another layer: LCKV
// (arXiv 2405.10637), CLA (2405.12981), and YOCO (2405.05254) without its sliding windows.
//
// Knows no weights and no cache. Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace kvpool {

// Layers first .. end - 1.
struct LayerRange {
  uint32_t first = 0;
  uint32_t end = 0;
  bool empty() const { return first == end; }
};

struct LayerTypes {
  std::vector<uint16_t> kv_from;  // [layers] whose keys and values a layer uses; empty: its own

  uint32_t KvFrom(uint32_t layer) const { return kv_from.empty() ? layer : kv_from[layer]; }
  bool ComputesKv(uint32_t layer) const { return KvFrom(layer) == layer; }
  // Whether its keys and values are made after it: then it cannot see its own token's.
  bool UsesKvFromAbove(uint32_t layer) const { return KvFrom(layer) > layer; }
  // From the lowest layer that uses keys and values from above, through the highest layer that such
  // a one uses: a token passes them only after all tokens before it. Empty: there is none.
  LayerRange Cyclic() const;
  // [layers] model layer -> number of the cached layer, counted from below.
  std::vector<uint16_t> CachedLayers(uint32_t layers) const;
};

// From the form of LCKV's code, "0_4_4_4_4_5": number i is the layer whose keys and values layer i
// uses. The message of InvalidArgument says which entry is wrong and why.
absl::StatusOr<LayerTypes> ParseLayerTypes(const std::string& text, uint32_t layers);

}  // namespace kvpool
