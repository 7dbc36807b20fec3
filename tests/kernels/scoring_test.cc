// Scoring on every target against float64 probabilities.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/scoring.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kernels/simd/targets.h"
#include "tests/kernels/test_session.h"
#include "tests/kernels/vector_targets.h"

namespace kvpool {
namespace {

constexpr PlaneSet kEveryPlane{
    .low_count_ring = 3, .last_hit = true, .sum = true, .square_sum = true};

// Compacted rows are some of those before `fresh_start`, in no order.
Planes PlanesFor(TestSession& session, const PlaneSet& set, uint32_t fresh_start) {
  const Geometry& g = session.layout().geometry();
  Planes planes(g, set);
  planes.Append(0, fresh_start);
  for (uint32_t p = 0; p < g.planes(); ++p) {
    std::vector<uint32_t> rows(fresh_start);
    std::iota(rows.begin(), rows.end(), 0);
    std::shuffle(rows.begin(), rows.end(), session.random());
    rows.resize(session.View().CompactedLength(p));
    planes.Gather(p, rows);
  }
  planes.Append(fresh_start, session.View().fresh_tokens);
  return planes;
}

// Statistics by the definition; `near` counts queries too close to the threshold to call, so the
// last hit lies between hit and near_hit.
struct Expected {
  std::vector<double> mass, squares;
  std::vector<uint32_t> low, near, hit, near_hit;
};

// The keys that are there made up 1 / `gone` of each query's sum when it came: the others have gone
// since. Writes the log-sum-exp that the worker saw then into `lses`.
Expected Oracle(const TestSession& session, const ScoreArgs& args, const Planes& planes,
                double gone, uint32_t plane, std::vector<float>* lses) {
  const Geometry& g = session.layout().geometry();
  const uint32_t rows = session.View().Length(plane);
  Expected e{.mass = std::vector<double>(rows), .squares = std::vector<double>(rows)};
  for (auto* counts : {&e.low, &e.near, &e.hit, &e.near_hit}) counts->resize(rows);
  for (uint32_t q = 0; q < args.query_count; ++q) {
    const uint32_t p = args.query_positions[q];
    const auto sees = [&](uint32_t row) { return planes.positions(plane)[row] <= p; };
    std::vector<double> highest(rows);
    bool own_is_seen = false;  // by a layer that does not mask it
    double n = p + 1.0;
    if (planes.set().threshold == Threshold::kInverseCached) {
      n = 0;
      for (uint32_t row = 0; row < rows; ++row) n += sees(row) ? 1 : 0;
    }
    for (uint32_t ml = 0; ml < g.model_layers(); ++ml) {
      if (g.kv_of_layer[ml] != plane / g.kv_heads) continue;
      const auto reads = [&](uint32_t row) {
        return sees(row) && !(g.MasksSelf(ml) && planes.positions(plane)[row] == p);
      };
      own_is_seen = own_is_seen || !g.MasksSelf(ml);
      for (uint32_t i = 0; i < g.group_size(); ++i) {
        const size_t vector = (size_t{q} * g.model_layers() + ml) * g.query_heads +
                              plane % g.kv_heads * g.group_size() + i;
        OracleHead head =
            OracleAttention(session, plane, args.queries + vector * g.key_dim, args.scale, reads);
        (*lses)[vector] = static_cast<float>(head.lse + std::log(gone));
        for (double& alpha : head.alpha) alpha /= gone;
        for (uint32_t row = 0; row < rows; ++row) {
          e.mass[row] += head.alpha[row];
          e.squares[row] += head.alpha[row] * head.alpha[row];
          highest[row] = std::max(highest[row], head.alpha[row]);
        }
      }
    }
    for (uint32_t row = 0; row < rows; ++row) {
      if (!sees(row) || (planes.positions(plane)[row] == p && !own_is_seen)) continue;
      const double ratio = highest[row] * n;
      if (std::abs(ratio - 1) < 1e-4) {
        ++e.near[row];
        e.near_hit[row] = std::max(e.near_hit[row], p + 1);
      } else if (ratio < 1) {
        ++e.low[row];
      } else {
        e.hit[row] = std::max(e.hit[row], p + 1);
        e.near_hit[row] = std::max(e.near_hit[row], p + 1);
      }
    }
  }
  return e;
}

// Recomputed: without the worker's log-sum-exp. Told: with it, `gone` as for Oracle.
enum class Sums : uint8_t { kRecomputed, kTold };

void ExpectMatches(const simd::Target& target, TestSession& session, uint32_t fresh_start,
                   const std::vector<uint32_t>& positions, const PlaneSet& set, Sums sums,
                   double gone) {
  const Geometry& g = session.layout().geometry();
  const auto count = static_cast<uint32_t>(positions.size());
  const std::vector<float> queries =
      session.RandomRow(count * g.model_layers() * g.query_heads * g.key_dim);
  ScoreArgs args{.layout = &session.layout(),
                 .base = session.base(),
                 .session = session.View(),
                 .fresh_start = fresh_start,
                 .queries = queries.data(),
                 .query_positions = positions.data(),
                 .query_count = count,
                 .scale = 1.0f / std::sqrt(static_cast<float>(g.key_dim))};
  Planes planes = PlanesFor(session, set, fresh_start);
  const uint32_t newest = *std::max_element(positions.begin(), positions.end()) + 1;
  planes.BeginDrain(count, newest);
  std::vector<Expected> expected;
  std::vector<float> lses(size_t{count} * g.model_layers() * g.query_heads);
  for (uint32_t plane = 0; plane < g.planes(); ++plane) {
    expected.push_back(Oracle(session, args, planes, gone, plane, &lses));
  }
  if (sums == Sums::kTold) args.lses = lses.data();
  simd::ScoreOn(target, args, &planes);
  for (uint32_t plane = 0; plane < g.planes(); ++plane) {
    const Expected& e = expected[plane];
    for (uint32_t row = 0; row < planes.rows(plane); ++row) {
      ASSERT_NEAR(planes.mass(plane)[row], e.mass[row], 1e-5 * (1 + e.mass[row])) << target.name;
      if (set.sum) {
        ASSERT_EQ(planes.Sum(plane, row), planes.mass(plane)[row]);
      }
      if (set.square_sum) {
        ASSERT_NEAR(planes.square_sum(plane)[row], e.squares[row], 1e-5 * (1 + e.squares[row]));
      }
      if (set.last_hit) {
        const uint32_t stored = planes.last_hits(plane)[row];
        const uint32_t hit = stored == 0 ? 0 : planes.hit_base() + stored;
        // A hit too old for two bytes is as good as none.
        if (newest - e.hit[row] < kMaxHitWindow) {
          ASSERT_GE(hit, e.hit[row]) << target.name;
        }
        ASSERT_LE(hit, e.near_hit[row]) << target.name << " row " << row;
      }
      if (set.low_count_ring == 0) continue;
      const uint32_t low = planes.low_counts(plane, 0)[row];
      ASSERT_GE(low, e.low[row]) << target.name << " row " << row;
      ASSERT_LE(low, e.low[row] + e.near[row]) << target.name << " row " << row;
    }
  }
}

void ExpectMatchesOracle(const simd::Target& target, TestSession& session, uint32_t fresh_start,
                         const std::vector<uint32_t>& positions, const PlaneSet& set) {
  ExpectMatches(target, session, fresh_start, positions, set, Sums::kRecomputed, 1);
  ExpectMatches(target, session, fresh_start, positions, set, Sums::kTold, 1);
}

// With the worker's sums, probabilities are those of the step at which the query came.
TEST(Scoring, KnowsWhatKeysThatHaveGoneTook) {
  for (const simd::Target& target : simd::Targets()) {
    for (uint32_t count : {1u, 5u, 16u, 32u}) {
      TestSession session(TestGeometry(2, 4, 2, 32, 32, Dtype::kBf16),
                          {.max_compacted = 60, .fresh = 45}, count);
      std::vector<uint32_t> positions;
      for (uint32_t i = 0; i < count; ++i) positions.push_back(100 + 45 - count + i);
      ExpectMatches(target, session, 100, positions, kEveryPlane, Sums::kTold, 1.5);
    }
  }
}

// A worker may write anything there.
TEST(Scoring, SumsThatCannotBeAreHarmless) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const simd::Target& target : simd::Targets()) {
    TestSession session(TestGeometry(1, 2, 2, 16, 16, Dtype::kF32), {.fresh = 20}, 4);
    const std::vector<float> queries = session.RandomRow(2 * 2 * 16);
    const std::vector<uint32_t> positions = {18, 19};
    const auto score = [&](const std::vector<float>& lses) {
      Planes planes = PlanesFor(session, kEveryPlane, 0);
      planes.BeginDrain(2, 20);
      simd::ScoreOn(target,
                    {.layout = &session.layout(),
                     .base = session.base(),
                     .session = session.View(),
                     .queries = queries.data(),
                     .query_positions = positions.data(),
                     .lses = lses.empty() ? nullptr : lses.data(),
                     .query_count = 2},
                    &planes);
      return planes;
    };
    const Planes recomputed = score({});
    for (float bad : {std::nanf(""), kInfinity, -kInfinity}) {
      EXPECT_EQ(score({1, 1, bad, 1}).mass(0), recomputed.mass(0)) << "one is not told: none is";
    }
    for (float bad : {-1e38f, -1e4f, 1e4f, 1e38f}) {
      const Planes planes = score({bad, bad, bad, bad});
      for (uint32_t row = 0; row < 20; ++row) {
        EXPECT_GE(planes.mass(0)[row], 0.0f);
        EXPECT_LE(planes.mass(0)[row], 2.0f) << "at most 1 a query and head";
        EXPECT_LE(planes.low_counts(0, 0)[row], 2);
      }
    }
  }
}

