// R-KV's scores against the matrix of all cosines in float64.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/scores/redundancy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/kernels/scores/score_rig.h"

namespace kvpool {
namespace {

using Vector = std::vector<double>;

constexpr uint32_t kWindow = 5;

RowScore Score(double lambda, uint32_t compared) {
  return {.kind = RowScore::Kind::kRedundancy,
          .window = kWindow,
          .kernel = 3,
          .redundancy = {.lambda = lambda, .threshold = 0.2, .compared = compared}};
}

// A rig whose window holds two queries more than vote; the last ones are the newest tokens' own.
struct QueryRig : ScoreRig {
  QueryRig(const Geometry& g, const SessionShape& shape, uint32_t seed)
      : ScoreRig(g, shape, seed, {.window_queries = kWindow + 2}) {
    floats = g.model_layers() * g.query_heads * g.key_dim;
    for (uint32_t i = 0; i < kWindow + 2; ++i) {
      const uint32_t position = i < 4 ? 150 + i : fresh_start + shape.fresh + i;
      planes.KeepQueries({position}, session.RandomRow(floats));
    }
  }
  uint32_t floats;
};

// Row numbers from the oldest to the newest.
std::vector<uint32_t> ByPosition(const ScoreRig& rig, uint32_t plane) {
  std::vector<uint32_t> order(rig.rows(plane));
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return rig.planes.positions(plane)[a] < rig.planes.positions(plane)[b];
  });
  return order;
}

// By place.
Vector Importance(const QueryRig& rig, uint32_t plane, const std::vector<uint32_t>& order) {
  const Geometry& g = rig.geometry();
  const QueryWindow& window = rig.planes.window();
  const int older = std::max(0, static_cast<int>(order.size()) - static_cast<int>(kWindow));
  Vector mean(order.size()), pooled(order.size());
  int counted = 0;
  for (size_t query = window.positions.size() - kWindow; query < window.positions.size(); ++query) {
    Vector e(older);
    for (int i = 0; i < older; ++i) {
      if (rig.planes.positions(plane)[order[i]] > window.positions[query]) continue;
      double highest = -INFINITY;
      for (uint32_t reader : ReadersOf(g, plane)) {
        const float* q = &window.vectors[query * rig.floats + reader * g.key_dim];
        const std::vector<float> vector(q, q + g.key_dim);
        highest = std::max(highest, Dot(vector, rig.session.key(plane, order[i])));
      }
      e[i] = std::exp(highest / std::sqrt(g.key_dim));
    }
    const double sum = std::accumulate(e.begin(), e.end(), 0.0);
    counted += sum > 0 ? 1 : 0;
    for (int i = 0; i < older && sum > 0; ++i) mean[i] += e[i] / sum;
  }
  for (int i = 0; i < older && counted > 0; ++i) {
    for (int k = std::max(0, i - 1); k <= std::min(older - 1, i + 1); ++k) {
      pooled[i] = std::max(pooled[i], mean[k] / counted);
    }
  }
  return pooled;
}

// By place, of heads whose places are compared in runs that begin at `begins`.
Vector Redundancy(const ScoreRig& rig, uint32_t plane, const std::vector<uint32_t>& order,
                  const std::vector<size_t>& begins) {
  Vector mean(order.size());
  for (size_t run = 0; run < begins.size(); ++run) {
    const size_t end = run + 1 < begins.size() ? begins[run + 1] : order.size();
    for (size_t i = begins[run]; i < end; ++i) {
      const std::vector<float>& a = rig.session.key(plane, order[i]);
      Vector cosines(order.size());
      size_t newest = order.size();
      for (size_t j = begins[run]; j < end; ++j) {
        const std::vector<float>& b = rig.session.key(plane, order[j]);
        cosines[j] = i == j ? 0 : Dot(a, b) / std::sqrt(Dot(a, a) * Dot(b, b));
        if (cosines[j] > 0.2) newest = j;
      }
      if (newest < order.size()) cosines[newest] = 0;
      for (size_t j = begins[run]; j < end; ++j) {
        mean[j] += cosines[j] / static_cast<double>(end - begins[run]);
      }
    }
  }
  double sum = 0;
  for (double& x : mean) sum += x = std::exp(x);
  for (double& x : mean) x /= sum;
  return mean;
}

