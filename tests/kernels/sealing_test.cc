// Sealing: rows come back within their bounds, blocks never overlap, and few spare pages suffice.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/sealing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <string>

#include "kernels/compaction.h"
#include "tests/kernels/test_session.h"

namespace kvpool {
namespace {

constexpr SealedFormat kAll[] = {SealedFormat::kFp8, SealedFormat::kInt8, SealedFormat::kInt4};

// Compacts a session (keeping every row) and returns its segment.
CompactedSegment Compact(TestSession& session) {
  const CompactionPlan plan = *PlanCompaction({.layout = &session.layout(),
                                               .session = session.View(),
                                               .session_pages = session.session_pages()});
  ExecuteCompaction(session.layout(), session.base(), plan);
  session.Adopt(plan);
  return plan.result;
}

void Execute(TestSession& session, const SealingPlan& plan) {
  for (size_t step = 0; step < plan.steps(); ++step) {
    ExecuteSealingStep(session.layout(), session.base(), plan, step);
  }
}

// Granules of all blocks of a segment: each once, and in the segment's pages.
void ExpectNoOverlap(const Layout& layout, const CompactedSegment& segment) {
  const std::set<PageId> pages(segment.pages.begin(), segment.pages.end());
  EXPECT_EQ(pages.size(), segment.pages.size());
  const PagePlaces sealed(layout, segment.format), native(layout, SealedFormat::kNone);
  std::set<uint32_t> granules;
  for (uint32_t plane = 0; plane < segment.blocks.size(); ++plane) {
    const uint32_t length = segment.lengths[plane], sealed_rows = segment.sealed_lengths[plane];
    const uint32_t sealed_blocks = CeilDiv(sealed_rows, kSealedRows);
    EXPECT_EQ(segment.blocks[plane].size(),
              sealed_blocks + CeilDiv(length - sealed_rows, kPageTokens));
    for (uint32_t i = 0; i < segment.blocks[plane].size(); ++i) {
      const PagePlaces& places = i < sealed_blocks ? sealed : native;
      const BlockId block = segment.blocks[plane][i];
      EXPECT_TRUE(places.IsPlace(block));
      EXPECT_TRUE(pages.contains(places.PageOf(block)));
      for (uint32_t j = 0; j < places.granules(); ++j) {
        EXPECT_TRUE(granules.insert(block.value() + j).second) << "two blocks in one place";
      }
    }
  }
}

void ExpectGoodPlan(const TestSession& session, const CompactedSegment& before,
                    const SealingInput& input, const SealingPlan& plan) {
  ExpectNoOverlap(session.layout(), plan.result);
  EXPECT_EQ(plan.result.lengths, before.lengths);
  const std::set<PageId> kept(plan.result.pages.begin(), plan.result.pages.end());
  std::set<PageId> freed;
  for (PageId page : before.pages) {
    if (!kept.contains(page)) freed.insert(page);
  }
  EXPECT_EQ(std::set<PageId>(plan.freed.begin(), plan.freed.end()), freed);
  for (PageId page : plan.result.pages) {
    EXPECT_TRUE(std::count(before.pages.begin(), before.pages.end(), page) +
                    std::count(input.spare.begin(), input.spare.end(), page) ==
                1);
  }
  // Inside a slice no granule is read that is written.
  const uint32_t write_granules = PagePlaces(session.layout(), input.format).granules();
  for (size_t slice = 0; slice < plan.slices.size(); ++slice) {
    const size_t end = slice + 1 < plan.slices.size() ? plan.slices[slice + 1] : plan.moves.size();
    std::set<uint32_t> read, written;
    for (size_t i = plan.slices[slice]; i < end; ++i) {
      for (const RowAt& row : plan.moves[i].rows) {
        const uint32_t granules = PagePlaces(session.layout(), row.format).granules();
        for (uint32_t j = 0; j < granules; ++j) read.insert(row.block.value() + j);
      }
      for (uint32_t j = 0; j < write_granules; ++j) {
        EXPECT_TRUE(written.insert(plan.moves[i].to.value() + j).second);
      }
    }
    for (uint32_t granule : written) ASSERT_FALSE(read.contains(granule)) << "slice " << slice;
  }
}

// Half a step of the coarsest grid that normal numbers of this size need, with slack for a second
// rounding: rows were rounded `times` times.
double Bound(SealedFormat format, double highest, int times) {
  const double once = format == SealedFormat::kFp8    ? highest / 16
                      : format == SealedFormat::kInt8 ? highest * 2 / 255 / 2
                                                      : highest * 2 / 15 / 2;
  return once * 1.02 * times + 1e-6;
}

void ExpectRowsWithin(TestSession& session, int times) {
  const Geometry& g = session.layout().geometry();
  double highest = 0;
  for (uint32_t p = 0; p < g.planes(); ++p) {
    for (uint32_t row = 0; row < session.View().Length(p); ++row) {
      for (float x : session.key(p, row)) highest = std::max(highest, std::abs(double{x}));
      for (float x : session.value(p, row)) highest = std::max(highest, std::abs(double{x}));
    }
  }
  std::vector<float> key(g.key_dim), value(g.value_dim);
  for (uint32_t p = 0; p < g.planes(); ++p) {
    const uint32_t sealed = session.View().SealedLength(p);
    for (uint32_t row = 0; row < session.View().Length(p); ++row) {
      const double bound = row < sealed ? Bound(session.View().sealed_format, highest, times) : 0;
      ReadRow(session.layout(), session.base(), session.View(), p, row, key.data(), value.data());
      for (uint32_t d = 0; d < g.key_dim; ++d) {
        ASSERT_NEAR(key[d], session.key(p, row)[d], bound) << "plane " << p << " row " << row;
      }
      for (uint32_t d = 0; d < g.value_dim; ++d) {
        ASSERT_NEAR(value[d], session.value(p, row)[d], bound) << "plane " << p << " row " << row;
      }
    }
  }
}

Geometry GeometryFor(uint32_t seed) {
  const Dtype dtypes[] = {Dtype::kBf16, Dtype::kF32, Dtype::kF16};
  return TestGeometry(1 + seed % 3, 4, 4, 32, seed % 5 == 0 ? 48 : 32, dtypes[seed % 3]);
}

TEST(Sealing, RandomSessionsHoldTheirPromises) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    const SealedFormat format = kAll[seed % 3];
    TestSession session(GeometryFor(seed),
                        {.max_compacted = seed % 4 == 0 ? 0 : seed * 5,
                         .fresh = seed * 3,
                         .loose_pages = seed % 3,
                         .spare_pages = 40},
                        seed);
    const CompactedSegment before = Compact(session);
    const SealingInput input{.layout = &session.layout(),
                             .segment = &before,
                             .format = format,
                             .open_rows = seed % 2 * 17,
                             .spare = session.spare_pages()};
    const auto plan = PlanSealing(input);
    ASSERT_TRUE(plan.ok()) << plan.status() << " seed " << seed;
    ExpectGoodPlan(session, before, input, *plan);
    for (uint32_t p = 0; p < before.lengths.size(); ++p) {
      const uint32_t open = before.lengths[p] - std::min(before.lengths[p], input.open_rows);
      EXPECT_EQ(plan->result.sealed_lengths[p], open / 32 * 32);
    }
    Execute(session, *plan);
    session.Adopt(*plan);
    ExpectRowsWithin(session, 1);
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

// A long fresh session needs room for one block of every head: what is sealed makes room for the
// rest.
TEST(Sealing, FewSparePagesAreEnough) {
  for (SealedFormat format : kAll) {
    // 2 layer stretches of 16 granules in a page: 5 blocks of int4 or 3 of fp8 and int8 in each.
    const uint32_t places = 2 * (format == SealedFormat::kInt4 ? 5 : 3);
    const uint32_t spare = CeilDiv(8u, places);
    TestSession session(TestGeometry(2, 4, 4, 32, 32, Dtype::kBf16),
                        {.fresh = 1024, .spare_pages = spare}, 3);
    const CompactedSegment before = Compact(session);
    ASSERT_EQ(before.pages.size(), 64u);
    const SealingInput input{.layout = &session.layout(),
                             .segment = &before,
                             .format = format,
                             .spare = session.spare_pages()};
    const auto plan = PlanSealing(input);
    ASSERT_TRUE(plan.ok()) << plan.status();
    ExpectGoodPlan(session, before, input, *plan);
    EXPECT_GT(plan->slices.size(), 3u);
    EXPECT_EQ(plan->result.sealed_lengths, std::vector<uint32_t>(8, 1024));
    const uint32_t pages = CeilDiv(8 * 32u, places);
    EXPECT_EQ(plan->result.pages.size(), pages);
    EXPECT_EQ(before.pages.size() + spare - plan->freed.size(), pages);
    Execute(session, *plan);
    session.Adopt(*plan);
    ExpectRowsWithin(session, 1);
  }
}

// Too few spare pages for all rows of scattered heads: a plan does a part, again and again.
TEST(Sealing, PartsLeadToTheWhole) {
  TestSession session(TestGeometry(2, 4, 4, 32, 32, Dtype::kBf16),
                      {.max_compacted = 600, .loose_pages = 3, .spare_pages = 2}, 9);
  CompactedSegment segment = Compact(session);
  std::vector<PageId> spare = session.spare_pages();
  const size_t pages_before = segment.pages.size();
  int parts = 0;
  for (uint64_t left = 1; left != 0; ++parts) {
    ASSERT_LT(parts, 50);
    const SealingInput input{.layout = &session.layout(),
                             .segment = &segment,
                             .format = SealedFormat::kInt4,
                             .spare = spare};
    const auto plan = PlanSealing(input);
    ASSERT_TRUE(plan.ok()) << plan.status();
    ExpectGoodPlan(session, segment, input, *plan);
    Execute(session, *plan);
    const std::set<PageId> used(plan->result.pages.begin(), plan->result.pages.end());
    std::erase_if(spare, [&](PageId page) { return used.contains(page); });
    spare.insert(spare.end(), plan->freed.begin(), plan->freed.end());
    session.Adopt(*plan);
    segment = plan->result;
    left = 0;
    for (uint32_t p = 0; p < segment.lengths.size(); ++p) {
      left += (segment.lengths[p] - segment.sealed_lengths[p]) / 32;
    }
    ExpectRowsWithin(session, 1);
    ASSERT_FALSE(HasFailure()) << "part " << parts;
  }
  EXPECT_LT(segment.pages.size() * 2, pages_before);
}

// Without a free page of its own a session is sealed through room for one block of every head, also
// where last blocks are partly full; nothing stays there, and it never grows.
TEST(Sealing, AReserveIsGoneThroughAndLeft) {
  uint32_t sealed = 0, refused = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    const SealedFormat format = kAll[seed % 3];
    TestSession session(GeometryFor(seed),
                        {.max_compacted = seed * 4,
                         .max_sealed = seed % 4 == 0 ? 0 : seed * 3,
                         .sealed = seed % 4 == 0 ? SealedFormat::kNone : format,
                         .fresh = 64 + seed,
                         .loose_pages = seed % 3,
                         .spare_pages = 8},
                        seed);
    CompactedSegment segment = Compact(session);
    const PagePlaces places(session.layout(), format);
    std::vector<PageId> reserve = session.spare_pages();
    reserve.resize(CeilDiv(session.layout().geometry().planes(), places.per_page()));
    std::vector<PageId> spare;
    const auto open = [&](uint32_t p) { return segment.lengths[p] - segment.sealed_lengths[p]; };
    const size_t pages = segment.pages.size();
    const uint32_t open_before = open(0);
    for (int parts = 1;; ++parts) {
      const SealingInput input{.layout = &session.layout(),
                               .segment = &segment,
                               .format = format,
                               .spare = spare,
                               .reserve = reserve};
      const auto plan = PlanSealing(input);
      if (!plan.ok()) {
        ++refused;
        break;
      }
      if (plan->moves.empty()) break;
      ExpectGoodPlan(session, segment, input, *plan);
      Execute(session, *plan);
      // Who comes next writes there.
      for (PageId page : reserve) {
        for (uint32_t i = 0; i < places.per_page(); ++i) {
          memset(BlockAddress(session.base(), places.At(page, i)), 0xee,
                 size_t{places.granules()} * kGranuleBytes);
        }
      }
      session.Adopt(*plan);
      segment = plan->result;
      spare.insert(spare.end(), plan->freed.begin(), plan->freed.end());
      std::erase_if(spare, [&](PageId page) {
        return std::count(segment.pages.begin(), segment.pages.end(), page) > 0;
      });
      EXPECT_LE(segment.pages.size(), pages);
      ExpectRowsWithin(session, parts);  // each rounds a last block that is not full again
      ASSERT_FALSE(HasFailure()) << "seed " << seed;
    }
    sealed += open(0) < open_before ? 1 : 0;
  }
  EXPECT_GT(sealed, 50u);
  EXPECT_LT(refused, 10u);
}

TEST(Sealing, AnotherFormatIsSealedAnew) {
  for (uint32_t seed = 0; seed < 12; ++seed) {
    const SealedFormat from = kAll[seed % 3], to = kAll[(seed + 1 + seed / 3 % 2) % 3];
    TestSession session(GeometryFor(seed),
                        {.max_compacted = 50,
                         .max_sealed = 200,
                         .sealed = from,
                         .fresh = 40,
                         .loose_pages = 1,
                         .spare_pages = 30},
                        seed);
    const CompactedSegment before = Compact(session);
    ASSERT_EQ(before.format, from);
    const SealingInput input{.layout = &session.layout(),
                             .segment = &before,
                             .format = to,
                             .spare = session.spare_pages()};
    const auto plan = PlanSealing(input);
    ASSERT_TRUE(plan.ok()) << plan.status();
    ExpectGoodPlan(session, before, input, *plan);
    EXPECT_EQ(plan->result.format, to);
    Execute(session, *plan);
    session.Adopt(*plan);
    ExpectRowsWithin(session, 1);  // what the old format stored counts as the truth
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

// Rows that are sealed already and fill their blocks are not rounded again.
TEST(Sealing, FullBlocksOfTheFormatAreNotTouched) {
  TestSession session(
      TestGeometry(2, 4, 4, 32, 32, Dtype::kBf16),
      {.max_compacted = 100, .max_sealed = 90, .sealed = SealedFormat::kInt4, .spare_pages = 20},
      2);
  const CompactedSegment before = Compact(session);
  const SealingInput input{.layout = &session.layout(),
                           .segment = &before,
                           .format = SealedFormat::kInt4,
                           .spare = session.spare_pages()};
  const SealingPlan plan = *PlanSealing(input);
  ExpectGoodPlan(session, before, input, plan);
  for (uint32_t p = 0; p < 8; ++p) {
    for (uint32_t i = 0; i < before.sealed_lengths[p] / 32; ++i) {
      EXPECT_EQ(plan.result.blocks[p][i], before.blocks[p][i]);
    }
  }
  Execute(session, plan);
  session.Adopt(plan);
  ExpectRowsWithin(session, 1);
}

TEST(Sealing, SaysWhyNot) {
  TestSession one_head(TestGeometry(1, 1, 1, 128, 128, Dtype::kBf16),
                       {.fresh = 64, .spare_pages = 4}, 1);
  const CompactedSegment small = Compact(one_head);
  const auto no_place = PlanSealing({.layout = &one_head.layout(),
                                     .segment = &small,
                                     .format = SealedFormat::kFp8,
                                     .spare = one_head.spare_pages()});
  EXPECT_EQ(no_place.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(no_place.status().message()), testing::HasSubstr("17 granules"));
  TestSession session(TestGeometry(1, 4, 4, 32, 32, Dtype::kBf16), {.fresh = 64}, 1);
  const CompactedSegment segment = Compact(session);
  const auto no_spare = PlanSealing(
      {.layout = &session.layout(), .segment = &segment, .format = SealedFormat::kInt4});
  EXPECT_EQ(no_spare.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(no_spare.status().message()),
              testing::HasSubstr("0 free pages and 0 of the reserve"));
}

// Compaction of sealed heads: kept rows stay within one more rounding, dropped ones are gone, full
// blocks keep their bits, and no free page is needed.
TEST(Sealing, CompactionDropsSealedRows) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    const SealedFormat format = kAll[seed % 3];
    TestSession session(GeometryFor(seed),
                        {.max_compacted = seed,
                         .max_sealed = seed * 4,
                         .sealed = seed == 0 ? SealedFormat::kNone : format,
                         .fresh = seed % 40,
                         .loose_pages = seed % 3},
                        seed);
    std::vector<KeepRows> keep(session.layout().geometry().planes());
    std::bernoulli_distribution stays(seed % 7 / 6.0);
    for (uint32_t p = 0; p < keep.size(); ++p) {
      for (uint32_t row = 0; row < session.View().Length(p); ++row) {
        // The oldest 64 rows always stay, so that some blocks are whole.
        if (row < 64 || stays(session.random())) keep[p].push_back(row);
      }
    }
    const std::vector<uint32_t> sealed(session.View().sealed_lengths,
                                       session.View().sealed_lengths + keep.size());
    const CompactionPlan plan = *PlanCompaction({.layout = &session.layout(),
                                                 .session = session.View(),
                                                 .session_pages = session.session_pages(),
                                                 .keep = &keep});
    ExpectNoOverlap(session.layout(), plan.result);
    for (uint32_t p = 0; p < keep.size(); ++p) {
      std::vector<uint32_t> sources = plan.sources[p];
      const auto sealed_kept = std::lower_bound(keep[p].begin(), keep[p].end(), sealed[p]);
      EXPECT_EQ(plan.result.sealed_lengths[p], sealed_kept - keep[p].begin());
      std::sort(sources.begin(), sources.end());
      EXPECT_EQ(sources, keep[p]) << "every kept row once";
    }
    ExecuteCompaction(session.layout(), session.base(), plan);
    session.Adopt(plan);
    ExpectRowsWithin(session, 1);
    const Geometry& g = session.layout().geometry();
    std::vector<float> key(g.key_dim), value(g.value_dim);
    for (uint32_t p = 0; p < g.planes() && sealed[p] >= 64; ++p) {
      for (uint32_t row = 0; row < 64; ++row) {
        ReadRow(session.layout(), session.base(), session.View(), p, row, key.data(), value.data());
        ASSERT_EQ(key, session.key(p, row)) << "a full block was rounded again";
        ASSERT_EQ(value, session.value(p, row));
      }
    }
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

TEST(Sealing, EvacuationMovesSealedBlocksAsTheyAre) {
  for (uint32_t seed = 0; seed < 30; ++seed) {
    TestSession session(GeometryFor(seed),
                        {.max_compacted = 60,
                         .max_sealed = 120,
                         .sealed = kAll[seed % 3],
                         .fresh = 20,
                         .loose_pages = 1,
                         .spare_pages = 30},
                        seed);
    std::vector<PageId> evacuate;
    for (PageId page : session.session_pages()) {
      if (session.random()() % 2 == 0) evacuate.push_back(page);
    }
    const auto plan = PlanCompaction({.layout = &session.layout(),
                                      .session = session.View(),
                                      .session_pages = session.session_pages(),
                                      .evacuate = evacuate,
                                      .replacements = session.spare_pages()});
    ASSERT_TRUE(plan.ok()) << plan.status();
    ExpectNoOverlap(session.layout(), plan->result);
    EXPECT_TRUE(plan->remakes.empty());
    for (PageId page : evacuate) {
      EXPECT_THAT(plan->result.pages, testing::Not(testing::Contains(page)));
    }
    ExecuteCompaction(session.layout(), session.base(), *plan);
    session.Adopt(*plan);
    EXPECT_TRUE(session.RowsAreRight()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace kvpool
