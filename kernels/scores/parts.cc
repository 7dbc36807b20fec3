// See parts.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/scores/parts.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/units.h"
#include "kernels/simd/targets.h"

namespace kvpool {
namespace {

constexpr uint32_t kTile = simd::kTileRows;

}  // namespace

RowTiles::RowTiles(const DerivedScoreArgs& args, uint32_t plane, Parts parts)
    : head_(simd::RowsOf(*args.layout, args.base, args.session,
                         plane / args.layout->geometry().kv_heads,
                         plane % args.layout->geometry().kv_heads)),
      length_(args.session.Length(plane)),
      keys_(size_t{kTile} * head_.key_dim),
      values_(parts == Parts::kKeys ? 0 : size_t{kTile} * head_.value_dim) {}

bool RowTiles::Next() {
  first_ += rows_;
  if (first_ >= length_) return false;
  rows_ = simd::Targets().front().read_tile({.head = head_,
                                             .first = first_,
                                             .keys = keys_.data(),
                                             .values = values_.empty() ? nullptr : values_.data()});
  return true;
}

Columns::Columns(uint32_t count, uint32_t dim)
    : dim_(dim),
      blocks_(CeilDiv(count, simd::kMaxLanes)),
      columns_(size_t{blocks_} * dim * simd::kMaxLanes) {}

void Columns::Set(uint32_t column, const float* vector) {
  float* const to = &columns_[size_t{column / simd::kMaxLanes} * dim_ * simd::kMaxLanes +
                              column % simd::kMaxLanes];
  for (uint32_t d = 0; d < dim_; ++d) to[size_t{d} * simd::kMaxLanes] = vector[d];
}

void Columns::Multiply(const float* rows, float* out) const {
  simd::Targets().front().multiply(
      {.rows = rows, .columns = columns_.data(), .dim = dim_, .blocks = blocks_, .out = out});
}

double Norm(const float* vector, uint32_t dim) {
  double squares = 0;
  for (uint32_t d = 0; d < dim; ++d) squares += double{vector[d]} * vector[d];
  return std::sqrt(squares);
}

size_t Softmax(std::vector<double>* numbers) {
  double highest = -std::numeric_limits<double>::infinity(), sum = 0;
  size_t finite = 0;
  for (double x : *numbers) {
    if (!std::isfinite(x)) continue;
    highest = std::max(highest, x);
    ++finite;
  }
  for (double& x : *numbers) sum += x = std::isfinite(x) ? std::exp(x - highest) : 0;
  for (double& x : *numbers) x = finite == 0 ? 0 : x / sum;
  return finite;
}

}  // namespace kvpool
