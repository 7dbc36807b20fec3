// FastGen's profile on the trained model, through the worker's real attention: the forward pass
// profiles each chunk straight after attention, and the classes are held against the attention maps
// in float64, made anew from the queries that it saw and the keys that lie in the cache.
//
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "client/prompt_profiler.h"
#include "kernels/token_flags.h"
#include "tests/worker/support.h"
#include "worker/checkpoint.h"
#include "worker/token_classes.h"

namespace kvpool {
namespace {

// Private memory that wants its prompt profiled, by several rules at once, and remembers every
// query.
class ProfiledSession final : public KvSession {
 public:
  ProfiledSession(std::unique_ptr<KvSession> inner, std::span<const ProfileRule> rules,
                  uint32_t tokens)
      : inner_(std::move(inner)), queries_(inner_->layout().geometry().model_layers()) {
    for (const ProfileRule& rule : rules) {
      profilers_.push_back(
          std::make_unique<PromptProfiler>(inner_->layout(), inner_->base(), rule, tokens));
    }
  }

  const Layout& layout() const override { return inner_->layout(); }
  std::byte* base() const override { return inner_->base(); }
  SessionView View() const override { return inner_->View(); }
  QuerySlot SlotOf(uint32_t) override { return {}; }
  bool WantsProfile() const override { return profilers_.front()->Wants(position_); }
  void Profile(const AttendedChunk& chunk) override {
    for (const auto& profiler : profilers_) profiler->Add(chunk, View());
    const Geometry& g = layout().geometry();
    count_ = chunk.query_count;
    if (chunk.head != 0) return;
    std::vector<float>& to = queries_[chunk.model_layer];
    to.insert(to.end(), chunk.queries, chunk.queries + size_t{count_} * g.query_heads * g.key_dim);
  }
  void Commit() override {
    inner_->Commit();
    for (const auto& profiler : profilers_) profiler->EndStep(position_, count_);
    position_ += count_;
  }

  KvSession* inner() { return inner_.get(); }
  // By the rule of this index.
  const PromptProfiler& profiler(size_t rule) const { return *profilers_[rule]; }
  const float* Query(uint32_t layer, uint32_t position, uint32_t head) const {
    const Geometry& g = layout().geometry();
    return &queries_[layer][(size_t{position} * g.query_heads + head) * g.key_dim];
  }