TEST(Scoring, MatchesFloat64) {
  for (const simd::Target& target : simd::Targets()) {
    uint32_t seed = 1;
    for (Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16}) {
      for (uint32_t dim : {32u, 128u, 20u}) {
        for (uint32_t count : {1u, 5u, 16u, 32u}) {
          TestSession session(TestGeometry(2, 4, 2, dim, dim, dtype),
                              {.max_compacted = 60, .fresh = 45}, ++seed);
          // The last queries of the fresh rows, some of which saw only part of them.
          std::vector<uint32_t> positions;
          for (uint32_t i = 0; i < count; ++i) positions.push_back(100 + 45 - count + i);
          ExpectMatchesOracle(target, session, 100, positions, kEveryPlane);
          PlaneSet cached = kEveryPlane;
          cached.threshold = Threshold::kInverseCached;
          ExpectMatchesOracle(target, session, 100, positions, cached);
        }
      }
    }
  }
}

// LCKV: the layers that use keys from above do not see their own position, the layer that makes
// those keys does. All readers of a cached layer may mask it, or some, or none.
TEST(Scoring, LayersThatMaskTheirOwnPositionMatchFloat64) {
  for (const simd::Target& target : simd::Targets()) {
    uint32_t seed = 90;
    for (const std::vector<uint16_t>& masked :
         {std::vector<uint16_t>{1, 2}, {0, 1, 2, 3, 4}, {0}, {3, 4}}) {
      for (uint32_t count : {1u, 5u, 32u}) {
        Geometry geometry = TestGeometry(3, 4, 2, 32, 32, Dtype::kBf16);
        geometry.kv_of_layer = {0, 1, 1, 1, 2};
        geometry.self_masked = masked;
        TestSession session(geometry, {.max_compacted = 60, .fresh = 45}, ++seed);
        std::vector<uint32_t> positions;
        for (uint32_t i = 0; i < count; ++i) positions.push_back(100 + 45 - count + i);
        ExpectMatchesOracle(target, session, 100, positions, kEveryPlane);
        ExpectMatchesOracle(target, session, 100, {60, 99, 100, 144}, kEveryPlane);
        ASSERT_FALSE(HasFatalFailure()) << "seed " << seed;
      }
    }
  }
}

