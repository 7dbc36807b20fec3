// See layer_types.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/layer_types.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace kvpool {
namespace {

absl::Status Wrong(size_t layer, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("layer_types: entry ", layer, " ", what));
}

// One entry: a layer's number.
absl::StatusOr<uint16_t> ParseEntry(size_t layer, const std::string& entry, uint32_t layers) {
  uint16_t from = 0;
  const char* const end = entry.data() + entry.size();
  const auto [rest, error] = std::from_chars(entry.data(), end, from);
  if (error == std::errc() && std::string_view(rest, end - rest) == "s") {
    return Wrong(layer, absl::StrCat("is \"", entry,
                                     "\", a layer with a sliding window; those are not supported"));
  }
  if (error == std::errc::invalid_argument || rest != end) {
    return Wrong(layer, absl::StrCat("is \"", entry.substr(0, 20), "\", not a layer's number"));
  }
  if (error != std::errc() || from >= layers) {
    return Wrong(layer, absl::StrCat("names layer ", entry.substr(0, 20), "; there are ", layers));
  }
  return from;
}

}  // namespace

LayerRange LayerTypes::Cyclic() const {
  LayerRange range;
  for (uint32_t layer = 0; layer < kv_from.size(); ++layer) {
    if (!UsesKvFromAbove(layer)) continue;
    if (range.empty()) range.first = layer;
    range.end = std::max(range.end, KvFrom(layer) + 1);
  }
  return range;
}

std::vector<uint16_t> LayerTypes::CachedLayers(uint32_t layers) const {
  std::vector<uint16_t> number(layers), cached(layers);
  uint16_t computing = 0;
  for (uint32_t layer = 0; layer < layers; ++layer) {
    if (ComputesKv(layer)) number[layer] = computing++;
  }
  for (uint32_t layer = 0; layer < layers; ++layer) cached[layer] = number[KvFrom(layer)];
  return cached;
}

absl::StatusOr<LayerTypes> ParseLayerTypes(const std::string& text, uint32_t layers) {
  LayerTypes types;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('_', begin), text.size());
    if (types.kv_from.size() == layers) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer_types has more entries than the ", layers, " layers"));
    }
    const absl::StatusOr<uint16_t> from =
        ParseEntry(types.kv_from.size(), text.substr(begin, end - begin), layers);
    if (!from.ok()) return from.status();
    types.kv_from.push_back(*from);
    begin = end + 1;
  }
  if (types.kv_from.size() < layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer_types has ", types.kv_from.size(), " entries for ", layers, " layers"));
  }
  for (uint32_t layer = 0; layer < layers; ++layer) {
    const uint32_t from = types.KvFrom(layer);
    if (types.ComputesKv(from)) continue;
    return Wrong(layer,
                 absl::StrCat("names layer ", from, ", which has no keys and values: it uses ",
                              "those of layer ", types.KvFrom(from)));
  }
  return types;
}

}  // namespace kvpool
