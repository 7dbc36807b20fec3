// Attention of one KV head, compiled once for each target. Two shapes of the same online softmax:
// AttendQuery reads each row once for a handful of query heads (memory bound: rows along the
// vector, the next tile prefetched); AttendChunk has many lanes (compute bound: lanes along the
// vector, rows widened to f32 once). Sealed rows become an f32 tile first in both.
//
// Logits are in base 2: queries are scaled by log2(e) first.
//
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <type_traits>

#include "kernels/simd/rows.h"
#include "kernels/simd/sealed.h"

namespace kvpool::simd::KVPOOL_SIMD_TARGET {
namespace {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
constexpr uint32_t kTileVectors = kTileRows / kLanes;

void WriteNothing(const Lane& lane, uint32_t dim) {
  for (uint32_t d = 0; d < dim; ++d) lane.out[d] = 0;
  if (lane.lse != nullptr) *lane.lse = -kInfinity;
}

// kCount lanes that see the same rows, rows along the vector.
template <typename Format, int kCount>
class QueryPass {
 public:
  QueryPass(const AttendArgs& args, const Lane* lanes)
      : head_(args.head),
        lanes_(lanes),
        key_pairs_((head_.key_dim + kPairElements - 1) / kPairElements),
        value_pairs_((head_.value_dim + kPairElements - 1) / kPairElements),
        queries_(args.scratch),
        sums_(args.scratch + kCount * key_pairs_ * kPairElements),
        tile_keys_(sums_ + kCount * value_pairs_ * kPairElements),
        tile_values_(tile_keys_ + kTileRows * head_.key_dim) {
    for (uint32_t i = 0; i < kCount * value_pairs_ * kPairElements; ++i) sums_[i] = 0;
    for (int n = 0; n < kCount; ++n) {
      highest_[n] = -kInfinity;
      for (uint32_t i = 0; i < key_pairs_ * kPairElements; ++i) {
        const uint32_t d = Element(i);
        queries_[n * key_pairs_ * kPairElements + i] =
            d < head_.key_dim ? lanes[n].query[d] * (args.scale * kLog2E) : 0;
      }
    }
  }

  void Run() {
    const uint32_t sealed = Min(head_.sealed.rows, lanes_[0].rows);
    for (uint32_t first = 0; first < sealed; first += kTileRows) {
      const Tile tile = Unpack(first, sealed);
      Logits<Unpacked<Format>>(tile, tile);
      Softmax(tile.rows);
      AddValues<Unpacked<Format>>(tile, tile);
    }
    if (lanes_[0].rows > sealed) RunNative(lanes_[0].rows - sealed);
    for (int n = 0; n < kCount; ++n) Finish(n);
  }

 private:
  void RunNative(uint32_t rows) {
    Tile tiles[2];
    Locate(head_, 0, rows, &tiles[0]);
    for (uint32_t first = 0, i = 0; first < rows; first += kTileRows, ++i) {
      const uint32_t following = first + kTileRows < rows ? first + kTileRows : first;
      const Tile& next = tiles[(i + 1) % 2];
      Locate(head_, following, rows, &tiles[(i + 1) % 2]);
      Logits<Format>(tiles[i % 2], next);
      Softmax(tiles[i % 2].rows);
      AddValues<Format>(tiles[i % 2], next);
    }
  }

  // A tile of sealed rows. All its 16 rows can be read.
  Tile Unpack(uint32_t first, uint32_t end) {
    UnpackTile(head_, first, tile_keys_, tile_values_);
    Tile tile{.rows = Min(kTileRows, end - first)};
    for (uint32_t row = 0; row < kTileRows; ++row) {
      tile.key[row] = reinterpret_cast<const std::byte*>(tile_keys_ + row * head_.key_dim);
      tile.value[row] = reinterpret_cast<const std::byte*>(tile_values_ + row * head_.value_dim);
    }
    return tile;
  }

  // Which element is float i of a padded vector.
  static uint32_t Element(uint32_t i) {
    const uint32_t in_pair = i % kPairElements;
    return i - in_pair + Format::Index(in_pair / kLanes, in_pair % kLanes);
  }

