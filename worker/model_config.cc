// Keys and defaults of transformers' LlamaConfig.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/model_config.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/limits.h"
#include "worker/checkpoint.h"

namespace kvpool {
namespace {

using boost::json::object;
using boost::json::value;

constexpr int64_t kMaxWidth = 1 << 18;
constexpr int64_t kMaxVocab = 1 << 22;
constexpr int64_t kMaxPasses = 1024;

std::string Show(const value& v) { return boost::json::serialize(v).substr(0, 80); }

// Reads keys of one object and remembers the first that is wrong, so that callers stay flat.
class Keys {
 public:
  explicit Keys(const object& keys) : keys_(keys) {}

  const absl::Status& status() const { return status_; }

  // A present key that is not null.
  const value* Find(const char* key) const {
    const value* found = keys_.if_contains(key);
    return found == nullptr || found->is_null() ? nullptr : found;
  }

  void Fail(const char* key, const std::string& wanted) {
    if (!status_.ok()) return;
    const value* found = Find(key);
    status_ = absl::InvalidArgumentError(absl::StrCat("config.json: ", key, " is ",
                                                      found == nullptr ? "missing" : Show(*found),
                                                      "; supported: ", wanted));
  }

  uint32_t Count(const char* key, std::optional<int64_t> fallback, int64_t max) {
    return Integer(key, fallback, 1, max);
  }

  uint32_t CountOrZero(const char* key, int64_t fallback, int64_t max) {
    return Integer(key, fallback, 0, max);
  }

  double Positive(const char* key, double fallback) {
    const value* found = Find(key);
    if (found == nullptr) return fallback;
    const double number = found->is_number() ? found->to_number<double>() : 0;
    if (number > 0 && std::isfinite(number)) return number;
    Fail(key, "a number above 0");
    return fallback;
  }

  bool Flag(const char* key) {
    const value* found = Find(key);
    if (found == nullptr) return false;
    if (!found->is_bool()) Fail(key, "true or false");
    return found->is_bool() && found->get_bool();
  }

  void WantText(const char* key, const std::vector<const char*>& wanted) {
    const value* found = Find(key);
    if (found == nullptr) return;
    const auto same = [&](const char* text) {
      return found->is_string() && found->get_string() == text;
    };
    if (std::none_of(wanted.begin(), wanted.end(), same)) Fail(key, absl::StrJoin(wanted, " or "));
  }

  void WantAbsent(const char* key) {
    if (Find(key) != nullptr) Fail(key, "null or no such key");
  }

  void WantFalse(const char* key) {
    if (Flag(key)) Fail(key, "false");
  }

  // A token id, or a list of them.
  std::vector<int32_t> TokenIds(const char* key, int32_t fallback, uint32_t vocab) {
    const value* found = Find(key);
    if (found == nullptr) return {fallback};
    std::vector<int32_t> ids;
    const auto add = [&](const value& id) {
      if (id.is_int64() && id.get_int64() >= 0 && id.get_int64() < vocab) {
        ids.push_back(static_cast<int32_t>(id.get_int64()));
      } else {
        Fail(key, absl::StrCat("token ids below ", vocab));
      }
    };
    if (const auto* list = found->if_array()) {
      for (const value& id : *list) add(id);
    } else {
      add(*found);
    }
    if (ids.empty()) Fail(key, "at least one token id");
    return ids;
  }

  LayerTypes Sharing(const char* key, uint32_t layers) {
    const value* found = Find(key);
    if (found == nullptr || !status_.ok()) return {};
    if (!found->is_string()) {
      Fail(key, "text such as \"0_4_4_4_4_5\": for each layer the one whose KV it uses");
      return {};
    }
    absl::StatusOr<LayerTypes> types = ParseLayerTypes(found->get_string().c_str(), layers);
    if (types.ok()) return *std::move(types);
    status_ = absl::InvalidArgumentError(absl::StrCat("config.json: ", types.status().message()));
    return {};
  }

 private:
  uint32_t Integer(const char* key, std::optional<int64_t> fallback, int64_t min, int64_t max) {
    const value* found = Find(key);
    if (found == nullptr && fallback) return static_cast<uint32_t>(*fallback);
    const int64_t count = found != nullptr && found->is_int64() ? found->get_int64() : min - 1;
    if (count >= min && count <= max) return static_cast<uint32_t>(count);
    Fail(key, absl::StrCat("an integer in ", min, "..", max));
    return static_cast<uint32_t>(std::max<int64_t>(min, 1));
  }

