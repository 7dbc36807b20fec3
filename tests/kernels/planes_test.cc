// Planes against a model that remembers every drain of every row.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/planes.h"

#include <gtest/gtest.h>

#include <deque>
#include <random>

#include "kernels/selection.h"
#include "tests/kernels/test_session.h"

namespace kvpool {
namespace {

const Geometry kGeometry = TestGeometry(2, 2, 1, 8, 8, Dtype::kF32);

// The score by low marks of every row of a plane: how many there are, negative.
std::vector<float> LowMarks(const Planes& planes, uint32_t plane, uint32_t window) {
  return PlaneScores({.kind = RowScore::Kind::kLowCount, .window = window}, planes)[plane];
}

TEST(Planes, BytesFollowTheFormula) {
  EXPECT_EQ(PlaneBytes(kGeometry, {}, 100), 2u * 100 * 8);
  EXPECT_EQ(PlaneBytes(kGeometry, {.low_count_ring = 14}, 100), 2u * 100 * 22);
  EXPECT_EQ(PlaneBytes(kGeometry, {.last_hit = true}, 100), 2u * 100 * 10);
  EXPECT_EQ(PlaneBytes(kGeometry, {.sum = true}, 100), 2u * 100 * 12);
  EXPECT_EQ(PlaneBytes(kGeometry, {.square_sum = true}, 100), 2u * 100 * 12);
  EXPECT_EQ(PlaneBytes(kGeometry, {.flags = true}, 100), 2u * 100 * 9);
  // 2 layers of 2 query heads of 8 floats, and a position, for each query.
  EXPECT_EQ(PlaneBytes(kGeometry, {.window_queries = 3}, 100), 2u * 100 * 8 + 3 * 4 * 33);
}

TEST(Planes, AppendGivesPositionsAndZeroes) {
  Planes planes(kGeometry, {.low_count_ring = 2});
  planes.BeginDrain(32, 32);
  planes.Append(10, 3);
  planes.Append(13, 1);
  EXPECT_EQ(planes.planes(), 2u);
  for (uint32_t p = 0; p < 2; ++p) {
    EXPECT_EQ(planes.rows(p), 4u);
    EXPECT_EQ(planes.positions(p), (std::vector<uint32_t>{10, 11, 12, 13}));
    EXPECT_EQ(planes.mass(p), std::vector<float>(4));
    EXPECT_EQ(LowMarks(planes, p, 400), std::vector<float>(4));
  }
}

TEST(Planes, WithoutARingDrainsAreFree) {
  Planes planes(kGeometry, {});
  planes.Append(0, 5);
  planes.BeginDrain(7, 7);
  EXPECT_EQ(planes.drain_queries(0), 0u);
  EXPECT_EQ(planes.DrainsWithin(100), 0u);
  EXPECT_EQ(LowMarks(planes, 0, 100), std::vector<float>(5));
}

TEST(Planes, SmallDrainsShareAnEntryUpToAFullOne) {
  Planes planes(kGeometry, {.low_count_ring = 3});
  planes.Append(0, 1);
  for (uint32_t queries : {20, 12, 1, 31, 5, 32}) planes.BeginDrain(queries, 200);
  EXPECT_EQ(planes.drain_queries(0), 32u);  // 32
  EXPECT_EQ(planes.drain_queries(1), 5u);   // 5
  EXPECT_EQ(planes.drain_queries(2), 32u);  // 1 + 31; 20 + 12 fell out
  EXPECT_EQ(planes.drain_queries(3), 0u);
  EXPECT_EQ(planes.DrainsWithin(8), 1u);  // the newest always counts
  EXPECT_EQ(planes.DrainsWithin(36), 1u);
  EXPECT_EQ(planes.DrainsWithin(37), 2u);
  EXPECT_EQ(planes.DrainsWithin(1000), 3u);
}

// Random drains, appends and gathers: the score by low marks is the model's sum over whole entries,
// and a ring of 2 * ceil(w / 32) + 1 never forgets an entry that fits in w queries.
TEST(Planes, RandomHistoryMatchesTheModel) {
  struct Entry {
    uint32_t queries;
    std::vector<uint32_t> low;  // [rows]
  };
  for (uint32_t seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    const uint32_t window = 1 + random() % 200, ring = 2 * CeilDiv(window, kDrainQueries) + 1;
    Planes planes(kGeometry, {.low_count_ring = ring});
    std::deque<Entry> model;  // newest first, never forgets
    uint32_t rows = 0, next_position = 0;
    std::vector<uint32_t> positions;
    for (int step = 0; step < 60; ++step) {
      const uint32_t grow = random() % 20;
      planes.Append(next_position, grow);
      for (uint32_t i = 0; i < grow; ++i) positions.push_back(next_position++);
      rows += grow;
      for (Entry& e : model) e.low.resize(rows);

      const uint32_t queries = 1 + random() % kDrainQueries;
      planes.BeginDrain(queries, next_position);
      if (!model.empty() && model.front().queries + queries <= kDrainQueries) {
        model.front().queries += queries;
      } else {
        model.push_front({queries, std::vector<uint32_t>(rows)});
      }
      for (uint32_t row = 0; row < rows; ++row) {
        const uint32_t low = random() % (queries + 1);
        planes.low_counts(1, 0)[row] += static_cast<uint8_t>(low);
        model.front().low[row] += low;
      }
      if (step % 7 == 6 && rows > 0) {
        std::vector<uint32_t> source;
        for (uint32_t row = 0; row < rows; ++row) {
          if (random() % 2) source.push_back(row);
        }
        std::shuffle(source.begin(), source.end(), random);
        const auto gather = [&](std::vector<uint32_t>& v) {
          std::vector<uint32_t> out;
          for (uint32_t row : source) out.push_back(v[row]);
          v = out;
        };
        for (uint32_t p = 0; p < 2; ++p) planes.Gather(p, source);
        for (Entry& e : model) gather(e.low);
        gather(positions);
        rows = static_cast<uint32_t>(source.size());
      }
      ASSERT_EQ(planes.positions(1), positions);
      std::vector<float> expected(rows);
      for (uint32_t row = 0; row < rows; ++row) {
        uint32_t seen = 0;
        for (size_t i = 0; i < model.size(); ++i) {
          seen += model[i].queries;
          if (i > 0 && seen > window) break;
          expected[row] -= static_cast<float>(model[i].low[row]);
        }
      }
      ASSERT_EQ(LowMarks(planes, 1, window), expected) << "seed " << seed;
    }
  }
}

// However long the session: what was hit within the last kMaxHitWindow steps is known exactly.
TEST(Planes, LastHitsOutliveTheirTwoBytes) {
  std::mt19937 random(3);
  Planes planes(kGeometry, {.last_hit = true});
  planes.Append(0, 8);
  std::vector<uint32_t> hits(8);  // 0: never
  for (uint32_t step = 1; step < 400000; step += 1 + random() % 4000) {
    planes.BeginDrain(1, step);
    const uint32_t row = random() % 7;  // the last one is never hit
    hits[row] = step;
    ASSERT_GE(step, planes.hit_base());
    planes.last_hits(0)[row] = static_cast<uint16_t>(step - planes.hit_base());
    for (uint32_t window : {1u, 500u, 20000u, kMaxHitWindow}) {
      const uint32_t since = step < window ? 1 : step - window + 1;
      for (uint32_t i = 0; i < 8; ++i) {
        ASSERT_EQ(planes.HitSince(0, i, since), hits[i] >= since) << "step " << step;
      }
    }
  }
}

TEST(Planes, TheWindowHoldsTheNewestQueries) {
  Planes planes(kGeometry, {.window_queries = 3});
  const auto queries = [](std::vector<uint32_t> positions) {
    std::vector<float> vectors;
    for (uint32_t p : positions) vectors.insert(vectors.end(), 32, static_cast<float>(p));
    return vectors;
  };
  for (const std::vector<uint32_t>& drain :
       std::vector<std::vector<uint32_t>>{{1, 2}, {3, 4}, {5}, {6, 7, 8, 9}}) {
    planes.KeepQueries(drain, queries(drain));
    const uint32_t newest = drain.back();
    std::vector<uint32_t> expected;
    for (uint32_t p = newest < 3 ? 1 : newest - 2; p <= newest; ++p) expected.push_back(p);
    EXPECT_EQ(planes.window().positions, expected);
    EXPECT_EQ(planes.window().vectors, queries(expected));
  }
  Planes none(kGeometry, {});
  none.KeepQueries({1}, queries({1}));
  EXPECT_TRUE(none.window().positions.empty());
}

TEST(Planes, GatherMovesEveryPlaneAndSumsOutliveIt) {
  Planes planes(kGeometry, {.last_hit = true, .sum = true, .square_sum = true, .flags = true});
  planes.Append(0, 3);
  planes.mass(0) = {1, 2, 3};
  planes.square_sum(0) = {4, 5, 6};
  planes.last_hits(0) = {7, 8, 9};
  planes.flags(0) = {1, 2, 4};
  planes.Gather(0, {2, 0});
  EXPECT_EQ(planes.mass(0), std::vector<float>(2));
  EXPECT_EQ(planes.Sum(0, 0), 3);
  EXPECT_EQ(planes.Sum(0, 1), 1);
  EXPECT_EQ(planes.square_sum(0), (std::vector<float>{6, 4}));
  EXPECT_EQ(planes.last_hits(0), (std::vector<uint16_t>{9, 7}));
  EXPECT_EQ(planes.flags(0), (std::vector<uint8_t>{4, 1}));
  planes.mass(0) = {10, 20};
  planes.Gather(0, {1});
  EXPECT_EQ(planes.Sum(0, 0), 21);
}

TEST(Planes, ReorderKeepsMass) {
  Planes planes(kGeometry, {.low_count_ring = 1});
  planes.Append(0, 3);
  planes.BeginDrain(1, 3);
  planes.mass(0) = {1, 2, 3};
  planes.low_counts(0, 0)[2] = 7;
  planes.Reorder(0, {2, 0, 1});
  EXPECT_EQ(planes.positions(0), (std::vector<uint32_t>{2, 0, 1}));
  EXPECT_EQ(planes.mass(0), (std::vector<float>{3, 1, 2}));
  EXPECT_EQ(planes.low_counts(0, 0)[0], 7);
}

TEST(Planes, GatherResetsMass) {
  Planes planes(kGeometry, {});
  planes.Append(0, 3);
  planes.mass(0) = {1, 2, 3};
  planes.mass(1) = {4, 5, 6};
  planes.Gather(0, {2, 0});
  EXPECT_EQ(planes.positions(0), (std::vector<uint32_t>{2, 0}));
  EXPECT_EQ(planes.mass(0), std::vector<float>(2));
  EXPECT_EQ(planes.mass(1), (std::vector<float>{4, 5, 6}));
}

}  // namespace
}  // namespace kvpool