void ExpectScores(QueryRig& rig, double lambda, uint32_t compared, uint32_t seed) {
  const RowScores scores = DerivedScores(Score(lambda, compared), rig.Args());
  for (uint32_t p = 0; p < rig.geometry().planes(); ++p) {
    const std::vector<uint32_t> order = ByPosition(rig, p);
    ASSERT_EQ(scores[p].size(), order.size());
    const size_t runs = (order.size() + compared - 1) / compared;
    std::vector<size_t> begins;
    for (size_t run = 0; run < runs; ++run) begins.push_back(order.size() * run / runs);
    const Vector importance = Importance(rig, p, order);
    const Vector redundancy = Redundancy(rig, p, order, begins);
    for (size_t i = 0; i < order.size(); ++i) {
      ASSERT_NEAR(scores[p][order[i]], lambda * importance[i] - (1 - lambda) * redundancy[i], 2e-6)
          << "seed " << seed << " head " << p << " place " << i << " of " << order.size();
    }
  }
}

TEST(Redundancy, MatchesAllCosinesInFloat64) {
  uint32_t seed = 0;
  for (const SessionShape& shape : ScoreShapes()) {
    for (const Geometry& g : ScoreGeometries()) {
      QueryRig rig(g, shape, ++seed);
      for (double lambda : {0.0, 0.1, 1.0}) {
        ExpectScores(rig, lambda, 8192, seed);
        ExpectScores(rig, lambda, 23, seed);  // in runs
      }
    }
  }
}

TEST(Redundancy, OfKeysThatSayTheSameTheNewestIsForgiven) {
  ScoreRig rig(TestGeometry(1, 1, 1, 4, 4, Dtype::kF32), {.fresh = 6}, 1, {.window_queries = 5});
  const std::vector<float> value(4, 1);
  rig.session.SetRow(0, 0, {1, 0, 0, 0}, value);
  rig.session.SetRow(0, 1, {0, 1, 0, 0}, value);
  rig.session.SetRow(0, 2, {2, 0, 0, 0}, value);
  rig.session.SetRow(0, 3, {3, 0, 0, 0}, value);
  rig.session.SetRow(0, 4, {0, 0, 1, 0}, value);
  rig.session.SetRow(0, 5, {0, 0, 0, 1}, value);
  const std::vector<float> scores = DerivedScores(Score(0, 8192), rig.Args())[0];
  EXPECT_LT(scores[0], scores[2]);        // 2 forgives nobody but 3; 3 forgives 2
  EXPECT_LT(scores[2], scores[3]);        // all that are like 3 forgive it
  EXPECT_FLOAT_EQ(scores[3], scores[1]);  // as if it were alone
}

TEST(Redundancy, KeysThatAreNoNumbersSpoilTheirOwnScoreOnly) {
  QueryRig rig(TestGeometry(1, 2, 1, 8, 8, Dtype::kF32), {.fresh = 20}, 3);
  const auto value = rig.session.value(0, 7);
  rig.session.SetRow(0, 7, std::vector<float>(8, NAN), value);
  rig.session.SetRow(0, 8, std::vector<float>(8, INFINITY), value);
  rig.session.SetRow(0, 9, std::vector<float>(8, 0), value);
  const RowScores scores = DerivedScores(Score(0.1, 8192), rig.Args());
  for (uint32_t row = 0; row < 20; ++row) {
    EXPECT_EQ(std::isnan(scores[0][row]), row == 7 || row == 8) << row;
  }
}

TEST(Redundancy, WithoutQueriesOnlyLikenessCounts) {
  ScoreRig rig(TestGeometry(1, 2, 1, 8, 8, Dtype::kF32), {.fresh = 20}, 3, {.window_queries = 5});
  const RowScores alone = DerivedScores(Score(0, 8192), rig.Args());
  const RowScores scores = DerivedScores(Score(0.25, 8192), rig.Args());
  for (uint32_t row = 0; row < 20; ++row) EXPECT_NEAR(scores[0][row], 0.75 * alone[0][row], 1e-7);
}

}  // namespace
}  // namespace kvpool
