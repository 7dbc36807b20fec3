// Compaction: properties of random plans, their execution, and attention before and after.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/compaction.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>

#include "kernels/attention.h"
#include "kernels/planes.h"
#include "tests/kernels/test_session.h"

namespace kvpool {
namespace {

std::vector<KeepRows> RandomKeep(TestSession& session, double share) {
  std::vector<KeepRows> keep(session.layout().geometry().planes());
  std::bernoulli_distribution stays(share);
  for (uint32_t plane = 0; plane < keep.size(); ++plane) {
    for (uint32_t row = 0; row < session.View().Length(plane); ++row) {
      if (stays(session.random())) keep[plane].push_back(row);
    }
  }
  return keep;
}

CompactionInput InputFor(const TestSession& session, const std::vector<KeepRows>* keep) {
  return {.layout = &session.layout(),
          .session = session.View(),
          .session_pages = session.session_pages(),
          .keep = keep};
}

// Slots of a head below its new length that hold no kept row now.
size_t HolesBelow(const TestSession& session, uint32_t plane, const KeepRows& keep) {
  const uint32_t compacted = session.View().CompactedLength(plane);
  const uint32_t gap = RoundUp(compacted, kPageTokens) - compacted;
  size_t filled = 0;
  for (uint32_t row : keep) filled += (row < compacted ? row : row + gap) < keep.size();
  return keep.size() - filled;
}

void ExpectGoodPlan(const TestSession& session, const std::vector<KeepRows>& keep,
                    const CompactionPlan& plan, const std::vector<PageId>& evacuate) {
  const Layout& layout = session.layout();
  size_t holes = 0, blocks = 0;
  std::set<BlockId> all;
  const std::set<PageId> pages(plan.result.pages.begin(), plan.result.pages.end());
  for (uint32_t plane = 0; plane < keep.size(); ++plane) {
    holes += HolesBelow(session, plane, keep[plane]);
    EXPECT_EQ(plan.result.lengths[plane], keep[plane].size());
    EXPECT_EQ(plan.result.blocks[plane].size(), CeilDiv<size_t>(keep[plane].size(), kPageTokens));
    blocks += plan.result.blocks[plane].size();
    for (BlockId block : plan.result.blocks[plane]) {
      EXPECT_TRUE(layout.IsBlock(block));
      EXPECT_TRUE(all.insert(block).second) << "a block twice";
      EXPECT_TRUE(pages.contains(layout.PlaceOf(block).page));
    }
    std::vector<uint32_t> sources = plan.sources[plane];
    std::sort(sources.begin(), sources.end());
    EXPECT_EQ(sources, keep[plane]) << "every kept row once";
  }
  EXPECT_EQ(plan.row_moves.size(), holes) << "the fewest row moves";
  EXPECT_EQ(pages.size(), plan.result.pages.size());
  EXPECT_EQ(pages.size(), CeilDiv<size_t>(blocks, layout.blocks_per_page()));
  std::set<PageId> expected_freed;
  for (PageId page : session.session_pages()) {
    if (!pages.contains(page)) expected_freed.insert(page);
  }
  EXPECT_EQ(std::set<PageId>(plan.freed.begin(), plan.freed.end()), expected_freed);
  EXPECT_EQ(plan.freed.size(), expected_freed.size());
  for (PageId page : evacuate) EXPECT_FALSE(pages.contains(page)) << "an evacuated page is used";
}

// What a step reads it does not write, and it writes no place twice.
void ExpectStepsDoNotOverlap(const CompactionPlan& plan) {
  std::set<std::pair<BlockId, uint8_t>> read, written;
  for (const RowMove& move : plan.row_moves) {
    EXPECT_TRUE(read.insert({move.from, move.from_row}).second);
    EXPECT_TRUE(written.insert({move.to, move.to_row}).second);
  }
  for (const auto& at : written) EXPECT_FALSE(read.contains(at));
  for (const std::vector<BlockMove>* step : {&plan.block_moves, &plan.evacuations}) {
    std::set<BlockId> from, to;
    for (const BlockMove& move : *step) {
      EXPECT_TRUE(from.insert(move.from).second);
      EXPECT_TRUE(to.insert(move.to).second);
    }
    for (BlockId block : to) EXPECT_FALSE(from.contains(block));
  }
}

// Fewest block moves: live blocks outside the fullest pages that suffice.
void ExpectFewestBlockMoves(const TestSession& session, const std::vector<KeepRows>& keep,
                            const CompactionPlan& plan) {
  const Layout& layout = session.layout();
  std::map<PageId, size_t> live;
  for (PageId page : session.session_pages()) live[page] = 0;
  size_t blocks = 0;
  for (uint32_t plane = 0; plane < keep.size(); ++plane) {
    const uint32_t compacted = session.View().CompactedLength(plane);
    const uint32_t gap = RoundUp(compacted, kPageTokens) - compacted;
    for (uint32_t slot = 0; slot < keep[plane].size(); slot += kPageTokens, ++blocks) {
      const BlockId block = session.BlockOf(plane, slot < compacted ? slot : slot - gap);
      ++live[layout.PlaceOf(block).page];
    }
  }
  std::vector<size_t> counts;
  for (const auto& [page, count] : live) counts.push_back(count);
  std::sort(counts.rbegin(), counts.rend());
  counts.resize(CeilDiv<size_t>(blocks, layout.blocks_per_page()));
  EXPECT_EQ(plan.block_moves.size(), blocks - std::accumulate(counts.begin(), counts.end(), 0u));
  EXPECT_TRUE(plan.evacuations.empty());
}

TEST(Compaction, RandomPlansHoldTheirPromises) {
  for (uint32_t seed = 0; seed < 120; ++seed) {
    const Dtype dtype = seed % 2 == 0 ? Dtype::kBf16 : Dtype::kF32;
    TestSession session(TestGeometry(1 + seed % 3, 2, 2, 8, seed % 5 == 0 ? 12 : 8, dtype),
                        {.max_compacted = seed % 4 == 0 ? 0 : seed * 2,
                         .fresh = seed % 7 == 0 ? 0 : seed,
                         .loose_pages = seed % 3 * 2},
                        seed);
    const std::vector<KeepRows> keep = RandomKeep(session, seed % 11 / 10.0);
    const auto plan = PlanCompaction(InputFor(session, &keep));
    ASSERT_TRUE(plan.ok()) << plan.status();
    ExpectGoodPlan(session, keep, *plan, {});
    ExpectStepsDoNotOverlap(*plan);
    ExpectFewestBlockMoves(session, keep, *plan);
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    ExecuteCompaction(session.layout(), session.base(), *plan);
    session.Adopt(*plan);
    ASSERT_TRUE(session.RowsAreRight()) << "seed " << seed;
  }
}

// A step that ran and is run again leaves the same bytes.
TEST(Compaction, EachStepCanBeRunAgain) {
  TestSession session(TestGeometry(2, 4, 4, 16, 16, Dtype::kBf16),
                      {.max_compacted = 90, .fresh = 70, .loose_pages = 5, .spare_pages = 8}, 8);
  const std::vector<KeepRows> keep = RandomKeep(session, 0.5);
  CompactionInput input = InputFor(session, &keep);
  input.evacuate.assign(input.session_pages.begin(), input.session_pages.end() - 2);
  input.replacements = session.spare_pages();
  const CompactionPlan plan = *PlanCompaction(input);
  ASSERT_FALSE(plan.row_moves.empty());
  ASSERT_FALSE(plan.block_moves.empty());
  ASSERT_FALSE(plan.evacuations.empty());
  CompactionPlan rows{.row_moves = plan.row_moves}, blocks{.block_moves = plan.block_moves},
      evacuations{.evacuations = plan.evacuations};
  for (const CompactionPlan& step :
       {rows, rows, blocks, blocks, blocks, evacuations, evacuations}) {
    ExecuteCompaction(session.layout(), session.base(), step);
  }
  session.Adopt(plan);
  EXPECT_TRUE(session.RowsAreRight());
}

TEST(Compaction, KeepsEveryRowWhenOnlyMoving) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    TestSession session(TestGeometry(2, 2, 2, 8, 8, Dtype::kF32),
                        {.max_compacted = 50, .fresh = 33, .loose_pages = 3}, seed);
    std::vector<KeepRows> all(4);
    for (uint32_t p = 0; p < 4; ++p) {
      all[p].resize(session.View().Length(p));
      std::iota(all[p].begin(), all[p].end(), 0);
    }
    const CompactionPlan plan = *PlanCompaction(InputFor(session, nullptr));
    ExpectGoodPlan(session, all, plan, {});
    ExecuteCompaction(session.layout(), session.base(), plan);
    session.Adopt(plan);
    EXPECT_TRUE(session.RowsAreRight());
  }
}

