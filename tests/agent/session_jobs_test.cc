// The two jobs as values: what a drain leaves in the planes, and what a compaction leaves in
// memory.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/session_jobs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <set>

#include "agent/recovery.h"

namespace kvpool {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

constexpr uint32_t kKeyDim = 8;

// A session of fresh rows only, in the first pages of a small pool; every row names itself.
class JobTest : public testing::Test {
 protected:
  static constexpr uint32_t kTokens = 40, kPages = 3;

  void SetUp() override {
    for (uint32_t i = 0; i < layout_.pages_per_slab(); ++i) {
      pages_.push_back(layout_.Page(SlabIndex(0), i));
    }
    planes_ = Planes(layout_.geometry(), {.low_count_ring = 4});
    planes_.Append(0, kTokens);
    rows_ = {.fresh_pages = {pages_.begin(), pages_.begin() + kPages}, .fresh_tokens = kTokens};
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    std::vector<float> key(kKeyDim), value(kKeyDim);
    for (uint32_t plane = 0; plane < 4; ++plane) {
      for (uint32_t row = 0; row < kTokens; ++row) {
        for (float& x : key) x = normal(random);
        std::fill(value.begin(), value.end(), static_cast<float>(row));
        StoreRow(layout_, base(), rows_.View().BlockOf(layout_, plane / 2, plane % 2, row),
                 rows_.View().RowInBlock(plane, row), key.data(), value.data());
      }
    }
  }

  std::byte* base() { return reinterpret_cast<std::byte*>(memory_.data()); }

  DrainJob Drain(std::vector<uint32_t> positions, float query) {
    const size_t floats = 2 * 4 * kKeyDim;
    DrainJob job{.layout = &layout_, .base = base(), .rows = rows_, .planes = planes_};
    job.queries.assign(positions.size() * floats, query);
    job.positions = std::move(positions);
    return job;
  }
  CompactionJob Compaction(std::optional<Selection> selection) {
    return {.layout = &layout_,
            .base = base(),
            .rows = rows_,
            .planes = planes_,
            .session_pages = rows_.fresh_pages,
            .selection = selection};
  }
  // Which rows a head has after a job, by their values.
  std::multiset<float> Values(const CompactionJob& job, uint32_t plane) {
    std::multiset<float> found;
    std::vector<float> key(kKeyDim), value(kKeyDim);
    for (uint32_t row = 0; row < job.result.lengths[plane]; ++row) {
      LoadRow(layout_, base(), job.result.blocks[plane][row / kPageTokens], row % kPageTokens,
              key.data(), value.data());
      found.insert(value[kKeyDim - 1]);
      EXPECT_EQ(value[0], static_cast<float>(job.planes.positions(plane)[row])) << row;
    }
    return found;
  }

  // The rows that a job left, all compacted.
  SessionRows Compacted(const CompactionJob& job) {
    stride_ = 1;
    for (const auto& list : job.result.blocks) {
      stride_ = std::max(stride_, static_cast<uint32_t>(list.size()));
    }
    table_.assign(job.result.blocks.size() * stride_, BlockId(0));
    for (size_t p = 0; p < job.result.blocks.size(); ++p) {
      std::copy(job.result.blocks[p].begin(), job.result.blocks[p].end(),
                table_.begin() + static_cast<std::ptrdiff_t>(p * stride_));
    }
    return {.compacted = {.compacted_lengths = job.result.lengths.data(),
                          .compacted_blocks = table_.data(),
                          .compacted_stride = stride_,
                          .sealed_lengths = job.result.sealed_lengths.data(),
                          .sealed_format = job.result.format}};
  }

