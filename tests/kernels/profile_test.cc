// The profile of a prompt on every target, against the attention matrix in float64: the sums, what
// each class keeps, and which class is chosen. The properties are those of FastGen.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/profile.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kernels/attention.h"
#include "kernels/simd/targets.h"
#include "kernels/token_flags.h"
#include "tests/kernels/test_session.h"
#include "tests/kernels/vector_targets.h"

namespace kvpool {
namespace {

constexpr double kLocal = 0.3;

// A prompt of random rows and queries; `spread` sharpens attention. Compacted rows, equally many in
// each head, are the first of the prompt in no order of positions.
struct Prompt {
  Prompt(const Geometry& g, uint32_t tokens, uint32_t seed, float spread = 1)
      : Prompt(g, SessionShape{.fresh = tokens}, seed, spread) {}
  Prompt(const Geometry& g, const SessionShape& shape, uint32_t seed, float spread = 1)
      : geometry(g),
        compacted(shape.max_sealed + shape.max_compacted),
        tokens(compacted + shape.fresh),
        session(g, shape, seed) {
    positions.resize(size_t{g.planes()} * compacted);
    for (uint32_t p = 0; p < g.planes(); ++p) {
      const auto first = positions.begin() + p * compacted;
      std::iota(first, first + compacted, 0);
      std::shuffle(first, first + compacted, session.random());
    }
    queries = session.RandomRow(g.model_layers() * tokens * g.query_heads * g.key_dim);
    for (float& x : queries) x *= spread;
    for (uint32_t i = 0; i < tokens; ++i) {
      const uint32_t dice = session.random()() % 16;
      flags.push_back(i == 0 || dice == 0 ? kSpecialToken : dice < 3 ? kPunctuationToken : 0);
    }
  }

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(geometry.key_dim)); }
  const float* QueriesOf(uint32_t model_layer) const {
    return &queries[size_t{model_layer} * tokens * geometry.query_heads * geometry.key_dim];
  }
  SessionView View() const {
    SessionView view = session.View();
    view.compacted_positions = positions.data();
    view.positions_stride = compacted;
    return view;
  }
  uint32_t PositionOf(uint32_t plane, uint32_t row) const {
    return row < compacted ? positions[plane * compacted + row] : row;
  }

  const Geometry geometry;
  const uint32_t compacted, tokens;
  TestSession session;
  std::vector<uint32_t> positions;  // of compacted rows, as SessionView wants them
  std::vector<float> queries;       // [model_layers][tokens][query_heads][key_dim]
  std::vector<uint8_t> flags;
};

// Attention of a chunk, of which the profile wants the lse. Where a layer masks their own positions
// queries see one row less, so that they go one by one; the first of all sees none.
void Attend(const simd::Target& target, uint32_t model_layer, AttentionArgs args) {
  const Geometry& g = args.layout->geometry();
  if (!g.MasksSelf(model_layer)) return simd::AttentionOn(target, args);
  const uint32_t count = args.query_count, end = args.session.fresh_tokens;
  args.query_count = 1;
  for (uint32_t i = 0; i < count; ++i) {
    args.session.fresh_tokens = end - count + i;
    simd::AttentionOn(target, args);
    args.queries += size_t{g.query_heads} * g.key_dim;
    args.lse += g.query_heads;
  }
}

// Feeds the prompt's fresh tokens in chunks as a worker does: attention, which gives the lse, then
// the profile.
PromptSums Profile(const simd::Target& target, Prompt& prompt, uint32_t chunk,
                   uint32_t sample_every = 1) {
  const Geometry& g = prompt.geometry;
  PromptSums sums(g, prompt.tokens);
  std::vector<float> out(size_t{chunk} * g.query_heads * g.value_dim);
  std::vector<float> lse(size_t{chunk} * g.query_heads);
  for (uint32_t done = prompt.compacted; done < prompt.tokens; done += chunk) {
    const uint32_t count = std::min(chunk, prompt.tokens - done);
    SessionView view = prompt.View();
    view.fresh_tokens = done + count - prompt.compacted;
    for (uint32_t ml = 0; ml < g.model_layers(); ++ml) {
      const float* queries = prompt.QueriesOf(ml) + size_t{done} * g.query_heads * g.key_dim;
      Attend(target, ml,
             {.layout = &prompt.session.layout(),
              .base = prompt.session.base(),
              .layer = g.kv_of_layer[ml],
              .session = view,
              .queries = queries,
              .query_count = count,
              .scale = prompt.scale(),
              .out = out.data(),
              .lse = lse.data()});
      for (uint32_t head = 0; head < g.kv_heads; ++head) {
        simd::AddToProfileOn(target,
                             {.layout = &prompt.session.layout(),
                              .base = prompt.session.base(),
                              .session = view,
                              .chunk = {.model_layer = ml,
                                        .head = head,
                                        .queries = queries,
                                        .lse = lse.data(),
                                        .query_count = count},
                              .scale = prompt.scale(),
                              .local_keys = LocalKeys(kLocal, prompt.tokens),
                              .sample_every = sample_every},
                             &sums);
      }
    }
  }
  return sums;
}

