// Host executor of selections: partial orders, never a full sort.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "kernels/persistence.h"
#include "kernels/selection.h"

namespace kvpool {
namespace {

// A row that may be kept by its score.
struct Candidate {
  float score;
  uint32_t position, head, row;

  // A total order: higher scores first, then newer rows, then lower heads.
  bool operator<(const Candidate& other) const {
    if (score != other.score) return score > other.score;
    if (position != other.position) return position > other.position;
    return head < other.head;
  }
};

// One head while it is decided which of its rows stay.
struct Head {
  std::vector<bool> keep;
  uint32_t kept = 0;

  void Keep(uint32_t row) {
    if (keep[row]) return;
    keep[row] = true;
    ++kept;
  }
};

// Puts the `count` best first; fewer when there are fewer.
uint32_t BestFirst(std::vector<Candidate>* candidates, uint32_t count) {
  const auto best = static_cast<uint32_t>(std::min<size_t>(count, candidates->size()));
  if (best < candidates->size()) {
    std::nth_element(candidates->begin(), candidates->begin() + best, candidates->end());
  }
  return best;
}

// Lowest position among the `recent` newest rows; one past every position when recent is 0.
uint64_t RecentFrom(const std::vector<uint32_t>& positions, uint32_t recent) {
  if (recent == 0) return uint64_t{1} << 32;
  if (recent >= positions.size()) return 0;
  std::vector<uint32_t> order = positions;
  std::nth_element(order.begin(), order.begin() + (recent - 1), order.end(), std::greater<>());
  return order[recent - 1];
}

class Selector {
 public:
  Selector(const Selection& selection, const Geometry& geometry, const Planes& planes,
           const RowScores& scores)
      : selection_(selection), geometry_(geometry), planes_(planes), scores_(scores) {}

  std::vector<KeepRows> Run() {
    ShareLayers();
    Rank();
    heads_.resize(planes_.planes());
    for (uint32_t plane = 0; plane < planes_.planes(); ++plane) KeepNamed(plane);
    Fill();
    std::vector<KeepRows> keep(heads_.size());
    for (uint32_t plane = 0; plane < heads_.size(); ++plane) {
      keep[plane].reserve(heads_[plane].kept);
      for (uint32_t row = 0; row < planes_.rows(plane); ++row) {
        if (heads_[plane].keep[row]) keep[plane].push_back(row);
      }
    }
    return keep;
  }

 private:
  void ShareLayers() {
    if (selection_.persistence_gain <= 0) return;
    const HeadRule rule = selection_.heads.front();
    const std::vector<double> persistence =
        LayerPersistence(geometry_, planes_, selection_.score.window);
    selection_.heads.clear();
    for (uint32_t total : ShareByPersistence(persistence, selection_.persistence_gain, rule.total,
                                             std::min(rule.recent, rule.total))) {
      for (uint32_t head = 0; head < geometry_.kv_heads; ++head) {
        selection_.heads.push_back(rule);
        selection_.heads.back().total = total;
      }
    }
  }

  bool ranked() const { return selection_.score.kind != RowScore::Kind::kNone; }

  // Makes scores comparable and, as the selection says, averages and smooths them.
  void Rank() {
    if (!ranked()) return;
    for (std::vector<float>& head : scores_) {
      for (float& score : head) {
        if (std::isnan(score)) score = -std::numeric_limits<float>::infinity();
      }
    }
    if (selection_.scope == Selection::Scope::kLayerMean) {
      for (uint32_t layer = 0; layer < geometry_.layers; ++layer) {
        AverageLayer(layer * geometry_.kv_heads);
      }
    }
    if (selection_.score.pooling == RowScore::Pooling::kNone) return;
    for (uint32_t plane = 0; plane < planes_.planes(); ++plane) {
      const std::vector<uint32_t>& positions = planes_.positions(plane);
      const uint64_t recent_from = RecentFrom(positions, selection_.Rule(plane).recent);
      std::vector<uint32_t> rows;
      for (uint32_t row = 0; row < positions.size(); ++row) {
        if (positions[row] < recent_from) rows.push_back(row);
      }
      std::sort(rows.begin(), rows.end(),
                [&](uint32_t a, uint32_t b) { return positions[a] < positions[b]; });
      Pool(selection_.score, rows, &scores_[plane]);
    }
  }