  std::vector<BlockId> table_;
  uint32_t stride_ = 1;
  const Layout layout_ = *Layout::Make({.layers = 2,
                                        .query_heads = 4,
                                        .kv_heads = 2,
                                        .key_dim = kKeyDim,
                                        .value_dim = kKeyDim,
                                        .dtype = Dtype::kF32,
                                        .kv_of_layer = {0, 1}},
                                       64_KiB);
  std::vector<double> memory_ = std::vector<double>(64 * 1024 / sizeof(double));
  std::vector<PageId> pages_;
  SessionRows rows_;
  Planes planes_;
};

TEST_F(JobTest, ADrainSpreadsEachQuerysMassOverTheRowsItSaw) {
  DrainJob job = Drain({9, 39}, 0.5f);
  job.Run();
  for (uint32_t plane = 0; plane < 4; ++plane) {
    const std::vector<float>& mass = job.planes.mass(plane);
    // Two queries of two heads each, a share of 1 every one.
    EXPECT_NEAR(std::accumulate(mass.begin(), mass.end(), 0.0), 4.0, 1e-3);
    // Rows from 10 on were seen by the second query alone.
    EXPECT_LT(std::accumulate(mass.begin() + 10, mass.end(), 0.0), 2.0);
    EXPECT_EQ(job.planes.drain_queries(0), 2u);
  }
}

TEST_F(JobTest, PositionsBeyondWhatIsCommittedAreClamped) {
  DrainJob wild = Drain({std::numeric_limits<uint32_t>::max(), 40}, 0.5f);
  wild.Run();
  DrainJob last = Drain({39, 39}, 0.5f);
  last.Run();
  EXPECT_EQ(wild.positions, last.positions);
  for (uint32_t plane = 0; plane < 4; ++plane) {
    EXPECT_EQ(wild.planes.mass(plane), last.planes.mass(plane));
  }
}

TEST_F(JobTest, ADrainOfASessionWithoutRowsIsHarmless) {
  rows_ = {};
  planes_ = Planes(layout_.geometry(), {.low_count_ring = 4});
  DrainJob job = Drain({0, 7}, 0.5f);
  job.Run();
  EXPECT_EQ(job.planes.rows(0), 0u);
}

TEST_F(JobTest, NanAddsNoMassAndCountsAsLow) {
  DrainJob job = Drain({39}, std::numeric_limits<float>::quiet_NaN());
  job.Run();
  for (uint32_t row = 0; row < kTokens; ++row) {
    EXPECT_EQ(job.planes.mass(0)[row], 0.0f);
    EXPECT_EQ(job.planes.low_counts(0, 0)[row], 1);
  }
}

TEST_F(JobTest, ACompactionKeepsWhatItsSelectionSaysAndTellsTheRecovery) {
  DrainJob drain = Drain({39}, 0.5f);
  drain.Run();
  planes_ = drain.planes;
  CompactionJob job = Compaction(Selection{.heads = {{.first = 4, .recent = 8, .total = 12}}});
  job.Run();
  ASSERT_TRUE(job.status.ok()) << job.status;
  std::multiset<float> expected;
  for (uint32_t row = 0; row < kTokens; ++row) {
    if (row < 4 || row >= kTokens - 8) expected.insert(static_cast<float>(row));
  }
  double least = 2, sum = 0;
  for (uint32_t plane = 0; plane < 4; ++plane) {
    EXPECT_EQ(Values(job, plane), expected);
    double kept = 0;
    for (float row : expected) kept += drain.planes.mass(plane)[static_cast<size_t>(row)];
    const double share = kept / 2;  // of two query heads
    least = std::min(least, share);
    sum += share;
    for (float mass : job.planes.mass(plane)) EXPECT_EQ(mass, 0.0f);
  }
  EXPECT_NEAR(StatsOf(job.recovery).min, least, 1e-4);
  EXPECT_NEAR(StatsOf(job.recovery).mean, sum / 4, 1e-4);
  EXPECT_EQ(job.result.pages.size(), 1u);
}

// What would be kept of uniform attention is 12 of 40 rows.
TEST_F(JobTest, ACompactionThatTheFloorDoesNotAllowTouchesNothing) {
  DrainJob drain = Drain({39}, 0.0f);
  drain.Run();
  planes_ = drain.planes;
  const Selection selection{.heads = {{.first = 4, .recent = 8, .total = 12}}};
  const std::vector<double> before = memory_;
  for (const RecoveryFloor& floor :
       {RecoveryFloor{.min_recovery = 0.31}, RecoveryFloor{0.16, {0.5f, 0.5f, 0.5f, 0.5f}}}) {
    CompactionJob job = Compaction(selection);
    job.floor = floor;
    job.Run();
    EXPECT_TRUE(job.status.ok()) << job.status;
    EXPECT_EQ(job.verdict, CompactionJob::Verdict::kUntouched);
    EXPECT_FALSE(StatsOf(job.recovery).measured());
    EXPECT_EQ(memory_, before);
    for (uint32_t plane = 0; plane < 4; ++plane) {
      EXPECT_EQ(job.planes.positions(plane), planes_.positions(plane));
      EXPECT_EQ(job.planes.mass(plane), planes_.mass(plane)) << "it is measured on";
    }
  }
  // One head that loses more is made up for by others: the mean counts.
  for (const RecoveryFloor& floor :
       {RecoveryFloor{.min_recovery = 0.29}, RecoveryFloor{0.16, {0.2f, 0.8f, 0.6f, 0.6f}},
        RecoveryFloor{}}) {
    CompactionJob job = Compaction(selection);
    job.floor = floor;
    job.Run();
    EXPECT_EQ(job.verdict, CompactionJob::Verdict::kGood);
    EXPECT_EQ(job.result.lengths, std::vector<uint32_t>(4, 12));
    memory_ = before;
  }
}

TEST_F(JobTest, WhatCannotBeMeasuredIsNoMoreThanAnyFloor) {
  CompactionJob job = Compaction(Selection{.heads = {{.recent = 16, .total = 16}}});
  job.floor.min_recovery = 0.01;
  job.Run();
  EXPECT_EQ(job.verdict, CompactionJob::Verdict::kUntouched);
}

TEST_F(JobTest, WhatTheFloorHoldsMovesAllTheSame) {
  DrainJob drain = Drain({39}, 0.5f);
  drain.Run();
  planes_ = drain.planes;
  CompactionJob job = Compaction(Selection{.heads = {{.recent = 8, .total = 8}}});
  job.floor.min_recovery = 0.99;
  job.evacuate = {pages_[1]};
  job.replacements = {pages_[7]};
  job.Run();
  ASSERT_TRUE(job.status.ok()) << job.status;
  EXPECT_EQ(job.verdict, CompactionJob::Verdict::kHeld);
  EXPECT_FALSE(job.selection.has_value());
  EXPECT_THAT(job.result.pages, UnorderedElementsAre(pages_[0], pages_[2], pages_[7]));
  EXPECT_EQ(job.result.lengths, std::vector<uint32_t>(4, kTokens));
  for (float mass : job.planes.mass(0)) EXPECT_GT(mass, 0.0f);
}

TEST_F(JobTest, WithoutQueriesThereIsNoRecoveryToTell) {
  CompactionJob job = Compaction(Selection{.heads = {{.recent = 16, .total = 16}}});
  job.Run();
  ASSERT_TRUE(job.status.ok());
  EXPECT_FALSE(StatsOf(job.recovery).measured());
}

TEST_F(JobTest, AMoveKeepsEveryRowAndItsStatistics) {
  DrainJob drain = Drain({39}, 0.5f);
  drain.Run();
  planes_ = drain.planes;
  CompactionJob job = Compaction(std::nullopt);
  job.evacuate = {pages_[1]};
  job.replacements = {pages_[7]};
  job.Run();
  ASSERT_TRUE(job.status.ok()) << job.status;
  EXPECT_THAT(job.result.pages, UnorderedElementsAre(pages_[0], pages_[2], pages_[7]));
  for (uint32_t plane = 0; plane < 4; ++plane) {
    EXPECT_EQ(Values(job, plane).size(), kTokens);
    EXPECT_EQ(job.planes.mass(plane), drain.planes.mass(plane));
  }
}

// Fresh rows fill the gap behind the compacted ones, so a move changes the order of rows.
TEST_F(JobTest, AMoveTakesPositionsAndStatisticsAlong) {
  CompactionJob first = Compaction(Selection{.heads = {{.first = 4, .recent = 8, .total = 12}}});
  first.Run();
  ASSERT_TRUE(first.status.ok());
  SessionRows rows = Compacted(first);
  rows.fresh_pages = {pages_[5], pages_[6]};
  rows.fresh_start = kTokens;
  rows.fresh_tokens = 20;
  std::vector<float> key(kKeyDim, 1.0f), value(kKeyDim);
  for (uint32_t plane = 0; plane < 4; ++plane) {
    for (uint32_t i = 0; i < 20; ++i) {
      std::fill(value.begin(), value.end(), static_cast<float>(kTokens + i));
      StoreRow(layout_, base(), layout_.Block(rows.fresh_pages[i / 16], plane / 2, plane % 2),
               i % 16, key.data(), value.data());
    }
  }
  CompactionJob move = Compaction(std::nullopt);
  move.rows = rows;
  move.planes = first.planes;
  move.planes.Append(kTokens, 20);
  for (uint32_t plane = 0; plane < 4; ++plane) {
    for (uint32_t row = 0; row < 32; ++row) {
      move.planes.mass(plane)[row] = static_cast<float>(move.planes.positions(plane)[row]);
    }
  }
  move.session_pages = first.result.pages;
  move.session_pages.insert(move.session_pages.end(), {pages_[5], pages_[6]});
  move.evacuate = {pages_[6]};
  move.replacements = {pages_[7]};
  move.Run();
  ASSERT_TRUE(move.status.ok()) << move.status;
  for (uint32_t plane = 0; plane < 4; ++plane) {
    EXPECT_EQ(Values(move, plane).size(), 32u);  // and each at its position
    for (uint32_t row = 0; row < 32; ++row) {
      EXPECT_EQ(move.planes.mass(plane)[row], move.planes.positions(plane)[row]);
    }
  }
}

// Sealing after a compaction goes through the pages that the compaction freed.
TEST_F(JobTest, SealsWhatIsLeft) {
  CompactionJob job = Compaction(Selection{.heads = {{.recent = 39, .total = 39}}});
  job.seal = {.format = SealedFormat::kInt8, .open_rows = 4};
  job.reserve = {pages_[6]};
  job.Run();
  ASSERT_TRUE(job.status.ok() && job.sealed.ok()) << job.status << job.sealed;
  EXPECT_THAT(job.result.pages, testing::Not(testing::Contains(pages_[6])));
  EXPECT_EQ(job.result.format, SealedFormat::kInt8);
  EXPECT_EQ(job.pages_before_sealing, 3u);
  SessionRows rows = Compacted(job);
  std::vector<float> key(kKeyDim), value(kKeyDim);
  for (uint32_t plane = 0; plane < 4; ++plane) {
    EXPECT_EQ(job.result.sealed_lengths[plane], 32u);
    EXPECT_EQ(job.result.lengths[plane], 39u);
    for (uint32_t row = 0; row < 39; ++row) {
      ReadRow(layout_, base(), rows.View(), plane, row, key.data(), value.data());
      EXPECT_NEAR(value[3], static_cast<float>(job.planes.positions(plane)[row]), 0.05) << row;
    }
  }
}

TEST_F(JobTest, WithoutAReserveNothingIsSealedAndTheSessionIsWhole) {
  CompactionJob job = Compaction(std::nullopt);
  job.seal = {.format = SealedFormat::kInt4};
  job.Run();
  ASSERT_TRUE(job.status.ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(job.sealed)) << job.sealed;
  EXPECT_EQ(job.result.format, SealedFormat::kNone);
  for (uint32_t plane = 0; plane < 4; ++plane) EXPECT_EQ(Values(job, plane).size(), kTokens);
}

TEST_F(JobTest, AMoveWithoutRoomFailsAndTouchesNothing) {
  const std::vector<double> before = memory_;
  CompactionJob job = Compaction(std::nullopt);
  job.evacuate = {pages_[1]};
  job.Run();
  EXPECT_TRUE(absl::IsFailedPrecondition(job.status));
  EXPECT_THAT(job.status.ToString(), HasSubstr("1 replacement"));
  EXPECT_EQ(memcmp(memory_.data(), before.data(), before.size() * sizeof(double)), 0);
  EXPECT_EQ(job.planes.rows(0), kTokens);
}

}  // namespace
}  // namespace kvpool
