// The profile of a prompt: which keys each head lives on (FastGen, arXiv 2310.01801, section 3 and
// Algorithm 1). Attention mass is summed up chunk by chunk straight after attention; at the end of
// the prompt each KV head gets the cheapest class that keeps enough of it.
//
// Two sums per key and query head in one pass over the prompt are enough, though what is frequent
// is known only at its end: `mass`, over all rows, and `far`, over the rows from which the key is
// not local. Special and punctuation are sets of keys, and frequent becomes one at the end: with S,
// P, F those sets, what a class keeps of the total is
//   special       sum of mass over S
//   punctuation   sum of mass over S u P
//   frequent      sum of mass over S u P u F
//   local         total - sum of far over the keys outside S u P u F
// because a row loses, under the last one, just the keys that are outside those sets and far.
//
// The sums belong to one session. Add() may run on several threads for different (layer, head).
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/geometry.h"
#include "kernels/layout.h"
#include "kernels/session_view.h"

namespace kvpool {

// What stays of a head, cheapest first; each keeps what the one before keeps and more.
enum class HeadClass : uint8_t {
  kSpecial = 0,
  kPunctuation = 1,
  kFrequent = 2,
  kLocal = 3,
  kFull = 4,
};

// A share (0..1) of `length` keys, rounded down.
uint32_t ShareOf(double share, uint32_t length);
// Keys that are local to a query in a sequence of `length` tokens: those at a distance below
// ShareOf(share, length), itself always. The paper's threshold is a share of the input's length,
// the same for all rows of the prompt: the window that decoding starts with, and which grows from
// there.
uint32_t LocalKeys(double share, uint32_t length);

// The sums of one prompt of up to `tokens` tokens. A reader of (layer, head) is a query head that
// reads it: the group's heads, of each model layer that shares the cached layer, in that order.
class PromptSums {
 public:
  PromptSums() = default;
  PromptSums(const Geometry& geometry, uint32_t tokens);

  uint32_t tokens() const { return tokens_; }
  uint32_t planes() const { return static_cast<uint32_t>(sums_.size()); }
  uint32_t readers(uint32_t plane) const {
    return static_cast<uint32_t>(sums_[plane].size() / 2 / tokens_);
  }
  // [tokens], by position: sums over rows of the attention matrix.
  std::span<float> mass(uint32_t plane, uint32_t reader) { return Sum(plane, 2 * reader); }
  std::span<const float> mass(uint32_t plane, uint32_t reader) const {
    return Sum(plane, 2 * reader);
  }
  std::span<float> far(uint32_t plane, uint32_t reader) { return Sum(plane, 2 * reader + 1); }
  std::span<const float> far(uint32_t plane, uint32_t reader) const {
    return Sum(plane, 2 * reader + 1);
  }
  // Mass of each key over all readers: what "frequent" ranks by.
  std::vector<float> Frequency(uint32_t plane) const;

 private:
  std::span<float> Sum(uint32_t plane, uint32_t i) {
    return std::span(sums_[plane]).subspan(size_t{i} * tokens_, tokens_);
  }
  std::span<const float> Sum(uint32_t plane, uint32_t i) const {
    return std::span(sums_[plane]).subspan(size_t{i} * tokens_, tokens_);
  }

  uint32_t tokens_ = 0;
  std::vector<std::vector<float>> sums_;  // [planes][readers][mass, far][tokens]
};

// What attention of one model layer has just read and given: a chunk of a prompt, of which one KV
// head is to be profiled.
struct AttendedChunk {
  uint32_t model_layer = 0;
  uint32_t head = 0;               // KV head
  const float* queries = nullptr;  // [query_count][query_heads][key_dim], post-RoPE
  const float* lse = nullptr;      // [query_count][query_heads], as Attention() gives it
  uint32_t query_count = 0;        // the newest tokens
};

struct ProfileArgs {
  const Layout* layout = nullptr;
  const std::byte* base = nullptr;
  // Every token of the prompt so far, the chunk's own last and fresh; with positions if some are
  // compacted.
  SessionView session;
  AttendedChunk chunk;
  float scale = 1.0f;
  uint32_t local_keys = 1;    // keys that are local to a query: LocalKeys() of the whole prompt
  uint32_t sample_every = 1;  // rows at positions that are no multiple of it are left out
};

// Adds a chunk's queries to the sums of one KV head. A NaN probability adds nothing.
// Requires session.Length() <= sums->tokens().
void AddToProfile(const ProfileArgs& args, PromptSums* sums);

// What a profile must reach.
struct ProfileRule {
  double recovery = 0.95;  // T: share of the mass that must stay
  double local = 0.3;      // r_l: share of the length that is local
  double frequent = 0.3;   // r_f: share of the length that is frequent
  // Which of the readers' recoveries counts (the paper knows one reader a head).
  enum class Group : uint8_t { kMin, kMean } group = Group::kMin;
  uint32_t sample_every = 1;  // 1: exact
};

// The cheapest class of (layer, head) that keeps the share rule.recovery of the mass. `flags`:
// token flags (token_flags.h) of the prompt's tokens. A head of which some row's probabilities are
// missing, because they were NaN, stays kFull.
// Requires flags.size() == sums.tokens().
HeadClass ChooseClass(const PromptSums& sums, uint32_t plane, std::span<const uint8_t> flags,
                      const ProfileRule& rule);

// Marks the `count` keys of highest frequency, the newer one of equals; NaN ranks lowest.
std::vector<uint8_t> MostFrequent(std::span<const float> frequency, uint32_t count);

}  // namespace kvpool
