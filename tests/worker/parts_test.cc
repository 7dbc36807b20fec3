// The small parts: dense mathematics against double, the thread pool, the sampler, prompts, scoring
// windows, private memory, and what the pool's answers mean to the engine.
//
// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <set>

#include "tests/worker/support.h"
#include "worker/math.h"
#include "worker/pool_kv.h"
#include "worker/prompts.h"
#include "worker/score.h"

namespace kvpool {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(MathTest, MatMulOfAnyNumberOfRows) {
  std::mt19937 random(1);
  const size_t in = 37, out = 53, stride = 41;
  for (const size_t rows : {1, 2, 7, 8, 9, 33}) {
    const auto x = RandomFloats(random, rows * stride, 0, 1);
    const auto weights = RandomFloats(random, in * out, 0, 1);
    const auto before = RandomFloats(random, rows * out, 0, 1);
    for (const Accumulate accumulate : {Accumulate::kOverwrite, Accumulate::kAdd}) {
      auto y = before;
      MatMul({.rows = rows, .in = in, .out = out, .in_stride = stride, .accumulate = accumulate},
             x.data(), weights.data(), y.data());
      for (size_t r = 0; r < rows; ++r) {
        for (size_t o = 0; o < out; ++o) {
          double want = accumulate == Accumulate::kAdd ? before[r * out + o] : 0;
          for (size_t i = 0; i < in; ++i) want += double{x[r * stride + i]} * weights[o * in + i];
          ASSERT_NEAR(y[r * out + o], want, 1e-4) << rows << " rows";
        }
      }
    }
  }
}

TEST(MathTest, LogSumExpOfLargeLogits) {
  const std::vector<float> logits = {1000, 1001, 999};
  EXPECT_NEAR(LogSumExp(logits.data(), 3), 1001 + std::log(1 + std::exp(-1.) + std::exp(-2.)),
              1e-6);
  const std::vector<float> rubbish = {0, NAN};
  EXPECT_TRUE(std::isnan(LogSumExp(rubbish.data(), 2)));
}

TEST(ThreadPoolTest, EveryTaskOnceWhateverTheThreads) {
  for (const uint32_t threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (const size_t count : {0, 1, 2, 3, 100}) {
      for (int round = 0; round < 50; ++round) {
        std::vector<std::atomic<int>> done(count);
        pool.ParallelFor(count, [&](size_t i) { ++done[i]; });
        for (const auto& times : done) ASSERT_EQ(times, 1);
      }
    }
  }
}

TEST(SamplerTest, GreedyTakesTheFirstHighestAndNeverNan) {
  Sampler greedy({});
  EXPECT_EQ(greedy.Pick(std::vector<float>{1, 3, 2, 3}), 1);
  EXPECT_EQ(greedy.Pick(std::vector<float>{NAN, -3, NAN, -2}), 3);
  EXPECT_EQ(greedy.Pick(std::vector<float>{NAN, NAN}), 0);
}

TEST(SamplerTest, DrawsByProbability) {
  const std::vector<float> logits = {std::log(0.5f), NAN, std::log(0.3f), std::log(0.2f),
                                     -INFINITY};
  for (const float temperature : {1.0f, 0.5f}) {
    Sampler sampler({.temperature = temperature, .seed = 3});
    std::vector<double> want = {0.5, 0, 0.3, 0.2, 0};
    double sum = 0;
    for (double& p : want) sum += p = std::pow(p, 1 / temperature);
    const int draws = 40'000;
    std::vector<int> seen(logits.size());
    for (int i = 0; i < draws; ++i) ++seen[sampler.Pick(logits)];
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_NEAR(seen[i] / double{draws}, want[i] / sum, 0.012) << i;
      if (want[i] == 0) {
        EXPECT_EQ(seen[i], 0);
      }
    }
  }
}

