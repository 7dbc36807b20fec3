// Policies that shrink the prompt once, against their papers' formulas in float64 over what the
// last queries of the prompt paid attention to.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/prompt_once.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "tests/kernels/policy/step_oracle.h"

namespace kvpool {
namespace {

const Geometry kGeometry = TestGeometry(3, 4, 2, 16, 16, Dtype::kF32);
constexpr SessionPlan kPlan{.prompt_tokens = 200, .max_tokens = 240, .chunk = 37};
constexpr uint32_t kWindow = 16;

template <typename T>
double Norm(const std::vector<T>& x) {
  return std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0));
}

// What KNorm and KeyDiff think of the prompt's keys before the window, [positions].
std::vector<double> KeyScores(const PolicySession& session, uint32_t plane, RowScore::Kind kind) {
  std::vector<double> anchor(kGeometry.key_dim), scores;
  for (uint32_t p = 0; p < kPlan.prompt_tokens; ++p) {
    const std::vector<float>& key = session.key(plane, p);
    for (size_t d = 0; d < key.size(); ++d) anchor[d] += key[d] / Norm(key) / kPlan.prompt_tokens;
  }
  for (uint32_t p = 0; p < kPlan.prompt_tokens - kWindow; ++p) {
    const std::vector<float>& key = session.key(plane, p);
    const double dot = std::inner_product(key.begin(), key.end(), anchor.begin(), 0.0);
    scores.push_back(kind == RowScore::Kind::kKeyNorm ? -Norm(key)
                                                      : -dot / Norm(key) / Norm(anchor));
  }
  return scores;
}

// Smoothed scores of the prompt's keys before the window, [positions]: the sum over the window's
// queries, as the code of SnapKV has it (zeros beyond the ends, the average over the whole kernel).
std::vector<double> Scores(const StepOracle& oracle, uint32_t plane, RowScore::Kind kind,
                           RowScore::Pooling pooling, int kernel) {
  const bool all = kind == RowScore::Kind::kSquareSum || kind == RowScore::Kind::kSum;
  const bool squares =
      kind == RowScore::Kind::kSquareSum || kind == RowScore::Kind::kWindowSquareSum;
  const uint32_t voters = all ? kPlan.prompt_tokens : kWindow;
  const int n = static_cast<int>(kPlan.prompt_tokens - kWindow);
  std::vector<double> raw(n), smooth(n);
  for (const StepMarks& step : oracle.marks(plane)) {
    if (step.step <= kPlan.prompt_tokens - voters || step.step > kPlan.prompt_tokens) continue;
    const auto& source = squares ? step.squares : step.sum;
    const int saw = std::min(n, static_cast<int>(step.step));
    for (int p = 0; p < saw; ++p) raw[p] += source[p];
  }
  for (int p = 0; p < n; ++p) {
    for (int k = std::max(0, p - kernel / 2); k <= std::min(n - 1, p + kernel / 2); ++k) {
      smooth[p] = pooling == RowScore::Pooling::kMax ? std::max(smooth[p], raw[k])
                                                     : smooth[p] + raw[k] / kernel;
    }
  }
  return smooth;
}

// Runs a session through its prompt and one token more; checks that the window stayed in every
// head, and returns for each (head, position) before it whether it did, with its score.
class PromptRun {
 public:
  PromptRun(const std::string& name, PolicyValues values, RowScore::Kind kind,
            RowScore::Pooling pooling, int kernel)
      : policy_(MakePolicy(*MakePolicySpec(name, WithWindow(std::move(values))))),
        session_(kGeometry, *policy_, kPlan, 4) {
    LiveBeside(&session_, kPlan, kPlan.max_tokens, [&](const StepOracle& oracle, uint32_t now) {
      ASSERT_EQ(now, kPlan.prompt_tokens);
      for (uint32_t plane = 0; plane < kGeometry.planes(); ++plane) {
        const bool by_key = kind == RowScore::Kind::kKeyNorm || kind == RowScore::Kind::kKeyDiff;
        scores_.push_back(by_key ? KeyScores(session_, plane, kind)
                                 : Scores(oracle, plane, kind, pooling, kernel));
        std::vector<uint32_t> kept = KeptBefore(session_, plane, now);
        ASSERT_GE(kept.size(), kWindow);
        for (uint32_t i = 0; i < kWindow; ++i) {
          ASSERT_EQ(kept[kept.size() - kWindow + i], now - kWindow + i);
        }
        kept.resize(kept.size() - kWindow);
        kept_.emplace_back(kept.begin(), kept.end());
      }
    });
    EXPECT_EQ(session_.compactions(), 1u);
    EXPECT_TRUE(session_.RowsAreRight());
    EXPECT_EQ(session_.compact_at(), std::nullopt) << "what comes after the prompt stays";
  }

