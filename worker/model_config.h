// What config.json says about a Llama-family model, checked: settings this worker does not
// implement are refused by name, so that a model is never run wrongly.
//
// Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/geometry.h"
#include "worker/layer_types.h"

namespace kvpool {

struct LlamaConfig {
  uint32_t hidden = 0;        // width of the residual stream
  uint32_t intermediate = 0;  // width of the MLP
  uint32_t layers = 0;
  uint32_t query_heads = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;  // even
  uint32_t vocab = 0;
  uint32_t max_positions = 0;  // longest context
  float norm_eps = 0;
  double rope_theta = 0;
  bool tied_embeddings = false;  // the output matrix is the embedding
  int32_t bos = 1;
  std::vector<int32_t> eos;
  // LCKV and its kin, in the words and with the defaults of LCKV's own code.
  LayerTypes layer_types;
  uint32_t forward_passes = 7;   // m: iterations of a prompt are m + b, as in training
  uint32_t backward_passes = 2;  // b
  bool use_sequential = false;   // never iterate: token by token through the cyclic layers
  bool force_nodiag = false;     // no layer sees its own token's key

  uint32_t prompt_passes() const { return forward_passes + backward_passes; }
  // Whether a token does not attend its own position in this layer.
  bool MasksSelf(uint32_t layer) const {
    return force_nodiag || layer_types.UsesKvFromAbove(layer);
  }
  uint32_t query_width() const { return query_heads * head_dim; }
  uint32_t kv_width() const { return kv_heads * head_dim; }
  // Shape of the cache: the layers that compute keys and values, and who uses which.
  Geometry CacheGeometry(Dtype dtype) const;
};

// From the text of a config.json. InvalidArgument names the key, what it holds and what is
// supported.
absl::StatusOr<LlamaConfig> ParseLlamaConfig(const std::string& text);

// From a checkpoint directory.
absl::StatusOr<LlamaConfig> ReadLlamaConfig(const std::string& directory);

}  // namespace kvpool
