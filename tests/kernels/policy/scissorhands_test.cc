// Scissorhands: its numbers, and what it drops against the paper's algorithm written down
// literally; budgets of layers by persistence.
//
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "kernels/persistence.h"
#include "kernels/policy/policy.h"
#include "tests/kernels/policy/policy_session.h"
#include "tests/kernels/policy/still_session.h"
#include "tests/kernels/test_session.h"

namespace kvpool {
namespace {

TEST(Scissorhands, Numbers) {
  const auto policy = Make("scissorhands", {});  // B 256, w 400, r 10, m 128
  EXPECT_EQ(policy->NextCompactAt({}), 256u);
  EXPECT_EQ(policy->PeakTokens({.max_tokens = 5000, .chunk = 64}), 320u);
  EXPECT_EQ(policy->PeakTokens({.max_tokens = 200, .chunk = 64}), 200u);
  EXPECT_FALSE(CompactAt(*policy, 128).has_value());
  for (uint32_t length : {129u, 256u, 319u}) {
    const auto selection = CompactAt(*policy, length);
    ASSERT_TRUE(selection.has_value());
    EXPECT_EQ(selection->heads[0].total, 128u);
    EXPECT_EQ(selection->heads[0].recent, 10u);
    EXPECT_EQ(selection->heads[0].first, 0u);
    EXPECT_EQ(selection->score.window, 400u);
  }
  const PolicyNeeds needs = policy->Needs();
  EXPECT_EQ(needs.queries, QueryNeed::kExact);
  EXPECT_EQ(needs.prompt_rows, 400u);
  EXPECT_EQ(needs.planes.low_count_ring, 13u + 4 + 1);  // ceil(400/32) full, ceil(400/128) early
}

// The ring never forgets a drain that fits in w, when drains are full or end at a hand-over.
TEST(Scissorhands, RingCoversItsWindow) {
  for (uint32_t window : {1u, 31u, 32u, 33u, 100u, 400u}) {
    for (uint32_t drop : {1u, 7u, 16u, 31u, 33u, 50u, 100u, 128u}) {
      const auto policy = Make("scissorhands", {{"window", window}, {"drop", drop}});
      Planes planes(kOneHead, policy->Needs().planes);
      std::vector<uint32_t> entries;  // newest last, never forgotten
      for (uint32_t period = 0; period < 2 * window / drop + 4; ++period) {
        for (uint32_t left = drop; left > 0;) {
          const uint32_t queries = std::min(left, kDrainQueries);
          planes.BeginDrain(queries, 1);
          if (!entries.empty() && entries.back() + queries <= kDrainQueries) {
            entries.back() += queries;
          } else {
            entries.push_back(queries);
          }
          left -= queries;
          uint32_t fits = 0, sum = 0;
          while (fits < entries.size()) {
            sum += entries[entries.size() - 1 - fits];
            if (fits > 0 && sum > window) break;
            ++fits;
          }
          ASSERT_EQ(planes.DrainsWithin(window), fits) << "w " << window << " m " << drop;
        }
      }
    }
  }
}

// One head under Algorithms 1 and 2 as the paper prints them, with one mark a query and key.
class PaperHead {
 public:
  PaperHead(uint32_t budget, uint32_t window, uint32_t recent, uint32_t drop)
      : budget_(budget), window_(window), recent_(recent), drop_(drop) {}

  bool full() const { return keys_.size() >= budget_; }
  const std::vector<uint32_t>& keys() const { return keys_; }
  void Append(uint32_t key) {
    keys_.push_back(key);
    marks_.emplace_back();
  }
  // One query marks every key; keys younger than a query have no mark from it.
  void Mark(const std::vector<bool>& low) {
    for (size_t i = 0; i < keys_.size(); ++i) marks_[i].push_back(low[i]);
  }
  void Compress() {
    std::vector<std::pair<int, uint32_t>> order;  // (-I, key): Argsort with older first
    for (size_t i = 0; i < keys_.size(); ++i) {
      const auto from = marks_[i].end() - std::min<ptrdiff_t>(window_, marks_[i].size());
      int low = static_cast<int>(std::count(from, marks_[i].end(), true));
      if (i + recent_ >= keys_.size()) low = -1;
      order.emplace_back(-low, keys_[i]);
    }
    std::sort(order.begin(), order.end());
    order.resize(drop_);
    for (const auto& [rank, key] : order) {
      const auto at = std::find(keys_.begin(), keys_.end(), key);
      marks_.erase(marks_.begin() + (at - keys_.begin()));
      keys_.erase(at);
    }
  }