  // Keys kept of head `plane` beside the window.
  size_t kept(uint32_t plane) const { return kept_[plane].size(); }

  // Among the keys of heads first .. last, none that went had a better score than one that stayed,
  // but for the best `floor` of each head, which stay anyway.
  void ExpectBest(uint32_t first, uint32_t last, uint32_t floor) const {
    const auto near = [](double score) { return 1e-5 * std::abs(score); };
    double worst = std::numeric_limits<double>::infinity(), best_gone = -worst;
    for (uint32_t plane = first; plane <= last; ++plane) {
      ASSERT_GE(kept(plane), floor);
      std::vector<double> of_head;
      for (uint32_t p = 0; p < scores_[plane].size(); ++p) {
        if (kept_[plane].contains(p)) {
          of_head.push_back(scores_[plane][p]);
        } else {
          best_gone = std::max(best_gone, scores_[plane][p]);
        }
      }
      std::sort(of_head.rbegin(), of_head.rend());
      for (size_t i = floor; i < of_head.size(); ++i) worst = std::min(worst, of_head[i]);
      // Within a head the better ones stay in any case.
      for (uint32_t p = 0; p < scores_[plane].size() && !of_head.empty(); ++p) {
        if (kept_[plane].contains(p)) continue;
        EXPECT_LE(scores_[plane][p], of_head.back() + near(of_head.back()));
      }
    }
    EXPECT_LE(best_gone, worst + near(worst));
  }

 private:
  static PolicyValues WithWindow(PolicyValues values) {
    values["window"] = kWindow;
    return values;
  }

  const std::unique_ptr<const Policy> policy_;
  PolicySession session_;
  std::vector<std::vector<double>> scores_;  // [planes][positions before the window]
  std::vector<std::set<uint32_t>> kept_;     // [planes]
};

TEST(SnapKv, KeepsWhatTheWindowLookedAt) {
  for (const char* pooling : {"average", "max"}) {
    for (int kernel : {1, 5, 7}) {
      const auto how =
          pooling == std::string("max") ? RowScore::Pooling::kMax : RowScore::Pooling::kAverage;
      const PromptRun run("snapkv", {{"budget", 60}, {"pooling", pooling}, {"kernel", kernel}},
                          RowScore::Kind::kWindowSum, how, kernel);
      for (uint32_t plane = 0; plane < kGeometry.planes(); ++plane) {
        EXPECT_EQ(run.kept(plane), 60 - kWindow);
        run.ExpectBest(plane, plane, 0);
      }
    }
  }
}

TEST(PyramidKv, LowerLayersKeepMore) {
  const PromptRun run("pyramidkv", {{"budget", 60}, {"beta", 4}}, RowScore::Kind::kWindowSum,
                      RowScore::Pooling::kAverage, 5);
  // (60 - 16) / 4 = 11 at the top, 2 * 44 - 11 = 77 at the bottom, 44 in the middle.
  const size_t kept[] = {77, 77, 44, 44, 11, 11};
  for (uint32_t plane = 0; plane < kGeometry.planes(); ++plane) {
    EXPECT_EQ(run.kept(plane), kept[plane]);
    run.ExpectBest(plane, plane, 0);
  }
}

