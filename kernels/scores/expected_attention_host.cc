// Host twin of Expected Attention.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>
#include <numeric>
#include <vector>

#include "common/units.h"
#include "kernels/scores/expected_attention.h"
#include "kernels/scores/parts.h"

namespace kvpool {
namespace {

// The kept queries that count, and what turns each into its average future self.
class FutureQueries {
 public:
  FutureQueries(const RowScore& score, const DerivedScoreArgs& args)
      : geometry_(args.layout->geometry()), window_(args.planes->window()) {
    const auto count = static_cast<uint32_t>(window_.positions.size());
    for (uint32_t i = count - std::min(score.window, count); i < count; ++i) {
      if (window_.positions[i] >= score.future.sinks) queries_.push_back(i);
    }
    const uint32_t half = geometry_.key_dim / 2;
    factors_.resize(queries_.size() * half);
    for (uint32_t pair = 0; pair < half; ++pair) {
      const double speed = std::pow(score.future.rope_theta, -static_cast<double>(pair) / half);
      std::complex<double> ahead = 0;
      for (uint32_t t = 0; t < score.future.horizon; ++t) {
        ahead += std::polar(1.0, speed * static_cast<double>(uint64_t{score.future.from} + t));
      }
      ahead /= score.future.horizon;
      for (size_t i = 0; i < queries_.size(); ++i) {
        factors_[i * half + pair] =
            ahead * std::polar(1.0, -speed * window_.positions[queries_[i]]);
      }
    }
  }

  uint32_t count() const { return static_cast<uint32_t>(queries_.size()); }

  // Of vector number `reader` (ReadersOf) of query `i`; `to` has key_dim elements.
  void Turn(uint32_t i, uint32_t reader, float* to) const {
    const uint32_t dim = geometry_.key_dim, half = dim / 2;
    const size_t vectors = size_t{geometry_.model_layers()} * geometry_.query_heads;
    const float* const query = &window_.vectors[(queries_[i] * vectors + reader) * dim];
    std::copy_n(query, dim, to);
    for (uint32_t pair = 0; pair < half; ++pair) {
      const std::complex<double> turned =
          std::complex<double>(query[pair], query[pair + half]) * factors_[i * half + pair];
      to[pair] = static_cast<float>(turned.real());
      to[pair + half] = static_cast<float>(turned.imag());
    }
  }

 private:
  const Geometry& geometry_;
  const QueryWindow& window_;
  std::vector<uint32_t> queries_;              // in the window
  std::vector<std::complex<double>> factors_;  // [queries][key_dim / 2]
};

// z for every (reader, row) of one head, and ||v|| of every row.
struct Expectation {
  std::vector<std::vector<double>> logits;  // [readers][rows]
  std::vector<double> weights;              // [rows]
};

// The mean of `count` numbers plus half their variance.
double MeanAndHalfVariance(const float* numbers, uint32_t count, double scale) {
  if (count == 0) return 0;
  const double mean = std::accumulate(numbers, numbers + count, 0.0) / count;
  double squares = 0;
  for (uint32_t i = 0; i < count; ++i) squares += (numbers[i] - mean) * (numbers[i] - mean);
  return scale * mean + scale * scale * squares / count / 2;
}

Expectation Expect(const FutureQueries& queries, const DerivedScoreArgs& args, uint32_t plane) {
  const Geometry& g = args.layout->geometry();
  const std::vector<uint32_t> readers = ReadersOf(g, plane);
  const uint32_t count = queries.count(), rows = args.session.Length(plane);
  Columns columns(static_cast<uint32_t>(readers.size()) * count, g.key_dim);
  std::vector<float> turned(g.key_dim);
  for (uint32_t r = 0; r < readers.size(); ++r) {
    for (uint32_t i = 0; i < count; ++i) {
      queries.Turn(i, readers[r], turned.data());
      columns.Set(r * count + i, turned.data());
    }
  }
  Expectation result{.logits = {readers.size(), std::vector<double>(rows)},
                     .weights = std::vector<double>(rows)};
  std::vector<float> products(size_t{simd::kTileRows} * columns.width());
  RowTiles tiles(args, plane, RowTiles::Parts::kKeysAndValues);
  while (tiles.Next()) {
    columns.Multiply(tiles.keys(), products.data());
    for (uint32_t i = 0; i < tiles.rows(); ++i) {
      const uint32_t row = tiles.first() + i;
      const float* const own = products.data() + size_t{i} * columns.width();
      for (uint32_t r = 0; r < readers.size(); ++r) {
        result.logits[r][row] = MeanAndHalfVariance(own + r * count, count, args.scale);
      }
      result.weights[row] = g.value_dim == 0 ? 1 : Norm(tiles.value(i), g.value_dim);
    }
  }
  return result;
}

std::vector<float> HeadScores(const RowScore& score, const FutureQueries& queries,
                              const DerivedScoreArgs& args, uint32_t plane) {
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  Expectation expected = Expect(queries, args, plane);
  const std::vector<uint32_t>& positions = args.planes->positions(plane);
  const size_t rows = expected.weights.size();
  std::vector<double> attention(rows);
  for (std::vector<double>& logits : expected.logits) {
    for (size_t row = 0; row < rows; ++row) {
      if (!std::isfinite(logits[row])) attention[row] = kNone;
      if (positions[row] < score.future.sinks) logits[row] = kNone;
    }
    Softmax(&logits);
    for (size_t row = 0; row < rows; ++row) {
      attention[row] += logits[row] / static_cast<double>(expected.logits.size());
    }
  }
  std::vector<float> scores(rows);
  for (size_t row = 0; row < rows; ++row) {
    if (positions[row] < score.future.sinks) continue;
    scores[row] =
        static_cast<float>((attention[row] + score.future.epsilon) * expected.weights[row]);
  }
  return scores;
}

}  // namespace

RowScores ExpectedAttentionScores(const RowScore& score, const DerivedScoreArgs& args) {
  const FutureQueries queries(score, args);
  RowScores scores;
  for (uint32_t plane = 0; plane < args.layout->geometry().planes(); ++plane) {
    scores.push_back(HeadScores(score, queries, args, plane));
  }
  return scores;
}

}  // namespace kvpool
