// Selections against the definition: full sorts of every row by what it says.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/selection.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>

#include "tests/kernels/test_session.h"

namespace kvpool {
namespace {

using Kind = RowScore::Kind;
using Pooling = RowScore::Pooling;
using Scope = Selection::Scope;

constexpr float kLowest = -std::numeric_limits<float>::infinity();
const Geometry kGeometry = TestGeometry(2, 4, 2, 8, 8, Dtype::kF32);

// The rows of a head from the newest to the oldest.
KeepRows NewestFirst(const Planes& planes, uint32_t plane) {
  KeepRows order(planes.rows(plane));
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return planes.positions(plane)[a] > planes.positions(plane)[b];
  });
  return order;
}

// Comparable, averaged and smoothed scores, each by its definition.
RowScores Prepared(const Selection& s, const Planes& planes, RowScores scores) {
  for (auto& head : scores) {
    for (float& score : head) score = std::isnan(score) ? kLowest : score;
  }
  RowScores result = scores;
  for (uint32_t p = 0; p < planes.planes(); ++p) {
    if (s.scope == Scope::kLayerMean) {
      for (uint32_t row = 0; row < planes.rows(p); ++row) {
        result[p][row] = (scores[p / 2 * 2][row] + scores[p / 2 * 2 + 1][row]) / 2;
      }
    }
    if (s.score.pooling == Pooling::kNone) continue;
    KeepRows order = NewestFirst(planes, p);
    order.erase(order.begin(), order.begin() + std::min<ptrdiff_t>(s.Rule(p).recent, order.size()));
    std::reverse(order.begin(), order.end());
    const std::vector<float> raw = result[p];
    const auto half = static_cast<int>(s.score.kernel / 2), n = static_cast<int>(order.size());
    for (int i = 0; i < n; ++i) {
      float sum = 0, highest = kLowest;
      for (int k = i - half; k <= i + half; ++k) {
        if (k < 0 || k >= n) continue;
        sum += raw[order[k]];
        highest = std::max(highest, raw[order[k]]);
      }
      result[p][order[i]] =
          s.score.pooling == Pooling::kMax ? highest : sum / static_cast<float>(s.score.kernel);
    }
  }
  return result;
}

std::set<uint32_t> Named(const Selection& s, const Planes& planes, const RowScores& scores,
                         uint32_t plane) {
  const HeadRule& rule = s.Rule(plane);
  const KeepRows newest = NewestFirst(planes, plane);
  std::set<uint32_t> keep;
  for (uint32_t i = 0; i < newest.size(); ++i) {
    const uint32_t row = newest[i];
    const bool flagged = (planes.flags(plane)[row] & rule.flags) != 0;
    const bool hit = rule.hit_since != 0 && planes.last_hits(plane)[row] >= rule.hit_since;
    if (i < rule.recent || planes.positions(plane)[row] < rule.first || flagged || hit) {
      keep.insert(row);
    }
  }
  if (s.score.kind == Kind::kNone) return keep;
  KeepRows best = newest;  // newest first: a stable sort breaks ties the right way
  std::stable_sort(best.begin(), best.end(),
                   [&](uint32_t a, uint32_t b) { return scores[plane][a] > scores[plane][b]; });
  best.resize(std::min<size_t>(best.size(), rule.top));
  keep.insert(best.begin(), best.end());
  return keep;
}

std::vector<KeepRows> Expected(const Selection& s, const Planes& planes, const RowScores& raw) {
  const RowScores scores = Prepared(s, planes, raw);
  std::vector<std::set<uint32_t>> keep;
  for (uint32_t p = 0; p < planes.planes(); ++p) keep.push_back(Named(s, planes, scores, p));
  struct Row {
    float score;
    uint32_t position, plane, row;
  };
  const auto fill = [&](std::vector<uint32_t> heads, uint64_t total) {
    std::vector<Row> rest;
    uint64_t kept = 0;
    for (uint32_t p : heads) {
      kept += keep[p].size();
      for (uint32_t row = 0; row < planes.rows(p); ++row) {
        if (!keep[p].contains(row)) {
          rest.push_back({scores[p][row], planes.positions(p)[row], p, row});
        }
      }
    }
    std::sort(rest.begin(), rest.end(), [](const Row& a, const Row& b) {
      return std::tuple(-a.score, UINT32_MAX - a.position, a.plane) <
             std::tuple(-b.score, UINT32_MAX - b.position, b.plane);
    });
    for (const Row& row : rest) {
      if (kept >= total) break;
      keep[row.plane].insert(row.row);
      ++kept;
    }
  };
  for (uint32_t p = 0; p < planes.planes(); ++p) {
    const uint32_t total = s.Rule(p).total;
    const bool layer = s.scope == Scope::kLayer;
    if ((layer || s.scope == Scope::kSession) && s.score.kind != Kind::kNone) {
      fill({p}, s.floor);
      if (layer && p % 2 == 1) fill({p - 1, p}, uint64_t{s.Rule(p - 1).total} + total);
      if (!layer && p == 3) {
        fill({0, 1, 2, 3},
             uint64_t{s.Rule(0).total} + s.Rule(1).total + s.Rule(2).total + s.Rule(3).total);
      }
    } else if (planes.rows(p) <= total) {
      for (uint32_t row = 0; row < planes.rows(p); ++row) keep[p].insert(row);
    } else if (s.score.kind != Kind::kNone) {
      fill({p}, total);
    }
  }
  std::vector<KeepRows> rows;
  for (const auto& head : keep) rows.emplace_back(head.begin(), head.end());
  return rows;
}

