// Tensor names of transformers' LlamaForCausalLM.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/weights.h"

#include <cstdint>
#include <functional>
#include <numeric>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "worker/checkpoint.h"

namespace kvpool {
namespace {

// Loads tensors and remembers the first error, so that the list of tensors reads as a list.
class Loader {
 public:
  explicit Loader(const Checkpoint* checkpoint) : checkpoint_(checkpoint) {}

  const absl::Status& status() const { return status_; }

  // Tensors of one shape, one below the other; empty after an error. Nothing is allocated before
  // all of them are found, so that a wild config.json cannot ask for wild memory.
  std::vector<float> Load(const std::vector<std::string>& names,
                          const std::vector<uint64_t>& shape) {
    std::vector<const TensorView*> tensors;
    for (const std::string& name : names) {
      if (!status_.ok()) return {};
      const absl::StatusOr<const TensorView*> tensor = checkpoint_->Find(name, shape);
      status_ = tensor.status();
      if (tensor.ok()) tensors.push_back(*tensor);
    }
    if (!status_.ok()) return {};
    const uint64_t size =
        std::accumulate(shape.begin(), shape.end(), uint64_t{1}, std::multiplies<>());
    std::vector<float> out(tensors.size() * size);
    for (size_t i = 0; i < tensors.size(); ++i) {
      ConvertToF32(*tensors[i], std::span(out).subspan(i * size, size));
    }
    return out;
  }

  void WantAbsent(const std::vector<std::string>& names, const std::string& why) {
    for (const std::string& name : names) {
      if (status_.ok()) status_ = checkpoint_->WantAbsent(name, why);
    }
  }

 private:
  const Checkpoint* checkpoint_;
  absl::Status status_;
};

// The matrices of keys and values: there exactly when the layer computes them.
std::vector<float> LoadKeyValue(Loader& loader, const LlamaConfig& config, uint32_t layer,
                                const std::string& attention) {
  const std::vector<std::string> names = {attention + "k_proj.weight", attention + "v_proj.weight"};
  if (config.layer_types.ComputesKv(layer)) {
    return loader.Load(names, {config.kv_width(), config.hidden});
  }
  loader.WantAbsent(
      names, absl::StrCat("by layer_types of config.json layer ", layer,
                          " uses the keys and values of layer ", config.layer_types.KvFrom(layer)));
  return {};
}

LayerWeights LoadLayer(Loader& loader, const LlamaConfig& config, uint32_t layer) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
  const uint64_t hidden = config.hidden, intermediate = config.intermediate;
  return {
      .attention_norm = loader.Load({prefix + "input_layernorm.weight"}, {hidden}),
      .query = loader.Load({attention + "q_proj.weight"}, {config.query_width(), hidden}),
      .key_value = LoadKeyValue(loader, config, layer, attention),
      .attention_out = loader.Load({attention + "o_proj.weight"}, {hidden, config.query_width()}),
      .mlp_norm = loader.Load({prefix + "post_attention_layernorm.weight"}, {hidden}),
      .gate_up =
          loader.Load({mlp + "gate_proj.weight", mlp + "up_proj.weight"}, {intermediate, hidden}),
      .down = loader.Load({mlp + "down_proj.weight"}, {hidden, intermediate}),
  };
}

}  // namespace

absl::StatusOr<LlamaWeights> LlamaWeights::Load(const std::string& directory,
                                                const LlamaConfig& config) {
  absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(directory);
  if (!checkpoint.ok()) return checkpoint.status();
  Loader loader(&*checkpoint);
  LlamaWeights weights;
  weights.embedding = loader.Load({"model.embed_tokens.weight"}, {config.vocab, config.hidden});
  for (uint32_t layer = 0; layer < config.layers && loader.status().ok(); ++layer) {
    weights.layers.push_back(LoadLayer(loader, config, layer));
  }
  weights.norm = loader.Load({"model.norm.weight"}, {config.hidden});
  if (!config.tied_embeddings) {
    weights.untied_head = loader.Load({"lm_head.weight"}, {config.vocab, config.hidden});
  }
  if (!loader.status().ok()) return loader.status();
  return weights;
}

}  // namespace kvpool