TEST(PyramidKv, AShortPromptIsKeptBelowAndPaidForAbove) {
  const auto policy =
      MakePolicy(*MakePolicySpec("pyramidkv", {{"budget", 60}, {"window", 16}, {"beta", 20}}));
  const Selection selection = *policy->Compact(
      {.geometry = &kGeometry, .plan = {.prompt_tokens = 80}, .step = 80, .length = 80});
  // The bottom layer would keep 2 * 44 - 2 = 86 beside the window, but the prompt has 64 there.
  const uint32_t totals[] = {80, 80, 60, 60, 40, 40};
  for (uint32_t plane = 0; plane < kGeometry.planes(); ++plane) {
    EXPECT_EQ(selection.heads[plane].total, totals[plane]);
  }
}

TEST(PyramidKv, BudgetsOfAnyNumberOfLayersAddUp) {
  for (uint32_t layers : {1u, 2u, 3u, 7u, 32u}) {
    const Geometry g = TestGeometry(layers, 2, 1, 8, 8, Dtype::kF32);
    for (uint32_t budget : {64u, 100u, 1024u}) {
      const auto policy = MakePolicy(*MakePolicySpec("pyramidkv", {{"budget", budget}}));
      const Selection selection = *policy->Compact(
          {.geometry = &g, .plan = {.prompt_tokens = 9000}, .step = 9000, .length = 9000});
      uint32_t sum = 0;
      for (const HeadRule& rule : selection.heads) sum += rule.total;
      EXPECT_LE(sum, layers * budget);
      EXPECT_GT(sum + layers, layers * budget) << "only rounding is lost";
    }
  }
}

TEST(AdaKv, TheHeadsOfALayerShareItsBudget) {
  using Kind = RowScore::Kind;
  const struct {
    const char* scorer;
    Kind kind;
    RowScore::Pooling pooling;
  } cases[] = {{"snapkv", Kind::kWindowSum, RowScore::Pooling::kMax},
               {"kvcompress", Kind::kWindowSquareSum, RowScore::Pooling::kMax},
               {"h2o", Kind::kSum, RowScore::Pooling::kNone},
               {"knorm", Kind::kKeyNorm, RowScore::Pooling::kNone},
               {"keydiff", Kind::kKeyDiff, RowScore::Pooling::kNone}};
  for (const auto& c : cases) {
    for (double floor : {0.0, 0.5}) {
      const PromptRun run("adakv", {{"budget", 60}, {"scorer", c.scorer}, {"floor", floor}}, c.kind,
                          c.pooling, c.pooling == RowScore::Pooling::kNone ? 1 : 7);
      bool uneven = false;
      for (uint32_t layer = 0; layer < kGeometry.layers; ++layer) {
        EXPECT_EQ(run.kept(2 * layer) + run.kept(2 * layer + 1), 2 * (60 - kWindow)) << c.scorer;
        uneven = uneven || run.kept(2 * layer) != run.kept(2 * layer + 1);
        run.ExpectBest(2 * layer, 2 * layer + 1, static_cast<uint32_t>(floor * (60 - kWindow)));
      }
      EXPECT_TRUE(uneven) << c.scorer;
    }
  }
}

// The scores themselves: tests/kernels/scores/expected_attention_test.cc.
TEST(AdaKv, WrapsExpectedAttentionAtTheEndOfThePrompt) {
  const PolicyValues values = {
      {"budget", 60}, {"window", kWindow}, {"scorer", "expected-attention"}, {"rope_theta", 500.0}};
  const auto policy = MakePolicy(*MakePolicySpec("adakv", values));
  EXPECT_EQ(policy->Needs().planes, PlaneSet{.window_queries = kWindow});
  EXPECT_EQ(policy->Needs().queries, QueryNeed::kPrompt);
  const auto selection =
      policy->Compact({.geometry = &kGeometry, .plan = kPlan, .step = 200, .length = 200});
  ASSERT_TRUE(selection.has_value());
  EXPECT_EQ(selection->scope, Selection::Scope::kLayer);
  EXPECT_EQ(selection->heads,
            (std::vector<HeadRule>{{.first = 4, .recent = kWindow, .total = 60}}));
  const RowScore right{
      .kind = RowScore::Kind::kExpectedAttention,
      .window = kWindow,
      .future = {.from = 200, .horizon = 512, .sinks = 4, .epsilon = 0.02, .rope_theta = 500}};
  EXPECT_EQ(selection->score, right);
  PolicySession session(kGeometry, *policy, kPlan, 4);
  while (session.committed() < kPlan.max_tokens) session.Feed(20);
  EXPECT_EQ(session.compactions(), 1u);
  for (uint32_t layer = 0; layer < kGeometry.layers; ++layer) {
    EXPECT_EQ(
        KeptBefore(session, 2 * layer, 200).size() + KeptBefore(session, 2 * layer + 1, 200).size(),
        2 * 60u);
  }
}

