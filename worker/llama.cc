// Llama (arXiv 2302.13971): pre-norm RMSNorm, rotary embedding in the Hugging Face layout (a head's
// first half rotates against its second half), grouped queries, SwiGLU. Cyclic layers as in LCKV
// (arXiv 2405.10637, sections 2.2 and 2.3).
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
    : config_(config),
      weights_(std::move(weights)),
      threads_(threads),
      cached_layer_(config.layer_types.CachedLayers(config.layers)),
      rope_(RopeTable(config)) {}

std::span<const float> Llama::Forward(std::span<const Feed> batch) {
  Plan(batch);
  float* row = residual_.data();
  for (const Feed& feed : batch) {
    for (const int32_t token : feed.tokens) {
      std::memcpy(row, &weights_.embedding[uint64_t(token) * config_.hidden], config_.hidden * 4);
      row += config_.hidden;
    }
  }
  const LayerRange cyclic = config_.layer_types.Cyclic();
  Layers(batch, {0, cyclic.first});
  if (!cyclic.empty()) CyclicLayers(batch, cyclic);
  Layers(batch, {cyclic.end, config_.layers});

  for (size_t i = 0; i < wanted_.size(); ++i) {
    RmsNorm(&residual_[wanted_[i] * config_.hidden], weights_.norm.data(), 1, config_.hidden,
            config_.norm_eps, &normed_[i * config_.hidden]);
  }
  MatMul({.rows = wanted_.size(), .in = config_.hidden, .out = config_.vocab}, normed_.data(),
         weights_.head().data(), logits_.data());
  return {logits_.data(), wanted_.size() * config_.vocab};
}

// Lays out the step's tokens, all of them as rows, and makes room for them.
void Llama::Plan(std::span<const Feed> batch) {
  views_.clear();
  first_token_.clear();
  positions_.clear();
  profiles_.clear();
  query_slots_.clear();
  wanted_.clear();
  runs_.clear();
  for (size_t f = 0; f < batch.size(); ++f) {
    const Feed& feed = batch[f];
    const uint32_t count = static_cast<uint32_t>(feed.tokens.size());
    views_.push_back(feed.session->View());
    first_token_.push_back(positions_.size());
    runs_.push_back({.feed = f, .first = 0, .count = count});
    for (uint32_t head = 0; WantsProfile(feed) && head < config_.kv_heads; ++head) {
      profiles_.push_back({f, head});
    }
    for (uint32_t i = 0; i < count; ++i) {
      const bool wanted =
          feed.logits == LogitRows::kAll || (feed.logits == LogitRows::kLast && i + 1 == count);
      if (wanted) wanted_.push_back(positions_.size());
      positions_.push_back(feed.position + i);
      query_slots_.push_back(feed.session->SlotOf(i));
    }
  }
  TakeRuns();
  MakeRoom();
}

void Llama::MakeRoom() {
  const auto fit = [](std::vector<float>& buffer, size_t size) {
    if (buffer.size() < size) buffer.resize(size);
  };
  const size_t tokens = positions_.size();
  fit(residual_, tokens * config_.hidden);
  fit(normed_, tokens * config_.hidden);
  fit(queries_, tokens * config_.query_width());
  fit(keys_values_, tokens * 2 * config_.kv_width());
  fit(attended_, tokens * config_.query_width());
  fit(lse_, tokens * config_.query_heads);
  fit(gate_up_, tokens * 2 * config_.intermediate);
  fit(logits_, wanted_.size() * config_.vocab);
  if (config_.layer_types.Cyclic().empty()) return;
  fit(entering_, tokens * config_.hidden);
  fit(leaving_, tokens * config_.hidden);
}

// Gives the runs their rows and cuts them into tasks.
void Llama::TakeRuns() {
  tasks_.clear();
  token_of_row_.clear();
  for (Run& run : runs_) {
    run.row = token_of_row_.size();
    for (uint32_t i = 0; i < run.count; i += kTaskQueries) {
      tasks_.push_back({.feed = run.feed,
                        .first = run.first + i,
                        .count = std::min(kTaskQueries, run.count - i),
                        .own = run.own,
                        .row = run.row + i});
    }
    for (uint32_t i = 0; i < run.count; ++i) {
      token_of_row_.push_back(first_token_[run.feed] + run.first + i);
    }
  }
  rows_ = token_of_row_.size();
}