TEST(SamplerTest, EqualSeedsDrawEqually) {
  std::mt19937 random(9);
  const auto logits = RandomFloats(random, 100, 0, 2);
  const auto draw = [&](uint64_t seed) {
    Sampler sampler({.temperature = 1, .seed = seed});
    std::vector<int32_t> tokens;
    for (int i = 0; i < 20; ++i) tokens.push_back(sampler.Pick(logits));
    return tokens;
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
}

TEST(PromptsTest, LinesAndObjects) {
  const auto prompts = ParsePrompts(
      "One\\nline \\\\ \\t.\r\n\n{\"prompt\":\"two\\nlines\",\"tenant\":\"a\",\"max_tokens\":7,"
      "\"temperature\":0.5,\"seed\":9}\nlast",
      {.tenant = "t", .max_tokens = 3});
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  ASSERT_EQ(prompts->size(), 3u);
  EXPECT_EQ((*prompts)[0].text, "One\nline \\ \t.");
  EXPECT_EQ((*prompts)[0].tenant, "t");
  EXPECT_EQ((*prompts)[0].max_tokens, 3u);
  EXPECT_EQ((*prompts)[1].text, "two\nlines");
  EXPECT_EQ((*prompts)[1].tenant, "a");
  EXPECT_EQ((*prompts)[1].max_tokens, 7u);
  EXPECT_EQ((*prompts)[1].temperature, 0.5f);
  EXPECT_EQ((*prompts)[1].seed, 9u);
  EXPECT_EQ((*prompts)[2].text, "last");
}

TEST(PromptsTest, ErrorsNameTheLine) {
  const auto error = [](const std::string& text) {
    const auto prompts = ParsePrompts(text, {});
    EXPECT_FALSE(prompts.ok()) << text;
    return std::string(prompts.status().message());
  };
  EXPECT_THAT(error("a\n{"), HasSubstr("line 2 cannot be taken: not JSON"));
  EXPECT_THAT(error("{\"prompt\": \"a\", \"prompt\": \"b\"}"),
              HasSubstr("\"prompt\" is there twice"));
  EXPECT_THAT(error("a\nb\\x"), HasSubstr("line 2 a backslash"));
  EXPECT_THAT(error("{\"prompt\":\"a\",\"top_k\":3}"), HasSubstr("\"top_k\""));
  EXPECT_THAT(error("{\"prompt\":\"a\",\"max_tokens\":0}"), HasSubstr("max_tokens"));
  EXPECT_THAT(error("{\"prompt\":\"a\",\"seed\":-1}"), HasSubstr("seed"));
  EXPECT_THAT(error("{\"prompt\":\"a\",\"temperature\":-0.1}"), HasSubstr("temperature"));
  EXPECT_THAT(error("{}"), HasSubstr("no prompt"));
  EXPECT_THAT(error("\n\n"), HasSubstr("no prompt in the file"));
}

TEST(ScoreTest, WindowsCoverTheTextOnce) {
  const std::vector<int32_t> text = {10, 11, 12, 13, 14, 15, 16};
  const auto requests = MakeScoreRequests(text, 1, {.context = 4, .tenant = 2});
  ASSERT_EQ(requests.size(), 3u);
  EXPECT_THAT(requests[0].prompt, ElementsAre(1, 10, 11, 12));
  EXPECT_THAT(requests[1].prompt, ElementsAre(1, 13, 14, 15));
  EXPECT_THAT(requests[2].prompt, ElementsAre(1, 16));
  EXPECT_EQ(requests[2].id, 2u);
  EXPECT_EQ(requests[2].tenant, 2u);
  EXPECT_EQ(MakeScoreRequests(text, 1, {.context = 4, .windows = 2}).size(), 2u);
  EXPECT_TRUE(MakeScoreRequests({}, 1, {}).empty());
}

TEST(ScoreTest, Sums) {
  Score score;
  score.Add({.reason = FinishReason::kScored, .log_probability = -6, .scored_tokens = 3});
  score.Add({.reason = FinishReason::kFailed, .log_probability = -99, .scored_tokens = 3});
  score.Add({.reason = FinishReason::kScored, .log_probability = -2, .scored_tokens = 1});
  EXPECT_EQ(score.windows, 2u);
  EXPECT_EQ(score.tokens, 4u);
  EXPECT_DOUBLE_EQ(score.MeanNll(), 2);
  EXPECT_DOUBLE_EQ(score.Perplexity(), std::exp(2));
}

TEST(PrivateKvTest, AllPagesOrNone) {
  auto kv = MakePrivateKv(TinyConfig(), 5);
  OpenResult a = kv->Open({.prompt_tokens = 10, .max_tokens = 80});
  OpenResult b = kv->Open({.prompt_tokens = 10, .max_tokens = 80});
  KvStep steps[] = {{.session = a.session.get(), .tokens = 33},
                    {.session = b.session.get(), .tokens = 33},
                    {.session = b.session.get(), .tokens = 32}};
  kv->Prepare(steps);
  EXPECT_EQ(steps[0].readiness, Readiness::kReady);
  EXPECT_EQ(steps[1].readiness, Readiness::kNoSpace);
  EXPECT_EQ(steps[2].readiness, Readiness::kReady) << "a later step that fits";
  EXPECT_EQ(kv->free_pages(), 0u);
  EXPECT_EQ(a.session->View().fresh_tokens, 33u);
  std::set<uint32_t> pages;
  for (int i = 0; i < 3; ++i) pages.insert(a.session->View().fresh_pages[i].value());
  for (int i = 0; i < 2; ++i) pages.insert(b.session->View().fresh_pages[i].value());
  EXPECT_EQ(pages.size(), 5u) << "no page twice";
  a.session->Commit();
  KvStep more{.session = a.session.get(), .tokens = 15};
  kv->Prepare({&more, 1});
  EXPECT_EQ(more.readiness, Readiness::kReady) << "its last page has room for 15 more";
  a.session.reset();
  EXPECT_EQ(kv->free_pages(), 3u);
  EXPECT_EQ(kv->Open({.prompt_tokens = 49, .max_tokens = 49}).outcome, OpenOutcome::kNoSpace);
  EXPECT_EQ(kv->Open({.prompt_tokens = 1, .max_tokens = 81}).outcome, OpenOutcome::kTooLarge);
}

// A pool of which every safe point has the same outcome.
class OneAnswerTenant final : public Tenant {
 public:
  explicit OneAnswerTenant(absl::Status answer) : answer_(std::move(answer)) {}
  const Layout& layout() const override { return layout_; }
  std::byte* base() const override { return nullptr; }
  const std::string& policy() const override { return policy_; }
  absl::StatusOr<std::unique_ptr<kvpool::Session>> Open(const OpenOptions&) override {
    return std::make_unique<Session>();
  }
  absl::StatusOr<std::unique_ptr<kvpool::Session>> Fork(kvpool::Session&, uint32_t) override {
    return std::make_unique<Session>();
  }
  absl::Status SafePoint(std::span<kvpool::Step> steps) override {
    for (kvpool::Step& step : steps) step.outcome = answer_;
    return absl::OkStatus();
  }
  absl::Status Ping() override { return absl::OkStatus(); }
  absl::StatusOr<TenantStatistics> Statistics() override { return TenantStatistics{}; }

 private:
  struct Session final : kvpool::Session {
    uint32_t shared_tokens() const override { return 0; }
    uint32_t position() const override { return 0; }
    SessionView View(uint32_t) const override { return {}; }
    BlockId WriteBlock(uint32_t, uint32_t, uint32_t) const override { return BlockId(0); }
    uint32_t WriteRow(uint32_t) const override { return 0; }
    bool WantsProfile() const override { return false; }
    void Profile(const AttendedChunk&) override {}
    absl::Status Commit(uint32_t, const float*, const float*) override { return absl::OkStatus(); }
    bool WantsQueries(uint32_t) const override { return false; }
    void Park() override {}
  };

  const absl::Status answer_;
  const Layout layout_ = *Layout::Make(TinyConfig().CacheGeometry(Dtype::kF32), 64_KiB);
  const std::string policy_ = "full";
};

TEST(PoolKvTest, ASafePointsOutcomesAreWhatTheEngineKnows) {
  const std::vector<std::pair<absl::Status, Readiness>> answers = {
      {absl::OkStatus(), Readiness::kReady},
      {absl::ResourceExhaustedError("full"), Readiness::kNoSpace},
      {absl::AbortedError("busy"), Readiness::kBusy},
      {absl::CancelledError("ended"), Readiness::kPreempted},
      {absl::DataLossError("lost"), Readiness::kFailed}};
  for (const auto& [answer, readiness] : answers) {
    PoolKv kv(std::make_unique<OneAnswerTenant>(answer));
    OpenResult opened = kv.Open({.prompt_tokens = 1, .max_tokens = 2});
    ASSERT_EQ(opened.outcome, OpenOutcome::kOpened);
    const int32_t id = 1;
    KvStep step{.session = opened.session.get(), .tokens = 1, .ids = {&id, 1}};
    kv.Prepare({&step, 1});
    EXPECT_EQ(step.readiness, readiness) << answer;
    if (readiness >= Readiness::kPreempted) {
      EXPECT_EQ(step.text, answer.message());
    }
  }
}

TEST(PrivateKvTest, RefusesWhatCannotBe) {
  const Geometry geometry = TinyConfig().CacheGeometry(Dtype::kF32);
  EXPECT_FALSE(PrivateKv::Make({.geometry = geometry, .max_pages = 0}).ok());
  const auto page =
      PrivateKv::Make({.geometry = geometry, .slab_bytes = Bytes(1024), .max_pages = 1});
  ASSERT_FALSE(page.ok());
  EXPECT_THAT(std::string(page.status().message()), HasSubstr("slab_bytes"));
}

}  // namespace
}  // namespace kvpool