TEST(AdaKv, SinksAndWindowMustFitTheBudget) {
  PolicyValues values = {{"budget", 60}, {"window", 57}};
  EXPECT_TRUE(MakePolicySpec("adakv", values).ok());
  values["scorer"] = "expected-attention";
  EXPECT_THAT(MakePolicySpec("adakv", values).status().ToString(),
              testing::HasSubstr("its 4 sinks and the window must not exceed budget"));
  values["window"] = 56;
  EXPECT_TRUE(MakePolicySpec("adakv", values).ok());
}

TEST(AdaKv, AWholeFloorIsSnapKv) {
  const PromptRun run("adakv", {{"budget", 60}, {"floor", 1}}, RowScore::Kind::kWindowSum,
                      RowScore::Pooling::kMax, 7);
  for (uint32_t plane = 0; plane < kGeometry.planes(); ++plane) {
    EXPECT_EQ(run.kept(plane), 60 - kWindow);
    run.ExpectBest(plane, plane, 0);
  }
}

TEST(KvCompress, AllHeadsOfAllLayersShareOneBudget) {
  for (const char* votes : {"window", "all"}) {
    const PromptRun run(
        "kvcompress", {{"budget", 60}, {"votes", votes}},
        votes == std::string("all") ? RowScore::Kind::kSquareSum : RowScore::Kind::kWindowSquareSum,
        RowScore::Pooling::kMax, 7);
    size_t sum = 0;
    for (uint32_t plane = 0; plane < kGeometry.planes(); ++plane) sum += run.kept(plane);
    EXPECT_EQ(sum, kGeometry.planes() * (60 - kWindow));
    run.ExpectBest(0, kGeometry.planes() - 1, 0);
  }
}

TEST(PromptOnce, IsDueOnceAndOnlyAboveTheBudget) {
  const auto policy = MakePolicy(*MakePolicySpec("snapkv", {{"budget", 64}, {"window", 8}}));
  PolicyState state{.geometry = &kGeometry, .plan = {.prompt_tokens = 100, .max_tokens = 300}};
  EXPECT_EQ(policy->NextCompactAt(state), 100u);
  state.step = state.length = 99;
  EXPECT_FALSE(policy->Compact(state).has_value()) << "the prompt is not complete";
  EXPECT_EQ(policy->NextCompactAt(state), 100u);
  state.step = state.length = 100;
  EXPECT_TRUE(policy->Compact(state).has_value());
  state.compacted_step = 100;
  state.length = state.compacted_length = 64;
  EXPECT_FALSE(policy->Compact(state).has_value());
  EXPECT_EQ(policy->NextCompactAt(state), std::nullopt);
  state = {.geometry = &kGeometry, .plan = {.prompt_tokens = 64, .max_tokens = 300}};
  EXPECT_EQ(policy->NextCompactAt(state), std::nullopt);
  // The prompt is whole once; after it 64 of it are left, and 200 tokens come.
  EXPECT_EQ(policy->PeakTokens({.prompt_tokens = 100, .max_tokens = 300}), 264u);
  EXPECT_EQ(policy->PeakTokens({.prompt_tokens = 290, .max_tokens = 300}), 290u);
  EXPECT_EQ(policy->PeakTokens({.prompt_tokens = 64, .max_tokens = 300}), 300u);
  const PolicyNeeds needs = policy->Needs();
  EXPECT_EQ(needs.queries, QueryNeed::kPrompt);
  EXPECT_EQ(needs.prompt_rows, 8u);
  EXPECT_EQ(needs.planes, (PlaneSet{.window_queries = 8}));
}

}  // namespace
}  // namespace kvpool
