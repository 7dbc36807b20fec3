// The forward pass of a Llama-family model over a batch of sequences, each with one new token
// (decode) or several (prefill). Matrix products run over all rows of the batch at once; keys and
// values go to and come from each sequence's KvSession.
//
// Engine's thread; attention is spread over the thread pool.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/kv_cache.h"
#include "worker/model_config.h"
#include "worker/thread_pool.h"
#include "worker/weights.h"

namespace kvpool {

// After which of a sequence's new tokens the distribution of the next one is wanted.
enum class LogitRows : uint8_t { kNone, kLast, kAll };

// One sequence's part of a step.
struct Feed {
  KvSession* session = nullptr;     // prepared for tokens.size() tokens, not committed
  uint32_t position = 0;            // logical position of the first new token
  std::span<const int32_t> tokens;  // at least one, each below vocab
  LogitRows logits = LogitRows::kLast;
};

class Llama {
 public:
  // From a checkpoint directory; the errors are those of model_config.h and weights.h.
  static absl::StatusOr<std::unique_ptr<Llama>> Load(const std::string& directory,
                                                     ThreadPool* threads);
  Llama(const LlamaConfig& config, LlamaWeights weights, ThreadPool* threads);

  const LlamaConfig& config() const { return config_; }

  // Stores the new tokens' keys and values, fills the query slots and returns the logits
  // [wanted rows in feed order][vocab], valid until the next call. Rows of one feed do not depend
  // on the others, but for rounding in the matrix products.
  // Requires position + tokens.size() <= max_positions for each feed.
  std::span<const float> Forward(std::span<const Feed> batch);

 private:
  // A run of one feed's queries that one thread attends.
  struct AttentionTask {
    size_t feed;
    uint32_t first, count;  // queries, within the feed
    size_t row;             // of the first query, within the step
  };

  // One KV head of a feed whose session wants its attention profiled.
  struct ProfileTask {
    size_t feed;
    uint32_t head;
    size_t row;  // of the feed's first query, within the step
  };

  void Plan(std::span<const Feed> batch);
  void Layer(std::span<const Feed> batch, uint32_t layer);
  void StoreKeysAndValues(std::span<const Feed> batch, uint32_t layer);
  void CopyQueries(uint32_t layer);
  void Attend(std::span<const Feed> batch, uint32_t layer);
  void Profile(std::span<const Feed> batch, uint32_t layer);

  const LlamaConfig config_;
  const LlamaWeights weights_;
  ThreadPool* const threads_;
  std::vector<float> rope_;  // [max_positions][head_dim / 2][cos, sin]

  // Scratch of one step, kept so that a step allocates nothing once it has seen its largest batch.
  size_t rows_ = 0;
  std::vector<uint32_t> positions_;  // [rows]
  std::vector<SessionView> views_;   // [feeds]
  std::vector<AttentionTask> tasks_;
  std::vector<ProfileTask> profiles_;
  std::vector<float*> query_slots_;  // [rows]
  std::vector<size_t> wanted_;       // rows with logits
  std::vector<float> residual_;      // [rows][hidden]
  std::vector<float> normed_;        // [rows][hidden]
  std::vector<float> queries_;       // [rows][query_heads][head_dim]
  std::vector<float> keys_values_;   // [rows][2][kv_heads][head_dim]
  std::vector<float> attended_;      // [rows][query_heads][head_dim]
  std::vector<float> lse_;           // [rows][query_heads], log-sum-exp of attention
  std::vector<float> gate_up_;       // [rows][2][intermediate]
  std::vector<float> logits_;        // [wanted rows][vocab]
};

}  // namespace kvpool