TEST(Scoring, SealedRowsMatchFloat64) {
  uint32_t seed = 50;
  for (const simd::Target& target : simd::Targets()) {
    for (SealedFormat format : {SealedFormat::kFp8, SealedFormat::kInt8, SealedFormat::kInt4}) {
      for (uint32_t dim : {32u, 128u, 20u}) {
        for (uint32_t sealed : {64u, 70u, 3u}) {
          TestSession session(
              TestGeometry(2, 4, 2, dim, dim, Dtype::kBf16),
              {.max_compacted = 40, .max_sealed = sealed, .sealed = format, .fresh = 21}, ++seed);
          ExpectMatchesOracle(target, session, 120, {120, 127, 139, 140}, kEveryPlane);
        }
      }
    }
  }
}

// Rows may have been moved, or sealed, between a query and its drain.
TEST(Scoring, QueriesOlderThanTheFreshRowsSeeTheRowsUpToTheirs) {
  for (const simd::Target& target : simd::Targets()) {
    TestSession session(
        TestGeometry(2, 4, 2, 16, 16, Dtype::kF32),
        {.max_compacted = 33, .max_sealed = 40, .sealed = SealedFormat::kInt8, .fresh = 5}, 3);
    PlaneSet cached = kEveryPlane;
    cached.threshold = Threshold::kInverseCached;
    for (const PlaneSet& set : {kEveryPlane, cached}) {
      ExpectMatchesOracle(target, session, 80, {30, 60, 79, 80, 4000000000u}, set);
      ExpectMatchesOracle(target, session, 80, {60, 79}, set);
    }
  }
}

