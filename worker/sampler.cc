// Inverse transform sampling over softmax(logits / temperature).
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/sampler.h"

#include <cmath>
#include <cstddef>

namespace kvpool {
namespace {

size_t ArgMax(std::span<const float> logits) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best] || (std::isnan(logits[best]) && !std::isnan(logits[i]))) best = i;
  }
  return best;
}

}  // namespace

int32_t Sampler::Pick(std::span<const float> logits) {
  const size_t best = ArgMax(logits);
  if (temperature_ <= 0) return static_cast<int32_t>(best);
  weights_.resize(logits.size());
  double sum = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const float weight = std::exp((logits[i] - logits[best]) / temperature_);
    weights_[i] = weight > 0 ? weight : 0;  // NaN counts as impossible
    sum += weights_[i];
  }
  // 53 random bits make a double in [0, 1): the standard's distributions differ between libraries.
  double left = static_cast<double>(random_() >> 11) * 0x1p-53 * sum;
  for (size_t i = 0; i < weights_.size(); ++i) {
    left -= weights_[i];
    if (left < 0) return static_cast<int32_t>(i);
  }
  return static_cast<int32_t>(best);
}

}  // namespace kvpool
