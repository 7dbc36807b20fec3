// A session of random rows in a small pool for kernel tests: ragged compacted heads in shuffled
// blocks, then fresh pages; every byte that no row uses is NaN. Knows what each row must hold.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/compaction.h"
#include "kernels/layout.h"
#include "kernels/session_view.h"

namespace kvpool {

struct SessionShape {
  uint32_t max_compacted =
      0;  // each head gets 0..max_compacted rows; the last head exactly so many
  uint32_t fresh = 0;
  uint32_t loose_pages = 0;  // pages more than the compacted blocks need: they lie scattered
  uint32_t spare_pages = 0;  // pages of the pool that the session does not own
  bool equal_heads = false;  // every head gets max_compacted rows
};

inline Geometry TestGeometry(uint32_t layers, uint32_t query_heads, uint32_t kv_heads,
                             uint32_t key_dim, uint32_t value_dim, Dtype dtype) {
  Geometry g{.layers = layers,
             .query_heads = query_heads,
             .kv_heads = kv_heads,
             .key_dim = key_dim,
             .value_dim = value_dim,
             .dtype = dtype};
  for (uint32_t l = 0; l < layers; ++l) g.kv_of_layer.push_back(static_cast<uint16_t>(l));
  return g;
}

class TestSession {
 public:
  using Row = std::vector<float>;

  TestSession(const Geometry& g, const SessionShape& shape, uint32_t seed) : random_(seed) {
    const uint32_t fresh_pages = CeilDiv(shape.fresh, kPageTokens);
    uint32_t blocks = 0;
    for (uint32_t p = 0; p < g.planes(); ++p) {
      const bool full = shape.equal_heads || p + 1 == g.planes();
      lengths_.push_back(full ? shape.max_compacted : random_() % (shape.max_compacted + 1));
      blocks += CeilDiv(lengths_[p], kPageTokens);
    }
    const uint32_t compacted_pages =
        blocks == 0 ? 0 : CeilDiv(blocks, g.planes()) + shape.loose_pages;
    MakePool(g, compacted_pages + fresh_pages + shape.spare_pages);
    session_pages_.assign(all_pages_.begin(), all_pages_.end() - shape.spare_pages);
    fresh_pages_.assign(session_pages_.end() - fresh_pages, session_pages_.end());
    fresh_ = shape.fresh;
    PlaceCompacted(compacted_pages);
    FillRows();
  }

  const Layout& layout() const { return layout_; }
  std::byte* base() { return pool_.data(); }
  const std::vector<PageId>& session_pages() const { return session_pages_; }
  std::vector<PageId> spare_pages() const {
    return {all_pages_.begin() + static_cast<ptrdiff_t>(session_pages_.size()), all_pages_.end()};
  }
  size_t pool_bytes() const { return pool_.size(); }
  std::mt19937& random() { return random_; }
  const Row& key(uint32_t plane, uint32_t row) const { return keys_[plane][row]; }
  const Row& value(uint32_t plane, uint32_t row) const { return values_[plane][row]; }

  SessionView View() const {
    return {.compacted_lengths = lengths_.data(),
            .compacted_blocks = blocks_.data(),
            .compacted_stride = stride_,
            .fresh_pages = fresh_pages_.data(),
            .fresh_tokens = fresh_};
  }

  // The view after a plan was carried out; what rows must hold moves along.
  void Adopt(const CompactionPlan& plan) {
    lengths_ = plan.result.lengths;
    stride_ = 1;
    for (const auto& list : plan.result.blocks) {
      stride_ = std::max(stride_, static_cast<uint32_t>(list.size()));
    }
    blocks_.assign(lengths_.size() * stride_, BlockId(0));
    for (size_t p = 0; p < lengths_.size(); ++p) {
      std::copy(plan.result.blocks[p].begin(), plan.result.blocks[p].end(),
                blocks_.begin() + static_cast<ptrdiff_t>(p * stride_));
      std::vector<Row> keys, values;
      for (uint32_t row : plan.sources[p]) {
        keys.push_back(keys_[p][row]);
        values.push_back(values_[p][row]);
      }
      keys_[p] = keys;
      values_[p] = values;
    }
    fresh_pages_.clear();
    fresh_ = 0;
    session_pages_ = plan.result.pages;
  }

  // Whether every row of the view holds, bit for bit, what it must.
  bool RowsAreRight() const {
    const Geometry& g = layout_.geometry();
    Row key(g.key_dim), value(g.value_dim);
    for (uint32_t p = 0; p < g.planes(); ++p) {
      for (uint32_t row = 0; row < View().Length(p); ++row) {
        LoadRow(layout_, pool_.data(), BlockOf(p, row), View().RowInBlock(p, row), key.data(),
                value.data());
        if (key != keys_[p][row] || value != values_[p][row]) return false;
      }
    }
    return true;
  }

  BlockId BlockOf(uint32_t plane, uint32_t row) const {
    const uint32_t heads = layout_.geometry().kv_heads;
    return View().BlockOf(layout_, plane / heads, plane % heads, row);
  }

