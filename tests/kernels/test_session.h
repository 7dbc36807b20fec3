// A session of random rows in a small pool for kernel tests: ragged compacted heads in shuffled
// blocks, sealed ones before native ones, then fresh pages; every byte that no row uses is NaN.
// Knows what each row must hold.
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
#include "kernels/places.h"
#include "kernels/quantise.h"
#include "kernels/session_view.h"

namespace kvpool {

struct SessionShape {
  // Each head gets 0..max_compacted open rows and 0..max_sealed sealed ones; the last head exactly
  // so many.
  uint32_t max_compacted = 0;
  uint32_t max_sealed = 0;
  SealedFormat sealed = SealedFormat::kNone;
  uint32_t fresh = 0;
  uint32_t loose_pages = 0;  // pages more than the compacted blocks need: they lie scattered
  uint32_t spare_pages = 0;  // pages of the pool that the session does not own
  bool equal_heads = false;  // every head gets max_compacted and max_sealed rows
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
    format_ = shape.sealed;
    uint32_t blocks = 0, sealed_blocks = 0;
    for (uint32_t p = 0; p < g.planes(); ++p) {
      const bool full = shape.equal_heads || p + 1 == g.planes();
      const uint32_t open = full ? shape.max_compacted : random_() % (shape.max_compacted + 1);
      const uint32_t sealed =
          full || shape.max_sealed == 0 ? shape.max_sealed : random_() % (shape.max_sealed + 1);
      lengths_.push_back(sealed + open);
      sealed_.push_back(sealed);
      blocks += CeilDiv(open, kPageTokens);
      sealed_blocks += CeilDiv(sealed, kSealedRows);
    }
    const uint32_t compacted_pages =
        blocks == 0 ? 0 : CeilDiv(blocks, g.planes()) + shape.loose_pages;
    const uint32_t sealed_pages = SealedPages(g, sealed_blocks, shape.loose_pages);
    MakePool(g, sealed_pages + compacted_pages + fresh_pages + shape.spare_pages);
    session_pages_.assign(all_pages_.begin(), all_pages_.end() - shape.spare_pages);
    spare_pages_.assign(all_pages_.end() - shape.spare_pages, all_pages_.end());
    fresh_pages_.assign(session_pages_.end() - fresh_pages, session_pages_.end());
    fresh_ = shape.fresh;
    PlaceCompacted(sealed_pages, compacted_pages);
    FillRows();
  }

  const Layout& layout() const { return layout_; }
  std::byte* base() { return pool_.data(); }
  const std::vector<PageId>& session_pages() const { return session_pages_; }
  // Pages of the pool that the session did not own in the beginning.
  const std::vector<PageId>& spare_pages() const { return spare_pages_; }
  size_t pool_bytes() const { return pool_.size(); }
  std::mt19937& random() { return random_; }
  const Row& key(uint32_t plane, uint32_t row) const { return keys_[plane][row]; }
  const Row& value(uint32_t plane, uint32_t row) const { return values_[plane][row]; }

  SessionView View() const {
    return {.compacted_lengths = lengths_.data(),
            .compacted_blocks = blocks_.data(),
            .compacted_stride = stride_,
            .sealed_lengths = sealed_.data(),
            .sealed_format = format_,
            .fresh_pages = fresh_pages_.data(),
            .fresh_tokens = fresh_};
  }