TEST(Scoring, WithoutOtherPlanesOnlyMassIsKept) {
  for (const simd::Target& target : simd::Targets()) {
    TestSession session(TestGeometry(1, 2, 1, 16, 16, Dtype::kF32), {.fresh = 40}, 3);
    ExpectMatchesOracle(target, session, 0, {37, 38, 39}, {});
  }
}

// Layers that share a cached layer all vote for its keys.
TEST(Scoring, SharedLayersAddUp) {
  for (const simd::Target& target : simd::Targets()) {
    Geometry g = TestGeometry(2, 4, 2, 16, 16, Dtype::kF32);
    g.kv_of_layer = {1, 0, 1, 0, 1};
    TestSession session(g, {.max_compacted = 20, .fresh = 20}, 9);
    ExpectMatchesOracle(target, session, 50, {60, 61, 62, 69}, kEveryPlane);
  }
}

TEST(Scoring, NothingToSeeAddsNothing) {
  for (const simd::Target& target : simd::Targets()) {
    TestSession session(TestGeometry(1, 2, 1, 16, 16, Dtype::kF32), {.fresh = 3}, 3);
    ExpectMatchesOracle(target, session, 10, {9, 2}, kEveryPlane);
    TestSession empty(TestGeometry(1, 2, 1, 16, 16, Dtype::kF32), {}, 3);
    ExpectMatchesOracle(target, empty, 0, {0}, kEveryPlane);
  }
}

// Each drain adds to what is there; mass over all rows is one for each query and head.
TEST(Scoring, AccumulatesAndMassIsConserved) {
  TestSession session(TestGeometry(1, 4, 2, 32, 32, Dtype::kBf16), {.fresh = 64}, 4);
  Planes planes = PlanesFor(session, kEveryPlane, 0);
  std::vector<uint32_t> positions;
  for (uint32_t i = 0; i < 20; ++i) positions.push_back(63);
  for (int drain = 0; drain < 3; ++drain) {
    const std::vector<float> queries = session.RandomRow(20 * 4 * 32);
    planes.BeginDrain(20, 64);
    Score({.layout = &session.layout(),
           .base = session.base(),
           .session = session.View(),
           .queries = queries.data(),
           .query_positions = positions.data(),
           .query_count = 20,
           .scale = 0.2f},
          &planes);
  }
  for (uint32_t plane = 0; plane < 2; ++plane) {
    double mass = 0;
    for (float m : planes.mass(plane)) mass += m;
    EXPECT_NEAR(mass, 3 * 20 * 2, 1e-3);
  }
}

TEST(Scoring, NanIsLowAndAddsNothing) {
  for (const simd::Target& target : simd::Targets()) {
    TestSession session(TestGeometry(1, 2, 2, 16, 16, Dtype::kF32), {.fresh = 20}, 4);
    const std::vector<float> nan(16, std::nanf(""));
    session.SetRow(0, 7, nan, nan);
    Planes planes = PlanesFor(session, kEveryPlane, 0);
    const std::vector<float> queries = session.RandomRow(2 * 2 * 16);
    const std::vector<uint32_t> positions = {18, 19};
    planes.BeginDrain(2, 20);
    simd::ScoreOn(target,
                  {.layout = &session.layout(),
                   .base = session.base(),
                   .session = session.View(),
                   .queries = queries.data(),
                   .query_positions = positions.data(),
                   .query_count = 2},
                  &planes);
    for (uint32_t row = 0; row < 20; ++row) {
      EXPECT_EQ(planes.mass(0)[row], 0.0f);
      EXPECT_EQ(planes.square_sum(0)[row], 0.0f);
      EXPECT_EQ(planes.last_hits(0)[row], 0);
      EXPECT_EQ(planes.low_counts(0, 0)[row], row < 19 ? 2 : 1);
    }
    double mass = 0;  // the other head does not notice
    for (float m : planes.mass(1)) mass += m;
    EXPECT_NEAR(mass, 2.0, 1e-5);
  }
}

}  // namespace
}  // namespace kvpool
