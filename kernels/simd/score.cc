// Scoring of one KV head, compiled once for each target: queries along the vector, so that a row's
// logits for many queries cost one broadcast multiply-add an element. Logits are kept until each
// query's sum is known, then become probabilities: K is read once for a vector of queries.
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
        keys_(queries_ + kLanes * head_.key_dim),
        logits_(keys_ + kTileRows * head_.key_dim) {
    // Lanes that only pad the vector see no row.
    for (uint32_t lane = 0; lane < lanes_; ++lane) {
      const uint32_t rows = args.query_rows[first_query + lane];
      seen_[lane] = static_cast<int32_t>(rows);
      threshold_[lane] = args.thresholds[first_query + lane];
      hit_[lane] = args.hits[first_query + lane];
      rows_ = rows_ < rows ? rows : rows_;
    }
    if (args.numbers != nullptr) rows_ = head_.sealed.rows + head_.open.rows + head_.fresh.rows;
    padded_rows_ = (rows_ + kTileRows - 1) / kTileRows * kTileRows;
    low_ = logits_ + size_t{padded_rows_} * kLanes;
  }

  void Run() {
    for (uint32_t row = 0; row < padded_rows_; ++row) {
      Store(low_ + size_t{row} * kLanes, Sees(row) ? Fill(1.0f) : Floats{});
    }
    for (uint32_t h = 0; h < args_.heads; ++h) {
      LoadQueries(h);
      args_.lses != nullptr ? ScoreInOnePass(h) : ScoreInTwoPasses();
    }
    if (args_.low_counts != nullptr) {
      for (uint32_t first = 0; first < rows_; first += kTileRows) AddLowCounts(first);
    }
    if (args_.last_hits != nullptr) RaiseLastHits();
  }

 private:
  // Of padding no lane sees anything.
  Ints Sees(uint32_t row) const {
    if (row >= rows_) return Ints{};
    const uint32_t number = args_.numbers == nullptr ? row : args_.numbers[row];
    return static_cast<int32_t>(number) < seen_;
  }

  void LoadQueries(uint32_t h) {
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
      for (uint32_t d = 0; d < head_.key_dim; ++d) {
        queries_[d * kLanes + lane] =
            lane < lanes_ ? args_.queries[h * args_.query_count + first_query_ + lane][d] *
                                (args_.scale * kLog2E)
                          : 0;
      }
    }
  }

  // The sum over all rows is known: every logit is a probability at once.
  void ScoreInOnePass(uint32_t h) {
    Floats lse = {};
    for (uint32_t lane = 0; lane < lanes_; ++lane) {
      lse[lane] = *args_.lses[h * args_.query_count + first_query_ + lane] * kLog2E;
    }
    for (uint32_t first = 0; first < rows_;) {
      const uint32_t rows = LoadKeys(first);
      Floats alpha[kTileRows];
      TileLogits(keys_, queries_, head_.key_dim, alpha);
      for (uint32_t row = 0; row < rows; ++row) {
        const Floats x = alpha[row] - lse;
        // NaN passes. Lanes that do not see the row have no mass from it.
        alpha[row] = Sees(first + row) ? Exp2(x > 0.0f ? Floats{} : x) : Floats{};
      }
      AddMass(first, rows, alpha);
      first += rows;
    }
  }

  void ScoreInTwoPasses() {
    highest_ = Fill(-kInfinity);
    for (uint32_t first = 0; first < rows_;) first += Logits(first);
    Exponentials();
    for (uint32_t first = 0; first < rows_; first += kTileRows) {
      Floats alpha[kTileRows];
      for (uint32_t row = 0; row < kTileRows; ++row) {
        alpha[row] = Load(logits_ + size_t{first + row} * kLanes) * inverse_;
      }
      AddMass(first, Min(kTileRows, rows_ - first), alpha);
    }
  }

  uint32_t LoadKeys(uint32_t first) {
    return LoadTile<Format>(head_, first, rows_, keys_, nullptr);
  }

  // Of the rows `first` .., of which it returns the number.
  uint32_t Logits(uint32_t first) {
    const uint32_t rows = LoadKeys(first);
    Floats logits[kTileRows];
    TileLogits(keys_, queries_, head_.key_dim, logits);
    for (uint32_t row = 0; row < rows; ++row) {
      Store(logits_ + size_t{first + row} * kLanes, logits[row]);
      highest_ = Max(Sees(first + row) ? logits[row] : Fill(-kInfinity), highest_);
    }
    return rows;
  }

  void Exponentials() {
    Floats total = {};
    for (uint32_t row = 0; row < padded_rows_; ++row) {
      float* const at = logits_ + size_t{row} * kLanes;
      const Floats e = Sees(row) ? Exp2(Load(at) - highest_) : Floats{};
      total += e;
      Store(at, e);
    }
    inverse_ = 1.0f / total;
  }

  // Of the rows `first` .. first + rows - 1, at most a tile. Uses up `alpha`.
  void AddMass(uint32_t first, uint32_t rows, Floats* alpha) {
    for (uint32_t row = rows; row < kTileRows; ++row) alpha[row] = Floats{};
    for (uint32_t row = 0; row < rows; ++row) {
      const size_t at = size_t{first + row} * kLanes;
      // Comparisons with NaN are false: such an alpha adds nothing and leaves its row low. So does
      // 0 * infinity, the alpha of a query that saw no row at all.
      Store(low_ + at, alpha[row] >= threshold_ ? Floats{} : Load(low_ + at));
      alpha[row] = alpha[row] >= 0.0f ? alpha[row] : Floats{};
    }
    if (args_.square_sum != nullptr) {
      Floats squares[kTileRows];
      for (uint32_t row = 0; row < kTileRows; ++row) squares[row] = alpha[row] * alpha[row];
      AddTile(squares, args_.square_sum + first, rows);
    }
    AddTile(alpha, args_.mass + first, rows);
  }

  // to[row] += the sum of values[row]'s lanes. Uses up `values`.
  static void AddTile(Floats* values, float* to, uint32_t rows) {
    SumLanes<kTileRows>(values);
    float sums[kTileRows];
    __builtin_memcpy(sums, values, sizeof(sums));
    for (uint32_t row = 0; row < rows; ++row) to[row] += sums[row];
  }

  void AddLowCounts(uint32_t first) {
    Floats low[kTileRows];
    __builtin_memcpy(low, low_ + size_t{first} * kLanes, sizeof(low));
    SumLanes<kTileRows>(low);
    float sums[kTileRows];
    __builtin_memcpy(sums, low, sizeof(sums));
    const uint32_t rows = Min(kTileRows, rows_ - first);
    for (uint32_t row = 0; row < rows; ++row) {
      args_.low_counts[first + row] += static_cast<uint8_t>(sums[row]);
    }
  }

  void RaiseLastHits() {
    for (uint32_t row = 0; row < rows_; ++row) {
      const Floats low = Load(low_ + size_t{row} * kLanes);
      const auto hit = static_cast<uint16_t>(MaxLane(Sees(row) && low == 0.0f ? hit_ : Floats{}));
      if (hit > args_.last_hits[row]) args_.last_hits[row] = hit;
    }
  }

  const ScoreHeadArgs& args_;
  const HeadRows& head_;
  const uint32_t first_query_, lanes_;
  float* const queries_;  // [key_dim][kLanes], of one query head
  float* const keys_;     // [16][key_dim], a tile as f32
  float* const logits_;   // [padded_rows_][kLanes], later exponentials
  float* low_;            // [padded_rows_][kLanes], 1 while no query head found the row important
  uint32_t rows_ = 0;     // rows that some query can have seen
  uint32_t padded_rows_ = 0;
  Ints seen_ = {};
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
