// The checks on a geometry that came from outside.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/geometry.h"

#include "absl/strings/str_cat.h"

namespace kvpool {
namespace {

absl::Status CheckRange(const char* field, uint64_t value, uint64_t min, uint64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("geometry: ", field, " = ", value, " is outside ", min, "..", max));
}

absl::Status CheckLayerMap(const Geometry& g, const GeometryLimits& limits) {
  absl::Status status = CheckRange("length of kv_of_layer", g.kv_of_layer.size(), 1, limits.layers);
  for (size_t i = 0; status.ok() && i < g.kv_of_layer.size(); ++i) {
    if (g.kv_of_layer[i] < g.layers) continue;
    status = absl::InvalidArgumentError(
        absl::StrCat("geometry: kv_of_layer[", i, "] = ", g.kv_of_layer[i],
                     " names no cached layer; there are ", g.layers));
  }
  return status;
}

absl::Status CheckSelfMasked(const Geometry& g) {
  for (size_t i = 0; i < g.self_masked.size(); ++i) {
    if (g.self_masked[i] >= g.model_layers()) {
      return absl::InvalidArgumentError(
          absl::StrCat("geometry: self_masked[", i, "] = ", g.self_masked[i],
                       " names no model layer; there are ", g.model_layers()));
    }
    if (i > 0 && g.self_masked[i] <= g.self_masked[i - 1]) {
      return absl::InvalidArgumentError(absl::StrCat("geometry: self_masked[", i,
                                                     "] = ", g.self_masked[i], " comes after ",
                                                     g.self_masked[i - 1], "; they must ascend"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<uint32_t> ReadersOf(const Geometry& g, uint32_t plane) {
  const uint32_t layer = plane / g.kv_heads, head = plane % g.kv_heads;
  std::vector<uint32_t> readers;
  for (uint32_t model_layer = 0; model_layer < g.model_layers(); ++model_layer) {
    if (g.kv_of_layer[model_layer] != layer) continue;
    for (uint32_t i = 0; i < g.group_size(); ++i) {
      readers.push_back(model_layer * g.query_heads + head * g.group_size() + i);
    }
  }
  return readers;
}

absl::Status CheckGeometry(const Geometry& g, const GeometryLimits& limits) {
  const struct {
    const char* field;
    uint64_t value, min, max;
  } ranges[] = {
      {"layers", g.layers, 1, limits.layers},          {"kv_heads", g.kv_heads, 1, limits.heads},
      {"query_heads", g.query_heads, 1, limits.heads}, {"key_dim", g.key_dim, 1, limits.head_dim},
      {"value_dim", g.value_dim, 0, limits.head_dim},
  };
  for (const auto& r : ranges) {
    if (absl::Status status = CheckRange(r.field, r.value, r.min, r.max); !status.ok()) {
      return status;
    }
  }
  if (g.query_heads % g.kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("geometry: query_heads = ", g.query_heads,
                     " is not a multiple of kv_heads = ", g.kv_heads));
  }
  if (g.dtype != Dtype::kF32 && g.dtype != Dtype::kBf16 && g.dtype != Dtype::kF16) {
    return absl::InvalidArgumentError(
        absl::StrCat("geometry: dtype = ", static_cast<int>(g.dtype), " is not f32, bf16 or f16"));
  }
  if (absl::Status status = CheckLayerMap(g, limits); !status.ok()) return status;
  return CheckSelfMasked(g);
}

}  // namespace kvpool
