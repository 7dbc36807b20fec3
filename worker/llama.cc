// Llama (arXiv 2302.13971): pre-norm RMSNorm, rotary embedding in the Hugging Face layout (a head's
// first half rotates against its second half), grouped queries, SwiGLU.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/llama.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels/attention.h"
#include "worker/math.h"

namespace kvpool {
namespace {

constexpr uint32_t kTaskQueries = 16;

std::vector<float> RopeTable(const LlamaConfig& config) {
  const uint32_t half = config.head_dim / 2;
  std::vector<float> table(uint64_t{config.max_positions} * half * 2);
  float* out = table.data();
  for (uint32_t position = 0; position < config.max_positions; ++position) {
    for (uint32_t i = 0; i < half; ++i) {
      const double angle = position * std::pow(config.rope_theta, -static_cast<double>(i) / half);
      *out++ = static_cast<float>(std::cos(angle));
      *out++ = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

// Rotates `heads` heads of one token in place.
void Rotate(const float* cos_sin, uint32_t heads, uint32_t head_dim, float* x) {
  const uint32_t half = head_dim / 2;
  for (uint32_t h = 0; h < heads; ++h, x += head_dim) {
    for (uint32_t i = 0; i < half; ++i) {
      const float c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
      const float a = x[i], b = x[i + half];
      x[i] = a * c - b * s;
      x[i + half] = b * c + a * s;
    }
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Llama>> Llama::Load(const std::string& directory,
                                                   ThreadPool* threads) {
  absl::StatusOr<LlamaConfig> config = ReadLlamaConfig(directory);
  if (!config.ok()) return config.status();
  absl::StatusOr<LlamaWeights> weights = LlamaWeights::Load(directory, *config);
  if (!weights.ok()) return weights.status();
  return std::make_unique<Llama>(*config, *std::move(weights), threads);
}

Llama::Llama(const LlamaConfig& config, LlamaWeights weights, ThreadPool* threads)
    : config_(config), weights_(std::move(weights)), threads_(threads), rope_(RopeTable(config)) {}

std::span<const float> Llama::Forward(std::span<const Feed> batch) {
  Plan(batch);
  float* row = residual_.data();
  for (const Feed& feed : batch) {
    for (const int32_t token : feed.tokens) {
      std::memcpy(row, &weights_.embedding[uint64_t(token) * config_.hidden], config_.hidden * 4);
      row += config_.hidden;
    }
  }
  for (uint32_t layer = 0; layer < config_.layers; ++layer) Layer(batch, layer);

  for (size_t i = 0; i < wanted_.size(); ++i) {
    RmsNorm(&residual_[wanted_[i] * config_.hidden], weights_.norm.data(), 1, config_.hidden,
            config_.norm_eps, &normed_[i * config_.hidden]);
  }
  MatMul({.rows = wanted_.size(), .in = config_.hidden, .out = config_.vocab}, normed_.data(),
         weights_.head().data(), logits_.data());
  return {logits_.data(), wanted_.size() * config_.vocab};
}

// Lays out the step's rows and makes room for them.
void Llama::Plan(std::span<const Feed> batch) {
  positions_.clear();
  views_.clear();
  tasks_.clear();
  profiles_.clear();
  query_slots_.clear();
  wanted_.clear();
  for (size_t f = 0; f < batch.size(); ++f) {
    const Feed& feed = batch[f];
    const uint32_t count = static_cast<uint32_t>(feed.tokens.size());
    const size_t first_row = positions_.size();
    views_.push_back(feed.session->View());
    for (uint32_t i = 0; i < count; i += kTaskQueries) {
      tasks_.push_back({f, i, std::min(kTaskQueries, count - i), first_row + i});
    }
    for (uint32_t head = 0; feed.session->WantsProfile() && head < config_.kv_heads; ++head) {
      profiles_.push_back({f, head, first_row});
    }
    for (uint32_t i = 0; i < count; ++i) {
      const bool wanted =
          feed.logits == LogitRows::kAll || (feed.logits == LogitRows::kLast && i + 1 == count);
      if (wanted) wanted_.push_back(positions_.size());
      positions_.push_back(feed.position + i);
      query_slots_.push_back(feed.session->QuerySlot(i));
    }
  }
  rows_ = positions_.size();
  const auto fit = [](std::vector<float>& buffer, size_t size) {
    if (buffer.size() < size) buffer.resize(size);
  };
  fit(residual_, rows_ * config_.hidden);
  fit(normed_, rows_ * config_.hidden);
  fit(queries_, rows_ * config_.query_width());
  fit(keys_values_, rows_ * 2 * config_.kv_width());
  fit(attended_, rows_ * config_.query_width());
  fit(lse_, rows_ * config_.query_heads);
  fit(gate_up_, rows_ * 2 * config_.intermediate);
  fit(logits_, wanted_.size() * config_.vocab);
}

void Llama::Layer(std::span<const Feed> batch, uint32_t layer) {
  const LayerWeights& w = weights_.layers[layer];
  const size_t hidden = config_.hidden, width = config_.query_width();
  RmsNorm(residual_.data(), w.attention_norm.data(), rows_, hidden, config_.norm_eps,
          normed_.data());
  MatMul({.rows = rows_, .in = hidden, .out = width}, normed_.data(), w.query.data(),
         queries_.data());
  MatMul({.rows = rows_, .in = hidden, .out = size_t{2} * config_.kv_width()}, normed_.data(),
         w.key_value.data(), keys_values_.data());
  for (size_t row = 0; row < rows_; ++row) {
    const float* cos_sin = &rope_[uint64_t{positions_[row]} * config_.head_dim];
    Rotate(cos_sin, config_.query_heads, config_.head_dim, &queries_[row * width]);
    Rotate(cos_sin, config_.kv_heads, config_.head_dim,
           &keys_values_[row * 2 * config_.kv_width()]);
  }
  StoreKeysAndValues(batch, layer);
  CopyQueries(layer);
  Attend(batch, layer);
  Profile(batch, layer);
  MatMul({.rows = rows_, .in = width, .out = hidden, .accumulate = Accumulate::kAdd},
         attended_.data(), w.attention_out.data(), residual_.data());

  RmsNorm(residual_.data(), w.mlp_norm.data(), rows_, hidden, config_.norm_eps, normed_.data());
  MatMul({.rows = rows_, .in = hidden, .out = size_t{2} * config_.intermediate}, normed_.data(),
         w.gate_up.data(), gate_up_.data());
  SwiGlu(rows_, config_.intermediate, gate_up_.data());
  MatMul({.rows = rows_,
          .in = config_.intermediate,
          .out = hidden,
          .in_stride = size_t{2} * config_.intermediate,
          .accumulate = Accumulate::kAdd},
         gate_up_.data(), w.down.data(), residual_.data());
}

void Llama::StoreKeysAndValues(std::span<const Feed> batch, uint32_t layer) {
  const uint32_t dim = config_.head_dim;
  const float* row = keys_values_.data();
  for (size_t f = 0; f < batch.size(); ++f) {
    const Layout& layout = batch[f].session->layout();
    std::byte* const base = batch[f].session->base();
    const uint32_t count = static_cast<uint32_t>(batch[f].tokens.size());
    for (uint32_t i = 0; i < count; ++i, row += 2 * config_.kv_width()) {
      const uint32_t fresh = views_[f].fresh_tokens - count + i;
      const PageId page = views_[f].fresh_pages[fresh / kPageTokens];
      for (uint32_t h = 0; h < config_.kv_heads; ++h) {
        StoreRow(layout, base, layout.Block(page, layer, h), fresh % kPageTokens, row + h * dim,
                 row + config_.kv_width() + h * dim);
      }
    }
  }
}

void Llama::CopyQueries(uint32_t layer) {
  const size_t width = config_.query_width();
  for (size_t row = 0; row < rows_; ++row) {
    if (query_slots_[row] == nullptr) continue;
    std::memcpy(query_slots_[row] + layer * width, &queries_[row * width], width * 4);
  }
}

void Llama::Attend(std::span<const Feed> batch, uint32_t layer) {
  const size_t width = config_.query_width();
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  threads_->ParallelFor(tasks_.size(), [&](size_t t) {
    const AttentionTask& task = tasks_[t];
    const Feed& feed = batch[task.feed];
    SessionView view = views_[task.feed];
    // The task's last query is the newest token it may see.
    view.fresh_tokens -= static_cast<uint32_t>(feed.tokens.size()) - task.first - task.count;
    Attention({.layout = &feed.session->layout(),
               .base = feed.session->base(),
               .layer = layer,
               .session = view,
               .queries = &queries_[task.row * width],
               .query_count = task.count,
               .scale = scale,
               .out = &attended_[task.row * width],
               .lse = &lse_[task.row * config_.query_heads]});
  });
}

void Llama::Profile(std::span<const Feed> batch, uint32_t layer) {
  threads_->ParallelFor(profiles_.size(), [&](size_t t) {
    const ProfileTask& task = profiles_[t];
    const Feed& feed = batch[task.feed];
    feed.session->Profile({.model_layer = layer,
                           .head = task.head,
                           .queries = &queries_[task.row * config_.query_width()],
                           .lse = &lse_[task.row * config_.query_heads],
                           .query_count = static_cast<uint32_t>(feed.tokens.size())});
  });
}

}  // namespace kvpool
