// Policies that shrink the prompt once, against their papers' formulas in float64 over what the
// last queries of the prompt paid attention to.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/prompt_once.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/kernels/policy/step_oracle.h"

namespace kvpool {
namespace {

const Geometry kGeometry = TestGeometry(3, 4, 2, 16, 16, Dtype::kF32);
constexpr SessionPlan kPlan{.prompt_tokens = 200, .max_tokens = 240, .chunk = 37};
constexpr uint32_t kWindow = 16;

// Smoothed scores of the prompt's keys before the window, [positions]: the sum over the window's
// queries, as the code of SnapKV has it (zeros beyond the ends, the average over the whole kernel).
std::vector<double> Scores(const StepOracle& oracle, uint32_t plane, RowScore::Kind kind,
                           RowScore::Pooling pooling, int kernel) {
  const uint32_t voters = kind == RowScore::Kind::kSquareSum ? kPlan.prompt_tokens : kWindow;
  const int n = static_cast<int>(kPlan.prompt_tokens - kWindow);
  std::vector<double> raw(n), smooth(n);
  for (const StepMarks& step : oracle.marks(plane)) {
    if (step.step <= kPlan.prompt_tokens - voters || step.step > kPlan.prompt_tokens) continue;
    const auto& source = kind == RowScore::Kind::kWindowSum ? step.sum : step.squares;
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
        scores_.push_back(Scores(oracle, plane, kind, pooling, kernel));
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
    double worst = std::numeric_limits<double>::infinity(), best_gone = 0;
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
        EXPECT_LE(scores_[plane][p], of_head.back() * (1 + 1e-5));
      }
    }
    EXPECT_LE(best_gone, worst * (1 + 1e-5));
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
  for (const char* scorer : {"snapkv", "kvcompress"}) {
    for (double floor : {0.0, 0.5}) {
      const PromptRun run("adakv", {{"budget", 60}, {"scorer", scorer}, {"floor", floor}},
                          scorer == std::string("snapkv") ? RowScore::Kind::kWindowSum
                                                          : RowScore::Kind::kWindowSquareSum,
                          RowScore::Pooling::kMax, 7);
      bool uneven = false;
      for (uint32_t layer = 0; layer < kGeometry.layers; ++layer) {
        EXPECT_EQ(run.kept(2 * layer) + run.kept(2 * layer + 1), 2 * (60 - kWindow));
        uneven = uneven || run.kept(2 * layer) != run.kept(2 * layer + 1);
        run.ExpectBest(2 * layer, 2 * layer + 1, static_cast<uint32_t>(floor * (60 - kWindow)));
      }
      EXPECT_TRUE(uneven);
    }
  }
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