void Llama::Layers(std::span<const Feed> batch, LayerRange layers) {
  for (uint32_t layer = layers.first; layer < layers.end; ++layer) Layer(batch, layer);
}

// Takes all tokens, which are the rows before and after, through layers of which some use the keys
// and values of layers above them.
void Llama::CyclicLayers(std::span<const Feed> batch, LayerRange layers) {
  const size_t hidden = config_.hidden;
  const size_t all = positions_.size() * hidden;
  std::copy_n(residual_.begin(), all, entering_.begin());
  for (uint32_t pass = 0; PlanPass(batch, pass), !runs_.empty(); ++pass) {
    for (size_t row = 0; row < rows_; ++row) {
      std::copy_n(&entering_[token_of_row_[row] * hidden], hidden, &residual_[row * hidden]);
    }
    Layers(batch, layers);
    for (size_t row = 0; row < rows_; ++row) {
      std::copy_n(&residual_[row * hidden], hidden, &leaving_[token_of_row_[row] * hidden]);
    }
  }
  std::copy_n(leaving_.begin(), all, residual_.begin());
  for (size_t f = 0; f < batch.size(); ++f) {
    runs_.push_back(
        {.feed = f, .first = 0, .count = static_cast<uint32_t>(batch[f].tokens.size())});
  }
  TakeRuns();
}

// Pass by pass: the next token of a feed that goes one by one, all tokens of one that iterates.
void Llama::PlanPass(std::span<const Feed> batch, uint32_t pass) {
  runs_.clear();
  for (size_t f = 0; f < batch.size(); ++f) {
    const uint32_t count = static_cast<uint32_t>(batch[f].tokens.size());
    if (OneByOne(batch[f])) {
      if (pass < count) runs_.push_back({.feed = f, .first = pass, .count = 1});
    } else if (pass < config_.prompt_passes()) {
      runs_.push_back(
          {.feed = f, .first = 0, .count = count, .own = pass == 0 ? Own::kNone : Own::kStored});
    }
  }
  TakeRuns();
}

bool Llama::OneByOne(const Feed& feed) const {
  return config_.use_sequential || feed.prompt == PromptMode::kSequential ||
         feed.tokens.size() <= config_.prompt_passes();
}

