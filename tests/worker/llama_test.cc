// The forward pass against a float64 oracle on a small random model of an odd shape.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/llama.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/worker/llama_reference.h"
#include "tests/worker/support.h"

namespace kvpool {
namespace {

// Feeds sequences step by step in pieces of the given sizes and checks logits and queries.
class LlamaTest : public testing::TestWithParam<uint32_t> {
 protected:
  LlamaTest()
      : threads_(GetParam()),
        weights_(RandomWeights(config_, 7)),
        model_(config_, weights_, &threads_),
        kv_(MakePrivateKv(config_, 64)) {}

  std::vector<int32_t> RandomTokens(size_t count) {
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random_() % config_.vocab);
    return tokens;
  }

  struct Sequence {
    std::vector<int32_t> tokens;
    std::unique_ptr<KvSession> session;
    std::vector<std::vector<float>> logits;
    std::vector<Asked> asked;  // [token]
    uint32_t fed = 0;
  };

  // One step in which each sequence gets the given number of tokens.
  void Step(ScriptedKv& kv, std::vector<Sequence>& sequences, const std::vector<uint32_t>& counts) {
    std::vector<Feed> feeds;
    for (size_t i = 0; i < sequences.size(); ++i) {
      Sequence& s = sequences[i];
      KvStep step{.session = s.session.get(), .tokens = counts[i]};
      kv.Prepare({&step, 1});
      ASSERT_EQ(step.readiness, Readiness::kReady);
      feeds.push_back({.session = s.session.get(),
                       .position = s.fed,
                       .tokens = std::span(s.tokens).subspan(s.fed, counts[i]),
                       .logits = LogitRows::kAll});
    }
    const float* row = model_.Forward(feeds).data();
    for (size_t i = 0; i < sequences.size(); ++i) {
      for (uint32_t t = 0; t < counts[i]; ++t, row += config_.vocab) {
        sequences[i].logits.emplace_back(row, row + config_.vocab);
      }
      sequences[i].fed += counts[i];
      sequences[i].session->Commit();
    }
  }

  void Check(const std::vector<Sequence>& sequences) {
    for (const Sequence& s : sequences) {
      LlamaReference oracle(config_, weights_);
      oracle.Sequential(s.tokens);
      for (size_t t = 0; t < s.tokens.size(); ++t) {
        for (size_t v = 0; v < config_.vocab; ++v) {
          ASSERT_NEAR(s.logits[t][v], oracle.logits[t][v], 2e-4) << "token " << t;
        }
        ASSERT_NO_FATAL_FAILURE(ExpectAsked(s.asked[t], config_, oracle, t, 1e-4));
      }
    }
  }

  std::mt19937 random_{11};
  const LlamaConfig config_ = TinyConfig();
  ThreadPool threads_;
  const LlamaWeights weights_;
  Llama model_;
  std::unique_ptr<PrivateKv> kv_;
};

TEST_P(LlamaTest, MatchesOracleInRandomPieces) {
  ScriptedKv kv(std::move(kv_));
  std::vector<Sequence> sequences(3);
  kv.on_query = [&](int number, uint32_t index) {
    return sequences[number].asked[sequences[number].fed + index].slot();
  };
  const std::vector<uint32_t> lengths = {70, 41, 19};
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence& s = sequences[i];
    s.tokens = RandomTokens(lengths[i]);
    s.session = kv.Open({.prompt_tokens = 1, .max_tokens = lengths[i]}).session;
    s.asked.assign(lengths[i], Asked(config_));
  }
  // All end together, so that every step has all three: pieces of one and of many tokens mixed.
  const std::vector<std::vector<uint32_t>> steps = {
      {33, 1, 1}, {1, 17, 1}, {1, 1, 1}, {18, 3, 15}, {17, 19, 1}};
  for (const auto& counts : steps) ASSERT_NO_FATAL_FAILURE(Step(kv, sequences, counts));
  Check(sequences);
}

INSTANTIATE_TEST_SUITE_P(Threads, LlamaTest, testing::Values(1, 3));

TEST(LlamaLogits, OnlyWantedRows) {
  const LlamaConfig config = TinyConfig();
  ThreadPool threads(1);
  Llama model(config, RandomWeights(config, 7), &threads);
  const auto run = [&](LogitRows rows) {
    auto kv = MakePrivateKv(config, 8);
    OpenResult opened = kv->Open({.prompt_tokens = 3, .max_tokens = 3});
    KvStep step{.session = opened.session.get(), .tokens = 3};
    kv->Prepare({&step, 1});
    const std::vector<int32_t> tokens = {1, 20, 30};
    const Feed feed{.session = step.session, .tokens = tokens, .logits = rows};
    const auto logits = model.Forward({&feed, 1});
    return std::vector<float>(logits.begin(), logits.end());
  };
  const auto all = run(LogitRows::kAll), last = run(LogitRows::kLast);
  EXPECT_EQ(all.size(), 3 * config.vocab);
  EXPECT_EQ(run(LogitRows::kNone).size(), 0u);
  ASSERT_EQ(last.size(), config.vocab);
  for (size_t v = 0; v < config.vocab; ++v) {
    EXPECT_NEAR(last[v], all[2 * config.vocab + v], 1e-5);
  }
}

}  // namespace
}  // namespace kvpool
