// The committed model: golden log-probabilities, perplexity, recall of planted facts, and that
// pieces, batches and the cache's format do not change what it says.
//
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cmath>

#include "tests/worker/support.h"
#include "worker/checkpoint.h"
#include "worker/math.h"
#include "worker/score.h"
#include "worker/tokenizer.h"

namespace kvpool {
namespace {

class ProseTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    threads_ = new ThreadPool(1);
    model_ = Llama::Load(kModelDirectory, threads_).value().release();
    std::string error;
    tokenizer_ = Tokenizer::Load(kModelDirectory + "/tokenizer.model", &error).release();
    ASSERT_NE(tokenizer_, nullptr) << error;
  }
  static void TearDownTestSuite() {
    delete model_;
    delete threads_;
    delete tokenizer_;
  }

  static std::vector<int32_t> Ids(const std::string& text) {
    std::vector<int32_t> ids = {1};
    for (const int32_t id : tokenizer_->Encode(text)) ids.push_back(id);
    return ids;
  }

  static std::map<uint64_t, Result> Run(const std::vector<Request>& requests,
                                        const EngineOptions& options = {},
                                        Dtype dtype = Dtype::kF32) {
    auto kv = MakePrivateKv(model_->config(), 2048, dtype);
    return RunAll(*model_, {kv.get()}, requests, options);
  }

  // Logits after each token of one sequence, fed in pieces of `chunk`.
  static std::vector<float> Logits(const std::vector<int32_t>& ids, uint32_t chunk, Dtype dtype) {
    auto kv = MakePrivateKv(model_->config(), 64, dtype);
    const auto size = static_cast<uint32_t>(ids.size());
    OpenResult opened = kv->Open({.prompt_tokens = size, .max_tokens = size});
    std::vector<float> all;
    for (uint32_t fed = 0; fed < size; fed += chunk) {
      KvStep step{.session = opened.session.get(), .tokens = std::min(chunk, size - fed)};
      kv->Prepare({&step, 1});
      const Feed feed{.session = step.session,
                      .position = fed,
                      .tokens = std::span(ids).subspan(fed, step.tokens),
                      .logits = LogitRows::kAll};
      const std::span<const float> logits = model_->Forward({&feed, 1});
      all.insert(all.end(), logits.begin(), logits.end());
      step.session->Commit();
    }
    return all;
  }

  static ThreadPool* threads_;
  static Llama* model_;
  static Tokenizer* tokenizer_;
};

ThreadPool* ProseTest::threads_ = nullptr;
Llama* ProseTest::model_ = nullptr;
Tokenizer* ProseTest::tokenizer_ = nullptr;

struct Golden {
  std::string text;
  std::vector<int32_t> ids, argmax;
  std::vector<double> log_probabilities;
};

Golden ReadGolden() {
  const boost::json::value json =
      boost::json::parse(ReadTextFile(kModelDirectory + "/golden.json").value());
  return {.text = json.at("text").as_string().c_str(),
          .ids = boost::json::value_to<std::vector<int32_t>>(json.at("ids")),
          .argmax = boost::json::value_to<std::vector<int32_t>>(json.at("argmax")),
          .log_probabilities =
              boost::json::value_to<std::vector<double>>(json.at("next_token_logprob"))};
}

TEST_F(ProseTest, TokenizerMatchesGoldenAndGoesBack) {
  const Golden golden = ReadGolden();
  EXPECT_EQ(Ids(golden.text), golden.ids);
  EXPECT_EQ(tokenizer_->Decode(golden.ids), golden.text);
  EXPECT_EQ(tokenizer_->pieces(), model_->config().vocab);
  EXPECT_EQ(tokenizer_->Decode(std::vector<int32_t>{-1, 4096, 1 << 30}), "");
}

class GoldenTest : public ProseTest,
                   public testing::WithParamInterface<std::pair<uint32_t, Dtype>> {};

