// What derived scores are made from: the rows of a head as f32 in tiles, their products with many
// vectors, and a softmax. Not a kernel of its own; for kernels/scores.
//
// Each object is used by one thread at a time.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/derived_scores.h"
#include "kernels/simd/args.h"

namespace kvpool {

// The rows of one (layer, head) in their order, whatever their format, a tile at a time.
class RowTiles {
 public:
  enum class Parts : uint8_t { kKeys, kKeysAndValues };

  RowTiles(const DerivedScoreArgs& args, uint32_t plane, Parts parts);

  // Reads the next tile; false when there is none.
  bool Next();
  // The tile's first row and how many it has, 1..16.
  uint32_t first() const { return first_; }
  uint32_t rows() const { return rows_; }
  const float* keys() const { return keys_.data(); }  // [16][key_dim]
  // Of the tile's row number `row` < rows().
  const float* key(uint32_t row) const { return &keys_[size_t{row} * head_.key_dim]; }
  const float* value(uint32_t row) const { return &values_[size_t{row} * head_.value_dim]; }

 private:
  const simd::HeadRows head_;
  const uint32_t length_;
  uint32_t first_ = 0, rows_ = 0;
  std::vector<float> keys_, values_;
};

// Vectors side by side, to be multiplied with tiles of rows.
class Columns {
 public:
  // `count` vectors of `dim` elements, all zero.
  Columns(uint32_t count, uint32_t dim);

  void Set(uint32_t column, const float* vector);  // [dim]
  // Floats of a row of products: `count` rounded up to whole blocks of 16.
  uint32_t width() const { return blocks_ * simd::kMaxLanes; }
  // Of 16 rows [16][dim] with every vector: out [16][width()].
  void Multiply(const float* rows, float* out) const;

 private:
  const uint32_t dim_, blocks_;
  std::vector<float> columns_;  // [blocks][dim][16]
};

// The Euclidean norm.
double Norm(const float* vector, uint32_t dim);

// Each x becomes exp(x) / the sum of exp of those that are finite; those that are not become 0.
// Returns how many are finite.
size_t Softmax(std::vector<double>* numbers);

}  // namespace kvpool
