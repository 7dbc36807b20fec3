// Quality against a full cache: the windows and their facts, teacher forcing through a cache, and
// the comparison, against the formulas written out in double.
//
// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>

#include "tests/worker/support.h"
#include "worker/checkpoint.h"
#include "worker/quality_compare.h"
#include "worker/quality_plan.h"
#include "worker/quality_run.h"
#include "worker/tokenizer.h"

namespace kvpool {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const QualityPlan kSmall = {.context = 500, .prompt = 260, .windows = 5, .facts = 3, .seed = 7};

class QualityPlanTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string error;
    tokenizer_ = Tokenizer::Load(kModelDirectory + "/tokenizer.model", &error);
    ASSERT_NE(tokenizer_, nullptr) << error;
    text_ = ReadTextFile(SourcePath("worker/demo/text.txt")).value();
    encode_ = [this](const std::string& text) { return tokenizer_->EncodeMore(text); };
  }
  std::string Text(const QualityWindow& window, size_t first, size_t end) const {
    return tokenizer_->Decode(std::span(window.tokens).subspan(first, end - first));
  }
  std::string Text(const QualityWindow& window, const TokenRange& range) const {
    return Text(window, range.first, range.end());
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::string text_;
  Encoder encode_;
};

TEST(SentencesTest, LoseNothingAndEndWhereSentencesEnd) {
  EXPECT_THAT(Sentences("It rained. Mr. Hale said \"Come!\" He came.\nThen? All went on"),
              ElementsAre("It rained.", " Mr. Hale said \"Come!\"", " He came.", "\nThen?",
                          " All went on"));
  EXPECT_TRUE(Sentences("").empty());
  const std::string text = ReadTextFile(SourcePath("worker/demo/text.txt")).value();
  const std::vector<std::string> sentences = Sentences(text);
  EXPECT_GT(sentences.size(), 40u);
  EXPECT_EQ(std::accumulate(sentences.begin(), sentences.end(), std::string()), text);
}

TEST_F(QualityPlanTest, PiecesGiveTheIdsOfTheWholeText) {
  std::vector<int32_t> ids = encode_("\n");
  for (const std::string& sentence : Sentences(text_)) {
    const std::vector<int32_t> more = encode_(sentence);
    ids.insert(ids.end(), more.begin(), more.end());
  }
  EXPECT_EQ(ids, encode_("\n" + text_));
}

TEST_F(QualityPlanTest, FactsAreToldInThePromptAndAskedAtTheEnd) {
  const auto windows = PlanQualityWindows({text_}, encode_, 1, kSmall).value();
  ASSERT_EQ(windows.size(), kSmall.windows);
  std::set<std::string> all_answers;
  for (const QualityWindow& window : windows) {
    ASSERT_EQ(window.tokens.size(), kSmall.context);
    EXPECT_EQ(window.tokens.front(), 1);
    EXPECT_EQ(window.prompt_tokens, kSmall.prompt);
    EXPECT_EQ(window.prose.first, kSmall.prompt + 1);
    ASSERT_EQ(window.answers.size(), kSmall.facts);
    const std::string prompt = Text(window, 1, window.prompt_tokens);
    const std::string asked = Text(window, window.prose.end(), window.tokens.size());
    std::set<std::string> names;
    size_t told_after = prompt.size() * 2 / 5;
    for (const TokenRange& answer : window.answers) {
      EXPECT_GE(answer.first, window.prose.end());
      const std::string digits = Text(window, answer);
      EXPECT_THAT(digits, testing::MatchesRegex(" ?[0-9]{5}"));
      all_answers.insert(digits);
      // The same sentence in both places, up to the answer.
      const size_t told = prompt.find(digits);
      ASSERT_NE(told, std::string::npos) << prompt;
      EXPECT_GT(told, told_after) << "facts are told one after the other, late in the prompt";
      told_after = told;
      const size_t begin = prompt.rfind("The secret ", told);
      const std::string fact = prompt.substr(begin, told + digits.size() - begin);
      EXPECT_THAT(asked, HasSubstr(fact));
      EXPECT_THAT(".!?\"'", HasSubstr(prompt.substr(prompt.find_last_not_of(" \n", begin - 1), 1)))
          << "in the middle of a sentence: " << prompt;
      names.insert(fact.substr(fact.find(" of ")));
    }
    EXPECT_EQ(names.size(), kSmall.facts);
    EXPECT_EQ(Text(window, window.prose).find("The secret"), std::string::npos);
  }
  EXPECT_EQ(all_answers.size(), kSmall.windows * kSmall.facts);
}

