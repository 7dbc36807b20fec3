// Selections against the definition: a full sort of every row by what it says.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/selection.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "tests/kernels/test_session.h"

namespace kvpool {
namespace {

// first ∪ recent ∪ lowest ranks, by sorting everything.
KeepRows Expected(const Selection& s, const Planes& planes, uint32_t plane) {
  const std::vector<uint32_t>& position = planes.positions(plane);
  KeepRows order(position.size());
  std::iota(order.begin(), order.end(), 0);
  if (order.size() <= s.total) return order;
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return position[a] > position[b]; });
  KeepRows keep, rest;
  for (size_t i = 0; i < order.size(); ++i) {
    const bool stays = i < s.recent || position[order[i]] < s.first;
    (stays ? keep : rest).push_back(order[i]);
  }
  // `rest` is newest first already, so a stable sort breaks ties the right way.
  std::stable_sort(rest.begin(), rest.end(), [&](uint32_t a, uint32_t b) {
    return planes.LowCount(plane, a, s.window) < planes.LowCount(plane, b, s.window);
  });
  for (uint32_t row : rest) {
    if (s.rank == Selection::Rank::kNone || keep.size() >= s.total) break;
    keep.push_back(row);
  }
  std::sort(keep.begin(), keep.end());
  return keep;
}

TEST(Selection, MatchesAFullSort) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    const Geometry g = TestGeometry(1, 2, 2, 8, 8, Dtype::kF32);
    Planes planes(g, {.low_count_ring = 4});
    planes.Append(random() % 5, random() % 80);
    for (int drain = 0; drain < 3; ++drain) {
      planes.BeginDrain(17);
      for (uint32_t p = 0; p < 2; ++p) {
        for (uint32_t row = 0; row < planes.rows(p); ++row) {
          planes.low_counts(p, 0)[row] = static_cast<uint8_t>(random() % 4);  // many ties
        }
      }
    }
    for (uint32_t p = 0; p < 2; ++p) {  // positions out of order, heads of different length
      std::vector<uint32_t> source(planes.rows(p));
      std::iota(source.begin(), source.end(), 0);
      std::shuffle(source.begin(), source.end(), random);
      source.resize(source.size() - random() % (source.size() / 4 + 1));
      planes.Gather(p, source);
    }
    Selection s{.first = static_cast<uint32_t>(random() % 10),
                .recent = static_cast<uint32_t>(random() % 20)};
    s.total = s.first + s.recent + random() % 30;
    s.rank = random() % 2 ? Selection::Rank::kLowCount : Selection::Rank::kNone;
    s.window = 1 + random() % 60;
    const std::vector<KeepRows> keep = Select(s, planes);
    ASSERT_EQ(keep.size(), 2u);
    for (uint32_t p = 0; p < 2; ++p) ASSERT_EQ(keep[p], Expected(s, planes, p)) << "seed " << seed;
  }
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