  // Heads that hold other rows than the layer's first one keep their own scores: then there is no
  // row that all of them could agree on.
  void AverageLayer(uint32_t first) {
    std::vector<uint32_t> alike;
    for (uint32_t plane = first; plane < first + geometry_.kv_heads; ++plane) {
      if (planes_.positions(plane) == planes_.positions(first)) alike.push_back(plane);
    }
    std::vector<float> mean(planes_.rows(first));
    for (uint32_t row = 0; row < mean.size(); ++row) {
      for (uint32_t plane : alike) mean[row] += scores_[plane][row];
      mean[row] /= static_cast<float>(alike.size());
    }
    for (uint32_t plane : alike) scores_[plane] = mean;
  }

  std::vector<Candidate> Candidates(uint32_t plane) const {
    std::vector<Candidate> candidates;
    for (uint32_t row = 0; row < planes_.rows(plane); ++row) {
      if (heads_[plane].keep[row]) continue;
      candidates.push_back({scores_[plane][row], planes_.positions(plane)[row], plane, row});
    }
    return candidates;
  }

  void KeepBest(std::vector<Candidate>* candidates, uint32_t count) {
    const uint32_t best = BestFirst(candidates, count);
    for (uint32_t i = 0; i < best; ++i) {
      heads_[(*candidates)[i].head].Keep((*candidates)[i].row);
    }
  }

  // Every row that a rule names but for those that fill up `total`.
  void KeepNamed(uint32_t plane) {
    const HeadRule& rule = selection_.Rule(plane);
    const std::vector<uint32_t>& positions = planes_.positions(plane);
    Head& head = heads_[plane];
    head.keep.resize(positions.size());
    if (rule.top > 0 && ranked()) {  // before anything is kept: of all rows
      std::vector<Candidate> candidates = Candidates(plane);
      KeepBest(&candidates, rule.top);
    }
    const uint64_t recent_from = RecentFrom(positions, rule.recent);
    for (uint32_t row = 0; row < positions.size(); ++row) {
      if (positions[row] < rule.first || positions[row] >= recent_from) head.Keep(row);
      if (rule.flags != 0 && (planes_.flags(plane)[row] & rule.flags) != 0) head.Keep(row);
      if (rule.hit_since != 0 && planes_.HitSince(plane, row, rule.hit_since)) head.Keep(row);
    }
  }

  void Fill() {
    const bool layer = selection_.scope == Selection::Scope::kLayer;
    if (ranked() && (layer || selection_.scope == Selection::Scope::kSession)) {
      const uint32_t planes = layer ? geometry_.kv_heads : planes_.planes();
      for (uint32_t first = 0; first < planes_.planes(); first += planes) FillShared(first, planes);
      return;
    }
    for (uint32_t plane = 0; plane < planes_.planes(); ++plane) FillHead(plane);
  }

  void FillHead(uint32_t plane) {
    const uint32_t total = selection_.Rule(plane).total;
    Head& head = heads_[plane];
    if (planes_.rows(plane) <= total) {
      for (uint32_t row = 0; row < planes_.rows(plane); ++row) head.Keep(row);
    } else if (ranked() && head.kept < total) {
      std::vector<Candidate> candidates = Candidates(plane);
      KeepBest(&candidates, total - head.kept);
    }
  }

