// Expected Attention against its formula in float64 with mean, covariance and averaged rotation
// written out as matrices.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/scores/expected_attention.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/scores/score_rig.h"

namespace kvpool {
namespace {

using Vector = std::vector<double>;
using Matrix = std::vector<Vector>;

constexpr uint32_t kKept = 24;
constexpr RowScore kScore{
    .kind = RowScore::Kind::kExpectedAttention,
    .window = 20,
    .future = {.from = 340, .horizon = 50, .sinks = 8, .epsilon = 0.01, .rope_theta = 700}};

Matrix Rotation(uint32_t dim, double position) {
  Matrix r(dim, Vector(dim));
  if (dim % 2 == 1) r[dim - 1][dim - 1] = 1;
  const uint32_t half = dim / 2;
  for (uint32_t i = 0; i < half; ++i) {
    const double angle = position * std::pow(kScore.future.rope_theta, -1.0 * i / half);
    r[i][i] = r[i + half][i + half] = std::cos(angle);
    r[i][i + half] = -std::sin(angle);
    r[i + half][i] = std::sin(angle);
  }
  return r;
}

Vector Times(const Matrix& m, const Vector& v) {
  Vector result(m.size());
  for (size_t r = 0; r < m.size(); ++r) {
    for (size_t c = 0; c < v.size(); ++c) result[r] += m[r][c] * v[c];
  }
  return result;
}

// A rig whose window holds queries that were drawn before their rotation.
struct FutureRig : ScoreRig {
  FutureRig(const Geometry& g, const SessionShape& shape, uint32_t seed)
      : ScoreRig(g, shape, seed, {.window_queries = kKept}) {
    const uint32_t readers = g.model_layers() * g.query_heads;
    std::normal_distribution<double> normal(0.4, 1);
    for (uint32_t i = 0; i < kKept + 3; ++i) {
      const uint32_t position = i < 6 ? i : 100 + 9 * i;  // some are sinks
      std::vector<float> vectors;
      raw.emplace_back();
      for (uint32_t r = 0; r < readers; ++r) {
        Vector query(g.key_dim);
        for (double& x : query) x = normal(session.random());
        for (double x : Times(Rotation(g.key_dim, position), query)) {
          vectors.push_back(static_cast<float>(x));
        }
        raw.back().push_back(query);
      }
      positions.push_back(position);
      planes.KeepQueries({position}, vectors);
    }
  }