TEST(Compaction, EvacuationLeavesNothingBehind) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    TestSession session(TestGeometry(2, 2, 2, 8, 8, Dtype::kBf16),
                        {.max_compacted = 60, .fresh = 40, .loose_pages = 2, .spare_pages = 12},
                        seed);
    const std::vector<KeepRows> keep = RandomKeep(session, 0.7);
    CompactionInput input = InputFor(session, &keep);
    for (PageId page : session.session_pages()) {
      if (session.random()() % 2 == 0) input.evacuate.push_back(page);
    }
    input.replacements = session.spare_pages();
    const auto plan = PlanCompaction(input);
    ASSERT_TRUE(plan.ok()) << plan.status();
    ExpectGoodPlan(session, keep, *plan, input.evacuate);
    ExpectStepsDoNotOverlap(*plan);
    for (PageId page : plan->result.pages) {
      EXPECT_TRUE(std::count(input.session_pages.begin(), input.session_pages.end(), page) +
                      std::count(input.replacements.begin(), input.replacements.end(), page) ==
                  1);
    }
    // Evacuated pages are overwritten at once: nothing may still be read from them.
    ExecuteCompaction(session.layout(), session.base(), *plan);
    const Geometry& g = session.layout().geometry();
    for (PageId page : input.evacuate) {
      for (uint32_t p = 0; p < g.planes(); ++p) {
        const BlockId block = session.layout().Block(page, p / g.kv_heads, p % g.kv_heads);
        std::memset(BlockAddress(session.base(), block), 0xff, session.layout().block_bytes());
      }
    }
    session.Adopt(*plan);
    ASSERT_TRUE(session.RowsAreRight()) << "seed " << seed;
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