TEST_F(QualityPlanTest, SeedsRepeatWindowsAndTextsTakeTurns) {
  const auto tokens = [&](const QualityPlan& plan, const std::vector<std::string>& texts) {
    std::vector<std::vector<int32_t>> all;
    const auto windows = PlanQualityWindows(texts, encode_, 1, plan).value();
    for (const QualityWindow& window : windows) all.push_back(window.tokens);
    return all;
  };
  EXPECT_EQ(tokens(kSmall, {text_}), tokens(kSmall, {text_}));
  QualityPlan other = kSmall;
  other.seed = 8;
  EXPECT_NE(tokens(kSmall, {text_}), tokens(other, {text_}));
  const auto two = tokens(kSmall, {text_, std::string(3000, 'x')});
  const std::vector<int32_t> x = encode_("xxxxxxxx");
  EXPECT_EQ(std::count(two[0].begin(), two[0].end(), x.back()), 0);
  EXPECT_GT(std::count(two[1].begin(), two[1].end(), x.back()), 100);
}

TEST_F(QualityPlanTest, WhatDoesNotFitIsRefusedInWords) {
  const auto message = [&](const std::vector<std::string>& texts, const QualityPlan& plan) {
    return std::string(PlanQualityWindows(texts, encode_, 1, plan).status().message());
  };
  EXPECT_THAT(message({}, kSmall), HasSubstr("no text"));
  EXPECT_THAT(message({text_, ""}, kSmall), HasSubstr("empty"));
  EXPECT_THAT(message({text_.substr(0, 900)}, kSmall), HasSubstr("name a longer one"));
  QualityPlan plan = kSmall;
  plan.prompt = 40;
  EXPECT_THAT(message({text_}, plan), HasSubstr("plant fewer"));
  plan = kSmall;
  plan.context = 300;
  EXPECT_THAT(message({text_}, plan), HasSubstr("plant fewer"));
}

// Windows of random tokens for the tiny model: prompt 20, prose to 40, one answer of two tokens
// that a chunk of 6 cuts.
std::vector<QualityWindow> TinyWindows(uint32_t count) {
  std::mt19937 random(3);
  std::vector<QualityWindow> windows;
  for (uint32_t i = 0; i < count; ++i) {
    QualityWindow window{.prompt_tokens = 20, .prose = {21, 20}, .answers = {{43, 2}}};
    for (int t = 0; t < 48; ++t) window.tokens.push_back(static_cast<int32_t>(random() % 50));
    windows.push_back(std::move(window));
  }
  return windows;
}

class QualityRunTest : public testing::Test {
 protected:
  absl::StatusOr<double> Force(KvCache& cache, ForcingObserver& observer) {
    return ForceWindows(model_, cache, waiter_, windows_, options_, observer);
  }
  QualityFigures Compare(const FullRun& full, KvCache& cache) {
    const Layout layout = MakePrivateKv(model_.config(), 1)->layout();
    ComparedRun compared(windows_, full, layout, [] { return uint64_t{1000}; });
    EXPECT_TRUE(Force(cache, compared).ok());
    return compared.figures();
  }

  ThreadPool threads_{1};
  Llama model_{TinyConfig(), RandomWeights(TinyConfig(), 5), &threads_};
  ManualWaiter waiter_;
  const std::vector<QualityWindow> windows_ = TinyWindows(3);
  ForcingOptions options_{.chunk = 6};
};