  std::vector<uint32_t> positions;
  std::vector<Matrix> raw;  // [query][reader], before rotation
};

// z of the queries of one reader for every row of a head.
Vector Logits(const FutureRig& rig, uint32_t plane, uint32_t reader) {
  const uint32_t dim = rig.geometry().key_dim;
  std::vector<Vector> queries;
  for (size_t i = rig.raw.size() - kScore.window; i < rig.raw.size(); ++i) {
    if (rig.positions[i] >= kScore.future.sinks) queries.push_back(rig.raw[i][reader]);
  }
  Vector mean(dim);
  for (const Vector& q : queries) {
    for (uint32_t d = 0; d < dim; ++d) mean[d] += q[d] / static_cast<double>(queries.size());
  }
  Matrix covariance(dim, Vector(dim)), average(dim, Vector(dim));
  for (uint32_t i = 0; i < dim * dim; ++i) {
    const uint32_t a = i / dim, b = i % dim;
    for (const Vector& q : queries) {
      covariance[a][b] += (q[a] - mean[a]) * (q[b] - mean[b]) / static_cast<double>(queries.size());
    }
  }
  for (uint32_t t = 0; t < kScore.future.horizon; ++t) {
    const Matrix r = Rotation(dim, kScore.future.from + t);
    for (uint32_t i = 0; i < dim * dim; ++i) {
      average[i / dim][i % dim] += r[i / dim][i % dim] / kScore.future.horizon;
    }
  }
  mean = Times(average, mean);
  Vector logits;
  for (uint32_t row = 0; row < rig.rows(plane); ++row) {
    const std::vector<float>& key = rig.session.key(plane, row);
    Vector back(dim);  // R' k
    for (uint32_t i = 0; i < dim * dim; ++i)
      back[i % dim] += average[i / dim][i % dim] * key[i / dim];
    const Vector spread = Times(covariance, back);
    double first = 0, second = 0;
    for (uint32_t d = 0; d < dim; ++d) {
      first += mean[d] * key[d];
      second += back[d] * spread[d];
    }
    logits.push_back(first / std::sqrt(dim) + second / (2 * dim));
  }
  return logits;
}

Vector Oracle(const FutureRig& rig, uint32_t plane, const std::vector<uint32_t>& readers) {
  const std::vector<uint32_t>& positions = rig.planes.positions(plane);
  Vector scores(rig.rows(plane));
  for (uint32_t reader : readers) {
    const Vector logits = Logits(rig, plane, reader);
    double sum = 0;
    for (size_t row = 0; row < scores.size(); ++row) {
      if (positions[row] >= kScore.future.sinks) sum += std::exp(logits[row]);
    }
    for (size_t row = 0; row < scores.size(); ++row) {
      scores[row] += std::exp(logits[row]) / sum / static_cast<double>(readers.size());
    }
  }
  for (uint32_t row = 0; row < scores.size(); ++row) {
    const std::vector<float>& value = rig.session.value(plane, row);
    const double weight = value.empty() ? 1 : std::sqrt(Dot(value, value));
    scores[row] =
        positions[row] < kScore.future.sinks ? 0 : (scores[row] + kScore.future.epsilon) * weight;
  }
  return scores;
}

TEST(ExpectedAttention, MatchesMatricesInFloat64) {
  uint32_t seed = 0;
  for (const SessionShape& shape : ScoreShapes()) {
    for (const Geometry& g : ScoreGeometries()) {
      FutureRig rig(g, shape, ++seed);
      const RowScores scores = DerivedScores(kScore, rig.Args());
      for (uint32_t p = 0; p < g.planes(); ++p) {
        const Vector expected = Oracle(rig, p, ReadersOf(g, p));
        ASSERT_EQ(scores[p].size(), expected.size());
        for (uint32_t row = 0; row < expected.size(); ++row) {
          ASSERT_NEAR(scores[p][row], expected[row], 1e-4 * (0.01 + expected[row]))
              << "seed " << seed << " head " << p << " row " << row;
        }
      }
    }
  }
}

TEST(ExpectedAttention, WithoutQueriesOnlyValuesCount) {
  ScoreRig rig(TestGeometry(1, 2, 1, 8, 8, Dtype::kF32), {.fresh = 20}, 3, {.window_queries = 4});
  const RowScores scores = DerivedScores(kScore, rig.Args());
  for (uint32_t row = 0; row < 20; ++row) {
    const std::vector<float>& value = rig.session.value(0, row);
    EXPECT_NEAR(scores[0][row], (1.0 / 20 + 0.01) * std::sqrt(Dot(value, value)), 1e-5);
  }
}

TEST(ExpectedAttention, RowsThatAreNoNumbersSpoilTheirOwnScoreOnly) {
  FutureRig rig(TestGeometry(1, 2, 1, 8, 8, Dtype::kF32), {.fresh = 20}, 3);
  const auto value = rig.session.value(0, 7);
  rig.session.SetRow(0, 7, std::vector<float>(8, NAN), value);
  const auto key = rig.session.key(0, 8);
  rig.session.SetRow(0, 8, key, std::vector<float>(8, NAN));
  const RowScores scores = DerivedScores(kScore, rig.Args());
  for (uint32_t row = 0; row < 20; ++row) {
    EXPECT_EQ(std::isnan(scores[0][row]), row == 7 || row == 8) << row;
  }
}

}  // namespace
}  // namespace kvpool
