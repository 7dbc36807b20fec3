// The forward pass of a Llama-family model over a batch of sequences, each with one new token
// (decode) or several (prefill). Matrix products run over all rows of the batch at once; keys and
// values go to and come from each sequence's KvSession.
//
// Layers that use the keys and values of a layer above them (LCKV, arXiv 2405.10637) make a token
// wait for the ones before it. Several new tokens of a sequence pass such layers either one by one,
// which is exact, or all together several times, each pass on the keys and values of the one
// before: after k passes the first k are exact. Only the last pass's stay.
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

// How several new tokens of a sequence pass cyclic layers.
enum class PromptMode : uint8_t {
  kIterated,  // together, prompt_passes() times; one by one when there are no more tokens than that
  kSequential,  // one by one
};

// One sequence's part of a step.
struct Feed {
  KvSession* session = nullptr;     // prepared for tokens.size() tokens, not committed
  uint32_t position = 0;            // logical position of the first new token
  std::span<const int32_t> tokens;  // at least one, each below vocab
  LogitRows logits = LogitRows::kLast;
  PromptMode prompt = PromptMode::kIterated;
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
  // What a layer that uses keys and values from above finds of the feed's own tokens.
  enum class Own : uint8_t {
    kStored,  // those before the query, of this pass or the last
    kNone,    // nothing yet: the first pass
  };

  // A run of one feed's tokens that passes layers as neighbouring rows.
  struct Run {
    size_t feed;
    uint32_t first, count;  // tokens, within the feed
    Own own = Own::kStored;
    size_t row = 0;  // of the first token, among the rows that pass together
  };

  // One KV head of a feed whose session wants its attention profiled.
  struct ProfileTask {
    size_t feed;
    uint32_t head;
  };

  void Plan(std::span<const Feed> batch);
  void MakeRoom();
  void TakeRuns();
  void Layers(std::span<const Feed> batch, LayerRange layers);
  void CyclicLayers(std::span<const Feed> batch, LayerRange layers);
  void PlanPass(std::span<const Feed> batch, uint32_t pass);
  bool OneByOne(const Feed& feed) const;
  void Layer(std::span<const Feed> batch, uint32_t layer);
  void ProjectKeysAndValues(std::span<const Feed> batch, uint32_t layer);
  void StoreKeysAndValues(std::span<const Feed> batch, uint32_t layer);
  void FillQuerySlots(uint32_t layer);
  void Attend(std::span<const Feed> batch, uint32_t layer);
  void AttendRun(const Feed& feed, const Run& run, uint32_t layer);
  bool WantsProfile(const Feed& feed) const;
  void Profile(std::span<const Feed> batch, uint32_t layer);

  const LlamaConfig config_;
  const LlamaWeights weights_;
  ThreadPool* const threads_;
  const std::vector<uint16_t> cached_layer_;  // [layers]
  std::vector<float> rope_;                   // [max_positions][head_dim / 2][cos, sin]

  // Scratch of one step, kept so that a step allocates nothing once it has seen its largest batch.
  // A token is a new token of the step, in feed order; a row is a token that passes the layers now:
  // all tokens but in a pass of the cyclic layers.
  std::vector<SessionView> views_;      // [feeds]
  std::vector<size_t> first_token_;     // [feeds]
  std::vector<uint32_t> positions_;     // [tokens]
  std::vector<QuerySlot> query_slots_;  // [tokens]
  std::vector<size_t> wanted_;          // tokens with logits
  std::vector<Run> runs_;               // of the rows
  std::vector<Run> tasks_;              // the same in pieces that one thread attends
  std::vector<size_t> token_of_row_;    // [rows]
  size_t rows_ = 0;
  std::vector<ProfileTask> profiles_;
  std::vector<float> entering_;     // [tokens][hidden] before the cyclic layers
  std::vector<float> leaving_;      // [tokens][hidden] after them
  std::vector<float> residual_;     // [rows][hidden]
  std::vector<float> normed_;       // [rows][hidden]
  std::vector<float> queries_;      // [rows][query_heads][head_dim]
  std::vector<float> keys_values_;  // [rows][2][kv_heads][head_dim]
  std::vector<float> attended_;     // [rows][query_heads][head_dim]
  std::vector<float> lse_;          // [rows][query_heads], log-sum-exp of attention
  std::vector<float> gate_up_;      // [rows][2][intermediate]
  std::vector<float> logits_;       // [wanted rows][vocab]
};

}  // namespace kvpool
