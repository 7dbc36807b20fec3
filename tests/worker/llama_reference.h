// A Llama whose layers have keys and values of their own or use each other's, written the obvious
// way in float64: token by token as a model decodes, or a chunk in passes as LCKV encodes a prompt
// (arXiv 2405.10637, 2.2 and 2.3). The oracle of the worker's forward pass; shares no code with it.
// Test code, one thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/worker/support.h"
#include "worker/layer_types.h"

namespace kvpool {

// The tiny model with as many layers as `layer_types` has entries.
inline LlamaConfig SharingConfig(const std::string& layer_types) {
  LlamaConfig config = TinyConfig();
  config.layers =
      static_cast<uint32_t>(std::count(layer_types.begin(), layer_types.end(), '_')) + 1;
  config.layer_types = ParseLayerTypes(layer_types, config.layers).value();
  return config;
}

// Random weights whose layers each change the residual stream about as little as a trained model's
// do: rounding in f32 then stays below 1e-5 through eight layers.
inline LlamaWeights GentleWeights(const LlamaConfig& config, uint32_t seed) {
  LlamaWeights weights = RandomWeights(config, seed);
  for (LayerWeights& layer : weights.layers) {
    for (auto* matrix :
         {&layer.query, &layer.key_value, &layer.attention_out, &layer.gate_up, &layer.down}) {
      for (float& w : *matrix) w /= 2;
    }
  }
  return weights;
}

class LlamaReference {
 public:
  using Row = std::vector<double>;

  // Both outlive this.
  LlamaReference(const LlamaConfig& config, const LlamaWeights& weights)
      : c_(config), w_(weights), keys_values_(config.layers) {}

  // Appends tokens one after the other: through all layers, then the next.
  void Sequential(const std::vector<int32_t>& tokens) {
    for (const int32_t token : tokens) {
      Append({token});
      const size_t t = hidden_.size() - 1;
      for (uint32_t l = 0; l < c_.layers; ++l) {
        hidden_[t] = Layer(l, hidden_[t], t, c_.MasksSelf(l) ? t : t + 1);
      }
      Finish(t);
    }
  }

  // Appends one chunk: the cyclic layers pass by pass, each on the keys and values that the pass
  // before left; the first finds none of this chunk.
  void Iterated(const std::vector<int32_t>& tokens, uint32_t passes) {
    const size_t begin = hidden_.size();
    Append(tokens);
    const LayerRange cyclic = c_.layer_types.Cyclic();
    for (uint32_t l = 0; l < cyclic.first; ++l) Chunk(l, begin, false);
    const std::vector<Row> entering = hidden_;
    for (uint32_t pass = 0; pass < passes; ++pass) {
      hidden_ = entering;
      for (uint32_t l = cyclic.first; l < cyclic.end; ++l) Chunk(l, begin, pass == 0);
    }
    for (uint32_t l = cyclic.end; l < c_.layers; ++l) Chunk(l, begin, false);
    for (size_t t = begin; t < hidden_.size(); ++t) Finish(t);
  }

  std::vector<Row> logits;  // [token][vocab]
  // Of the last pass.
  std::vector<std::vector<Row>> queries;  // [token][layer][width]
  std::vector<std::vector<Row>> lses;     // [token][layer][query_heads]

 private:
  static Row Product(const std::vector<float>& matrix, const Row& x, size_t out) {
    Row y(out);
    for (size_t o = 0; o < out; ++o) {
      for (size_t i = 0; i < x.size(); ++i) y[o] += double{matrix[o * x.size() + i]} * x[i];
    }
    return y;
  }

  Row Norm(const Row& x, const std::vector<float>& weight) const {
    double squares = 0;
    for (const double v : x) squares += v * v;
    Row y(x);
    for (size_t i = 0; i < x.size(); ++i) {
      y[i] = x[i] / std::sqrt(squares / x.size() + c_.norm_eps) * weight[i];
    }
    return y;
  }

  void Rotate(Row& x, size_t heads, size_t position) const {
    const size_t half = c_.head_dim / 2;
    for (size_t h = 0; h < heads; ++h) {
      for (size_t i = 0; i < half; ++i) {
        const double angle = position / std::pow(c_.rope_theta, 2.0 * i / c_.head_dim);
        double &a = x[h * c_.head_dim + i], &b = x[h * c_.head_dim + half + i];
        const double rotated = a * std::cos(angle) - b * std::sin(angle);
        b = b * std::cos(angle) + a * std::sin(angle);
        a = rotated;
      }
    }
  }