  // Stored: the format in which the tile's rows lie, with the pairs of Format. `next` is prefetched
  // unless it is the tile itself.
  template <typename Stored>
  void Logits(const Tile& tile, const Tile& next) {
    const uint32_t whole = head_.key_dim / kPairElements, tail = head_.key_dim % kPairElements;
    Floats partial[kCount][kTileRows];
    // Past the last row its copies are read; Softmax gives them no weight.
    for (uint32_t row = 0; row < kTileRows; row += kRowsAtOnce) {
      Floats sum[kRowsAtOnce][kCount] = {};
      for (uint32_t c = 0; c < whole; ++c) {
        const size_t at = c * kPairElements * Stored::kBytes;
        Pair keys[kRowsAtOnce];
        for (uint32_t i = 0; i < kRowsAtOnce; ++i) {
          PrefetchNext<Stored>(next.key[row + i] + at);
          keys[i] = Stored::Load2(tile.key[row + i] + at);
        }
        AddProducts(keys, c, sum);
      }
      if (tail != 0) {
        const size_t at = whole * kPairElements * Stored::kBytes;
        Pair keys[kRowsAtOnce];
        for (uint32_t i = 0; i < kRowsAtOnce; ++i) {
          keys[i] = Stored::Load2(Tail<Stored>(tile.key[row + i] + at, tail).bytes);
        }
        AddProducts(keys, whole, sum);
      }
      for (uint32_t i = 0; i < kRowsAtOnce; ++i) {
        for (int n = 0; n < kCount; ++n) partial[n][row + i] = sum[i][n];
      }
    }
    for (int n = 0; n < kCount; ++n) {
      SumLanes<kTileRows>(partial[n]);
      for (uint32_t v = 0; v < kTileVectors; ++v) weights_[n][v] = partial[n][v];
    }
  }

  void AddProducts(const Pair* keys, uint32_t pair, Floats (*sum)[kCount]) const {
    for (int n = 0; n < kCount; ++n) {
      const float* const query = queries_ + (n * key_pairs_ + pair) * kPairElements;
      const Floats a = Load(query), b = Load(query + kLanes);
      for (uint32_t i = 0; i < kRowsAtOnce; ++i) {
        sum[i][n] += keys[i].a * a;
        sum[i][n] += keys[i].b * b;
      }
    }
  }

  // Turns logits into weights relative to the highest logit so far.
  void Softmax(uint32_t rows) {
    for (int n = 0; n < kCount; ++n) {
      Floats highest = Fill(highest_[n]);
      for (uint32_t v = 0; v < kTileVectors; ++v) {
        const Ints number = LaneNumbers() + static_cast<int32_t>(v * kLanes);
        weights_[n][v] = number < static_cast<int32_t>(rows) ? weights_[n][v] : Fill(-kInfinity);
        highest = Max(weights_[n][v], highest);
      }
      const float reference = MaxLane(highest);
      rescale_[n] = Exp2(Fill(highest_[n] - reference))[0];
      highest_[n] = reference;
      total_[n] *= rescale_[n];
      for (uint32_t v = 0; v < kTileVectors; ++v) {
        weights_[n][v] = Exp2(weights_[n][v] - reference);
        total_[n] += weights_[n][v];
      }
    }
  }

  template <typename Stored>
  void AddValues(const Tile& tile, const Tile& next) {
    float weights[kCount][kTileRows];
    for (int n = 0; n < kCount; ++n) {
      for (uint32_t v = 0; v < kTileVectors; ++v) {
        Store(weights[n] + v * kLanes, weights_[n][v]);
      }
    }
    const uint32_t whole = head_.value_dim / kPairElements;
    uint32_t c = 0;
    for (; c + kPairsAtOnce <= whole; c += kPairsAtOnce) {
      AddPairs<Stored, kPairsAtOnce>(tile, next, weights, c, kPairElements);
    }
    for (; c < whole; ++c) AddPairs<Stored, 1>(tile, next, weights, c, kPairElements);
    if (c < value_pairs_) {
      AddPairs<Stored, 1>(tile, next, weights, c, head_.value_dim % kPairElements);
    }
  }

  // Adds `elements` elements of each of the pairs c .. c + kPairs - 1 of every row.
  template <typename Stored, uint32_t kPairs>
  void AddPairs(const Tile& tile, const Tile& next, const float (*weights)[kTileRows], uint32_t c,
                uint32_t elements) {
    Pair sum[kCount][kPairs];
    for (int n = 0; n < kCount; ++n) {
      for (uint32_t j = 0; j < kPairs; ++j) {
        const float* const from = sums_ + (n * value_pairs_ + c + j) * kPairElements;
        sum[n][j] = {Load(from) * rescale_[n], Load(from + kLanes) * rescale_[n]};
      }
    }
    for (uint32_t row = 0; row < tile.rows; ++row) {
      for (uint32_t j = 0; j < kPairs; ++j) {
        const size_t at = (c + j) * kPairElements * Stored::kBytes;
        const std::byte* const from = tile.value[row] + at;
        PrefetchNext<Stored>(next.value[row] + at);
        const Pair value = elements == kPairElements
                               ? Stored::Load2(from)
                               : Stored::Load2(Tail<Stored>(from, elements).bytes);
        for (int n = 0; n < kCount; ++n) {
          sum[n][j].a += value.a * weights[n][row];
          sum[n][j].b += value.b * weights[n][row];
        }
      }
    }
    for (int n = 0; n < kCount; ++n) {
      for (uint32_t j = 0; j < kPairs; ++j) {
        float* const to = sums_ + (n * value_pairs_ + c + j) * kPairElements;
        Store(to, sum[n][j].a);
        Store(to + kLanes, sum[n][j].b);
      }
    }
  }

