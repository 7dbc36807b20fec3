// Part by part what the seed methods promise, on the trained model: its own queries and keys, which
// change with what a policy drops, against the papers' per-step definitions in float64. On random
// tensors: tests/kernels/policy. FastGen's choice of classes: profile_test.cc.
//
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "kernels/token_flags.h"
#include "tests/worker/model_session.h"
#include "worker/persistence_watch.h"

namespace kvpool {
namespace {

constexpr double kNear = 1e-3;  // relative: what float32 cannot tell from a threshold
constexpr uint32_t kPrompt = 224, kTokens = 352;
constexpr SessionPlan kPlan{.prompt_tokens = kPrompt, .max_tokens = kTokens, .chunk = 56};

class SeedMethods : public testing::Test {
 public:
  static void SetUpTestSuite() {
    trained_ = new TrainedModel(
        {.context = kTokens, .prompt = kPrompt, .windows = 1, .facts = 1, .seed = 3});
  }
  static void TearDownTestSuite() { delete trained_; }

  static TrainedModel* trained_;
};

TrainedModel* SeedMethods::trained_ = nullptr;

std::unique_ptr<const Policy> Make(const std::string& name, const PolicyValues& values) {
  return MakePolicy(*MakePolicySpec(name, values));
}

std::vector<uint32_t> Sorted(std::vector<uint32_t> positions) {
  std::sort(positions.begin(), positions.end());
  return positions;
}

// How important the last `window` queries found a key: t * alpha of the one that found it most so.
double Importance(const std::vector<StepMarks>& steps, uint32_t window, uint32_t key,
                  bool by_step) {
  double most = 0;
  for (size_t s = steps.size() - std::min<size_t>(window, steps.size()); s < steps.size(); ++s) {
    if (!steps[s].Saw(key)) continue;
    most = std::max(most, steps[s].highest[key] * (by_step ? steps[s].step : steps[s].keys));
  }
  return most;
}

// P1, P2, P3, P6, and P4 by way of it: the message is in float64, the last hits are the session's.
TEST_F(SeedMethods, CormKeepsWhatTheLastQueriesFoundImportant) {
  for (const char* threshold : {"inv_step", "inv_cached"}) {
    const auto policy =
        Make("corm", {{"window", 24}, {"recent", 32}, {"slack", 32}, {"threshold", threshold}});
    ModelSession session(*trained_, *policy, kPlan);
    uint32_t dropped = 0, unsure = 0;
    session.Live([&](const StepOracle& oracle, uint32_t now) {
      for (uint32_t plane = 0; plane < trained_->geometry().planes(); ++plane) {
        const std::vector<StepMarks>& steps = oracle.marks(plane);
        ASSERT_GE(steps.size(), 24u) << "P6";
        const std::vector<uint32_t> before = Sorted(session.session().before()[plane]);
        const std::vector<uint32_t> kept = KeptBefore(session.session(), plane, now);
        for (size_t i = 0; i < before.size(); ++i) {
          const bool stays = std::binary_search(kept.begin(), kept.end(), before[i]);
          if (i + 32 >= before.size()) {
            ASSERT_TRUE(stays) << "P2: key " << before[i];
            continue;
          }
          const double most =
              Importance(steps, 24, before[i], threshold == std::string("inv_step"));
          dropped += stays ? 0 : 1;
          if (std::abs(most - 1) < kNear) {
            ++unsure;
          } else {
            ASSERT_EQ(stays, most > 1) << "P1, P3: key " << before[i] << " of head " << plane;
          }
        }
      }
    });
    if (HasFatalFailure()) return;
    EXPECT_GT(session.session().compactions(), 3u);
    EXPECT_GT(dropped, 1000u) << "the test must see keys go";
    EXPECT_LT(unsure, dropped / 20);
    EXPECT_TRUE(session.session().RowsAreRight());
  }
}

// P5: on the same probabilities, those of the prompt, a longer window keeps what a shorter one
// keeps; one as long as the session loses nothing that was ever important.
TEST_F(SeedMethods, CormKeepsMoreByALongerWindow) {
  std::vector<std::vector<uint32_t>> shorter(trained_->geometry().planes());
  for (uint32_t window : {1u, 8u, 64u, kPrompt}) {
    const auto policy = Make("corm", {{"window", window}, {"recent", 1}, {"slack", 16}});
    ModelSession session(*trained_, *policy,
                         {.prompt_tokens = kPrompt, .max_tokens = kPrompt, .chunk = kPrompt});
    StepOracle oracle(session.session());
    oracle.Feed(session.Feed(kPrompt), kPrompt);
    session.HandOver();
    ASSERT_EQ(session.session().compactions(), 1u);
    uint32_t kept_of_all = 0;
    for (uint32_t plane = 0; plane < shorter.size(); ++plane) {
      const std::vector<uint32_t> kept = KeptBefore(session.session(), plane, kPrompt);
      EXPECT_TRUE(
          std::includes(kept.begin(), kept.end(), shorter[plane].begin(), shorter[plane].end()))
          << "w " << window << " head " << plane;
      shorter[plane] = kept;
      kept_of_all += static_cast<uint32_t>(kept.size());
      if (window < kPrompt) continue;
      for (uint32_t key = 0; key < kPrompt; ++key) {
        if (Importance(oracle.marks(plane), window, key, true) < 1 + kNear) continue;
        EXPECT_TRUE(std::binary_search(kept.begin(), kept.end(), key)) << "P5: key " << key;
      }
    }
    if (window == 1) {
      EXPECT_LT(kept_of_all, shorter.size() * kPrompt / 2);
    }
  }
}

// P1, P2, P3: never more than B keys at a safe point, the newest r among them, and those that go
// are the ones most often low.
TEST_F(SeedMethods, ScissorhandsDropsTheKeysMostOftenLow) {
  constexpr uint32_t kBudget = 144, kDrop = 64, kRecent = 10, kWindow = 96;
  const auto policy =
      Make("scissorhands",
           {{"budget", kBudget}, {"window", kWindow}, {"recent", kRecent}, {"drop", kDrop}});
  // After a hand-over a chunk as long as this fills no drain: what the ring holds when the oracle
  // is asked is what the selection saw.
  ModelSession session(*trained_, *policy,
                       {.prompt_tokens = kPrompt, .max_tokens = kTokens, .chunk = 28});
  const PolicySession& kv = session.session();
  session.Live([&](const StepOracle& oracle, uint32_t now) {
    size_t queries = 0;
    for (uint32_t age = 0; age < kv.planes().DrainsWithin(kWindow); ++age) {
      queries += kv.planes().drain_queries(age);
    }
    for (uint32_t plane = 0; plane < trained_->geometry().planes(); ++plane) {
      std::vector<uint32_t> before = Sorted(kv.before()[plane]);
      std::vector<uint32_t> kept = KeptBefore(kv, plane, now);
      ASSERT_LE(before.size(), kBudget) << "P1";
      ASSERT_EQ(kept.size(), kBudget - kDrop) << "P1";
      ASSERT_TRUE(std::equal(kept.end() - kRecent, kept.end(), before.end() - kRecent)) << "P2";
      before.resize(before.size() - kRecent);
      // Low marks of a key, and how many of them float32 may see the other way.
      const auto low = [&](uint32_t key) {
        const std::vector<StepMarks>& steps = oracle.marks(plane);
        std::pair<int, int> marks{0, 0};
        for (size_t s = steps.size() - std::min(queries, steps.size()); s < steps.size(); ++s) {
          if (!steps[s].Saw(key)) continue;
          const double ratio = steps[s].highest[key] * steps[s].step;
          marks.first += ratio < 1 ? 1 : 0;
          marks.second += std::abs(ratio - 1) < kNear ? 1 : 0;
        }
        return marks;
      };
      int most_kept = 0, least_gone = std::numeric_limits<int>::max();
      for (uint32_t key : before) {
        const auto [marks, near] = low(key);
        if (std::binary_search(kept.begin(), kept.end(), key)) {
          most_kept = std::max(most_kept, marks - near);
        } else {
          least_gone = std::min(least_gone, marks + near);
        }
      }
      ASSERT_LE(most_kept, least_gone) << "P3: head " << plane;
    }
  });
  if (HasFatalFailure()) return;
  EXPECT_GT(kv.compactions(), 3u);
  EXPECT_TRUE(kv.RowsAreRight());
}

// P4: with B as long as the text nothing goes, and the model computes what it computes under full.
TEST_F(SeedMethods, ScissorhandsOfTheWholeLengthIsFull) {
  const auto whole = Make("scissorhands", {{"budget", kTokens}}), full = Make("full", {});
  ModelSession a(*trained_, *whole, kPlan), b(*trained_, *full, kPlan);
  for (uint32_t fed = 0; fed < kTokens; fed += 32) {
    ASSERT_EQ(a.Feed(32), b.Feed(32)) << "queries of tokens from " << fed << " on, bit for bit";
  }
  EXPECT_EQ(a.session().compactions(), 0u);
}

// Keys of the first half, by whether some query of steps first .. last found each important; and
// how many of them float32 may see the other way.
std::vector<bool> ImportantTo(const std::vector<StepMarks>& steps, uint32_t first, uint32_t last,
                              uint32_t half, uint32_t* unsure) {
  std::vector<bool> important;
  for (uint32_t key = 0; key < half; ++key) {
    double most = 0;
    for (uint32_t step = std::max(first, key + 1); step <= last; ++step) {
      most = std::max(most, steps[step - 1].highest[key] * step);
    }
    important.push_back(most >= 1);
    *unsure += std::abs(most - 1) < kNear ? 1 : 0;
  }
  return important;
}

// P5: the report, by the paper's sets. Chunks that neither drains nor the halves divide.
TEST_F(SeedMethods, ThePersistenceReportCountsThePapersSets) {
  constexpr uint32_t kLength = 201, kHalf = kLength / 2;
  const auto full = Make("full", {});
  ModelSession session(*trained_, *full, {.max_tokens = kLength, .chunk = kLength});
  StepOracle oracle(session.session());
  oracle.Feed(session.Feed(kLength), kLength);

  auto kv = MakePrivateKv(trained_->model->config(), 2 * CeilDiv(kLength, kPageTokens));
  PersistenceWatch watch(*kv, kLength);
  for (int twice = 0; twice < 2; ++twice) {
    OpenResult opened = watch.Open({.prompt_tokens = kLength, .max_tokens = kLength});
    for (uint32_t fed = 0; fed < kLength; fed += 67) {
      KvStep step{.session = opened.session.get(), .tokens = 67};
      watch.Prepare({&step, 1});
      ASSERT_EQ(step.readiness, Readiness::kReady);
      const Feed feed{.session = step.session,
                      .position = fed,
                      .tokens = std::span(trained_->window.tokens).subspan(fed, 67),
                      .logits = LogitRows::kNone};
      trained_->model->Forward({&feed, 1});
      step.session->Commit();
    }
  }

  const Geometry g = trained_->geometry();
  ASSERT_EQ(watch.layers().size(), g.layers);
  uint64_t newly = 0;
  for (uint32_t layer = 0; layer < g.layers; ++layer) {
    uint32_t early = 0, late = 0, both = 0, unsure = 0;
    for (uint32_t plane = layer * g.kv_heads; plane < (layer + 1) * g.kv_heads; ++plane) {
      const std::vector<StepMarks>& steps = oracle.marks(plane);
      const std::vector<bool> before = ImportantTo(steps, 1, kHalf, kHalf, &unsure);
      const std::vector<bool> after = ImportantTo(steps, kHalf + 1, kLength, kHalf, &unsure);
      for (uint32_t key = 0; key < kHalf; ++key) {
        early += before[key] ? 1 : 0;
        late += after[key] ? 1 : 0;
        both += before[key] && after[key] ? 1 : 0;
      }
    }
    const PersistenceCounts& counts = watch.layers()[layer];
    EXPECT_EQ(counts.keys, 2 * kHalf * g.kv_heads);
    EXPECT_NEAR(static_cast<double>(counts.early), 2 * early, 2 * unsure);
    EXPECT_NEAR(static_cast<double>(counts.late), 2 * late, 2 * unsure);
    EXPECT_NEAR(static_cast<double>(counts.both), 2 * both, 2 * unsure);
    EXPECT_LT(unsure, 10u);
    EXPECT_DOUBLE_EQ(counts.Persistence(), static_cast<double>(counts.both) / counts.late);
    EXPECT_DOUBLE_EQ(counts.Important(), static_cast<double>(counts.early) / counts.keys);
    newly += counts.late - counts.both;
  }
  EXPECT_GT(newly, 10u) << "the test should see keys that become important late";
}

// P6: all layers together hold no more than even ones, and layers differ.
TEST_F(SeedMethods, ScissorhandsByPersistenceHoldsNoMoreTogether) {
  const auto policy = Make("scissorhands", {{"budget", 128},
                                            {"window", 128},
                                            {"recent", 16},
                                            {"drop", 64},
                                            {"layers", "persistence"},
                                            {"gain", 8}});
  ModelSession session(*trained_, *policy, kPlan);
  bool uneven = false;
  session.Live([&](const StepOracle&, uint32_t now) {
    const Geometry g = trained_->geometry();
    size_t kept = 0;
    for (uint32_t plane = 0; plane < g.planes(); ++plane) {
      const size_t rows = KeptBefore(session.session(), plane, now).size();
      ASSERT_EQ(rows, KeptBefore(session.session(), plane - plane % g.kv_heads, now).size());
      uneven = uneven || rows != 64;
      kept += rows;
    }
    ASSERT_LE(kept, g.planes() * 64u);
  });
  EXPECT_GT(session.session().compactions(), 2u);
  EXPECT_TRUE(uneven);
}

// P4, P6: while it decodes, each head holds what its class names, and no more.
TEST_F(SeedMethods, FastGenHoldsWhatTheClassesName) {
  const auto policy =
      Make("fastgen", {{"recovery", 0.8}, {"local", 0.2}, {"frequent", 0.1}, {"slack", 16}});
  ModelSession session(*trained_, *policy, kPlan);
  std::set<int> classes;
  session.Live([&](const StepOracle&, uint32_t now) {
    const uint32_t frequent = ShareOf(0.1, now), local = LocalKeys(0.2, now);
    const std::vector<uint8_t> of_head = session.session().HeadClasses();
    for (uint32_t plane = 0; plane < of_head.size(); ++plane) {
      const auto head_class = static_cast<HeadClass>(of_head[plane]);
      classes.insert(of_head[plane]);
      const std::vector<uint32_t> before = Sorted(session.session().before()[plane]);
      const std::vector<uint32_t> kept = KeptBefore(session.session(), plane, now);
      if (head_class == HeadClass::kFull) {
        ASSERT_EQ(kept, before);
        continue;
      }
      uint32_t others = 0;
      for (size_t i = 0; i < before.size(); ++i) {
        const uint8_t flag = trained_->flags[before[i]];
        const bool named =
            (flag & kSpecialToken) != 0 ||
            (head_class >= HeadClass::kPunctuation && (flag & kPunctuationToken) != 0) ||
            (head_class >= HeadClass::kLocal && i + local >= before.size());
        const bool stays = std::binary_search(kept.begin(), kept.end(), before[i]);
        ASSERT_TRUE(stays || !named) << "P4: key " << before[i] << " of head " << plane;
        others += stays && !named ? 1 : 0;
      }
      ASSERT_LE(others, head_class >= HeadClass::kFrequent ? frequent : 0u) << "P6: head " << plane;
    }
  });
  if (HasFatalFailure()) return;
  EXPECT_GT(session.session().compactions(), 4u);
  EXPECT_GE(classes.size(), 2u);
  EXPECT_TRUE(session.session().RowsAreRight());
}

}  // namespace
}  // namespace kvpool
