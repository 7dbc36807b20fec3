// Attention on every target against float64, over ragged segments with NaN around every row.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "kernels/simd/targets.h"
#include "tests/kernels/test_session.h"
#include "tests/kernels/vector_targets.h"

namespace kvpool {
namespace {

struct Outcome {
  std::vector<float> out, lse;
};

Outcome Attend(const simd::Target& target, TestSession& session, uint32_t layer,
               const std::vector<float>& queries, uint32_t count, float scale) {
  const Geometry& g = session.layout().geometry();
  Outcome o{.out = std::vector<float>(size_t{count} * g.query_heads * g.value_dim, NAN),
            .lse = std::vector<float>(size_t{count} * g.query_heads, NAN)};
  simd::AttentionOn(target, {.layout = &session.layout(),
                             .base = session.base(),
                             .layer = layer,
                             .session = session.View(),
                             .queries = queries.data(),
                             .query_count = count,
                             .scale = scale,
                             .out = o.out.data(),
                             .lse = o.lse.data()});
  return o;
}

void ExpectMatchesOracle(const simd::Target& target, TestSession& session, uint32_t count) {
  const Geometry& g = session.layout().geometry();
  const float scale = 1.3f / std::sqrt(static_cast<float>(g.key_dim));
  for (uint32_t layer = 0; layer < g.layers; ++layer) {
    const std::vector<float> queries = session.RandomRow(count * g.query_heads * g.key_dim);
    const Outcome o = Attend(target, session, layer, queries, count, scale);
    for (uint32_t i = 0; i < count * g.query_heads; ++i) {
      const uint32_t plane = layer * g.kv_heads + i % g.query_heads / g.group_size();
      const uint32_t hidden = count - 1 - i / g.query_heads;
      const uint32_t rows = session.View().Length(plane) - hidden;
      const OracleHead oracle =
          OracleAttention(session, plane, queries.data() + size_t{i} * g.key_dim, scale,
                          [&](uint32_t row) { return row < rows; });
      if (rows == 0) {
        ASSERT_EQ(o.lse[i], -INFINITY);
      } else {
        ASSERT_NEAR(o.lse[i], oracle.lse, 2e-5 * (1 + std::abs(oracle.lse)));
      }
      for (uint32_t d = 0; d < g.value_dim; ++d) {
        ASSERT_NEAR(o.out[size_t{i} * g.value_dim + d], oracle.out[d], 2e-5)
            << target.name << " head " << i << " of " << rows << " rows, element " << d;
      }
    }
  }
}

struct Case {
  uint32_t query_heads, kv_heads, key_dim, value_dim;
};
// The project's model, a large model, MQA, odd groups, dims that fill no vector, no values.
constexpr Case kCases[] = {{8, 4, 32, 32}, {4, 2, 128, 128}, {12, 1, 64, 64}, {7, 1, 80, 48},
                           {6, 2, 5, 3},   {2, 2, 40, 100},  {2, 1, 576, 0}};

TEST(Attention, DecodeMatchesFloat64) {
  for (const simd::Target& target : simd::Targets()) {
    uint32_t seed = 1;
    for (Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16}) {
      for (const Case& c : kCases) {
        for (const SessionShape& shape :
             {SessionShape{.max_compacted = 77, .fresh = 39}, SessionShape{.max_compacted = 50},
              SessionShape{.fresh = 17}, SessionShape{.max_compacted = 3, .fresh = 1}}) {
          TestSession session(
              TestGeometry(2, c.query_heads, c.kv_heads, c.key_dim, c.value_dim, dtype), shape,
              ++seed);
          ExpectMatchesOracle(target, session, 1);
        }
      }
    }
  }
}

TEST(Attention, ChunksAreCausal) {
  for (const simd::Target& target : simd::Targets()) {
    uint32_t seed = 100;
    for (Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16}) {
      for (const Case& c : kCases) {
        for (uint32_t count : {2u, 21u, 70u}) {
          TestSession session(
              TestGeometry(1, c.query_heads, c.kv_heads, c.key_dim, c.value_dim, dtype),
              {.max_compacted = 41, .fresh = 70}, ++seed);
          ExpectMatchesOracle(target, session, count);
        }
      }
    }
  }
}

// A chunk that starts the session: query i sees i + 1 rows.
TEST(Attention, FirstChunk) {
  for (const simd::Target& target : simd::Targets()) {
    TestSession session(TestGeometry(2, 8, 4, 32, 32, Dtype::kBf16), {.fresh = 37}, 7);
    ExpectMatchesOracle(target, session, 37);
  }
}

