// Picks the next token from logits: the most likely one, or by temperature from a seeded generator.
// Equal seeds and logits give equal tokens.
//
// Value; one per sequence, engine's thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace kvpool {

struct Sampling {
  float temperature = 0;  // 0: greedy
  uint64_t seed = 0;
};

class Sampler {
 public:
  explicit Sampler(const Sampling& sampling)
      : temperature_(sampling.temperature), random_(sampling.seed) {}

  // Requires at least one logit. NaN is never picked unless every logit is NaN.
  int32_t Pick(std::span<const float> logits);

 private:
  float temperature_;
  std::mt19937_64 random_;
  std::vector<float> weights_;
};

}  // namespace kvpool