TEST_F(QualityRunTest, AFullCacheAgreesWithItselfExactly) {
  auto kv = MakePrivateKv(model_.config(), 64);
  FullRun full(windows_);
  ASSERT_TRUE(Force(*kv, full).ok());
  const QualityFigures figures = Compare(full, *kv);
  EXPECT_EQ(kv->free_pages(), 64u);
  EXPECT_EQ(figures.positions, 3u * 20u);
  EXPECT_EQ(figures.agreed, figures.positions);
  EXPECT_NEAR(figures.kl, 0, 1e-9);
  EXPECT_EQ(figures.PerplexityDelta(), 0);
  EXPECT_EQ(figures.PerplexityError(), 0);
  EXPECT_EQ(figures.rows, figures.full_rows);
  EXPECT_EQ(figures.asked, 3u);
  EXPECT_EQ(figures.recalled, figures.recalled_full);
  // Steps begin at 20, 26, 32 and 38: four with prose, in each of which a window counts once.
  EXPECT_EQ(figures.samples, 12u);
  EXPECT_EQ(figures.bytes, 4000);
  EXPECT_EQ(figures.full_rows, 3 * (26 + 32 + 38 + 44));
  EXPECT_EQ(figures.peak_rows, figures.peak_full_rows);
  EXPECT_EQ(figures.peak_full_rows, 3.0 * static_cast<double>(windows_.front().tokens.size()));
}

TEST_F(QualityRunTest, WaitsForRoomAndGivesUp) {
  ScriptedKv kv(MakePrivateKv(model_.config(), 64));
  int refusals = 5;
  const auto refuse = [&] { return refusals > 0 && refusals-- > 0; };
  kv.on_open = [&](const OpenRequest&) {
    return refuse() ? OpenOutcome::kNoSpace : OpenOutcome::kOpened;
  };
  kv.on_prepare = [&](int session, const KvStep&) {
    return session == 1 && refuse() ? Readiness::kNoSpace : Readiness::kReady;
  };
  FullRun full(windows_);
  EXPECT_TRUE(Force(kv, full).ok());
  EXPECT_EQ(refusals, 0);
  EXPECT_EQ(waiter_.waits, 5);

  kv.on_open = [](const OpenRequest&) { return OpenOutcome::kNoSpace; };
  EXPECT_EQ(Force(kv, full).status().code(), absl::StatusCode::kResourceExhausted);
  kv.on_open = [](const OpenRequest&) { return OpenOutcome::kFailed; };
  EXPECT_EQ(Force(kv, full).status().message(), "scripted");
  kv.on_open = nullptr;
  kv.on_prepare = [](int, const KvStep&) { return Readiness::kNoSpace; };
  EXPECT_EQ(Force(kv, full).status().code(), absl::StatusCode::kResourceExhausted);
  kv.on_prepare = [](int, const KvStep&) { return Readiness::kFailed; };
  EXPECT_EQ(Force(kv, full).status().message(), "scripted failure");
}

// The observers alone, with logits made up.
class QualityCompareTest : public testing::Test {
 protected:
  static constexpr size_t kVocab = 50;

  using Rows = std::vector<std::vector<std::vector<float>>>;  // [window][row - 19]

  Rows RandomRows(uint32_t seed) const {
    std::mt19937 random(seed);
    Rows rows(windows_.size());
    for (auto& window : rows) {
      for (int row = 19; row < 48; ++row) window.push_back(RandomFloats(random, kVocab, 0, 3));
    }
    return rows;
  }
  void Show(const Rows& rows, ForcingObserver& observer) const {
    for (uint32_t first = 19; first < 48; first += 5) {
      for (size_t window = 0; window < rows.size(); ++window) {
        for (uint32_t row = first; row < std::min(first + 5, 48u); ++row) {
          observer.Row(window, row, rows[window][row - 19]);
        }
      }
    }
  }
  QualityFigures Compare(const Rows& full_rows, const Rows& rows) const {
    FullRun full(windows_);
    Show(full_rows, full);
    ComparedRun compared(windows_, full, layout_, [] { return uint64_t{0}; });
    Show(rows, compared);
    return compared.figures();
  }