using Matrix = std::vector<std::vector<double>>;  // [query][key]

// The attention matrix of each reader of a plane, in float64; of the fresh tokens' queries.
std::vector<Matrix> Oracle(const Prompt& prompt, uint32_t plane) {
  const Geometry& g = prompt.geometry;
  std::vector<Matrix> readers;
  for (uint32_t ml = 0; ml < g.model_layers(); ++ml) {
    if (g.kv_of_layer[ml] != plane / g.kv_heads) continue;
    for (uint32_t i = 0; i < g.group_size(); ++i) {
      Matrix& matrix = readers.emplace_back();
      matrix.resize(prompt.compacted);
      for (uint32_t p = prompt.compacted; p < prompt.tokens; ++p) {
        const size_t query = size_t{p} * g.query_heads + plane % g.kv_heads * g.group_size() + i;
        const std::vector<double> alpha =
            OracleAttention(prompt.session, plane, prompt.QueriesOf(ml) + query * g.key_dim,
                            prompt.scale(),
                            [&](uint32_t row) { return g.MasksSelf(ml) ? row < p : row <= p; })
                .alpha;
        std::vector<double>& keys = matrix.emplace_back(alpha.size());
        for (uint32_t row = 0; row < alpha.size(); ++row) {
          keys[prompt.PositionOf(plane, row)] = alpha[row];
        }
      }
    }
  }
  return readers;
}

bool IsLocal(const Prompt& prompt, uint32_t query, uint32_t key) {
  return query - key < std::floor(kLocal * prompt.tokens);
}

// Whether a class keeps `key` for the query at position `query`: said once, plainly.
bool Keeps(HeadClass c, const Prompt& prompt, const std::vector<uint8_t>& frequent, uint32_t query,
           uint32_t key) {
  if (c == HeadClass::kFull) return true;
  if (prompt.flags[key] & kSpecialToken) return true;
  if (c >= HeadClass::kPunctuation && (prompt.flags[key] & kPunctuationToken)) return true;
  if (c >= HeadClass::kFrequent && frequent[key]) return true;
  return c >= HeadClass::kLocal && IsLocal(prompt, query, key);
}

double RowMass(HeadClass c, const Prompt& prompt, const std::vector<uint8_t>& frequent,
               const Matrix& alpha, uint32_t query) {
  double mass = 0;
  for (uint32_t key = 0; key <= query; ++key) {
    if (Keeps(c, prompt, frequent, query, key)) mass += alpha[query][key];
  }
  return mass;
}

// Mean over the prompt's rows, by quadratic summation.
double OracleRecovery(HeadClass c, const Prompt& prompt, const std::vector<uint8_t>& frequent,
                      const Matrix& alpha) {
  double sum = 0;
  for (uint32_t query = 0; query < prompt.tokens; ++query) {
    sum += RowMass(c, prompt, frequent, alpha, query);
  }
  return sum / prompt.tokens;
}

double OracleRecovery(HeadClass c, const Prompt& prompt, const std::vector<uint8_t>& frequent,
                      const std::vector<Matrix>& readers, ProfileRule::Group group) {
  double least = 1, mean = 0;
  for (const Matrix& alpha : readers) {
    const double recovery = OracleRecovery(c, prompt, frequent, alpha);
    least = std::min(least, recovery);
    mean += recovery / static_cast<double>(readers.size());
  }
  return group == ProfileRule::Group::kMin ? least : mean;
}

