// Drains are the paper's steps, later: with every query scored once, against the keys that it saw,
// before anything goes, a policy keeps what its paper's per-step definition keeps. Real scoring in
// float32 against per-step probabilities in float64; a choice that float32 cannot make may fall
// either way.
//
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <set>

#include "tests/kernels/policy/step_oracle.h"

namespace kvpool {
namespace {

constexpr double kNear = 1e-4;  // relative: closer than this float32 cannot tell apart

const Geometry kGeometry = TestGeometry(2, 4, 2, 16, 16, Dtype::kF32);
constexpr SessionPlan kPlan{.prompt_tokens = 150, .max_tokens = 400, .chunk = 48};

// The positions that head `plane` held before the last compaction, ascending.
std::vector<uint32_t> Before(const PolicySession& session, uint32_t plane) {
  std::vector<uint32_t> before = session.before()[plane];
  std::sort(before.begin(), before.end());
  return before;
}

// `kept` are the `count` best of `keys` by `score`, but for keys as good as the worst of them.
void ExpectBest(const std::vector<uint32_t>& kept, const std::vector<uint32_t>& keys, size_t count,
                const std::vector<double>& score) {
  ASSERT_EQ(kept.size(), std::min(count, keys.size()));
  if (kept.empty()) return;
  const std::set<uint32_t> stays(kept.begin(), kept.end());
  double worst = std::numeric_limits<double>::infinity();
  for (uint32_t key : kept) worst = std::min(worst, score[key]);
  for (uint32_t key : keys) {
    if (stays.contains(key)) continue;
    ASSERT_LE(score[key], worst * (1 + kNear)) << "key " << key;
  }
}

TEST(DrainDiscipline, H2oKeepsTheHeaviestHitters) {
  for (uint32_t seed = 0; seed < 4; ++seed) {
    const auto policy =
        MakePolicy(*MakePolicySpec("h2o", {{"budget", 64}, {"recent", 24}, {"slack", 16}}));
    PolicySession session(kGeometry, *policy, kPlan, seed);
    LiveBeside(&session, kPlan, kPlan.max_tokens, [&](const StepOracle& oracle, uint32_t now) {
      for (uint32_t plane = 0; plane < kGeometry.planes(); ++plane) {
        std::vector<double> sum(now);
        for (const StepMarks& step : oracle.marks(plane)) {
          for (uint32_t p = 0; p < step.step; ++p) sum[p] += step.sum[p];
        }
        std::vector<uint32_t> keys = Before(session, plane), kept = KeptBefore(session, plane, now);
        ASSERT_EQ(kept.size(), 64u);
        // The newest stay; of the rest, those with the largest sums.
        ASSERT_TRUE(std::equal(kept.end() - 24, kept.end(), keys.end() - 24));
        keys.resize(keys.size() - 24);
        kept.resize(kept.size() - 24);
        ExpectBest(kept, keys, 40, sum);
        if (HasFatalFailure()) return;
      }
    });
    EXPECT_GT(session.compactions(), 10u);
    if (HasFatalFailure()) return;
  }
}

// CORM with its message as the paper has it: one bit for each of the last w queries and each key.
TEST(DrainDiscipline, CormKeepsWhatItsMessageMarks) {
  for (const char* threshold : {"inv_step", "inv_cached"}) {
    for (uint32_t window : {20u, 64u, 100u}) {
      const auto policy = MakePolicy(*MakePolicySpec(
          "corm", {{"window", window}, {"recent", 16}, {"slack", 16}, {"threshold", threshold}}));
      PolicySession session(kGeometry, *policy, kPlan, window);
      uint32_t dropped = 0, near = 0;
      LiveBeside(&session, kPlan, kPlan.max_tokens, [&](const StepOracle& oracle, uint32_t now) {
        for (uint32_t plane = 0; plane < kGeometry.planes(); ++plane) {
          const std::vector<uint32_t> keys = Before(session, plane);
          const std::vector<uint32_t> kept = KeptBefore(session, plane, now);
          const std::set<uint32_t> stays(kept.begin(), kept.end());
          const std::vector<StepMarks>& steps = oracle.marks(plane);
          ASSERT_GE(steps.size(), window) << "nothing goes before w queries were scored";
          for (size_t i = 0; i < keys.size(); ++i) {
            bool marked = i + 16 >= keys.size(), unsure = false;
            for (size_t s = steps.size() - window; s < steps.size(); ++s) {
              if (!steps[s].Saw(keys[i])) continue;
              const double n = threshold == std::string("inv_step") ? steps[s].step : steps[s].keys;
              const double ratio = steps[s].highest[keys[i]] * n;
              marked = marked || ratio >= 1 + kNear;
              unsure = unsure || std::abs(ratio - 1) < kNear;
            }
            dropped += marked ? 0 : 1;
            near += unsure && !marked ? 1 : 0;
            if (marked || !unsure) {
              ASSERT_EQ(stays.contains(keys[i]), marked) << "key " << keys[i] << " at " << now;
            }
          }
        }
      });
      if (HasFatalFailure()) return;
      EXPECT_GT(session.compactions(), 4u);
      EXPECT_GT(dropped, 20u) << "the test must see keys go";
      EXPECT_LT(near, dropped / 10);
    }
  }
}

// Scissorhands by Algorithm 2, its window the queries of the drains that fit in w.
TEST(DrainDiscipline, ScissorhandsDropsTheKeysMostOftenLow) {
  for (uint32_t window : {32u, 64u, 100u}) {
    const auto policy = MakePolicy(*MakePolicySpec(
        "scissorhands", {{"budget", 96}, {"window", window}, {"recent", 10}, {"drop", 32}}));
    PolicySession session(kGeometry, *policy, kPlan, window);
    LiveBeside(&session, kPlan, kPlan.max_tokens, [&](const StepOracle& oracle, uint32_t now) {
      size_t queries = 0;
      for (uint32_t age = 0; age < session.planes().DrainsWithin(window); ++age) {
        queries += session.planes().drain_queries(age);
      }
      ASSERT_LE(queries, std::max(window, kDrainQueries));
      ASSERT_GT(queries + 2 * kDrainQueries, std::min<size_t>(window, now));
      for (uint32_t plane = 0; plane < kGeometry.planes(); ++plane) {
        // Between `low` and `low` + `near` of the window's queries found a key low.
        std::vector<double> low(now), near(now);
        const std::vector<StepMarks>& steps = oracle.marks(plane);
        for (size_t s = steps.size() - std::min(queries, steps.size()); s < steps.size(); ++s) {
          for (uint32_t p = 0; p < steps[s].step; ++p) {
            if (!steps[s].Saw(p)) continue;
            const double ratio = steps[s].highest[p] * steps[s].step;
            if (std::abs(ratio - 1) < kNear) {
              near[p] += 1;
            } else if (ratio < 1) {
              low[p] += 1;
            }
          }
        }
        std::vector<uint32_t> keys = Before(session, plane);
        const std::vector<uint32_t> kept = KeptBefore(session, plane, now);
        ASSERT_EQ(kept.size(), 64u);
        ASSERT_TRUE(std::equal(kept.end() - 10, kept.end(), keys.end() - 10));
        keys.resize(keys.size() - 10);
        // No key that went was marked less often than one that stayed; among equals the older goes.
        const std::set<uint32_t> stays(kept.begin(), kept.end());
        for (uint32_t gone : keys) {
          if (stays.contains(gone)) continue;
          for (uint32_t stay : keys) {
            if (!stays.contains(stay)) continue;
            ASSERT_GE(low[gone] + near[gone], low[stay]);
            if (near[gone] + near[stay] == 0 && low[gone] == low[stay]) {
              ASSERT_LT(gone, stay);
            }
          }
        }
      }
    });
    if (HasFatalFailure()) return;
    EXPECT_GT(session.compactions(), 5u);
  }
}

// TOVA's choice is the last query's, averaged over all heads of a layer.
TEST(DrainDiscipline, TovaKeepsWhatTheLastQueryLookedAt) {
  const auto policy = MakePolicy(*MakePolicySpec("tova", {{"budget", 64}, {"slack", 16}}));
  PolicySession session(kGeometry, *policy, kPlan, 3);
  LiveBeside(&session, kPlan, kPlan.max_tokens, [&](const StepOracle& oracle, uint32_t now) {
    for (uint32_t layer = 0; layer < kGeometry.layers; ++layer) {
      std::vector<double> sum(now);
      for (uint32_t head = 0; head < 2; ++head) {
        const StepMarks& last = oracle.marks(layer * 2 + head).back();
        ASSERT_EQ(last.step, now);
        for (uint32_t p = 0; p < now; ++p) sum[p] += last.sum[p];
      }
      const std::vector<uint32_t> kept = KeptBefore(session, layer * 2, now);
      ASSERT_EQ(kept, KeptBefore(session, layer * 2 + 1, now));
      ExpectBest(kept, Before(session, layer * 2), 64, sum);
      if (HasFatalFailure()) return;
    }
  });
  EXPECT_GT(session.compactions(), 10u);
}

// The sums of a key's attention and of its square outlive compactions and hold what each query that
// saw it gave it, once.
TEST(DrainDiscipline, EveryQueryIsScoredOnce) {
  for (const PolicySpec& spec :
       {*MakePolicySpec("h2o", {{"budget", 64}, {"recent", 24}, {"slack", 16}}),
        *MakePolicySpec("kvcompress", {{"budget", 64}, {"votes", "all"}})}) {
    const auto policy = MakePolicy(spec);
    const bool squares = policy->Needs().planes.square_sum;
    // kvcompress looks at the prompt alone.
    const uint32_t tokens = squares ? kPlan.prompt_tokens : kPlan.max_tokens;
    PolicySession session(kGeometry, *policy, kPlan, 9);
    StepOracle oracle(session);
    while (session.committed() < tokens) {
      const uint32_t left =
          kPlan.prompt_tokens - std::min(kPlan.prompt_tokens, session.committed());
      const uint32_t step = left > 0 ? std::min(kPlan.chunk, left) : 1;
      oracle.Feed(session.Feed(step), step);
    }
    session.Drain();
    const Planes& planes = session.planes();
    EXPECT_EQ(planes.observed(), tokens) << ToString(spec);
    for (uint32_t plane = 0; plane < kGeometry.planes(); ++plane) {
      for (uint32_t row = 0; row < planes.rows(plane); ++row) {
        const uint32_t position = planes.positions(plane)[row];
        double expected = 0;
        for (const StepMarks& step : oracle.marks(plane)) {
          if (step.Saw(position)) expected += (squares ? step.squares : step.sum)[position];
        }
        const double sum = squares ? planes.square_sum(plane)[row] : planes.Sum(plane, row);
        ASSERT_NEAR(sum, expected, expected * kNear) << ToString(spec) << " key " << position;
      }
    }
  }
}

}  // namespace
}  // namespace kvpool