  const object& keys_;
  absl::Status status_;
};

void CheckArchitecture(Keys& keys) {
  keys.WantText("model_type", {"llama", "lckv-llama"});
  if (const value* names = keys.Find("architectures")) {
    const auto* list = names->if_array();
    if (list == nullptr || list->size() != 1 ||
        ((*list)[0] != "LlamaForCausalLM" && (*list)[0] != "LCKVLlamaForCausalLM")) {
      keys.Fail("architectures", "[\"LlamaForCausalLM\"] or [\"LCKVLlamaForCausalLM\"]");
    }
  }
  keys.WantText("hidden_act", {"silu"});
  keys.WantFalse("attention_bias");
  keys.WantFalse("mlp_bias");
  keys.WantAbsent("rope_scaling");
  // With layer_types a window counts only where an entry says so, and those are refused.
  if (keys.Find("layer_types") == nullptr) keys.WantAbsent("sliding_window");
  keys.WantAbsent("quantization_config");
}

void ReadSharing(Keys& keys, LlamaConfig& config) {
  config.layer_types = keys.Sharing("layer_types", config.layers);
  config.forward_passes = keys.CountOrZero("forward_passes", 7, kMaxPasses);
  config.backward_passes = keys.CountOrZero("backward_passes", 2, kMaxPasses);
  config.use_sequential = keys.Flag("use_sequential");
  config.force_nodiag = keys.Flag("force_nodiag");
  if (config.prompt_passes() == 0 && !config.layer_types.Cyclic().empty()) {
    keys.Fail("backward_passes", "at least 1 where forward_passes is 0");
  }
}

}  // namespace

Geometry LlamaConfig::CacheGeometry(Dtype dtype) const {
  std::vector<uint16_t> kv_of_layer = layer_types.CachedLayers(layers);
  const uint32_t cached = *std::max_element(kv_of_layer.begin(), kv_of_layer.end()) + 1u;
  std::vector<uint16_t> self_masked;
  for (uint32_t layer = 0; layer < layers; ++layer) {
    if (MasksSelf(layer)) self_masked.push_back(static_cast<uint16_t>(layer));
  }
  return {.layers = cached,
          .query_heads = query_heads,
          .kv_heads = kv_heads,
          .key_dim = head_dim,
          .value_dim = head_dim,
          .dtype = dtype,
          .kv_of_layer = std::move(kv_of_layer),
          .self_masked = std::move(self_masked)};
}

absl::StatusOr<LlamaConfig> ParseLlamaConfig(const std::string& text) {
  boost::json::error_code error;
  const value json = boost::json::parse(text, error);
  if (error) {
    return absl::InvalidArgumentError(absl::StrCat("config.json is not JSON: ", error.message()));
  }
  if (!json.is_object()) return absl::InvalidArgumentError("config.json is not a JSON object");
  Keys keys(json.get_object());
  CheckArchitecture(keys);
  LlamaConfig config;
  config.hidden = keys.Count("hidden_size", {}, kMaxWidth);
  config.intermediate = keys.Count("intermediate_size", {}, kMaxWidth);
  config.layers = keys.Count("num_hidden_layers", {}, limits::kLayers);
  config.query_heads = keys.Count("num_attention_heads", {}, limits::kHeads);
  config.kv_heads = keys.Count("num_key_value_heads", config.query_heads, limits::kHeads);
  config.head_dim = keys.Count("head_dim", config.hidden / config.query_heads, limits::kHeadDim);
  config.vocab = keys.Count("vocab_size", {}, kMaxVocab);
  config.max_positions = keys.Count("max_position_embeddings", 2048, limits::kSessionTokens);
  config.norm_eps = static_cast<float>(keys.Positive("rms_norm_eps", 1e-6));
  config.rope_theta = keys.Positive("rope_theta", 10000);
  config.tied_embeddings = keys.Flag("tie_word_embeddings");
  config.bos = keys.TokenIds("bos_token_id", 1, config.vocab).front();
  config.eos = keys.TokenIds("eos_token_id", 2, config.vocab);
  if (config.query_heads % config.kv_heads != 0) {
    keys.Fail("num_key_value_heads",
              absl::StrCat("a divisor of num_attention_heads, ", config.query_heads));
  }
  if (config.head_dim % 2 != 0 || config.head_dim == 0) keys.Fail("head_dim", "an even number");
  ReadSharing(keys, config);
  if (!keys.status().ok()) return keys.status();
  return config;
}

absl::StatusOr<LlamaConfig> ReadLlamaConfig(const std::string& directory) {
  absl::StatusOr<std::string> text = ReadTextFile(directory + "/config.json");
  if (!text.ok()) return text.status();
  absl::StatusOr<LlamaConfig> config = ParseLlamaConfig(*text);
  if (!config.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(directory, "/", config.status().message()));
  }
  return config;
}

}  // namespace kvpool