  const Layout layout_ = MakePrivateKv(TinyConfig(), 1)->layout();
  const std::vector<QualityWindow> windows_ = TinyWindows(4);
};

std::vector<double> LogSoftmax(const std::vector<float>& logits) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  std::vector<double> out;
  for (const float logit : logits) out.push_back(logit - std::log(sum));
  return out;
}

TEST_F(QualityCompareTest, IsWhatTheFormulasSay) {
  const Rows full_rows = RandomRows(1);
  Rows rows = full_rows;
  std::mt19937 random(2);
  for (auto& window : rows) {
    for (auto& row : window) {
      for (float& logit : row) logit += std::uniform_real_distribution<float>(-0.7f, 0.7f)(random);
    }
  }
  const QualityFigures figures = Compare(full_rows, rows);

  double kl = 0, nll = 0, nll_full = 0;
  uint64_t agreed = 0;
  std::vector<double> deltas;
  for (size_t w = 0; w < windows_.size(); ++w) {
    double delta = 0;
    for (uint32_t index = 21; index < 41; ++index) {
      const auto p = LogSoftmax(full_rows[w][index - 1 - 19]);
      const auto q = LogSoftmax(rows[w][index - 1 - 19]);
      for (size_t i = 0; i < kVocab; ++i) kl += std::exp(p[i]) * (p[i] - q[i]);
      const int32_t token = windows_[w].tokens[index];
      nll_full -= p[token];
      nll -= q[token];
      delta += (p[token] - q[token]) / 20;
      agreed += std::max_element(p.begin(), p.end()) - p.begin() ==
                std::max_element(q.begin(), q.end()) - q.begin();
    }
    deltas.push_back(delta);
  }
  EXPECT_EQ(figures.positions, 80u);
  EXPECT_NEAR(figures.kl, kl, 1e-4);
  EXPECT_GT(kl, 1);
  EXPECT_NEAR(figures.Perplexity(), std::exp(nll / 80), 1e-4);
  EXPECT_NEAR(figures.PerplexityFull(), std::exp(nll_full / 80), 1e-4);
  EXPECT_NEAR(figures.PerplexityDelta(), std::exp(nll / 80) / std::exp(nll_full / 80) - 1, 1e-6);
  EXPECT_EQ(figures.agreed, agreed);
  EXPECT_LT(agreed, 80u);
  const double mean = std::accumulate(deltas.begin(), deltas.end(), 0.0) / 4;
  double variance = 0;
  for (const double delta : deltas) variance += (delta - mean) * (delta - mean) / 3;
  EXPECT_NEAR(figures.PerplexityError(), std::sqrt(variance / 4) * std::exp(mean), 1e-5);
}

TEST_F(QualityCompareTest, AFactIsRecalledWhenEveryDigitIs) {
  Rows right = RandomRows(1);
  for (size_t w = 0; w < windows_.size(); ++w) {
    for (const uint32_t index : {43u, 44u}) right[w][index - 1 - 19][windows_[w].tokens[index]] = 9;
  }
  Rows rows = right;
  rows[1][42 - 19][(windows_[1].tokens[43] + 1) % kVocab] = 10;  // the first digit is wrong
  rows[2][43 - 19][(windows_[2].tokens[44] + 1) % kVocab] = 10;  // the last one is
  const QualityFigures figures = Compare(right, rows);
  EXPECT_EQ(figures.asked, 4u);
  EXPECT_EQ(figures.recalled_full, 4u);
  EXPECT_EQ(figures.recalled, 2u);
}

}  // namespace
}  // namespace kvpool