TEST(Compaction, SaysHowManyReplacementsAreMissing) {
  TestSession session(TestGeometry(1, 2, 2, 8, 8, Dtype::kF32), {.fresh = 80, .spare_pages = 3}, 1);
  CompactionInput input = InputFor(session, nullptr);
  input.evacuate.assign(input.session_pages.begin(), input.session_pages.begin() + 4);
  input.replacements = session.spare_pages();
  const auto plan = PlanCompaction(input);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(
      std::string(plan.status().message()),
      testing::AllOf(testing::HasSubstr("needs 4 replacement pages"), testing::HasSubstr("got 3")));
}

// The pool is exactly the session's pages: not one free page to copy through.
TEST(Compaction, NeedsNoFreePage) {
  const Geometry g = TestGeometry(2, 4, 2, 16, 16, Dtype::kBf16);
  TestSession session(g, {.fresh = 256}, 6);
  ASSERT_EQ(session.session_pages().size(), 16u);
  ASSERT_TRUE(session.spare_pages().empty());
  const size_t waste = session.layout().waste_bytes().value() * 8;  // 8 slabs of two pages
  ASSERT_EQ(session.pool_bytes() - waste, 16u * session.layout().page_bytes().value());
  std::vector<KeepRows> keep(g.planes());
  for (KeepRows& rows : keep) {
    rows.resize(256);
    std::iota(rows.begin(), rows.end(), 0);
    std::shuffle(rows.begin(), rows.end(), session.random());
    rows.resize(128);
    std::sort(rows.begin(), rows.end());
  }
  const CompactionPlan plan = *PlanCompaction(InputFor(session, &keep));
  EXPECT_EQ(plan.result.pages.size(), 8u);
  EXPECT_EQ(plan.freed.size(), 8u);
  ExecuteCompaction(session.layout(), session.base(), plan);
  session.Adopt(plan);
  EXPECT_TRUE(session.RowsAreRight());
}

