// The profile of one query head, compiled once for each target: queries along the vector. The
// log-sum-exp of each query is known, so one pass over the keys is enough and nothing is kept.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/simd/rows.h"
#include "kernels/simd/sealed.h"

namespace kvpool::simd::KVPOOL_SIMD_TARGET {
namespace {

constexpr float kLog2E = 1.44269504f;

// Up to kLaneVectors vectors of queries.
template <typename Format>
class ProfilePass {
 public:
  ProfilePass(const ProfileHeadArgs& args, uint32_t first_query)
      : args_(args),
        head_(args.head),
        queries_(args.scratch),
        keys_(queries_ + kLaneVectors * kLanes * head_.key_dim) {
    const uint32_t count = Min(kLaneVectors * kLanes, args.query_count - first_query);
    vectors_ = (count + kLanes - 1) / kLanes;
    for (uint32_t n = 0; n < vectors_ * kLanes; ++n) {
      const uint32_t v = n / kLanes, lane = n % kLanes, query = first_query + n;
      // Lanes that only pad a vector see no row.
      seen_[v][lane] = n < count ? static_cast<int32_t>(args.query_rows[query]) : 0;
      far_[v][lane] = n < count ? static_cast<int32_t>(args.far_positions[query]) : 0;
      lse_[v][lane] = n < count ? args.lse[query] * kLog2E : 0;
      for (uint32_t d = 0; d < head_.key_dim; ++d) {
        queries_[(v * head_.key_dim + d) * kLanes + lane] =
            n < count ? args.queries[query][d] * (args.scale * kLog2E) : 0;
      }
      if (n < count) rows_ = rows_ < args.query_rows[query] ? args.query_rows[query] : rows_;
    }
  }

  void Run() {
    for (uint32_t first = 0, count = 0; first < rows_; first += count) {
      count = LoadTile<Format>(head_, first, rows_, keys_, nullptr);
      AddTile(first, count);
    }
  }

 private:
  void AddTile(uint32_t first, uint32_t rows) {
    Floats mass[kTileRows] = {}, far[kTileRows] = {};
    for (uint32_t v = 0; v < vectors_; ++v) {
      Floats logits[kTileRows];
      TileLogits(keys_, queries_ + v * kLanes * head_.key_dim, head_.key_dim, logits);
      for (uint32_t row = 0; row < rows; ++row) {
        const auto number = static_cast<int32_t>(first + row);
        const auto position = static_cast<int32_t>(args_.positions[first + row]);
        const Floats alpha = Exp2(logits[row] - lse_[v]);
        // Comparisons with NaN are false: such an alpha adds nothing.
        const Floats seen = ((number < seen_[v]) & (alpha >= 0.0f)) ? alpha : Floats{};
        mass[row] += seen;
        far[row] += position < far_[v] ? seen : Floats{};
      }
    }
    AddSums(mass, args_.positions + first, rows, args_.mass);
    AddSums(far, args_.positions + first, rows, args_.far);
  }

  static void AddSums(Floats* lanes, const uint32_t* positions, uint32_t rows, float* to) {
    SumLanes<kTileRows>(lanes);
    float sums[kTileRows];
    __builtin_memcpy(sums, lanes, sizeof(sums));
    for (uint32_t row = 0; row < rows; ++row) to[positions[row]] += sums[row];
  }

  const ProfileHeadArgs& args_;
  const HeadRows& head_;
  float* const queries_;  // [vectors_][key_dim][kLanes]
  float* const keys_;     // [16][key_dim], a tile as f32
  uint32_t vectors_ = 0;
  uint32_t rows_ = 0;  // rows that some query saw
  Ints seen_[kLaneVectors] = {};
  Ints far_[kLaneVectors] = {};
  Floats lse_[kLaneVectors] = {};
};

template <typename Format>
void ProfileHeadIn(const ProfileHeadArgs& args) {
  for (uint32_t query = 0; query < args.query_count; query += kLaneVectors * kLanes) {
    ProfilePass<Format>(args, query).Run();
  }
}

}  // namespace

void ProfileHead(const ProfileHeadArgs& args) {
  InFormat(args.head.dtype, [&]<typename Format>() { ProfileHeadIn<Format>(args); });
}

}  // namespace kvpool::simd::KVPOOL_SIMD_TARGET