// Sealed rows before open and fresh ones: the oracle has each row as its format stores it, so the
// kernels must read every code, scale and zero right. A run that ends inside a tile too.
TEST(Attention, SealedRowsMatchFloat64) {
  uint32_t seed = 300;
  for (const simd::Target& target : simd::Targets()) {
    for (SealedFormat format : {SealedFormat::kFp8, SealedFormat::kInt8, SealedFormat::kInt4}) {
      for (Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16}) {
        for (const Case& c : kCases) {
          for (const SessionShape& shape :
               {SessionShape{.max_compacted = 20, .max_sealed = 80, .sealed = format, .fresh = 11},
                SessionShape{.max_sealed = 64, .sealed = format},
                SessionShape{.max_sealed = 5, .sealed = format, .fresh = 18}}) {
            const Geometry g =
                TestGeometry(2, c.query_heads, c.kv_heads, c.key_dim, c.value_dim, dtype);
            if (PagePlaces(*Layout::Make(g, 64_MiB), format).per_page() == 0) continue;
            TestSession session(g, shape, ++seed);
            ExpectMatchesOracle(target, session, 1);
            if (shape.fresh > 0) ExpectMatchesOracle(target, session, shape.fresh);
          }
        }
      }
    }
  }
}

TEST(Attention, NothingToAttendGivesZeroes) {
  for (const simd::Target& target : simd::Targets()) {
    TestSession session(TestGeometry(1, 2, 1, 8, 8, Dtype::kF32), {}, 1);
    const Outcome o = Attend(target, session, 0, session.RandomRow(16), 1, 1.0f);
    EXPECT_EQ(o.out, std::vector<float>(16, 0.0f));
    EXPECT_EQ(o.lse, std::vector<float>(2, -INFINITY));
  }
}

TEST(Attention, LargeLogitsStayFinite) {
  for (const simd::Target& target : simd::Targets()) {
    for (uint32_t count : {1u, 5u}) {
      TestSession session(TestGeometry(1, 2, 1, 16, 16, Dtype::kF32), {.fresh = 40}, 3);
      const std::vector<float> queries = session.RandomRow(2 * 16 * count);
      const Outcome o = Attend(target, session, 0, queries, count, 1000.0f);  // e ** 1000 overflows
      for (float x : o.out) ASSERT_TRUE(std::isfinite(x));
      const OracleHead oracle = OracleAttention(session, 0, queries.data(), 1000.0,
                                                [&](uint32_t r) { return r <= 40 - count; });
      EXPECT_NEAR(o.lse[0], oracle.lse, 1e-5 * std::abs(oracle.lse));
    }
  }
}

// The same rows in the same order give the same bits, whatever blocks and segments hold them.
TEST(Attention, BitsDependOnRowOrderAlone) {
  for (const simd::Target& target : simd::Targets()) {
    for (uint32_t count : {1u, 9u}) {
      const Geometry g = TestGeometry(1, 4, 2, 48, 32, Dtype::kBf16);
      TestSession split(g, {.max_compacted = 53, .fresh = 30, .equal_heads = true}, 11);
      TestSession whole(g, {.fresh = 83}, 12);
      for (uint32_t plane = 0; plane < g.planes(); ++plane) {
        for (uint32_t row = 0; row < 83; ++row) {
          whole.SetRow(plane, row, split.key(plane, row), split.value(plane, row));
        }
      }
      const std::vector<float> queries = split.RandomRow(count * 4 * 48);
      const Outcome a = Attend(target, split, 0, queries, count, 0.2f);
      const Outcome b = Attend(target, whole, 0, queries, count, 0.2f);
      EXPECT_EQ(a.out, b.out) << target.name;
      EXPECT_EQ(a.lse, b.lse) << target.name;
    }
  }
}

// A key of NaN or infinity spoils its own head and no other, and never traps.
TEST(Attention, RubbishStaysInItsHead) {
  for (const simd::Target& target : simd::Targets()) {
    for (float rubbish : {std::nanf(""), INFINITY, -INFINITY}) {
      for (uint32_t count : {1u, 4u}) {
        TestSession session(TestGeometry(1, 4, 2, 32, 32, Dtype::kF32), {.fresh = 20}, 5);
        const std::vector<float> queries = session.RandomRow(count * 4 * 32);
        const Outcome before = Attend(target, session, 0, queries, count, 1.0f);
        const std::vector<float> row(32, rubbish);
        for (uint32_t i = 0; i < 16; ++i) session.SetRow(0, i, row, row);
        const Outcome after = Attend(target, session, 0, queries, count, 1.0f);
        for (uint32_t i = 0; i < count * 4; ++i) {
          const auto from = before.out.begin() + i * 32, to = after.out.begin() + i * 32;
          if (i % 4 < 2) {
            EXPECT_TRUE(std::isnan(to[0]));
          } else {
            EXPECT_TRUE(std::equal(from, from + 32, to));
          }
        }
      }
    }
  }
}

TEST(Attention, TheFastestTargetIsTheOneUsed) {
  TestSession session(TestGeometry(1, 4, 2, 32, 32, Dtype::kBf16), {.fresh = 100}, 5);
  const std::vector<float> queries = session.RandomRow(4 * 32);
  std::vector<float> out(4 * 32);
  Attention({.layout = &session.layout(),
             .base = session.base(),
             .session = session.View(),
             .queries = queries.data(),
             .scale = 0.3f,
             .out = out.data()});
  EXPECT_EQ(out, Attend(simd::Targets().front(), session, 0, queries, 1, 0.3f).out);
  EXPECT_EQ(std::string(simd::Targets().back().name), "baseline");
}

}  // namespace
}  // namespace kvpool
