// Scoring of one KV head, compiled once for each target: queries along the vector, so that a row's
// logits for many queries cost one broadcast multiply-add an element. With log-sum-exps a tile of
// rows is done at once, for all query heads. Without, logits are kept until each query's sum is
// known, then become probabilities: K is read once for a vector of queries and a query head.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/simd/rows.h"
#include "kernels/simd/sealed.h"

namespace kvpool::simd::KVPOOL_SIMD_TARGET {
namespace {

constexpr float kLog2E = 1.44269504f;

// Up to kLanes queries, one query head after the other.
template <typename Format>
class ScorePass {
 public:
  ScorePass(const ScoreHeadArgs& args, uint32_t first_query)
      : args_(args),
        head_(args.head),
        first_query_(first_query),
        lanes_(Min(kLanes, args.query_count - first_query)),
        queries_(args.scratch),
        keys_(queries_ + args.heads * size_t{head_.key_dim + 1} * kLanes),
        logits_(keys_ + kTileRows * head_.key_dim) {
    // Lanes that only pad the vector see no row.
    for (uint32_t lane = 0; lane < lanes_; ++lane) {
      const uint32_t rows = args.query_rows[first_query + lane];
      seen_[lane] = static_cast<int32_t>(rows);
      masked_seen_[lane] = static_cast<int32_t>(args.masked_rows[first_query + lane]);
      threshold_[lane] = args.thresholds[first_query + lane];
      hit_[lane] = args.hits[first_query + lane];
      rows_ = rows_ < rows ? rows : rows_;
    }
    if (args.numbers != nullptr) rows_ = head_.sealed.rows + head_.open.rows + head_.fresh.rows;
    padded_rows_ = (rows_ + kTileRows - 1) / kTileRows * kTileRows;
    low_ = logits_ + size_t{padded_rows_} * kLanes;
  }

  void Run() { args_.lses != nullptr ? ScoreInOnePass() : ScoreInTwoPasses(); }

 private:
  // What one tile gets from a vector of queries.
  struct TileStatistics {
    Floats low[kTileRows];   // 1 while no query head found the row important
    Floats mass[kTileRows];  // summed over query heads, as its square
    Floats squares[kTileRows];
  };

  // Of padding no lane sees anything.
  Ints Sees(uint32_t row) const { return IsBelow(row, seen_); }
  // In query head h, which may see less than others do.
  Ints SeesIn(uint32_t h, uint32_t row) const {
    return IsBelow(row, Masks(h) ? masked_seen_ : seen_);
  }
  Ints IsBelow(uint32_t row, Ints end) const {
    if (row >= rows_) return Ints{};
    const uint32_t number = args_.numbers == nullptr ? row : args_.numbers[row];
    return static_cast<int32_t>(number) < end;
  }
  bool Masks(uint32_t h) const { return args_.masks != nullptr && args_.masks[h] != 0; }

  float* QueriesOf(uint32_t h) const { return queries_ + h * size_t{head_.key_dim + 1} * kLanes; }

  void LoadQueries(uint32_t h) {
    float* const to = QueriesOf(h);
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
      for (uint32_t d = 0; d < head_.key_dim; ++d) {
        to[d * kLanes + lane] =
            lane < lanes_ ? args_.queries[h * args_.query_count + first_query_ + lane][d] *
                                (args_.scale * kLog2E)
                          : 0;
      }
    }
  }

  // Behind the queries of each head.
  void LoadLses(uint32_t h) {
    Floats lse = {};
    for (uint32_t lane = 0; lane < lanes_; ++lane) {
      lse[lane] = *args_.lses[h * args_.query_count + first_query_ + lane] * kLog2E;
    }
    Store(QueriesOf(h) + size_t{head_.key_dim} * kLanes, lse);
  }

  // The sums over all rows are known: every logit is a probability at once.
  void ScoreInOnePass() {
    for (uint32_t h = 0; h < args_.heads; ++h) {
      LoadQueries(h);
      LoadLses(h);
    }
    for (uint32_t first = 0; first < rows_;) {
      const uint32_t rows = LoadKeys(first);
      TileStatistics tile;
      for (uint32_t row = 0; row < kTileRows; ++row) {
        tile.low[row] = Fill(1.0f);
        tile.mass[row] = tile.squares[row] = Floats{};
      }
      for (uint32_t h = 0; h < args_.heads; ++h) AddHead(h, first, rows, &tile);
      for (uint32_t row = 0; row < kTileRows; ++row) {
        // Lanes that do not see the row have no mass from it.
        const Ints sees = row < rows ? Sees(first + row) : Ints{};
        tile.low[row] = sees ? tile.low[row] : Floats{};
        tile.mass[row] = sees ? tile.mass[row] : Floats{};
        tile.squares[row] = sees ? tile.squares[row] : Floats{};
      }
      AddSums(first, rows, tile.mass, tile.squares);
      AddMarks(first, rows, tile.low);
      first += rows;
    }
  }

  // What query head h gives the rows `first` .. first + rows - 1, the tile in keys_.
  void AddHead(uint32_t h, uint32_t first, uint32_t rows, TileStatistics* tile) {
    const float* const queries = QueriesOf(h);
    const Floats lse = Load(queries + size_t{head_.key_dim} * kLanes);
    Floats logits[kTileRows];
    TileLogits(keys_, queries, head_.key_dim, logits);
    for (uint32_t row = 0; row < rows; ++row) {
      const Floats x = logits[row] - lse;
      Floats alpha = Exp2(x > 0.0f ? Floats{} : x);  // NaN passes
      if (Masks(h)) alpha = SeesIn(h, first + row) ? alpha : Floats{};
      AddAlpha(alpha, tile->low + row, tile->mass + row, tile->squares + row);
    }
  }

