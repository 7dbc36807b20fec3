// Host twin of R-KV's scores.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "common/units.h"
#include "kernels/scores/parts.h"
#include "kernels/scores/redundancy.h"

namespace kvpool {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// One head. Its rows are numbered by their positions here: place 0 is the oldest.
class HeadScorer {
 public:
  HeadScorer(const RowScore& score, const DerivedScoreArgs& args, uint32_t plane)
      : score_(score),
        args_(args),
        plane_(plane),
        dim_(args.layout->geometry().key_dim),
        rows_(args.session.Length(plane)),
        older_(rows_ - std::min(rows_, score.window)),
        row_at_(rows_),
        place_of_(rows_),
        finite_(rows_) {
    const std::vector<uint32_t>& positions = args.planes->positions(plane);
    std::iota(row_at_.begin(), row_at_.end(), 0);
    std::sort(row_at_.begin(), row_at_.end(),
              [&](uint32_t a, uint32_t b) { return positions[a] < positions[b]; });
    for (uint32_t place = 0; place < rows_; ++place) place_of_[row_at_[place]] = place;
  }

  std::vector<float> Run() {
    ReadKeys();
    const std::vector<float> importance = Importance();
    const std::vector<double> redundancy = Redundancy();
    std::vector<float> scores(rows_);
    for (uint32_t place = 0; place < rows_; ++place) {
      const double z = score_.redundancy.lambda * importance[place] -
                       (1 - score_.redundancy.lambda) * redundancy[place];
      scores[row_at_[place]] = static_cast<float>(finite_[place] ? z : kNone);
    }
    return scores;
  }

 private:
  // Fills the keys of norm 1 and, for each query, the largest logit of its query heads.
  void ReadKeys() {
    const Geometry& g = args_.layout->geometry();
    const QueryWindow& window = args_.planes->window();
    const std::vector<uint32_t> readers = ReadersOf(g, plane_);
    const auto heads = static_cast<uint32_t>(readers.size());
    const auto kept = static_cast<uint32_t>(window.positions.size());
    queries_ = heads == 0 ? 0 : std::min(score_.window, kept);
    Columns columns(queries_ * heads, dim_);
    for (uint32_t i = 0; i < queries_ * heads; ++i) {
      const size_t query = kept - queries_ + i / heads;
      const size_t vector = query * g.model_layers() * g.query_heads + readers[i % heads];
      columns.Set(i, &window.vectors[vector * dim_]);
    }
    logits_.assign(queries_, std::vector<double>(rows_));
    units_.resize((size_t{rows_} + simd::kTileRows) * dim_);
    std::vector<float> products(size_t{simd::kTileRows} * columns.width());
    RowTiles tiles(args_, plane_, RowTiles::Parts::kKeys);
    while (tiles.Next()) {
      columns.Multiply(tiles.keys(), products.data());
      for (uint32_t i = 0; i < tiles.rows(); ++i) {
        const uint32_t place = place_of_[tiles.first() + i];
        const float* const own = products.data() + size_t{i} * columns.width();
        for (uint32_t query = 0; query < queries_; ++query) {
          logits_[query][place] = args_.scale * *std::max_element(own + size_t{query} * heads,
                                                                  own + size_t{query + 1} * heads);
        }
        SetUnit(place, tiles.key(i));
      }
    }
  }

  void SetUnit(uint32_t place, const float* key) {
    const double norm = Norm(key, dim_);
    finite_[place] = std::isfinite(norm);
    if (!finite_[place] || norm == 0) return;
    for (uint32_t d = 0; d < dim_; ++d) {
      units_[size_t{place} * dim_ + d] = static_cast<float>(key[d] / norm);
    }
  }

  // Of every place; 0 for the newest.
  std::vector<float> Importance() {
    const QueryWindow& window = args_.planes->window();
    const std::vector<uint32_t>& positions = args_.planes->positions(plane_);
    std::vector<double> sum(rows_);
    uint32_t counted = 0;
    for (uint32_t query = 0; query < queries_; ++query) {
      const uint32_t at = window.positions[window.positions.size() - queries_ + query];
      for (uint32_t place = 0; place < rows_; ++place) {
        const bool seen = place < older_ && positions[row_at_[place]] <= at && finite_[place];
        if (!seen) logits_[query][place] = kNone;
      }
      if (Softmax(&logits_[query]) == 0) continue;
      ++counted;
      for (uint32_t place = 0; place < rows_; ++place) sum[place] += logits_[query][place];
    }
    std::vector<float> importance(rows_);
    for (uint32_t place = 0; place < rows_ && counted > 0; ++place) {
      importance[place] = static_cast<float>(sum[place] / counted);
    }
    std::vector<uint32_t> places(older_);
    std::iota(places.begin(), places.end(), 0);
    Pool({.pooling = RowScore::Pooling::kMax, .kernel = score_.kernel}, places, &importance);
    return importance;
  }

  std::vector<double> Redundancy() {
    std::vector<double> likeness(rows_);
    const uint32_t runs = CeilDiv(rows_, score_.redundancy.compared);
    for (uint32_t run = 0; run < runs; ++run) {
      const auto first = static_cast<uint32_t>(uint64_t{rows_} * run / runs);
      const auto end = static_cast<uint32_t>(uint64_t{rows_} * (run + 1) / runs);
      Compare(first, end, likeness.data() + first);
    }
    for (uint32_t place = 0; place < rows_; ++place) {
      if (!finite_[place]) likeness[place] = kNone;
    }
    Softmax(&likeness);
    return likeness;
  }

  // The mean of each column of S of the places first .. end - 1.
  void Compare(uint32_t first, uint32_t end, double* likeness) const {
    const uint32_t count = end - first;
    Columns columns(count, dim_);
    for (uint32_t i = 0; i < count; ++i) columns.Set(i, &units_[size_t{first + i} * dim_]);
    std::vector<float> cosines(size_t{simd::kTileRows} * columns.width());
    for (uint32_t tile = 0; tile < count; tile += simd::kTileRows) {
      columns.Multiply(&units_[size_t{first + tile} * dim_], cosines.data());
      for (uint32_t i = tile; i < std::min(count, tile + simd::kTileRows); ++i) {
        float* const own = cosines.data() + size_t{i - tile} * columns.width();
        own[i] = 0;
        for (uint32_t j = count; j > 0; --j) {
          if (own[j - 1] <= score_.redundancy.threshold) continue;
          own[j - 1] = 0;
          break;
        }
        for (uint32_t j = 0; j < count; ++j) likeness[j] += own[j];
      }
    }
    for (uint32_t j = 0; j < count; ++j) likeness[j] /= count;
  }

  const RowScore& score_;
  const DerivedScoreArgs& args_;
  const uint32_t plane_, dim_, rows_;
  const uint32_t older_;                     // places that are not among the newest `window`
  std::vector<uint32_t> row_at_;             // [places]
  std::vector<uint32_t> place_of_;           // [rows]
  std::vector<bool> finite_;                 // [places]
  std::vector<float> units_;                 // [places + 16][dim], the last ones for the last tile
  uint32_t queries_ = 0;                     // that vote
  std::vector<std::vector<double>> logits_;  // [queries][places], later probabilities
};

}  // namespace

RowScores RedundancyScores(const RowScore& score, const DerivedScoreArgs& args) {
  RowScores scores;
  for (uint32_t plane = 0; plane < args.layout->geometry().planes(); ++plane) {
    scores.push_back(HeadScorer(score, args, plane).Run());
  }
  return scores;
}

}  // namespace kvpool