  // An unpacked tile is in the first cache, and UnpackTile prefetches the next block itself.
  template <typename Stored>
  static void PrefetchNext(const std::byte* address) {
    if constexpr (std::is_same_v<Stored, Format>) Prefetch2<Format>(address);
  }

  void Finish(int n) {
    float total = 0;
    for (int lane = 0; lane < kLanes; ++lane) total += total_[n][lane];
    for (uint32_t i = 0; i < value_pairs_ * kPairElements; ++i) {
      const uint32_t d = Element(i);
      if (d < head_.value_dim) {
        lanes_[n].out[d] = sums_[n * value_pairs_ * kPairElements + i] / total;
      }
    }
    if (lanes_[n].lse != nullptr) *lanes_[n].lse = (highest_[n] + std::log2(total)) * kLn2;
  }

  // Enough independent sums to hide the latency of a multiply-add, and few enough for registers.
  static constexpr uint32_t kRowsAtOnce = kCount == 1 ? 8 : kCount == 2 ? 4 : 2;
  static constexpr uint32_t kPairsAtOnce = kCount == 1 ? 4 : kCount == 2 ? 2 : 1;

  const HeadRows& head_;
  const Lane* const lanes_;
  const uint32_t key_pairs_, value_pairs_;
  float* const queries_;      // [kCount][key_pairs_][kPairElements]
  float* const sums_;         // [kCount][value_pairs_][kPairElements]
  float* const tile_keys_;    // [16][key_dim], sealed rows as f32
  float* const tile_values_;  // [16][value_dim]
  Floats weights_[kCount][kTileVectors];
  Floats total_[kCount] = {};
  float highest_[kCount];
  float rescale_[kCount];
};

template <typename Format>
void AttendQueryIn(const AttendArgs& args) {
  static_assert(kMaxQueryLanes == 4);
  const Lane *lane = args.lanes, *const end = lane + args.lane_count;
  for (; end - lane >= 4; lane += 4) QueryPass<Format, 4>(args, lane).Run();
  switch (end - lane) {
    case 3:
      return QueryPass<Format, 3>(args, lane).Run();
    case 2:
      return QueryPass<Format, 2>(args, lane).Run();
    case 1:
      return QueryPass<Format, 1>(args, lane).Run();
  }
}

// Up to kLaneVectors vectors of lanes, lanes along the vector.
template <typename Format>
class ChunkPass {
 public:
  ChunkPass(const AttendArgs& args, const Lane* lanes, uint32_t count)
      : head_(args.head),
        lanes_(lanes),
        count_(count),
        vectors_((count + kLanes - 1) / kLanes),
        queries_(args.scratch),
        sums_(queries_ + vectors_ * kLanes * head_.key_dim),
        keys_(sums_ + vectors_ * kLanes * head_.value_dim),
        values_(keys_ + kTileRows * head_.key_dim) {
    for (uint32_t i = 0; i < vectors_ * kLanes * head_.value_dim; ++i) sums_[i] = 0;
    for (uint32_t n = 0; n < vectors_ * kLanes; ++n) {
      // Lanes that only pad a vector see no row.
      seen_[n / kLanes][n % kLanes] = n < count ? static_cast<int32_t>(lanes[n].rows) : 0;
      for (uint32_t d = 0; d < head_.key_dim; ++d) {
        queries_[(n / kLanes * head_.key_dim + d) * kLanes + n % kLanes] =
            n < count ? lanes[n].query[d] * (args.scale * kLog2E) : 0;
      }
    }
  }

