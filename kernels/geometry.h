// The shape of a model's cache, one layer group. Says nothing about where bytes lie (layout.h).
// Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/format.h"

namespace kvpool {

constexpr uint32_t ElementBytes(Dtype dtype) { return dtype == Dtype::kF32 ? 4 : 2; }

struct Geometry {
  uint32_t layers = 0;       // cached layers
  uint32_t query_heads = 0;  // of a model layer; a multiple of kv_heads
  uint32_t kv_heads = 0;
  uint32_t key_dim = 0;
  uint32_t value_dim = 0;  // may differ from key_dim; 0 for latent caches
  Dtype dtype = Dtype::kBf16;
  std::vector<uint16_t> kv_of_layer;  // [model layers] -> cached layer; identity for most models
  // Model layers, ascending, in which a token does not attend to itself: those that use keys made
  // above them (LCKV, arXiv 2405.10637). None in most models.
  std::vector<uint16_t> self_masked;

  uint32_t model_layers() const { return static_cast<uint32_t>(kv_of_layer.size()); }
  uint32_t group_size() const { return query_heads / kv_heads; }  // query heads of one KV head
  uint32_t planes() const { return layers * kv_heads; }  // (layer, head) pairs: index l*kv_heads+h
  bool MasksSelf(uint32_t model_layer) const {
    return std::binary_search(self_masked.begin(), self_masked.end(), model_layer);
  }
  bool operator==(const Geometry&) const = default;
};

// Which of a query's vectors [model_layers][query_heads] read (layer, head) number `plane`: those
// of its group in every model layer that shares the cached layer. Ascending.
std::vector<uint32_t> ReadersOf(const Geometry& geometry, uint32_t plane);

// Ok, or InvalidArgument that names the field, its value and what is allowed. The limits are those
// of proto/limits.h, passed on by the caller as plain numbers because kernels include no proto.
struct GeometryLimits {
  uint32_t layers = 256;
  uint32_t heads = 256;
  uint32_t head_dim = 1024;
};
absl::Status CheckGeometry(const Geometry& geometry, const GeometryLimits& limits = {});

}  // namespace kvpool