 private:
  std::unique_ptr<KvSession> inner_;
  std::vector<std::unique_ptr<PromptProfiler>> profilers_;
  uint32_t position_ = 0, count_ = 0;
  std::vector<std::vector<float>> queries_;  // [layers][tokens][query_heads][key_dim]
};

using Matrix = std::vector<std::vector<double>>;  // [query][key]

class TrainedProfileTest : public testing::Test {
 public:
  static constexpr uint32_t kTokens = 300;
  static constexpr std::array<double, 6> kRecoveries = {0.5, 0.8, 0.9, 0.95, 0.98, 1};  // T

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
    std::vector<ProfileRule> rules;
    for (double recovery : kRecoveries) rules.push_back({.recovery = recovery});
    session_ = new ProfiledSession(std::move(opened.session), rules, kTokens);
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

constexpr uint32_t kFrequent = 90, kLocal = 90;  // 0.3 of kTokens

// Marks the keys that were given most over all rows and readers, the newer of equals.
std::vector<bool> Frequent(const std::vector<Matrix>& maps) {
  std::vector<double> given(TrainedProfileTest::kTokens);
  for (const Matrix& map : maps) {
    for (const std::vector<double>& row : map) {
      for (size_t key = 0; key < row.size(); ++key) given[key] += row[key];
    }
  }
  std::vector<uint32_t> order(given.size());
  std::iota(order.rbegin(), order.rend(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return given[a] > given[b]; });
  std::vector<bool> frequent(given.size());
  for (uint32_t i = 0; i < kFrequent; ++i) frequent[order[i]] = true;
  return frequent;
}

// The cheapest class that keeps a key for a query.
size_t CheapestClass(uint8_t flags, bool frequent, uint32_t distance) {
  if ((flags & kSpecialToken) != 0) return 0;
  if ((flags & kPunctuationToken) != 0) return 1;
  if (frequent) return 2;
  return distance < kLocal ? 3 : 4;
}

// What each class keeps of the mass of (layer, head): the least of its query heads, over all rows.
// And P5: of a row, what is missing is half the distance to the row that is left, normalised.
Shares KeptByClass(uint32_t plane) {
  const Geometry& g = TrainedProfileTest::session_->layout().geometry();
  const std::vector<uint8_t>& flags = *TrainedProfileTest::flags_;
  std::vector<Matrix> maps;
  for (uint32_t i = 0; i < g.group_size(); ++i) {
    maps.push_back(
        TrainedProfileTest::Map(plane / g.kv_heads, plane % g.kv_heads * g.group_size() + i));
  }
  const std::vector<bool> frequent = Frequent(maps);
  Shares least;
  least.fill(1);
  for (const Matrix& map : maps) {
    Shares kept = {};
    for (uint32_t query = 0; query < map.size(); ++query) {
      std::vector<size_t> cheapest;
      Shares mass = {};
      for (uint32_t key = 0; key <= query; ++key) {
        cheapest.push_back(CheapestClass(flags[key], frequent[key], query - key));
        for (size_t c = cheapest[key]; c < mass.size(); ++c) mass[c] += map[query][key];
      }
      for (size_t c = 0; c < kept.size(); ++c) {
        double distance = 0;
        for (uint32_t key = 0; key <= query; ++key) {
          const double left = cheapest[key] <= c ? map[query][key] / mass[c] : 0;
          distance += std::abs(map[query][key] - left);
        }
        EXPECT_NEAR(1 - mass[c], distance / 2, 1e-9) << "plane " << plane << " row " << query;
        kept[c] += mass[c] / static_cast<double>(map.size());
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

// P1, P2 and P5 for every head and several T; P3: at T = 1 a head is full, or loses nothing that
// float32 can tell; P7: a higher T never has a cheaper class.
TEST_F(TrainedProfileTest, EachHeadHasTheCheapestClassThatReachesTheRecovery) {
  const Geometry& g = session_->layout().geometry();
  std::vector<std::vector<HeadClass>> classes;
  for (size_t rule = 0; rule < kRecoveries.size(); ++rule) {
    ASSERT_TRUE(session_->profiler(rule).complete());
    classes.push_back(session_->profiler(rule).Classes(*flags_));
  }
  std::vector<int> cheap(kRecoveries.size());
  for (uint32_t plane = 0; plane < g.planes(); ++plane) {
    const Shares kept = KeptByClass(plane);
    for (size_t rule = 0; rule < kRecoveries.size(); ++rule) {
      const double recovery = kRecoveries[rule];
      const auto chosen = static_cast<size_t>(classes[rule][plane]);
      EXPECT_GE(kept[chosen], recovery - 1e-5) << "plane " << plane << " T " << recovery;
      for (size_t c = 0; c < chosen; ++c) {
        EXPECT_LT(kept[c], recovery + 1e-5)
            << "plane " << plane << " class " << c << " T " << recovery;
      }
      if (rule > 0) {
        EXPECT_GE(classes[rule][plane], classes[rule - 1][plane]) << "T " << recovery;
      }
      cheap[rule] += chosen < 4 ? 1 : 0;
    }
  }
  EXPECT_GE(cheap[3], 6) << "of " << g.planes() << " heads should be compressible at T = .95";
  EXPECT_GT(cheap.front(), cheap[4]) << "the T should tell heads apart";
}

TEST_F(TrainedProfileTest, AStepThatIsNotProfiledWholeLeavesNoProfile) {
  PromptProfiler profiler(session_->layout(), session_->base(), {.recovery = 0.95}, 20);
  EXPECT_TRUE(profiler.Wants(0));
  profiler.EndStep(0, 10);  // as a worker does that never profiles
  EXPECT_FALSE(profiler.Wants(10));
  profiler.EndStep(10, 10);
  EXPECT_FALSE(profiler.complete());
}

}  // namespace
}  // namespace kvpool