void ExpectSumsMatchFloat64(Prompt& prompt, const PromptSums& sums) {
  for (uint32_t plane = 0; plane < prompt.geometry.planes(); ++plane) {
    const std::vector<Matrix> oracle = Oracle(prompt, plane);
    ASSERT_EQ(sums.readers(plane), oracle.size());
    for (uint32_t reader = 0; reader < oracle.size(); ++reader) {
      for (uint32_t key = 0; key < prompt.tokens; ++key) {
        double mass = 0, far = 0;
        for (uint32_t query = std::max(key, prompt.compacted); query < prompt.tokens; ++query) {
          mass += oracle[reader][query][key];
          if (!IsLocal(prompt, query, key)) far += oracle[reader][query][key];
        }
        ASSERT_NEAR(sums.mass(plane, reader)[key], mass, 1e-4 * (1 + mass)) << "key " << key;
        ASSERT_NEAR(sums.far(plane, reader)[key], far, 1e-4 * (1 + far)) << "key " << key;
      }
    }
  }
}

TEST(Profile, SumsMatchFloat64) {
  for (const simd::Target& target : simd::Targets()) {
    uint32_t seed = 1;
    for (Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16}) {
      for (uint32_t dim : {32u, 20u}) {
        for (uint32_t chunk : {1u, 7u, 64u, 100u}) {
          Prompt prompt(TestGeometry(2, 4, 2, dim, dim, dtype), 100, ++seed);
          SCOPED_TRACE(testing::Message() << target.name << " seed " << seed);
          ExpectSumsMatchFloat64(prompt, Profile(target, prompt, chunk));
        }
      }
    }
  }
}

TEST(Profile, LayersThatMaskTheirOwnPositionMatchFloat64) {
  for (const simd::Target& target : simd::Targets()) {
    Geometry geometry = TestGeometry(2, 4, 2, 32, 32, Dtype::kBf16);
    geometry.kv_of_layer = {0, 1, 1};
    geometry.self_masked = {1};
    for (uint32_t chunk : {1u, 7u, 64u}) {
      Prompt prompt(geometry, 100, chunk);
      SCOPED_TRACE(testing::Message() << target.name << " chunk " << chunk);
      ExpectSumsMatchFloat64(prompt, Profile(target, prompt, chunk));
    }
  }
}

// A prompt that was sealed, or moved, while it was fed: rows in blocks of two formats, in an order
// of their own.
TEST(Profile, SealedAndMovedRowsCountAtTheirPositions) {
  for (const simd::Target& target : simd::Targets()) {
    uint32_t seed = 100;
    for (SealedFormat format : {SealedFormat::kFp8, SealedFormat::kInt8, SealedFormat::kInt4}) {
      for (uint32_t sealed : {0u, 32u, 45u, 64u}) {
        for (uint32_t open : {0u, 16u, 21u}) {
          Prompt prompt(TestGeometry(2, 4, 2, 32, 20, Dtype::kF16),
                        {.max_compacted = open,
                         .max_sealed = sealed,
                         .sealed = format,
                         .fresh = 70,
                         .equal_heads = true},
                        ++seed);
          SCOPED_TRACE(testing::Message() << target.name << " seed " << seed);
          ExpectSumsMatchFloat64(prompt, Profile(target, prompt, 33));
        }
      }
    }
  }
}

// They come from memory that the agent writes and a worker must not trust with its own.
TEST(Profile, PositionsThatCannotBeLeadNowhereElse) {
  Prompt prompt(TestGeometry(2, 4, 2, 32, 20, Dtype::kF32),
                {.max_compacted = 21, .fresh = 40, .equal_heads = true}, 9);
  std::fill(prompt.positions.begin(), prompt.positions.end(), ~0u);
  const PromptSums sums = Profile(simd::Targets().front(), prompt, 16);
  for (uint32_t plane = 0; plane < 4; ++plane) {
    for (uint32_t reader = 0; reader < 2; ++reader) {
      const std::span<const float> mass = sums.mass(plane, reader);
      EXPECT_NEAR(std::accumulate(mass.begin(), mass.end(), 0.0), 40, 1e-3) << "one for each query";
    }
  }
}