  // The view after a plan was carried out; what rows must hold moves along.
  void Adopt(const CompactionPlan& plan) {
    for (size_t p = 0; p < lengths_.size(); ++p) {
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
    AdoptSegment(plan.result);
  }
  // Sealing keeps the rows and their numbers.
  void Adopt(const SealingPlan& plan) { AdoptSegment(plan.result); }

  // Whether every row of the view holds, bit for bit, what it must.
  bool RowsAreRight() const {
    const Geometry& g = layout_.geometry();
    Row key(g.key_dim), value(g.value_dim);
    for (uint32_t p = 0; p < g.planes(); ++p) {
      for (uint32_t row = 0; row < View().Length(p); ++row) {
        ReadRow(layout_, pool_.data(), View(), p, row, key.data(), value.data());
        if (key != keys_[p][row] || value != values_[p][row]) return false;
      }
    }
    return true;
  }

  BlockId BlockOf(uint32_t plane, uint32_t row) const {
    const uint32_t heads = layout_.geometry().kv_heads;
    return View().BlockOf(layout_, plane / heads, plane % heads, row);
  }

  // Overwrites a native row (and what it must hold).
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
  void AdoptSegment(const CompactedSegment& segment) {
    lengths_ = segment.lengths;
    sealed_ = segment.sealed_lengths;
    format_ = segment.format;
    SetBlocks(segment.blocks);
    session_pages_ = segment.pages;
  }

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

  // Pages for so many sealed blocks.
  uint32_t SealedPages(const Geometry& g, uint32_t blocks, uint32_t loose) const {
    if (blocks == 0) return 0;
    const Layout one = *Layout::Make(g, Bytes(int64_t{1} << 40));
    return CeilDiv(blocks, PagePlaces(one, format_).per_page()) + loose;
  }

  // All places of the session's pages first .. first + count - 1, shuffled.
  std::vector<BlockId> Places(SealedFormat format, uint32_t first, uint32_t count) {
    const PagePlaces in_page(layout_, format);
    std::vector<BlockId> places;
    for (uint32_t i = first; i < first + count; ++i) {
      for (uint32_t p = 0; p < in_page.per_page(); ++p) {
        places.push_back(in_page.At(session_pages_[i], p));
      }
    }
    std::shuffle(places.begin(), places.end(), random_);
    return places;
  }

  // Sealed blocks in the first pages, open ones in the pages after those.
  void PlaceCompacted(uint32_t sealed_pages, uint32_t pages) {
    std::vector<BlockId> sealed_places;
    if (sealed_pages > 0) sealed_places = Places(format_, 0, sealed_pages);
    std::vector<BlockId> places = Places(SealedFormat::kNone, sealed_pages, pages);
    std::vector<std::vector<BlockId>> lists(lengths_.size());
    for (uint32_t p = 0; p < lengths_.size(); ++p) {
      const auto take = [&](std::vector<BlockId>& from, uint32_t count) {
        for (uint32_t i = 0; i < count; ++i) {
          lists[p].push_back(from.back());
          from.pop_back();
        }
      };
      take(sealed_places, CeilDiv(sealed_[p], kSealedRows));
      take(places, CeilDiv(lengths_[p] - sealed_[p], kPageTokens));
    }
    SetBlocks(lists);
  }

  void SetBlocks(const std::vector<std::vector<BlockId>>& lists) {
    stride_ = 1;
    for (const auto& list : lists) stride_ = std::max(stride_, static_cast<uint32_t>(list.size()));
    blocks_.assign(lists.size() * stride_, BlockId(0));
    for (size_t p = 0; p < lists.size(); ++p) {
      std::copy(lists[p].begin(), lists[p].end(),
                blocks_.begin() + static_cast<ptrdiff_t>(p * stride_));
    }
  }

  void FillRows() {
    const Geometry& g = layout_.geometry();
    keys_.resize(g.planes());
    values_.resize(g.planes());
    for (uint32_t p = 0; p < g.planes(); ++p) {
      keys_[p].resize(View().Length(p), Row(g.key_dim));
      values_[p].resize(View().Length(p), Row(g.value_dim));
      for (uint32_t row = 0; row < sealed_[p]; row += kSealedRows) FillSealed(p, row);
      for (uint32_t row = sealed_[p]; row < View().Length(p); ++row) {
        SetRow(p, row, RandomRow(g.key_dim), RandomRow(g.value_dim));
      }
    }
  }

  void FillSealed(uint32_t plane, uint32_t first) {
    const Geometry& g = layout_.geometry();
    const uint32_t rows = std::min(kSealedRows, sealed_[plane] - first);
    const Row keys = RandomRow(rows * g.key_dim), values = RandomRow(rows * g.value_dim);
    QuantiseBlock(ShapeOf(g, format_), keys.data(), values.data(), rows,
                  BlockAddress(pool_.data(), BlockOf(plane, first)));
    for (uint32_t row = first; row < first + rows; ++row) {
      ReadRow(layout_, pool_.data(), View(), plane, row, keys_[plane][row].data(),
              values_[plane][row].data());
    }
  }

  std::mt19937 random_;
  Layout layout_ = *Layout::Make(TestGeometry(1, 1, 1, 1, 1, Dtype::kF32), 512_B);
  std::vector<std::byte> pool_;
  std::vector<PageId> all_pages_, session_pages_, spare_pages_, fresh_pages_;
  std::vector<uint32_t> lengths_, sealed_;  // compacted rows, and the sealed ones among them
  SealedFormat format_ = SealedFormat::kNone;
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