  void Append(const std::vector<int32_t>& tokens) {
    for (const int32_t token : tokens) {
      const auto from = w_.embedding.begin() + token * c_.hidden;
      hidden_.emplace_back(from, from + c_.hidden);
      queries.emplace_back(c_.layers);
      lses.emplace_back(c_.layers);
      for (auto& rows : keys_values_) rows.emplace_back();
    }
  }

  void Finish(size_t t) {
    logits.push_back(Product(w_.untied_head, Norm(hidden_[t], w_.norm), c_.vocab));
  }

  // One layer for all tokens of the chunk that begins at `begin`.
  void Chunk(uint32_t l, size_t begin, bool first_pass) {
    for (size_t t = begin; t < hidden_.size(); ++t) {
      size_t seen = c_.MasksSelf(l) ? t : t + 1;
      if (first_pass && c_.layer_types.UsesKvFromAbove(l)) seen = begin;
      hidden_[t] = Layer(l, hidden_[t], t, seen);
    }
  }

  // Token t through layer l, in which it attends tokens 0 .. seen - 1; with none, to zero.
  Row Layer(uint32_t l, Row x, size_t t, size_t seen) {
    const LayerWeights& w = w_.layers[l];
    const Row normed = Norm(x, w.attention_norm);
    Row q = Product(w.query, normed, c_.query_width());
    Rotate(q, c_.query_heads, t);
    queries[t][l] = q;
    if (c_.layer_types.ComputesKv(l)) {
      Row& kv = keys_values_[l][t] = Product(w.key_value, normed, 2 * c_.kv_width());
      Rotate(kv, c_.kv_heads, t);
    }
    const Row attended = Attend(q, keys_values_[c_.layer_types.KvFrom(l)], seen, &lses[t][l]);
    Add(x, Product(w.attention_out, attended, c_.hidden));
    const Row gate_up = Product(w.gate_up, Norm(x, w.mlp_norm), 2 * c_.intermediate);
    Row inner(c_.intermediate);
    for (size_t i = 0; i < inner.size(); ++i) {
      inner[i] = gate_up[i] / (1 + std::exp(-gate_up[i])) * gate_up[c_.intermediate + i];
    }
    Add(x, Product(w.down, inner, c_.hidden));
    return x;
  }

  Row Attend(const Row& q, const std::vector<Row>& kv, size_t seen, Row* lse) const {
    const size_t dim = c_.head_dim;
    lse->clear();
    Row out(c_.query_width());
    for (size_t h = 0; h < c_.query_heads; ++h) {
      const size_t shared = h / (c_.query_heads / c_.kv_heads) * dim;
      Row p(seen);
      double sum = 0;
      for (size_t s = 0; s < seen; ++s) {
        double dot = 0;
        for (size_t d = 0; d < dim; ++d) dot += q[h * dim + d] * kv[s][shared + d];
        sum += p[s] = std::exp(dot / std::sqrt(dim));
      }
      lse->push_back(std::log(sum));
      for (size_t s = 0; s < seen; ++s) {
        for (size_t d = 0; d < dim; ++d) {
          out[h * dim + d] += p[s] / sum * kv[s][c_.kv_width() + shared + d];
        }
      }
    }
    return out;
  }

  static void Add(Row& x, const Row& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  const LlamaConfig& c_;
  const LlamaWeights& w_;
  std::vector<Row> hidden_;                    // [token][hidden]
  std::vector<std::vector<Row>> keys_values_;  // [layer][token][2 * kv_width]; those that compute
};

// That a worker told what token t asked.
inline void ExpectAsked(const Asked& asked, const LlamaConfig& config,
                        const LlamaReference& reference, size_t t, double bound) {
  const size_t width = config.query_width(), heads = config.query_heads;
  for (size_t i = 0; i < asked.queries.size(); ++i) {
    ASSERT_NEAR(asked.queries[i], reference.queries[t][i / width][i % width], bound)
        << "query of token " << t << ", layer " << i / width;
  }
  for (size_t i = 0; i < asked.lses.size(); ++i) {
    const uint32_t layer = static_cast<uint32_t>(i / heads);
    const double expected = reference.lses[t][layer][i % heads];
    if (std::isinf(expected)) {
      ASSERT_EQ(asked.lses[i], expected) << "no key is there to attend, layer " << layer;
    } else {
      ASSERT_NEAR(asked.lses[i], expected, bound)
          << "log-sum-exp of token " << t << ", layer " << layer;
    }
  }
}

}  // namespace kvpool