void Llama::Layer(std::span<const Feed> batch, uint32_t layer) {
  const LayerWeights& w = weights_.layers[layer];
  const size_t hidden = config_.hidden, width = config_.query_width();
  RmsNorm(residual_.data(), w.attention_norm.data(), rows_, hidden, config_.norm_eps,
          normed_.data());
  MatMul({.rows = rows_, .in = hidden, .out = width}, normed_.data(), w.query.data(),
         queries_.data());
  for (size_t row = 0; row < rows_; ++row) {
    Rotate(&rope_[uint64_t{positions_[token_of_row_[row]]} * config_.head_dim], config_.query_heads,
           config_.head_dim, &queries_[row * width]);
  }
  if (config_.layer_types.ComputesKv(layer)) ProjectKeysAndValues(batch, layer);
  Attend(batch, layer);
  FillQuerySlots(layer);
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

void Llama::ProjectKeysAndValues(std::span<const Feed> batch, uint32_t layer) {
  const size_t width = size_t{2} * config_.kv_width();
  MatMul({.rows = rows_, .in = config_.hidden, .out = width}, normed_.data(),
         weights_.layers[layer].key_value.data(), keys_values_.data());
  for (size_t row = 0; row < rows_; ++row) {
    Rotate(&rope_[uint64_t{positions_[token_of_row_[row]]} * config_.head_dim], config_.kv_heads,
           config_.head_dim, &keys_values_[row * width]);
  }
  StoreKeysAndValues(batch, layer);
}

// Every pass stores into the same prepared places, so iterating takes no memory.
void Llama::StoreKeysAndValues(std::span<const Feed> batch, uint32_t layer) {
  const uint32_t dim = config_.head_dim;
  const float* row = keys_values_.data();
  for (const Run& run : runs_) {
    const Feed& feed = batch[run.feed];
    const SessionView& view = views_[run.feed];
    const Layout& layout = feed.session->layout();
    std::byte* const base = feed.session->base();
    const uint32_t before = view.fresh_tokens - static_cast<uint32_t>(feed.tokens.size());
    for (uint32_t i = 0; i < run.count; ++i, row += 2 * config_.kv_width()) {
      const uint32_t fresh = before + run.first + i;
      const PageId page = view.fresh_pages[fresh / kPageTokens];
      for (uint32_t h = 0; h < config_.kv_heads; ++h) {
        StoreRow(layout, base, layout.Block(page, cached_layer_[layer], h), fresh % kPageTokens,
                 row + h * dim, row + config_.kv_width() + h * dim);
      }
    }
  }
}

void Llama::FillQuerySlots(uint32_t layer) {
  const size_t width = config_.query_width(), heads = config_.query_heads;
  for (size_t row = 0; row < rows_; ++row) {
    const QuerySlot& slot = query_slots_[token_of_row_[row]];
    if (slot.queries == nullptr) continue;
    std::copy_n(&queries_[row * width], width, slot.queries + layer * width);
    std::copy_n(&lse_[row * heads], heads, slot.lses + layer * heads);
  }
}

void Llama::Attend(std::span<const Feed> batch, uint32_t layer) {
  threads_->ParallelFor(tasks_.size(),
                        [&](size_t t) { AttendRun(batch[tasks_[t].feed], tasks_[t], layer); });
}

void Llama::AttendRun(const Feed& feed, const Run& run, uint32_t layer) {
  const size_t width = config_.query_width();
  const uint32_t before = views_[run.feed].fresh_tokens - static_cast<uint32_t>(feed.tokens.size());
  AttentionArgs args{.layout = &feed.session->layout(),
                     .base = feed.session->base(),
                     .layer = cached_layer_[layer],
                     .session = views_[run.feed],
                     .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim))};
  // Queries first .. first + count - 1 of the run; the last one sees so many fresh tokens.
  const auto attend = [&](uint32_t first, uint32_t count, uint32_t fresh_tokens) {
    args.session.fresh_tokens = fresh_tokens;
    args.queries = &queries_[(run.row + first) * width];
    args.query_count = count;
    args.out = &attended_[(run.row + first) * width];
    args.lse = &lse_[(run.row + first) * config_.query_heads];
    Attention(args);
  };
  if (run.own == Own::kNone && config_.layer_types.UsesKvFromAbove(layer)) {
    for (uint32_t i = 0; i < run.count; ++i) attend(i, 1, before);
    return;
  }
  const uint32_t through = before + run.first + run.count;  // its last token included
  if (!config_.MasksSelf(layer)) return attend(0, run.count, through);
  // The first query of all sees no fresh token, which a chunk of several cannot say.
  const uint32_t alone = through == run.count ? 1 : 0;
  if (alone > 0) attend(0, 1, 0);
  if (run.count > alone) attend(alone, run.count - alone, through - 1);
}

// A prompt that iterates has no one pass of which a session could say what was attended.
bool Llama::WantsProfile(const Feed& feed) const {
  return feed.session->WantsProfile() && config_.layer_types.Cyclic().empty();
}

void Llama::Profile(std::span<const Feed> batch, uint32_t layer) {
  threads_->ParallelFor(profiles_.size(), [&](size_t t) {
    const ProfileTask& task = profiles_[t];
    const Feed& feed = batch[task.feed];
    const size_t row = first_token_[task.feed];
    feed.session->Profile({.model_layer = layer,
                           .head = task.head,
                           .queries = &queries_[row * config_.query_width()],
                           .lse = &lse_[row * config_.query_heads],
                           .query_count = static_cast<uint32_t>(feed.tokens.size())});
  });
}

}  // namespace kvpool
