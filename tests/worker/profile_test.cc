// FastGen's profile on the trained model, through the worker's real attention: the forward pass
// profiles each chunk straight after attention, and the classes are held against the attention maps
// in float64, made anew from the queries that it saw and the keys that lie in the cache.
//
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "client/prompt_profiler.h"
#include "kernels/token_flags.h"
#include "tests/worker/support.h"
#include "worker/checkpoint.h"
#include "worker/token_classes.h"

namespace kvpool {
namespace {

// Private memory that wants its prompt profiled, and remembers every query.
class ProfiledSession final : public KvSession {
 public:
  ProfiledSession(std::unique_ptr<KvSession> inner, const ProfileRule& rule, uint32_t tokens)
      : inner_(std::move(inner)),
        profiler_(inner_->layout(), inner_->base(), rule, tokens),
        queries_(inner_->layout().geometry().model_layers()) {}

  const Layout& layout() const override { return inner_->layout(); }
  std::byte* base() const override { return inner_->base(); }
  SessionView View() const override { return inner_->View(); }
  QuerySlot SlotOf(uint32_t) override { return {}; }
  bool WantsProfile() const override { return profiler_.Wants(position_); }
  void Profile(const AttendedChunk& chunk) override {
    profiler_.Add(chunk, View());
    const Geometry& g = layout().geometry();
    count_ = chunk.query_count;
    if (chunk.head != 0) return;
    std::vector<float>& to = queries_[chunk.model_layer];
    to.insert(to.end(), chunk.queries, chunk.queries + size_t{count_} * g.query_heads * g.key_dim);
  }
  void Commit() override {
    inner_->Commit();
    profiler_.EndStep(position_, count_);
    position_ += count_;
  }

  KvSession* inner() { return inner_.get(); }
  const PromptProfiler& profiler() const { return profiler_; }
  const float* Query(uint32_t layer, uint32_t position, uint32_t head) const {
    const Geometry& g = layout().geometry();
    return &queries_[layer][(size_t{position} * g.query_heads + head) * g.key_dim];
  }

 private:
  std::unique_ptr<KvSession> inner_;
  PromptProfiler profiler_;
  uint32_t position_ = 0, count_ = 0;
  std::vector<std::vector<float>> queries_;  // [layers][tokens][query_heads][key_dim]
};

using Matrix = std::vector<std::vector<double>>;  // [query][key]

class TrainedProfileTest : public testing::Test {
 public:
  static constexpr uint32_t kTokens = 300;
  static constexpr ProfileRule kRule = {.recovery = 0.95};

  static void SetUpTestSuite() {
    threads_ = new ThreadPool(2);
    model_ = Llama::Load(kModelDirectory, threads_).value().release();
    std::string error;
    const auto tokenizer = Tokenizer::Load(kModelDirectory + "/tokenizer.model", &error);
    ASSERT_NE(tokenizer, nullptr) << error;
    const std::vector<uint8_t> classes = TokenClasses(*tokenizer, model_->config().vocab);
    std::vector<int32_t> ids = {model_->config().bos};
    for (int32_t id : tokenizer->Encode(ReadTextFile(SourcePath("worker/demo/text.txt")).value())) {
      ids.push_back(id);
    }
    ids.resize(kTokens);
    flags_ = new std::vector<uint8_t>;
    for (int32_t id : ids) flags_->push_back(classes[id]);
    kv_ = MakePrivateKv(model_->config(), 64).release();
    OpenResult opened = kv_->Open({.prompt_tokens = kTokens, .max_tokens = kTokens});
    session_ = new ProfiledSession(std::move(opened.session), kRule, kTokens);
    constexpr uint32_t kChunk = 64;
    for (uint32_t fed = 0; fed < kTokens; fed += kChunk) {
      KvStep step{.session = session_->inner(), .tokens = std::min(kChunk, kTokens - fed)};
      kv_->Prepare({&step, 1});
      const Feed feed{.session = session_,
                      .position = fed,
                      .tokens = std::span(ids).subspan(fed, step.tokens),
                      .logits = LogitRows::kNone};
      model_->Forward({&feed, 1});
      session_->Commit();
    }
  }
  static void TearDownTestSuite() {
    delete session_;
    delete kv_;
    delete flags_;
    delete model_;
    delete threads_;
  }

  // The attention map of a query head, in float64.
  static Matrix Map(uint32_t layer, uint32_t query_head) {
    const Layout& layout = session_->layout();
    const Geometry& g = layout.geometry();
    const uint32_t head = query_head / g.group_size(), plane = layer * g.kv_heads + head;
    const SessionView view = session_->View();
    std::vector<std::vector<float>> keys(kTokens, std::vector<float>(g.key_dim));
    std::vector<float> value(g.value_dim);
    for (uint32_t row = 0; row < kTokens; ++row) {
      LoadRow(layout, session_->base(), view.BlockOf(layout, layer, head, row),
              view.RowInBlock(plane, row), keys[row].data(), value.data());
    }
    Matrix map(kTokens);
    for (uint32_t p = 0; p < kTokens; ++p) {
      const float* const query = session_->Query(layer, p, query_head);
      double total = 0;
      for (uint32_t key = 0; key <= p; ++key) {
        double logit = 0;
        for (uint32_t d = 0; d < g.key_dim; ++d) logit += double{query[d]} * keys[key][d];
        map[p].push_back(std::exp(logit / std::sqrt(static_cast<double>(g.key_dim))));
        total += map[p].back();
      }
      for (double& alpha : map[p]) alpha /= total;
    }
    return map;
  }

