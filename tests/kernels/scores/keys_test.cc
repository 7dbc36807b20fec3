// Scores from keys against their formulas in float64.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/scores/keys.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/scores/score_rig.h"

namespace kvpool {
namespace {

std::vector<ScoreRig> Rigs() {
  std::vector<ScoreRig> rigs;
  uint32_t seed = 0;
  for (const SessionShape& shape : ScoreShapes()) {
    rigs.emplace_back(TestGeometry(2, 4, 2, 20, 12, Dtype::kBf16), shape, ++seed);
    rigs.emplace_back(TestGeometry(1, 3, 3, 64, 64, Dtype::kF32), shape, ++seed);
  }
  return rigs;
}

TEST(KeyScores, NormIsTheNorm) {
  for (ScoreRig& rig : Rigs()) {
    const RowScores scores = DerivedScores({.kind = RowScore::Kind::kKeyNorm}, rig.Args());
    for (uint32_t p = 0; p < rig.geometry().planes(); ++p) {
      ASSERT_EQ(scores[p].size(), rig.rows(p));
      for (uint32_t row = 0; row < rig.rows(p); ++row) {
        const auto& key = rig.session.key(p, row);
        ASSERT_NEAR(scores[p][row], -std::sqrt(Dot(key, key)), 1e-4);
      }
    }
  }
}

TEST(KeyScores, DifferenceIsTheCosineWithTheAnchor) {
  for (ScoreRig& rig : Rigs()) {
    const RowScores scores = DerivedScores({.kind = RowScore::Kind::kKeyDiff}, rig.Args());
    for (uint32_t p = 0; p < rig.geometry().planes(); ++p) {
      ASSERT_EQ(scores[p].size(), rig.rows(p));
      std::vector<double> anchor(rig.geometry().key_dim);
      for (uint32_t row = 0; row < rig.rows(p); ++row) {
        const auto& key = rig.session.key(p, row);
        for (size_t d = 0; d < key.size(); ++d) {
          anchor[d] += key[d] / std::sqrt(Dot(key, key)) / rig.rows(p);
        }
      }
      for (uint32_t row = 0; row < rig.rows(p); ++row) {
        const auto& key = rig.session.key(p, row);
        double dot = 0, length = 0;
        for (size_t d = 0; d < key.size(); ++d) {
          dot += key[d] * anchor[d];
          length += anchor[d] * anchor[d];
        }
        ASSERT_NEAR(scores[p][row], -dot / std::sqrt(length * Dot(key, key)), 1e-4);
      }
    }
  }
}

TEST(KeyScores, AKeyThatIsNoNumberSpoilsItsOwnRowOnly) {
  ScoreRig rig(TestGeometry(1, 1, 1, 8, 8, Dtype::kF32), {.fresh = 20}, 3);
  const RowScores before = DerivedScores({.kind = RowScore::Kind::kKeyDiff}, rig.Args());
  const auto value = rig.session.value(0, 0);
  rig.session.SetRow(0, 7, std::vector<float>(8, NAN), value);
  rig.session.SetRow(0, 8, std::vector<float>(8, INFINITY), value);
  rig.session.SetRow(0, 9, std::vector<float>(8, 0), value);
  const RowScores norms = DerivedScores({.kind = RowScore::Kind::kKeyNorm}, rig.Args());
  EXPECT_TRUE(std::isnan(norms[0][7]));
  EXPECT_EQ(norms[0][8], -INFINITY);
  EXPECT_EQ(norms[0][9], 0);
  const RowScores scores = DerivedScores({.kind = RowScore::Kind::kKeyDiff}, rig.Args());
  EXPECT_TRUE(std::isnan(scores[0][7]));
  EXPECT_TRUE(std::isnan(scores[0][8]));
  EXPECT_EQ(scores[0][9], 0);
  for (uint32_t row = 0; row < 7; ++row) {
    EXPECT_TRUE(std::isfinite(scores[0][row]));
    EXPECT_NE(scores[0][row], before[0][row]);  // three keys fewer in the anchor
  }
}

TEST(KeyScores, KeysThatCancelScoreNothing) {
  ScoreRig rig(TestGeometry(1, 1, 1, 2, 2, Dtype::kF32), {.fresh = 2}, 3);
  rig.session.SetRow(0, 0, {1, 2}, {0, 0});
  rig.session.SetRow(0, 1, {-1, -2}, {0, 0});
  EXPECT_EQ(DerivedScores({.kind = RowScore::Kind::kKeyDiff}, rig.Args()), (RowScores{{0, 0}}));
}

}  // namespace
}  // namespace kvpool
