// Writes a model that a test has made as a checkpoint in the Hugging Face layout, in f32. Test
// code.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "worker/model_config.h"
#include "worker/weights.h"

namespace kvpool {

struct FileTensor {
  std::vector<uint64_t> shape;
  std::vector<float> values;
};
using FileTensors = std::map<std::string, FileTensor>;

// The tensors of an untied model under the names of transformers.
inline FileTensors TensorsOf(const LlamaConfig& c, const LlamaWeights& w) {
  const auto half = [](const std::vector<float>& both, size_t index) {
    const auto middle = both.begin() + static_cast<ptrdiff_t>(both.size() / 2);
    return index == 0 ? std::vector<float>(both.begin(), middle)
                      : std::vector<float>(middle, both.end());
  };
  FileTensors tensors = {{"model.embed_tokens.weight", {{c.vocab, c.hidden}, w.embedding}},
                         {"model.norm.weight", {{c.hidden}, w.norm}},
                         {"lm_head.weight", {{c.vocab, c.hidden}, w.untied_head}}};
  for (uint32_t i = 0; i < c.layers; ++i) {
    const LayerWeights& layer = w.layers[i];
    const std::string name = "model.layers." + std::to_string(i) + ".";
    const std::string attention = name + "self_attn.", mlp = name + "mlp.";
    tensors[name + "input_layernorm.weight"] = {{c.hidden}, layer.attention_norm};
    tensors[name + "post_attention_layernorm.weight"] = {{c.hidden}, layer.mlp_norm};
    tensors[attention + "q_proj.weight"] = {{c.query_width(), c.hidden}, layer.query};
    tensors[attention + "o_proj.weight"] = {{c.hidden, c.query_width()}, layer.attention_out};
    tensors[mlp + "gate_proj.weight"] = {{c.intermediate, c.hidden}, half(layer.gate_up, 0)};
    tensors[mlp + "up_proj.weight"] = {{c.intermediate, c.hidden}, half(layer.gate_up, 1)};
    tensors[mlp + "down_proj.weight"] = {{c.hidden, c.intermediate}, layer.down};
    if (!c.layer_types.ComputesKv(i)) continue;
    tensors[attention + "k_proj.weight"] = {{c.kv_width(), c.hidden}, half(layer.key_value, 0)};
    tensors[attention + "v_proj.weight"] = {{c.kv_width(), c.hidden}, half(layer.key_value, 1)};
  }
  return tensors;
}

inline boost::json::object ConfigOf(const LlamaConfig& c) {
  boost::json::object config = {{"architectures", {"LCKVLlamaForCausalLM"}},
                                {"model_type", "lckv-llama"},
                                {"hidden_size", c.hidden},
                                {"intermediate_size", c.intermediate},
                                {"num_hidden_layers", c.layers},
                                {"num_attention_heads", c.query_heads},
                                {"num_key_value_heads", c.kv_heads},
                                {"head_dim", c.head_dim},
                                {"vocab_size", c.vocab},
                                {"max_position_embeddings", c.max_positions},
                                {"rms_norm_eps", c.norm_eps},
                                {"rope_theta", c.rope_theta},
                                {"sliding_window", 4096},
                                {"forward_passes", c.forward_passes},
                                {"backward_passes", c.backward_passes}};
  std::string types;
  for (uint32_t i = 0; i < c.layers; ++i) {
    types += (i == 0 ? "" : "_") + std::to_string(c.layer_types.KvFrom(i));
  }
  config["layer_types"] = types;
  return config;
}

inline void WriteCheckpoint(const std::string& folder, const boost::json::object& config,
                            const FileTensors& tensors) {
  std::ofstream(folder + "/config.json") << boost::json::serialize(config);
  boost::json::object header;
  uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    const uint64_t end = offset + tensor.values.size() * sizeof(float);
    header[name] = {{"dtype", "F32"},
                    {"shape", boost::json::value_from(tensor.shape)},
                    {"data_offsets", {offset, end}}};
    offset = end;
  }
  const std::string text = boost::json::serialize(header);
  const uint64_t size = text.size();
  std::ofstream file(folder + "/model.safetensors", std::ios::binary);
  file.write(reinterpret_cast<const char*>(&size), 8);
  file << text;
  for (const auto& [name, tensor] : tensors) {
    file.write(reinterpret_cast<const char*>(tensor.values.data()),
               static_cast<std::streamsize>(tensor.values.size() * sizeof(float)));
  }
}

}  // namespace kvpool