  // Heads first .. first + count - 1 share the sum of their totals.
  void FillShared(uint32_t first, uint32_t count) {
    uint64_t total = 0, kept = 0;
    std::vector<Candidate> candidates;
    for (uint32_t plane = first; plane < first + count; ++plane) {
      total += selection_.Rule(plane).total;
      if (heads_[plane].kept < selection_.floor) {
        std::vector<Candidate> own = Candidates(plane);
        KeepBest(&own, selection_.floor - heads_[plane].kept);
      }
      kept += heads_[plane].kept;
      const std::vector<Candidate> rest = Candidates(plane);
      candidates.insert(candidates.end(), rest.begin(), rest.end());
    }
    const uint64_t places = total > kept ? total - kept : 0;
    KeepBest(&candidates, static_cast<uint32_t>(std::min<uint64_t>(places, candidates.size())));
  }

  Selection selection_;
  const Geometry& geometry_;
  const Planes& planes_;
  RowScores scores_;
  std::vector<Head> heads_;
};

std::vector<float> FewLowMarks(const Planes& planes, uint32_t plane, uint32_t window) {
  // Counts of a window fit a float exactly.
  std::vector<float> scores(planes.rows(plane));
  const uint32_t drains = planes.DrainsWithin(window);
  for (uint32_t age = 0; age < drains; ++age) {
    const uint8_t* low = planes.low_counts(plane, age);
    for (size_t row = 0; row < scores.size(); ++row) scores[row] -= low[row];
  }
  return scores;
}

std::vector<float> Sums(const Planes& planes, uint32_t plane) {
  std::vector<float> scores(planes.rows(plane));
  for (uint32_t row = 0; row < scores.size(); ++row) scores[row] = planes.Sum(plane, row);
  return scores;
}

}  // namespace

void Pool(const RowScore& how, const std::vector<uint32_t>& rows, std::vector<float>* scores) {
  const auto half = static_cast<ptrdiff_t>(how.kernel / 2);
  const auto count = static_cast<ptrdiff_t>(rows.size());
  std::vector<float> pooled(rows.size());
  for (ptrdiff_t i = 0; i < count; ++i) {
    const ptrdiff_t from = std::max<ptrdiff_t>(0, i - half), to = std::min(count, i + half + 1);
    float sum = 0, highest = -std::numeric_limits<float>::infinity();
    for (ptrdiff_t k = from; k < to; ++k) {
      sum += (*scores)[rows[k]];
      highest = std::max(highest, (*scores)[rows[k]]);
    }
    pooled[i] =
        how.pooling == RowScore::Pooling::kMax ? highest : sum / static_cast<float>(how.kernel);
  }
  for (ptrdiff_t i = 0; i < count; ++i) (*scores)[rows[i]] = pooled[i];
}

RowScores PlaneScores(const RowScore& score, const Planes& planes) {
  RowScores scores;
  for (uint32_t plane = 0; plane < planes.planes(); ++plane) {
    switch (score.kind) {
      case RowScore::Kind::kLowCount:
        scores.push_back(FewLowMarks(planes, plane, score.window));
        break;
      case RowScore::Kind::kSum:
        scores.push_back(Sums(planes, plane));
        break;
      case RowScore::Kind::kSquareSum:
        scores.push_back(planes.square_sum(plane));
        break;
      default:
        scores.emplace_back();
    }
  }
  return scores;
}

std::vector<KeepRows> Select(const Selection& selection, const Geometry& geometry,
                             const Planes& planes, const RowScores& scores) {
  return Selector(selection, geometry, planes, scores).Run();
}

std::vector<float> Recovery(const std::vector<KeepRows>& keep, const Planes& planes) {
  std::vector<float> recovery;
  recovery.reserve(keep.size());
  for (uint32_t plane = 0; plane < keep.size(); ++plane) {
    const std::vector<float>& mass = planes.mass(plane);
    const double total = std::accumulate(mass.begin(), mass.end(), 0.0);
    double kept = 0;
    for (uint32_t row : keep[plane]) kept += mass[row];
    recovery.push_back(total > 0 ? static_cast<float>(kept / total) : -1.0f);
  }
  return recovery;
}

}  // namespace kvpool