TEST(Profile, LayersThatShareACachedLayerAreAllReaders) {
  Geometry g = TestGeometry(2, 4, 2, 16, 16, Dtype::kF32);
  g.kv_of_layer = {1, 0, 1};
  Prompt prompt(g, 50, 5);
  const PromptSums sums = Profile(simd::Targets().front(), prompt, 16);
  EXPECT_EQ(sums.readers(0), 2u);
  EXPECT_EQ(sums.readers(2), 4u);
  const std::vector<Matrix> oracle = Oracle(prompt, 3);
  for (uint32_t reader = 0; reader < 4; ++reader) {
    double mass = 0;
    for (uint32_t query = 7; query < 50; ++query) mass += oracle[reader][query][7];
    EXPECT_NEAR(sums.mass(3, reader)[7], mass, 1e-4) << reader;
  }
}

TEST(Profile, ASampleScoresOneRowInSoMany) {
  Prompt prompt(TestGeometry(1, 2, 1, 16, 16, Dtype::kF32), 90, 5);
  const PromptSums sums = Profile(simd::Targets().front(), prompt, 32, 8);
  const std::vector<Matrix> oracle = Oracle(prompt, 0);
  for (uint32_t reader = 0; reader < 2; ++reader) {
    for (uint32_t key = 0; key < 90; ++key) {
      double mass = 0;
      for (uint32_t query = RoundUp(key, 8u); query < 90; query += 8) {
        mass += oracle[reader][query][key];
      }
      ASSERT_NEAR(sums.mass(0, reader)[key], mass, 1e-4) << key;
    }
  }
}

TEST(Profile, NanAddsNothingToOtherHeadsAndItsHeadStaysFull) {
  for (const simd::Target& target : simd::Targets()) {
    Prompt prompt(TestGeometry(1, 2, 2, 16, 16, Dtype::kF32), 40, 4);
    const std::vector<float> nan(16, std::nanf(""));
    prompt.session.SetRow(0, 3, nan, nan);
    const PromptSums sums = Profile(target, prompt, 16);
    EXPECT_EQ(ChooseClass(sums, 0, prompt.flags, {.recovery = 0.999}), HeadClass::kFull);
    const std::span<const float> mass = sums.mass(1, 0);
    EXPECT_NEAR(std::accumulate(mass.begin(), mass.end(), 0.0), 40, 1e-3);
  }
}

// Cases whose best class differs: sharp and flat attention, several shares.
class ClassTest : public testing::TestWithParam<std::tuple<float, double, uint32_t>> {};

