// Host twin of derived scores.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>

#include "kernels/derived_scores.h"
#include "kernels/scores/expected_attention.h"
#include "kernels/scores/keys.h"
#include "kernels/scores/redundancy.h"
#include "kernels/scoring.h"

namespace kvpool {
namespace {

// Scores the window's queries like a drain, into planes of their own.
RowScores WindowScores(const RowScore& score, const DerivedScoreArgs& args) {
  const bool squares = score.kind == RowScore::Kind::kWindowSquareSum;
  const Geometry& g = args.layout->geometry();
  const QueryWindow& window = args.planes->window();
  Planes sums(g, {.square_sum = squares});
  uint32_t longest = 0;
  for (uint32_t plane = 0; plane < g.planes(); ++plane) {
    longest = std::max(longest, args.session.Length(plane));
  }
  sums.Append(0, longest);
  for (uint32_t plane = 0; plane < g.planes(); ++plane) {
    std::copy_n(args.planes->positions(plane).begin(), args.session.Length(plane),
                sums.positions(plane).begin());
  }
  const size_t floats = size_t{g.model_layers()} * g.query_heads * g.key_dim;
  const size_t count = window.positions.size();
  for (size_t i = count - std::min<size_t>(score.window, count); i < count;) {
    if (window.positions[i] < args.selected_step) {
      ++i;
      continue;
    }
    const auto queries = static_cast<uint32_t>(std::min<size_t>(kDrainQueries, count - i));
    Score({.layout = args.layout,
           .base = args.base,
           .session = args.session,
           .fresh_start = args.fresh_start,
           .queries = window.vectors.data() + i * floats,
           .query_positions = window.positions.data() + i,
           .query_count = queries,
           .scale = args.scale},
          &sums);
    i += queries;
  }
  RowScores scores;
  for (uint32_t plane = 0; plane < g.planes(); ++plane) {
    scores.push_back(squares ? sums.square_sum(plane) : sums.mass(plane));
    scores.back().resize(args.session.Length(plane));
  }
  return scores;
}

// splitmix64.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

RowScores RandomScores(uint64_t seed, const Planes& planes) {
  RowScores scores(planes.planes());
  for (uint32_t plane = 0; plane < planes.planes(); ++plane) {
    const uint64_t head = Mix(Mix(seed) + plane);
    for (uint32_t position : planes.positions(plane)) {
      // 24 bits are exact in a float.
      scores[plane].push_back(static_cast<float>(Mix(head + position) >> 40));
    }
  }
  return scores;
}

}  // namespace

RowScores DerivedScores(const RowScore& score, const DerivedScoreArgs& args) {
  switch (score.kind) {
    case RowScore::Kind::kRandom:
      return RandomScores(score.seed, *args.planes);
    case RowScore::Kind::kKeyNorm:
      return KeyNormScores(args);
    case RowScore::Kind::kKeyDiff:
      return KeyDiffScores(args);
    case RowScore::Kind::kExpectedAttention:
      return ExpectedAttentionScores(score, args);
    case RowScore::Kind::kRedundancy:
      return RedundancyScores(score, args);
    default:
      return WindowScores(score, args);
  }
}

}  // namespace kvpool