// Random statistics with many ties, positions out of order, heads of different length but where
// they must agree.
Planes RandomPlanes(std::mt19937& random, Scope scope) {
  Planes planes(kGeometry, {.last_hit = true, .flags = true});
  planes.Append(random() % 5, 1 + random() % 80);
  std::vector<uint32_t> source;
  for (uint32_t p = 0; p < planes.planes(); ++p) {
    if (p % 2 == 0 || scope != Scope::kLayerMean) {
      source.resize(planes.rows(p));
      std::iota(source.begin(), source.end(), 0);
      std::shuffle(source.begin(), source.end(), random);
      source.resize(source.size() - random() % (source.size() / 4 + 1));
    }
    planes.Gather(p, source);
    for (uint32_t row = 0; row < planes.rows(p); ++row) {
      planes.flags(p)[row] = static_cast<uint8_t>(random() % 16 == 0 ? 1 << random() % 3 : 0);
      planes.last_hits(p)[row] = static_cast<uint16_t>(random() % 50);
    }
  }
  return planes;
}

TEST(Selection, MatchesFullSorts) {
  for (uint32_t seed = 0; seed < 2000; ++seed) {
    std::mt19937 random(seed);
    Selection s{.scope = static_cast<Scope>(random() % 4),
                .floor = static_cast<uint32_t>(random() % 12)};
    s.score.kind = random() % 4 == 0 ? Kind::kNone : Kind::kRandom;
    s.score.pooling = static_cast<Pooling>(random() % 3);
    s.score.kernel = 1 + random() % 4 * 2;
    const Planes planes = RandomPlanes(random, s.scope);
    s.heads.resize(random() % 2 ? 1 : planes.planes());
    for (HeadRule& rule : s.heads) {
      rule = {.first = static_cast<uint32_t>(random() % 10),
              .recent = static_cast<uint32_t>(random() % 20),
              .flags = static_cast<uint8_t>(random() % 2 ? random() % 8 : 0),
              .hit_since = static_cast<uint32_t>(random() % 2 ? 30 + random() % 20 : 0),
              .top = static_cast<uint32_t>(random() % 2 ? random() % 20 : 0),
              .total = static_cast<uint32_t>(random() % 60)};
    }
    RowScores scores;
    for (uint32_t p = 0; p < planes.planes(); ++p) {
      scores.emplace_back();
      for (uint32_t row = 0; row < planes.rows(p); ++row) {
        const uint32_t draw = random() % 9;
        scores[p].push_back(draw == 8 ? std::nanf("") : static_cast<float>(draw));
      }
    }
    ASSERT_EQ(Select(s, kGeometry, planes, scores), Expected(s, planes, scores)) << "seed " << seed;
  }
}

TEST(Selection, NanGoesFirst) {
  Planes planes(TestGeometry(1, 1, 1, 8, 8, Dtype::kF32), {});
  planes.Append(0, 5);
  const Selection s{.heads = {{.total = 3}}, .score = {.kind = Kind::kRandom}};
  const RowScores scores = {{-3, std::nanf(""), -1e30f, std::nanf(""), 0}};
  EXPECT_EQ(Select(s, TestGeometry(1, 1, 1, 8, 8, Dtype::kF32), planes, scores),
            (std::vector<KeepRows>{{0, 2, 4}}));
}

TEST(Selection, PlaneScoresAreTheirPlanes) {
  Planes planes(TestGeometry(1, 1, 1, 8, 8, Dtype::kF32),
                {.low_count_ring = 3, .sum = true, .square_sum = true});
  planes.Append(0, 3);
  for (uint8_t low : {1, 2}) {
    planes.BeginDrain(32, 32);
    for (uint32_t row = 0; row < 3; ++row) {
      planes.low_counts(0, 0)[row] = static_cast<uint8_t>(low * row);
    }
  }
  planes.mass(0) = {1, 2, 3};
  planes.square_sum(0) = {4, 5, 6};
  EXPECT_EQ(PlaneScores({.kind = Kind::kLowCount, .window = 64}, planes), (RowScores{{0, -3, -6}}));
  EXPECT_EQ(PlaneScores({.kind = Kind::kLowCount, .window = 32}, planes), (RowScores{{0, -2, -4}}));
  EXPECT_EQ(PlaneScores({.kind = Kind::kSquareSum}, planes), (RowScores{{4, 5, 6}}));
  planes.Gather(0, {2, 0});
  planes.mass(0)[1] = 10;
  EXPECT_EQ(PlaneScores({.kind = Kind::kSum}, planes), (RowScores{{3, 11}}));
}

TEST(Selection, RecoveryIsTheShareOfMassThatStays) {
  Planes planes(TestGeometry(1, 3, 3, 8, 8, Dtype::kF32), {});
  planes.Append(0, 4);
  planes.mass(0) = {1, 2, 3, 4};
  planes.mass(1) = {0, 0, 0, 0};
  planes.mass(2) = {1, 1, 1, 1};
  const std::vector<float> recovery = Recovery({{1, 3}, {0, 1, 2, 3}, {0, 1, 2, 3}}, planes);
  ASSERT_EQ(recovery.size(), 3u);
  EXPECT_FLOAT_EQ(recovery[0], 0.6f);
  EXPECT_LT(recovery[1], 0);  // no mass, nothing to tell
  EXPECT_FLOAT_EQ(recovery[2], 1.0f);
}

}  // namespace
}  // namespace kvpool