// Attention over what stays equals attention over everything with the dropped rows masked out.
TEST(Compaction, AttentionSeesExactlyTheKeptRows) {
  for (uint32_t seed = 0; seed < 12; ++seed) {
    const Dtype dtype = seed % 2 == 0 ? Dtype::kBf16 : Dtype::kF32;
    const Geometry g = TestGeometry(2, 4, 2, 32, 32, dtype);
    TestSession session(g, {.max_compacted = 80, .fresh = 50, .loose_pages = 2}, seed);
    const std::vector<KeepRows> keep = RandomKeep(session, 0.5);
    const std::vector<float> queries = session.RandomRow(g.layers * g.query_heads * g.key_dim);
    std::vector<OracleHead> masked;
    for (uint32_t i = 0; i < g.layers * g.query_heads; ++i) {
      const uint32_t plane = i / g.query_heads * g.kv_heads + i % g.query_heads / g.group_size();
      masked.push_back(
          OracleAttention(session, plane, queries.data() + i * g.key_dim, 0.25, [&](uint32_t row) {
            return std::binary_search(keep[plane].begin(), keep[plane].end(), row);
          }));
    }
    const CompactionPlan plan = *PlanCompaction(InputFor(session, &keep));
    ExecuteCompaction(session.layout(), session.base(), plan);
    session.Adopt(plan);
    for (uint32_t layer = 0; layer < g.layers; ++layer) {
      std::vector<float> out(g.query_heads * g.value_dim);
      Attention({.layout = &session.layout(),
                 .base = session.base(),
                 .layer = layer,
                 .session = session.View(),
                 .queries = queries.data() + layer * g.query_heads * g.key_dim,
                 .scale = 0.25f,
                 .out = out.data()});
      for (uint32_t i = 0; i < out.size(); ++i) {
        const OracleHead& oracle = masked[layer * g.query_heads + i / g.value_dim];
        ASSERT_NEAR(out[i], oracle.out[i % g.value_dim], 2e-5) << "seed " << seed;
      }
    }
  }
}

// Planes gathered by a plan's sources describe the rows that lie there.
TEST(Compaction, PlanesTravelWithTheirRows) {
  const Geometry g = TestGeometry(2, 2, 2, 8, 8, Dtype::kF32);
  TestSession session(g, {.fresh = 90}, 2);
  Planes planes(g, {.low_count_ring = 2});
  planes.Append(0, 90);
  planes.BeginDrain(1, 1);
  for (uint32_t p = 0; p < g.planes(); ++p) {
    for (uint32_t row = 0; row < 90; ++row) {
      std::vector<float> key = session.key(p, row);
      key[0] = static_cast<float>(row);
      session.SetRow(p, row, key, session.value(p, row));
      planes.low_counts(p, 0)[row] = static_cast<uint8_t>(row);
    }
  }
  const std::vector<KeepRows> keep = RandomKeep(session, 0.4);
  const CompactionPlan plan = *PlanCompaction(InputFor(session, &keep));
  ExecuteCompaction(session.layout(), session.base(), plan);
  session.Adopt(plan);
  for (uint32_t p = 0; p < g.planes(); ++p) {
    planes.Gather(p, plan.sources[p]);
    ASSERT_EQ(planes.rows(p), plan.result.lengths[p]);
    for (uint32_t row = 0; row < planes.rows(p); ++row) {
      float key[8], value[8];
      LoadRow(session.layout(), session.base(), session.BlockOf(p, row),
              session.View().RowInBlock(p, row), key, value);
      EXPECT_EQ(static_cast<float>(planes.positions(p)[row]), key[0]);
      EXPECT_EQ(static_cast<float>(planes.low_counts(p, 0)[row]), key[0]);
    }
  }
}

}  // namespace
}  // namespace kvpool
