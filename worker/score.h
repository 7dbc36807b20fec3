// Perplexity of a text by teacher forcing: the text is cut into windows, each one a scoring request
// to the engine, so that it takes the same way through the cache as generated text does.
//
// Pure; values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "worker/engine.h"

namespace kvpool {

struct ScoreOptions {
  uint32_t context = 512;  // tokens of a window, BOS included; at least 2
  uint32_t windows = 0;    // first windows of the text only; 0: all
  size_t tenant = 0;
};

// Windows of BOS and context - 1 tokens of the text, without overlap, ids counting up from 0. The
// text's last window may be shorter.
std::vector<Request> MakeScoreRequests(std::span<const int32_t> text, int32_t bos,
                                       const ScoreOptions& options);

// Sums over scored windows.
struct Score {
  uint64_t windows = 0;
  uint64_t tokens = 0;
  double log_probability = 0;  // natural logarithm

  void Add(const Result& result);
  double MeanNll() const;     // per token; 0 without tokens
  double Perplexity() const;  // exp of it
};

}  // namespace kvpool
