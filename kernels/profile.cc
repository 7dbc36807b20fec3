// The arithmetic at the end of a prompt. See profile.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/profile.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "common/units.h"
#include "kernels/token_flags.h"

namespace kvpool {
namespace {

constexpr uint32_t kClasses = static_cast<uint32_t>(HeadClass::kFull) + 1;

// A row's probabilities add up to 1, but for rounding in the worker's kernel and in ours.
constexpr double kRounding = 0.01;

// What each class keeps of one reader's mass; none but the last keeps anything of a sum that does
// not come from `rows` rows.
std::array<double, kClasses> Recoveries(std::span<const float> mass, std::span<const float> far,
                                        std::span<const uint8_t> flags,
                                        const std::vector<uint8_t>& frequent, uint32_t rows) {
  double total = 0, special = 0, punctuation = 0, by_frequency = 0, lost = 0;
  for (size_t key = 0; key < mass.size(); ++key) {
    total += mass[key];
    if ((flags[key] & kSpecialToken) != 0) {
      special += mass[key];
    } else if ((flags[key] & kPunctuationToken) != 0) {
      punctuation += mass[key];
    } else if (frequent[key] != 0) {
      by_frequency += mass[key];
    } else {
      lost += far[key];
    }
  }
  // Written so that NaN is refused.
  if (!(std::abs(total - rows) <= kRounding * rows) || std::isnan(lost)) return {0, 0, 0, 0, 1};
  return {special / total, (special + punctuation) / total,
          (special + punctuation + by_frequency) / total, 1 - lost / total, 1};
}

}  // namespace

uint32_t ShareOf(double share, uint32_t length) {
  return static_cast<uint32_t>(share * static_cast<double>(length));
}

uint32_t LocalKeys(double share, uint32_t length) { return std::max(1u, ShareOf(share, length)); }

PromptSums::PromptSums(const Geometry& geometry, uint32_t tokens)
    : tokens_(tokens), sums_(geometry.planes()) {
  for (uint16_t layer : geometry.kv_of_layer) {
    for (uint32_t head = 0; head < geometry.kv_heads; ++head) {
      std::vector<float>& sums = sums_[layer * geometry.kv_heads + head];
      sums.resize(sums.size() + size_t{2} * geometry.group_size() * tokens);
    }
  }
}

std::vector<float> PromptSums::Frequency(uint32_t plane) const {
  std::vector<float> frequency(tokens_);
  for (uint32_t reader = 0; reader < readers(plane); ++reader) {
    const std::span<const float> of_reader = mass(plane, reader);
    for (uint32_t key = 0; key < tokens_; ++key) frequency[key] += of_reader[key];
  }
  return frequency;
}

std::vector<uint8_t> MostFrequent(std::span<const float> frequency, uint32_t count) {
  std::vector<uint32_t> order(frequency.size());
  std::iota(order.begin(), order.end(), 0);
  const auto rank = [&](uint32_t key) {
    return std::isnan(frequency[key]) ? -std::numeric_limits<float>::infinity() : frequency[key];
  };
  const size_t places = std::min<size_t>(count, order.size());
  std::nth_element(
      order.begin(), order.begin() + static_cast<ptrdiff_t>(places), order.end(),
      [&](uint32_t a, uint32_t b) { return rank(a) != rank(b) ? rank(a) > rank(b) : a > b; });
  std::vector<uint8_t> marks(frequency.size());
  for (size_t i = 0; i < places; ++i) marks[order[i]] = 1;
  return marks;
}

HeadClass ChooseClass(const PromptSums& sums, uint32_t plane, std::span<const uint8_t> flags,
                      const ProfileRule& rule) {
  const std::vector<uint8_t> frequent =
      MostFrequent(sums.Frequency(plane), ShareOf(rule.frequent, sums.tokens()));
  const uint32_t rows = CeilDiv(sums.tokens(), rule.sample_every);
  const uint32_t readers = sums.readers(plane);
  std::array<double, kClasses> least, mean = {};
  least.fill(1);
  for (uint32_t reader = 0; reader < readers; ++reader) {
    const std::array<double, kClasses> kept =
        Recoveries(sums.mass(plane, reader), sums.far(plane, reader), flags, frequent, rows);
    for (uint32_t i = 0; i < kClasses; ++i) {
      least[i] = std::min(least[i], kept[i]);
      mean[i] += kept[i] / readers;
    }
  }
  const auto& counts = rule.group == ProfileRule::Group::kMin ? least : mean;
  for (uint32_t i = 0; i + 1 < kClasses; ++i) {
    if (counts[i] >= rule.recovery) return static_cast<HeadClass>(i);
  }
  return HeadClass::kFull;
}

}  // namespace kvpool