 private:
  uint32_t budget_, window_, recent_, drop_;
  std::vector<uint32_t> keys_;
  std::vector<std::vector<bool>> marks_;
};

// The same keys stay as in the paper, at every step: counts per drain lose nothing of windows that
// are whole drains; of others those that fit are what the paper's w is, and one at least.
TEST(Scissorhands, EqualsThePaper) {
  const struct {
    uint32_t budget, window, recent, drop;
  } cases[] = {{96, 64, 10, 32},  {128, 128, 1, 64}, {160, 32, 40, 96},
               {96, 96, 64, 32},  {96, 70, 10, 32},  {128, 127, 1, 64},
               {160, 33, 40, 96}, {96, 31, 64, 32},  {160, 1, 40, 32}};
  for (const auto& c : cases) {
    std::mt19937 random(c.budget + c.window);
    const auto policy =
        Make("scissorhands",
             {{"budget", c.budget}, {"window", c.window}, {"recent", c.recent}, {"drop", c.drop}});
    const uint32_t drains = std::max(1u, c.window / kDrainQueries);
    PaperHead paper(c.budget, drains * kDrainQueries, c.recent, c.drop);
    Planes planes(kOneHead, policy->Needs().planes);
    std::vector<std::vector<bool>> pending;  // marks of undrained queries, by row
    for (uint32_t step = 0; step < 600; ++step) {
      if (planes.rows(0) >= *policy->NextCompactAt({})) {
        ASSERT_TRUE(paper.full());
        ASSERT_TRUE(pending.empty());
        const std::vector<KeepRows> keep = SelectNow(*policy, planes);
        ASSERT_EQ(keep[0].size(), c.budget - c.drop);
        planes.Gather(0, keep[0]);
        paper.Compress();
      }
      planes.Append(step, 1);
      paper.Append(step);
      std::vector<bool> low(planes.rows(0));
      for (size_t i = 0; i < low.size(); ++i) low[i] = random() % 100 < (i * 37 % 100);
      paper.Mark(low);
      pending.push_back(low);
      if (pending.size() == kDrainQueries) {
        planes.BeginDrain(kDrainQueries, step + 1);
        for (const std::vector<bool>& marks : pending) {
          for (size_t i = 0; i < marks.size(); ++i) planes.low_counts(0, 0)[i] += marks[i];
        }
        pending.clear();
      }
      ASSERT_EQ(planes.positions(0), paper.keys());
      ASSERT_LE(planes.rows(0), c.budget);
    }
  }
}

// P1, P2, P6: at every safe point each head holds at most B keys, the newest r among them, as long
// as chunks are not longer than m.
TEST(Scissorhands, NoHeadEverHoldsMoreThanB) {
  const Geometry g = TestGeometry(3, 4, 2, 16, 16, Dtype::kF32);
  const auto policy =
      Make("scissorhands", {{"budget", 96}, {"window", 64}, {"recent", 10}, {"drop", 48}});
  PolicySession session(g, *policy, {.prompt_tokens = 200, .max_tokens = 500, .chunk = 48}, 2);
  while (session.committed() < 500) {
    const uint32_t before = session.compactions();
    session.Feed(session.committed() < 200 ? std::min(48u, 200 - session.committed()) : 1);
    for (uint32_t plane = 0; plane < g.planes(); ++plane) {
      const std::vector<uint32_t>& now = session.planes().positions(plane);
      ASSERT_LE(now.size(), 96u);
      for (uint32_t i = 1; i <= std::min(10u, session.committed()); ++i) {
        ASSERT_NE(std::find(now.begin(), now.end(), session.committed() - i), now.end());
      }
      if (session.compactions() > before && session.committed() > 200) {
        ASSERT_EQ(now.size(), 49u) << "B - m, and the token after it";
      }
    }
  }
  EXPECT_GT(session.compactions(), 5u);
}

// P4: a budget that is never reached changes nothing.
TEST(Scissorhands, ABudgetAsLongAsTheSessionIsFull) {
  const Geometry g = TestGeometry(1, 2, 1, 16, 16, Dtype::kF32);
  const auto policy = Make("scissorhands", {{"budget", 300}});
  PolicySession session(g, *policy, {.max_tokens = 300, .chunk = 32}, 2);
  while (session.committed() < 300) session.Feed(1);
  EXPECT_EQ(session.compactions(), 0u);
  EXPECT_EQ(session.planes().rows(0), 300u);
}

// The persistence ratio by its definition, from single marks.
TEST(Scissorhands, PersistenceIsTheShareThatStaysImportant) {
  const Geometry g = TestGeometry(2, 4, 2, 8, 8, Dtype::kF32);
  for (uint32_t seed = 0; seed < 50; ++seed) {
    std::mt19937 random(seed);
    Planes planes(g, {.low_count_ring = 8});
    const uint32_t rows = 1 + random() % 300, drains = random() % 7;
    planes.Append(0, rows);
    // [planes][drains][rows]: whether some query of the drain found the row important.
    std::vector<std::vector<std::vector<bool>>> hit(g.planes());
    for (uint32_t d = 0; d < drains; ++d) {
      planes.BeginDrain(32, rows);
      for (uint32_t p = 0; p < g.planes(); ++p) {
        hit[p].emplace_back();
        for (uint32_t row = 0; row < rows; ++row) {
          hit[p][d].push_back(random() % 8 < row % 8);
          const uint32_t low = hit[p][d][row] ? random() % 32 : 32;
          planes.low_counts(p, 0)[row] = static_cast<uint8_t>(low);
        }
      }
    }
    const uint32_t window = 32 * (1 + random() % 8);
    const uint32_t used = std::min(drains, window / 32), newer = used / 2;
    const std::vector<double> persistence = LayerPersistence(g, planes, window);
    ASSERT_EQ(persistence.size(), 2u);
    for (uint32_t layer = 0; layer < 2; ++layer) {
      uint32_t both = 0, late = 0;
      for (uint32_t p = 2 * layer; p < 2 * layer + 2; ++p) {
        for (uint32_t row = 0; row + 32 * used <= rows; ++row) {
          bool in_newer = false, in_older = false;
          for (uint32_t age = 0; age < used; ++age) {
            (age < newer ? in_newer : in_older) |= hit[p][drains - 1 - age][row];
          }
          late += in_newer ? 1 : 0;
          both += in_newer && in_older ? 1 : 0;
        }
      }
      EXPECT_DOUBLE_EQ(persistence[layer], late == 0 ? 1.0 : static_cast<double>(both) / late);
    }
  }
}

TEST(Scissorhands, SharesAddUpToTheWhole) {
  EXPECT_EQ(ShareByPersistence({1, 1, 1, 1}, 1, 100, 10), (std::vector<uint32_t>(4, 100)));
  // Weights 1 and 3: 2 * 90 keys above the least are divided 1 to 3.
  EXPECT_EQ(ShareByPersistence({1, 0}, 2, 100, 10), (std::vector<uint32_t>{55, 145}));
  std::mt19937 random(1);
  for (int i = 0; i < 500; ++i) {
    std::vector<double> persistence(1 + random() % 60);
    for (double& p : persistence) p = static_cast<double>(random() % 1001) / 1000;
    const uint32_t mean = random() % 2000, least = random() % (mean + 1);
    const auto shares =
        ShareByPersistence(persistence, static_cast<double>(random() % 160) / 10, mean, least);
    uint64_t sum = 0;
    for (uint32_t share : shares) {
      EXPECT_GE(share, least);
      sum += share;
    }
    EXPECT_LE(sum, uint64_t{mean} * persistence.size());
    EXPECT_GE(sum + persistence.size(), uint64_t{mean} * persistence.size());
  }
}

// P6 with uneven layers: heads of a layer are alike, and all layers together never hold more than
// even ones would.
TEST(Scissorhands, LayersByPersistenceHoldNoMoreTogether) {
  const Geometry g = TestGeometry(4, 4, 2, 16, 16, Dtype::kF32);
  const auto policy = Make("scissorhands", {{"budget", 160},
                                            {"window", 64},
                                            {"recent", 30},
                                            {"drop", 64},
                                            {"layers", "persistence"},
                                            {"gain", 8}});
  PolicySession session(g, *policy, {.max_tokens = 900, .chunk = 1}, 3);
  bool uneven = false;
  while (session.committed() < 900) {
    session.Feed(1);
    uint32_t rows = 0;
    for (uint32_t layer = 0; layer < 4; ++layer) {
      ASSERT_EQ(session.planes().rows(2 * layer), session.planes().rows(2 * layer + 1));
      uneven = uneven || session.planes().rows(2 * layer) != session.planes().rows(0);
      rows += session.planes().rows(2 * layer);
    }
    ASSERT_LE(rows, 4 * 160u) << "at step " << session.committed();
    ASSERT_TRUE(session.RowsAreRight());
  }
  EXPECT_TRUE(uneven);
  EXPECT_GT(session.compactions(), 10u);
  session.HandOver();
  const uint32_t seen = session.compactions();
  session.HandOver();
  EXPECT_EQ(session.compactions(), seen) << "nothing was fed since";
}

}  // namespace
}  // namespace kvpool