  // Overwrites a row (and what it must hold).
  void SetRow(uint32_t plane, uint32_t row, Row key, Row value) {
    const BlockId block = BlockOf(plane, row);
    const uint32_t place = View().RowInBlock(plane, row);
    StoreRow(layout_, pool_.data(), block, place, key.data(), value.data());
    LoadRow(layout_, pool_.data(), block, place, key.data(), value.data());
    keys_[plane][row] = std::move(key);
    values_[plane][row] = std::move(value);
  }

  Row RandomRow(uint32_t dim) {
    std::normal_distribution<float> normal;
    Row row(dim);
    for (float& x : row) x = normal(random_);
    return row;
  }

 private:
  // Slabs of two pages and a little waste; pages in random order.
  void MakePool(const Geometry& g, uint32_t pages) {
    const Layout one = *Layout::Make(g, Bytes(int64_t{1} << 40));
    const bool exact = pages < 2;
    const Bytes slab = exact ? one.page_bytes() : one.page_bytes() * 2 + Bytes(kGranuleBytes);
    layout_ = *Layout::Make(g, slab);
    const uint32_t slabs = std::max(1u, CeilDiv(pages, layout_.pages_per_slab()));
    for (uint32_t i = 0; i < pages; ++i) {
      all_pages_.push_back(
          layout_.Page(SlabIndex(i / layout_.pages_per_slab()), i % layout_.pages_per_slab()));
    }
    std::shuffle(all_pages_.begin(), all_pages_.end(), random_);
    pool_.resize(static_cast<size_t>(slab.value()) * slabs);
    std::memset(pool_.data(), 0xff, pool_.size());  // NaN in f32, bf16 and f16
  }

  void PlaceCompacted(uint32_t pages) {
    const Geometry& g = layout_.geometry();
    std::vector<BlockId> places;
    for (uint32_t i = 0; i < pages; ++i) {
      for (uint32_t p = 0; p < g.planes(); ++p) {
        places.push_back(layout_.Block(session_pages_[i], p / g.kv_heads, p % g.kv_heads));
      }
    }
    std::shuffle(places.begin(), places.end(), random_);
    stride_ = 1;
    for (uint32_t n : lengths_) stride_ = std::max(stride_, CeilDiv(n, kPageTokens));
    blocks_.assign(size_t{g.planes()} * stride_, BlockId(0));
    for (uint32_t p = 0; p < g.planes(); ++p) {
      for (uint32_t i = 0; i < CeilDiv(lengths_[p], kPageTokens); ++i) {
        blocks_[p * stride_ + i] = places.back();
        places.pop_back();
      }
    }
  }

  void FillRows() {
    const Geometry& g = layout_.geometry();
    keys_.resize(g.planes());
    values_.resize(g.planes());
    for (uint32_t p = 0; p < g.planes(); ++p) {
      keys_[p].resize(View().Length(p));
      values_[p].resize(View().Length(p));
      for (uint32_t row = 0; row < View().Length(p); ++row) {
        SetRow(p, row, RandomRow(g.key_dim), RandomRow(g.value_dim));
      }
    }
  }

  std::mt19937 random_;
  Layout layout_ = *Layout::Make(TestGeometry(1, 1, 1, 1, 1, Dtype::kF32), 512_B);
  std::vector<std::byte> pool_;
  std::vector<PageId> all_pages_, session_pages_, fresh_pages_;
  std::vector<uint32_t> lengths_;
  std::vector<BlockId> blocks_;
  uint32_t stride_ = 1, fresh_ = 0;
  std::vector<std::vector<Row>> keys_, values_;  // [planes][rows], as stored
};

// Attention of one query in float64 over the rows of `plane` for which `sees(row)`.
struct OracleHead {
  std::vector<double> alpha;  // [rows]; 0 where not seen
  std::vector<double> out;    // [value_dim]
  double lse = -std::numeric_limits<double>::infinity();
};

template <typename Sees>
OracleHead OracleAttention(const TestSession& session, uint32_t plane, const float* query,
                           double scale, Sees sees) {
  const Geometry& g = session.layout().geometry();
  const uint32_t rows = session.View().Length(plane);
  OracleHead result{.alpha = std::vector<double>(rows), .out = std::vector<double>(g.value_dim)};
  std::vector<double> logits(rows);
  double highest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (uint32_t row = 0; row < rows; ++row) {
    if (!sees(row)) continue;
    for (uint32_t d = 0; d < g.key_dim; ++d) {
      logits[row] += double{query[d]} * session.key(plane, row)[d];
    }
    logits[row] *= scale;
    highest = std::max(highest, logits[row]);
  }
  for (uint32_t row = 0; row < rows; ++row) {
    if (sees(row)) sum += result.alpha[row] = std::exp(logits[row] - highest);
  }
  if (sum > 0) result.lse = highest + std::log(sum);
  for (uint32_t row = 0; row < rows; ++row) {
    if (!sees(row)) continue;
    result.alpha[row] /= sum;
    for (uint32_t d = 0; d < g.value_dim; ++d) {
      result.out[d] += result.alpha[row] * session.value(plane, row)[d];
    }
  }
  return result;
}

}  // namespace kvpool