  void Run() {
    uint32_t rows = 0;
    for (uint32_t n = 0; n < count_; ++n) rows = rows < lanes_[n].rows ? lanes_[n].rows : rows;
    for (uint32_t v = 0; v < vectors_; ++v) highest_[v] = Fill(-kInfinity);
    for (uint32_t first = 0, count = 0; first < rows; first += count) {
      // No lane sees what lies past the last of them.
      count = LoadTile<Format>(head_, first, rows, keys_, values_);
      for (uint32_t v = 0; v < vectors_; ++v) AddTile(v, first, count);
    }
    for (uint32_t n = 0; n < count_; ++n) Finish(n);
  }

 private:
  void AddTile(uint32_t v, uint32_t first, uint32_t rows) {
    Floats logits[kTileRows];
    float weights[kTileRows * kLanes];
    TileLogits(keys_, queries_ + v * kLanes * head_.key_dim, head_.key_dim, logits);
    Floats reference = highest_[v];
    const auto end = static_cast<int32_t>(first + rows);
    const Ints seen = seen_[v] < end ? seen_[v] : end - Ints{};
    for (uint32_t row = 0; row < kTileRows; ++row) {
      const Ints sees = static_cast<int32_t>(first + row) < seen;
      reference = Max(sees ? logits[row] : Fill(-kInfinity), reference);
    }
    // A lane that sees no row gets NaN here, which Finish does not look at.
    const Floats rescale = Exp2(highest_[v] - reference);
    highest_[v] = reference;
    total_[v] *= rescale;
    for (uint32_t row = 0; row < kTileRows; ++row) {
      const Ints sees = static_cast<int32_t>(first + row) < seen;
      const Floats weight = sees ? Exp2(logits[row] - reference) : Floats{};
      total_[v] += weight;
      Store(weights + row * kLanes, weight);
    }
    float* const sums = sums_ + v * kLanes * head_.value_dim;
    uint32_t d = 0;
    for (; d + 8 <= head_.value_dim; d += 8) {
      AddValues<8>(weights, rows, d, rescale, sums);
    }
    for (; d < head_.value_dim; ++d) AddValues<1>(weights, rows, d, rescale, sums);
  }

  // sums [value_dim][kLanes], elements d .. d + kCount - 1.
  template <int kCount>
  void AddValues(const float* weights, uint32_t rows, uint32_t d, Floats rescale, float* sums) {
    Floats acc[kCount];
    for (int i = 0; i < kCount; ++i) acc[i] = Load(sums + (d + i) * kLanes) * rescale;
    MultiplyAdd<kCount>(weights, values_ + d, 1, head_.value_dim, rows, acc);
    for (int i = 0; i < kCount; ++i) Store(sums + (d + i) * kLanes, acc[i]);
  }

  void Finish(uint32_t n) {
    const uint32_t v = n / kLanes, lane = n % kLanes;
    if (lanes_[n].rows == 0) return WriteNothing(lanes_[n], head_.value_dim);
    for (uint32_t d = 0; d < head_.value_dim; ++d) {
      lanes_[n].out[d] = sums_[(v * head_.value_dim + d) * kLanes + lane] / total_[v][lane];
    }
    if (lanes_[n].lse != nullptr) {
      *lanes_[n].lse = (highest_[v][lane] + std::log2(total_[v][lane])) * kLn2;
    }
  }

  const HeadRows& head_;
  const Lane* const lanes_;
  const uint32_t count_, vectors_;
  float* const queries_;  // [vectors_][key_dim][kLanes]
  float* const sums_;     // [vectors_][value_dim][kLanes]
  float* const keys_;     // [16][key_dim], a tile as f32
  float* const values_;   // [16][value_dim]
  Ints seen_[kLaneVectors] = {};
  Floats highest_[kLaneVectors];
  Floats total_[kLaneVectors] = {};
};

template <typename Format>
void AttendChunkIn(const AttendArgs& args) {
  constexpr uint32_t kStep = kLaneVectors * kLanes;
  for (uint32_t lane = 0; lane < args.lane_count; lane += kStep) {
    ChunkPass<Format>(args, args.lanes + lane, Min(kStep, args.lane_count - lane)).Run();
  }
}

}  // namespace

void AttendQuery(const AttendArgs& args) {
  if (args.lanes[0].rows == 0) {
    for (uint32_t n = 0; n < args.lane_count; ++n) WriteNothing(args.lanes[n], args.head.value_dim);
    return;
  }
  InFormat(args.head.dtype, [&]<typename Format>() { AttendQueryIn<Format>(args); });
}

void AttendChunk(const AttendArgs& args) {
  InFormat(args.head.dtype, [&]<typename Format>() { AttendChunkIn<Format>(args); });
}

}  // namespace kvpool::simd::KVPOOL_SIMD_TARGET