TEST_P(GoldenTest, LogProbabilities) {
  const auto [chunk, dtype] = GetParam();
  const double tolerance = dtype == Dtype::kF32 ? 1e-3 : 0.1;
  const Golden golden = ReadGolden();
  const size_t vocab = model_->config().vocab;
  const std::vector<float> logits = Logits(golden.ids, chunk, dtype);
  for (size_t i = 0; i < golden.log_probabilities.size(); ++i) {
    const float* row = &logits[i * vocab];
    EXPECT_NEAR(row[golden.ids[i + 1]] - LogSumExp(row, vocab), golden.log_probabilities[i],
                tolerance)
        << "token " << i;
    if (dtype == Dtype::kF32) {
      EXPECT_EQ(std::max_element(row, row + vocab) - row, golden.argmax[i]) << "token " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Pieces, GoldenTest,
                         testing::Values(std::pair(1u, Dtype::kF32), std::pair(7u, Dtype::kF32),
                                         std::pair(64u, Dtype::kF32), std::pair(1u, Dtype::kBf16),
                                         std::pair(64u, Dtype::kBf16)));

// Filler and facts as the model was taught them; every trial has another name, thing and number.
std::string PlantedFact(int trial, std::string* question, std::string* answer) {
  const std::vector<std::string> things = {"number", "key",    "cipher", "ticket",
                                           "seal",   "ledger", "locker"};
  const std::vector<std::string> names = {"Arthur", "Beatrice", "Clement", "Dorothea", "Edmund",
                                          "Flora",  "George",   "Harriet", "Isaac",    "Julia"};
  std::mt19937 random(100 + trial);
  *question = "The secret " + things[trial % things.size()] + " of " +
              names[random() % names.size()] + " is";
  *answer = " ";
  for (int digit = 0; digit < 5; ++digit) *answer += static_cast<char>('0' + random() % 10);
  return *question + *answer + ".";
}

TEST_F(ProseTest, RecallsPlantedFactsAtContext256) {
  const std::vector<int32_t> filler =
      tokenizer_->Encode(ReadTextFile(SourcePath("worker/demo/text.txt")).value());
  std::vector<Request> requests;
  std::vector<std::string> answers;
  for (int trial = 0; trial < 8; ++trial) {
    std::string question, answer;
    const auto fact = tokenizer_->Encode(PlantedFact(trial, &question, &answer));
    const auto asked = tokenizer_->Encode(question);
    const size_t room = 256 - 1 - fact.size() - asked.size() - 6, before = 10 + 15 * trial;
    Request request{.id = answers.size(), .prompt = {1}, .max_new_tokens = 6};
    const auto append = [&](auto begin, auto end) {
      request.prompt.insert(request.prompt.end(), begin, end);
    };
    const auto start = filler.begin() + 100 * trial;
    append(start, start + before);
    append(fact.begin(), fact.end());
    append(start + before, start + room);
    append(asked.begin(), asked.end());
    requests.push_back(std::move(request));
    answers.push_back(answer);
  }
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    int right = 0;
    for (const auto& [id, result] : Run(requests, {}, dtype)) {
      const std::string question = tokenizer_->Decode(requests[id].prompt);
      std::vector<int32_t> all = requests[id].prompt;
      all.insert(all.end(), result.generated.begin(), result.generated.end());
      right += tokenizer_->Decode(all) == question + answers[id];
    }
    EXPECT_GE(right, 7) << "of 8";
  }
}

TEST_F(ProseTest, BatchesGiveTheTokensOfOneAtATime) {
  std::vector<Request> requests;
  std::istringstream lines(ReadTextFile(SourcePath("worker/demo/text.txt")).value());
  for (std::string line; std::getline(lines, line) && requests.size() < 6;) {
    requests.push_back({.id = requests.size(),
                        .prompt = Ids(line.substr(0, 40 + 30 * requests.size())),
                        .max_new_tokens = 20});
  }
  const auto alone = Run(requests, {.batch = 1});
  const auto together = Run(requests, {.batch = 6, .chunk = 16});
  ASSERT_EQ(together.size(), 6u);
  for (const auto& [id, result] : together) {
    EXPECT_EQ(result.generated, alone.at(id).generated) << "prompt " << id;
  }
}

// One window of 512 tokens at each of `count` places spread evenly over a text.
std::vector<Request> SpreadWindows(const std::string& path, const Tokenizer& tokenizer,
                                   size_t count) {
  const std::string text = ReadTextFile(path).value();
  std::vector<Request> requests;
  for (size_t w = 0; w < count; ++w) {
    const size_t start = text.find('\n', text.size() / count * w) + 1;
    const std::vector<int32_t> ids = tokenizer.Encode(text.substr(start, 512 * 5));
    EXPECT_GE(ids.size(), 511u);
    requests.push_back(MakeScoreRequests(ids, 1, {.context = 512, .windows = 1}).at(0));
    requests.back().id = w;
  }
  return requests;
}

// The model's README reports 41.97 over eight windows of 512 tokens of held-out novels and not
// which. Eight windows spread evenly over two of them must agree with it within three standard
// errors of the difference of two such means; exactness is the golden test's business.
TEST_F(ProseTest, PerplexityOfHeldOutNovels) {
  std::vector<std::string> novels;
  for (const char* novel : {"anthony_trollope_doctor_thorne", "george_eliot_middlemarch"}) {
    novels.push_back(SharedDirectory() + "/data/text/eval_" + novel + ".txt");
    if (!std::filesystem::exists(novels.back())) {
      GTEST_SKIP() << "the held-out novels are not part of the project, and " << novels.back()
                   << " does not exist; KVPOOL_SHARED may name their folder";
    }
  }
  std::vector<double> nlls;
  for (const std::string& path : novels) {
    for (const auto& [id, result] : Run(SpreadWindows(path, *tokenizer_, 4))) {
      ASSERT_EQ(result.scored_tokens, 511u);
      nlls.push_back(-result.log_probability / result.scored_tokens);
    }
  }
  double mean = 0, variance = 0;
  for (const double nll : nlls) mean += nll / nlls.size();
  for (const double nll : nlls) variance += (nll - mean) * (nll - mean) / (nlls.size() - 1);
  const double error = std::sqrt(2 * variance / nlls.size());
  EXPECT_LT(error, 0.15) << "else this test says nothing";
  EXPECT_NEAR(mean, std::log(41.97), 3 * error) << "perplexity " << std::exp(mean);
}

TEST_F(ProseTest, PerplexityHardlyDependsOnPiecesOrBf16) {
  const auto ids = tokenizer_->Encode(ReadTextFile(SourcePath("worker/demo/text.txt")).value());
  const auto requests = MakeScoreRequests(ids, 1, {.context = 256, .windows = 2});
  const auto nll = [&](uint32_t chunk, Dtype dtype) {
    Score score;
    for (const auto& [id, result] : Run(requests, {.chunk = chunk}, dtype)) score.Add(result);
    EXPECT_EQ(score.tokens, 2 * 255u);
    return score.MeanNll();
  };
  const double exact = nll(64, Dtype::kF32);
  EXPECT_GT(exact, 2.5);
  EXPECT_LT(exact, 5);
  EXPECT_NEAR(nll(1, Dtype::kF32), exact, 1e-5);
  EXPECT_NEAR(nll(16, Dtype::kBf16), exact, 3e-3);
}

}  // namespace
}  // namespace kvpool