  static ThreadPool* threads_;
  static Llama* model_;
  static PrivateKv* kv_;
  static ProfiledSession* session_;
  static std::vector<uint8_t>* flags_;
};

ThreadPool* TrainedProfileTest::threads_ = nullptr;
Llama* TrainedProfileTest::model_ = nullptr;
PrivateKv* TrainedProfileTest::kv_ = nullptr;
ProfiledSession* TrainedProfileTest::session_ = nullptr;
std::vector<uint8_t>* TrainedProfileTest::flags_ = nullptr;

using Shares = std::array<double, 5>;  // by HeadClass

// What each class keeps of the mass of (layer, head): the least of its query heads, over all rows.
Shares KeptByClass(uint32_t plane) {
  const Geometry& g = TrainedProfileTest::session_->layout().geometry();
  const std::vector<uint8_t>& flags = *TrainedProfileTest::flags_;
  const std::vector<uint8_t> frequent =
      MostFrequent(TrainedProfileTest::session_->profiler().Frequency(plane), 90);
  Shares least;
  least.fill(1);
  for (uint32_t i = 0; i < g.group_size(); ++i) {
    const Matrix map =
        TrainedProfileTest::Map(plane / g.kv_heads, plane % g.kv_heads * g.group_size() + i);
    Shares kept = {};
    for (uint32_t query = 0; query < map.size(); ++query) {
      for (uint32_t key = 0; key <= query; ++key) {
        const size_t cheapest = (flags[key] & kSpecialToken)       ? 0
                                : (flags[key] & kPunctuationToken) ? 1
                                : frequent[key] != 0               ? 2
                                : query - key < 90                 ? 3
                                                                   : 4;
        for (size_t c = cheapest; c < kept.size(); ++c) kept[c] += map[query][key] / map.size();
      }
    }
    for (size_t c = 0; c < kept.size(); ++c) least[c] = std::min(least[c], kept[c]);
  }
  return least;
}

TEST(TokenClasses, NameBosAndSentenceMarks) {
  std::string error;
  const auto tokenizer = Tokenizer::Load(kModelDirectory + "/tokenizer.model", &error);
  ASSERT_NE(tokenizer, nullptr) << error;
  const std::vector<uint8_t> flags = TokenClasses(*tokenizer, tokenizer->pieces() + 3);
  EXPECT_EQ(flags.size(), tokenizer->pieces() + 3);
  EXPECT_EQ(flags[1], kSpecialToken);  // BOS
  EXPECT_EQ(flags[2], kSpecialToken);  // EOS
  std::string marks;
  for (const int32_t id : tokenizer->Encode("Who is it? It was late, he said: too late; come.")) {
    EXPECT_NE(flags[id], kSpecialToken);
    if (flags[id] == kPunctuationToken) marks += tokenizer->Decode({&id, 1});
  }
  EXPECT_EQ(marks, "?:.");
}

// P1 and P2 for every head and several T.
TEST_F(TrainedProfileTest, EachHeadHasTheCheapestClassThatReachesTheRecovery) {
  const Geometry& g = session_->layout().geometry();
  ASSERT_TRUE(session_->profiler().complete());
  const std::vector<HeadClass> classes = session_->profiler().Classes(*flags_);
  int cheap = 0;
  for (uint32_t plane = 0; plane < g.planes(); ++plane) {
    const Shares kept = KeptByClass(plane);
    const auto chosen = static_cast<size_t>(classes[plane]);
    EXPECT_GE(kept[chosen], kRule.recovery - 1e-5) << "plane " << plane;
    for (size_t c = 0; c < chosen; ++c) {
      EXPECT_LT(kept[c], kRule.recovery + 1e-5) << "plane " << plane << " class " << c;
    }
    cheap += chosen < 4 ? 1 : 0;
  }
  EXPECT_GE(cheap, 6) << "of " << g.planes() << " heads should be compressible";
}

TEST_F(TrainedProfileTest, AStepThatIsNotProfiledWholeLeavesNoProfile) {
  PromptProfiler profiler(session_->layout(), session_->base(), kRule, 20);
  EXPECT_TRUE(profiler.Wants(0));
  profiler.EndStep(0, 10);  // as a worker does that never profiles
  EXPECT_FALSE(profiler.Wants(10));
  profiler.EndStep(10, 10);
  EXPECT_FALSE(profiler.complete());
}

}  // namespace
}  // namespace kvpool