// P1 and P2: the class reaches T, by the matrix, and no cheaper one does; for both group rules.
TEST_P(ClassTest, IsTheCheapestThatReachesTheRecovery) {
  const auto [spread, recovery, seed] = GetParam();
  Prompt prompt(TestGeometry(1, 6, 2, 16, 16, Dtype::kF32), 120, seed, spread);
  const PromptSums sums = Profile(simd::Targets().front(), prompt, 50);
  for (const auto group : {ProfileRule::Group::kMin, ProfileRule::Group::kMean}) {
    const ProfileRule rule{.recovery = recovery, .local = kLocal, .group = group};
    for (uint32_t plane = 0; plane < 2; ++plane) {
      const HeadClass chosen = ChooseClass(sums, plane, prompt.flags, rule);
      const std::vector<uint8_t> frequent =
          MostFrequent(sums.Frequency(plane), ShareOf(rule.frequent, prompt.tokens));
      const std::vector<Matrix> oracle = Oracle(prompt, plane);
      EXPECT_GE(OracleRecovery(chosen, prompt, frequent, oracle, group), recovery - 1e-4);
      for (uint8_t c = 0; c < static_cast<uint8_t>(chosen); ++c) {
        EXPECT_LT(OracleRecovery(static_cast<HeadClass>(c), prompt, frequent, oracle, group),
                  recovery + 1e-4)
            << "class " << int{c} << " is cheaper and would do";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Prompts, ClassTest,
                         testing::Combine(testing::Values(0.2f, 1.0f, 4.0f, 12.0f),
                                          testing::Values(0.1, 0.3, 0.6, 0.8, 0.95),
                                          testing::Values(1u, 2u)));

// The cases above would prove little if they all had one answer.
TEST(Profile, EveryClassIsChosenBySomePrompt) {
  std::vector<int> chosen(5);
  for (float spread : {0.2f, 1.0f, 4.0f, 12.0f}) {
    Prompt prompt(TestGeometry(1, 6, 2, 16, 16, Dtype::kF32), 120, 1, spread);
    const PromptSums sums = Profile(simd::Targets().front(), prompt, 50);
    for (double recovery : {0.1, 0.3, 0.6, 0.8, 0.95}) {
      for (uint32_t plane = 0; plane < 2; ++plane) {
        ++chosen[static_cast<size_t>(
            ChooseClass(sums, plane, prompt.flags, {.recovery = recovery}))];
      }
    }
  }
  for (int c = 0; c < 5; ++c) EXPECT_GT(chosen[c], 0) << "class " << c;
}

// P3: everything must stay, so everything does, or what goes has no mass at all.
TEST(Profile, AllOfTheMassNeedsAllOfTheKeys) {
  Prompt prompt(TestGeometry(1, 2, 1, 16, 16, Dtype::kF32), 80, 3);
  const PromptSums sums = Profile(simd::Targets().front(), prompt, 80);
  EXPECT_EQ(ChooseClass(sums, 0, prompt.flags, {.recovery = 1}), HeadClass::kFull);
  const std::vector<uint8_t> all(80, kSpecialToken);
  EXPECT_EQ(ChooseClass(sums, 0, all, {.recovery = 1}), HeadClass::kSpecial);
}

// P5: 1 - kept mass is half the L1 distance to attention renormalised over what is kept, the
// paper's |A - softmax(Q K_C)|.
TEST(Profile, LostMassIsTheTotalVariation) {
  Prompt prompt(TestGeometry(1, 2, 1, 16, 16, Dtype::kF32), 60, 8, 3);
  const PromptSums sums = Profile(simd::Targets().front(), prompt, 60);
  const std::vector<uint8_t> frequent = MostFrequent(sums.Frequency(0), 18);
  const std::vector<Matrix> oracle = Oracle(prompt, 0);
  for (const HeadClass c : {HeadClass::kSpecial, HeadClass::kFrequent, HeadClass::kLocal}) {
    for (uint32_t query = 0; query < 60; ++query) {
      const double kept = RowMass(c, prompt, frequent, oracle[0], query);
      double distance = 0;
      for (uint32_t key = 0; key <= query; ++key) {
        const bool stays = Keeps(c, prompt, frequent, query, key);
        distance += std::abs(oracle[0][query][key] - (stays ? oracle[0][query][key] / kept : 0));
      }
      ASSERT_NEAR(1 - kept, distance / 2, 1e-9) << query;
    }
  }
}

// P7: asking for more never gives a cheaper class.
TEST(Profile, ClassesGrowWithTheRecovery) {
  for (float spread : {0.5f, 2.0f, 8.0f}) {
    Prompt prompt(TestGeometry(1, 4, 2, 16, 16, Dtype::kF32), 100, 9, spread);
    const PromptSums sums = Profile(simd::Targets().front(), prompt, 100);
    for (uint32_t plane = 0; plane < 2; ++plane) {
      HeadClass before = HeadClass::kSpecial;
      for (int percent = 0; percent <= 100; ++percent) {
        const HeadClass now = ChooseClass(sums, plane, prompt.flags, {.recovery = percent / 100.0});
        EXPECT_GE(now, before) << percent;
        before = now;
      }
    }
  }
}

TEST(Profile, MostFrequentPrefersNewerOfEqualsAndNanRanksLowest) {
  const std::vector<float> frequency = {2, 1, 1, std::nanf(""), 1};
  EXPECT_EQ(MostFrequent(frequency, 0), (std::vector<uint8_t>{0, 0, 0, 0, 0}));
  EXPECT_EQ(MostFrequent(frequency, 2), (std::vector<uint8_t>{1, 0, 0, 0, 1}));
  EXPECT_EQ(MostFrequent(frequency, 4), (std::vector<uint8_t>{1, 1, 1, 0, 1}));
  EXPECT_EQ(MostFrequent(frequency, 9), (std::vector<uint8_t>{1, 1, 1, 1, 1}));
}

TEST(Profile, SharesRoundDownAndAQueryIsLocalToItself) {
  EXPECT_EQ(ShareOf(0.3, 9), 2u);
  EXPECT_EQ(ShareOf(1, 9), 9u);
  EXPECT_EQ(LocalKeys(0.3, 1), 1u);
  EXPECT_EQ(LocalKeys(0.3, 100), 30u);
}

}  // namespace
}  // namespace kvpool
