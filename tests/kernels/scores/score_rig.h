// A session of random rows with planes that know where they are, for tests of derived scores:
// compacted rows in no order of positions, sealed ones among them, then fresh ones.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/derived_scores.h"
#include "tests/kernels/test_session.h"

namespace kvpool {

// Sessions in every format, heads of many lengths.
inline std::vector<SessionShape> ScoreShapes() {
  return {{.fresh = 37},
          {.max_compacted = 41, .fresh = 20, .loose_pages = 2},
          {.max_compacted = 19, .max_sealed = 70, .sealed = SealedFormat::kInt8, .fresh = 1},
          {.max_compacted = 3, .max_sealed = 33, .sealed = SealedFormat::kInt4, .fresh = 17},
          {.max_compacted = 50, .max_sealed = 40, .sealed = SealedFormat::kFp8}};
}

// Odd dimensions, layers that several model layers read, and one that none does.
inline std::vector<Geometry> ScoreGeometries() {
  Geometry shared = TestGeometry(2, 6, 3, 16, 0, Dtype::kF16);
  shared.kv_of_layer = {0, 1, 0};
  Geometry unread = TestGeometry(2, 2, 1, 8, 8, Dtype::kF32);
  unread.kv_of_layer = {1};
  return {TestGeometry(2, 4, 2, 20, 12, Dtype::kBf16), TestGeometry(1, 3, 3, 7, 64, Dtype::kF32),
          shared, unread};
}

struct ScoreRig {
  ScoreRig(const Geometry& geometry, const SessionShape& shape, uint32_t seed,
           const PlaneSet& set = {})
      : session(geometry, shape, seed), planes(geometry, set) {
    planes.Append(0, fresh_start);
    std::vector<uint32_t> source(fresh_start);
    for (uint32_t p = 0; p < geometry.planes(); ++p) {
      source.resize(fresh_start);
      std::iota(source.begin(), source.end(), 0);
      std::shuffle(source.begin(), source.end(), session.random());
      source.resize(session.View().CompactedLength(p));
      planes.Gather(p, source);
    }
    planes.Append(fresh_start, shape.fresh);
  }

  const Geometry& geometry() const { return session.layout().geometry(); }
  uint32_t rows(uint32_t plane) const { return session.View().Length(plane); }
  DerivedScoreArgs Args() {
    return {.layout = &session.layout(),
            .base = session.base(),
            .session = session.View(),
            .fresh_start = fresh_start,
            .selected_step = fresh_start,
            .planes = &planes,
            .scale = 1.0f / std::sqrt(static_cast<float>(geometry().key_dim))};
  }

  static constexpr uint32_t fresh_start = 300;
  TestSession session;
  Planes planes;
};

inline double Dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

}  // namespace kvpool
