// Host twin of scores from keys.
//
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/scores/keys.h"
#include "kernels/scores/parts.h"

namespace kvpool {
namespace {

// Calls visit(row, key) for every row of a head.
template <typename Visit>
void ForEachKey(const DerivedScoreArgs& args, uint32_t plane, const Visit& visit) {
  RowTiles tiles(args, plane, RowTiles::Parts::kKeys);
  while (tiles.Next()) {
    for (uint32_t i = 0; i < tiles.rows(); ++i) visit(tiles.first() + i, tiles.key(i));
  }
}

std::vector<float> DifferenceOf(const DerivedScoreArgs& args, uint32_t plane) {
  const uint32_t dim = args.layout->geometry().key_dim;
  std::vector<double> anchor(dim);  // the sum does: a cosine does not know lengths
  std::vector<double> norms(args.session.Length(plane));
  ForEachKey(args, plane, [&](uint32_t row, const float* key) {
    norms[row] = Norm(key, dim);
    if (!std::isfinite(norms[row]) || norms[row] == 0) return;
    for (uint32_t d = 0; d < dim; ++d) anchor[d] += key[d] / norms[row];
  });
  double squares = 0;
  for (double x : anchor) squares += x * x;
  std::vector<float> scores(norms.size());
  ForEachKey(args, plane, [&](uint32_t row, const float* key) {
    double dot = 0;
    for (uint32_t d = 0; d < dim; ++d) dot += key[d] * anchor[d];
    const double lengths = norms[row] * std::sqrt(squares);
    scores[row] = !std::isfinite(norms[row]) ? std::numeric_limits<float>::quiet_NaN()
                  : lengths == 0             ? 0
                                             : static_cast<float>(-dot / lengths);
  });
  return scores;
}

}  // namespace

RowScores KeyNormScores(const DerivedScoreArgs& args) {
  RowScores scores;
  for (uint32_t plane = 0; plane < args.layout->geometry().planes(); ++plane) {
    scores.emplace_back(args.session.Length(plane));
    ForEachKey(args, plane, [&](uint32_t row, const float* key) {
      scores[plane][row] = static_cast<float>(-Norm(key, args.layout->geometry().key_dim));
    });
  }
  return scores;
}

RowScores KeyDiffScores(const DerivedScoreArgs& args) {
  RowScores scores;
  for (uint32_t plane = 0; plane < args.layout->geometry().planes(); ++plane) {
    scores.push_back(DifferenceOf(args, plane));
  }
  return scores;
}

}  // namespace kvpool