  // Comparisons with NaN are false: such an alpha adds nothing and leaves its row low. So does
  // 0 * infinity, the alpha of a query that saw no row at all.
  void AddAlpha(Floats alpha, Floats* low, Floats* mass, Floats* squares) const {
    *low = alpha >= threshold_ ? Floats{} : *low;
    const Floats valid = alpha >= 0.0f ? alpha : Floats{};
    *mass += valid;
    *squares += valid * valid;
  }

  void ScoreInTwoPasses() {
    for (uint32_t row = 0; row < padded_rows_; ++row) {
      Store(low_ + size_t{row} * kLanes, Sees(row) ? Fill(1.0f) : Floats{});
    }
    for (uint32_t h = 0; h < args_.heads; ++h) {
      LoadQueries(h);
      highest_ = Fill(-kInfinity);
      for (uint32_t first = 0; first < rows_;) first += Logits(h, first);
      Exponentials(h);
      for (uint32_t first = 0; first < rows_; first += kTileRows) AddProbabilities(first);
    }
    for (uint32_t first = 0; first < rows_; first += kTileRows) {
      Floats low[kTileRows];
      __builtin_memcpy(low, low_ + size_t{first} * kLanes, sizeof(low));
      AddMarks(first, Min(kTileRows, rows_ - first), low);
    }
  }

  // What one query head gives the rows `first` .. first + 15.
  void AddProbabilities(uint32_t first) {
    Floats mass[kTileRows] = {}, squares[kTileRows] = {};
    for (uint32_t row = 0; row < kTileRows; ++row) {
      const size_t at = size_t{first + row} * kLanes;
      Floats low = Load(low_ + at);
      AddAlpha(Load(logits_ + at) * inverse_, &low, mass + row, squares + row);
      Store(low_ + at, low);
    }
    AddSums(first, Min(kTileRows, rows_ - first), mass, squares);
  }

  uint32_t LoadKeys(uint32_t first) {
    return LoadTile<Format>(head_, first, rows_, keys_, nullptr);
  }

  // Of query head h and the rows `first` .., of which it returns the number.
  uint32_t Logits(uint32_t h, uint32_t first) {
    const uint32_t rows = LoadKeys(first);
    Floats logits[kTileRows];
    TileLogits(keys_, QueriesOf(h), head_.key_dim, logits);
    for (uint32_t row = 0; row < rows; ++row) {
      Store(logits_ + size_t{first + row} * kLanes, logits[row]);
      highest_ = Max(SeesIn(h, first + row) ? logits[row] : Fill(-kInfinity), highest_);
    }
    return rows;
  }

  void Exponentials(uint32_t h) {
    Floats total = {};
    for (uint32_t row = 0; row < padded_rows_; ++row) {
      float* const at = logits_ + size_t{row} * kLanes;
      const Floats e = SeesIn(h, row) ? Exp2(Load(at) - highest_) : Floats{};
      total += e;
      Store(at, e);
    }
    inverse_ = 1.0f / total;
  }

  // To the rows `first` .. first + rows - 1, at most a tile. Uses up what it adds.
  void AddSums(uint32_t first, uint32_t rows, Floats* mass, Floats* squares) {
    AddTile(mass, args_.mass + first, rows);
    if (args_.square_sum != nullptr) AddTile(squares, args_.square_sum + first, rows);
  }

  // to[row] += the sum of values[row]'s lanes. Uses up `values`.
  static void AddTile(Floats* values, float* to, uint32_t rows) {
    SumLanes<kTileRows>(values);
    float sums[kTileRows];
    __builtin_memcpy(sums, values, sizeof(sums));
    for (uint32_t row = 0; row < rows; ++row) to[row] += sums[row];
  }

  // To the same rows: a 1 in `low` for each query that found the row unimportant. Uses it up.
  void AddMarks(uint32_t first, uint32_t rows, Floats* low) {
    if (args_.last_hits != nullptr) {
      for (uint32_t row = first; row < first + rows; ++row) {
        const Floats hits = Sees(row) && low[row - first] == 0.0f ? hit_ : Floats{};
        const auto hit = static_cast<uint16_t>(MaxLane(hits));
        if (hit > args_.last_hits[row]) args_.last_hits[row] = hit;
      }
    }
    if (args_.low_counts == nullptr) return;
    SumLanes<kTileRows>(low);
    float sums[kTileRows];
    __builtin_memcpy(sums, low, sizeof(sums));
    for (uint32_t row = 0; row < rows; ++row) {
      args_.low_counts[first + row] += static_cast<uint8_t>(sums[row]);
    }
  }

  const ScoreHeadArgs& args_;
  const HeadRows& head_;
  const uint32_t first_query_, lanes_;
  float* const queries_;  // [heads][key_dim and 1 of log-sum-exps][kLanes]
  float* const keys_;     // [16][key_dim], a tile as f32
  // Of two passes:
  float* const logits_;  // [padded_rows_][kLanes], later exponentials
  float* low_;           // [padded_rows_][kLanes], 1 while no query head found the row important
  uint32_t rows_ = 0;    // rows that some query can have seen
  uint32_t padded_rows_ = 0;
  Ints seen_ = {}, masked_seen_ = {};
  Floats threshold_ = {}, hit_ = {}, highest_ = {}, inverse_ = {};
};

template <typename Format>
void ScoreHeadIn(const ScoreHeadArgs& args) {
  for (uint32_t query = 0; query < args.query_count; query += kLanes) {
    ScorePass<Format>(args, query).Run();
  }
}

}  // namespace

void ScoreHead(const ScoreHeadArgs& args) {
  InFormat(args.head.dtype, [&]<typename Format>() { ScoreHeadIn<Format>(args); });
}

}  // namespace kvpool::simd::KVPOOL_SIMD_TARGET
