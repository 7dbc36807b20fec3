// The weights of a Llama-family model in f32, row-major [out][in] as the checkpoint has them.
// Matrices that are multiplied with the same input lie one below the other, so that one product
// serves both.
//
// Values; read-only after Load, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model_config.h"

namespace kvpool {

// A layer that uses the keys and values of another has no matrices of its own for them.
struct LayerWeights {
  std::vector<float> attention_norm;  // [hidden]
  std::vector<float> query;           // [query_width][hidden]
  std::vector<float> key_value;       // [2 * kv_width][hidden]: keys, then values; or empty
  std::vector<float> attention_out;   // [hidden][query_width]
  std::vector<float> mlp_norm;        // [hidden]
  std::vector<float> gate_up;         // [2 * intermediate][hidden]: gate, then up
  std::vector<float> down;            // [hidden][intermediate]
};

struct LlamaWeights {
  std::vector<float> embedding;  // [vocab][hidden]
  std::vector<LayerWeights> layers;
  std::vector<float> norm;         // [hidden]
  std::vector<float> untied_head;  // [vocab][hidden], empty with tied embeddings

  const std::vector<float>& head() const { return untied_head.empty() ? embedding : untied_head; }

  // From a checkpoint directory. InvalidArgument names the tensor, the shape found and the shape
  // wanted.
  static absl::StatusOr<LlamaWeights> Load(const std::string& directory, const LlamaConfig& config);
};

}  // namespace kvpool
