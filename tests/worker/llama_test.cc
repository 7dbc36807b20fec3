// The forward pass against a float64 oracle on a small random model of an odd shape.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/llama.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/worker/support.h"

namespace kvpool {
namespace {

using Row = std::vector<double>;

// Plain Llama over a whole sequence, no cache, everything in double.
class Oracle {
 public:
  Oracle(const LlamaConfig& config, const LlamaWeights& weights) : c_(config), w_(weights) {}

  // Fills logits [token][vocab] and queries [token][layer][width].
  void Run(const std::vector<int32_t>& tokens) {
    std::vector<Row> x;
    for (const int32_t token : tokens) {
      x.emplace_back(&w_.embedding[token * c_.hidden], &w_.embedding[(token + 1) * c_.hidden]);
    }
    queries.assign(tokens.size(), {});
    for (const LayerWeights& layer : w_.layers) Layer(layer, x);
    logits.clear();
    for (const Row& row : x)
      logits.push_back(Product(w_.untied_head, Norm(row, w_.norm), c_.vocab));
  }

  std::vector<Row> logits;
  std::vector<std::vector<Row>> queries;

 private:
  static Row Product(const std::vector<float>& matrix, const Row& x, size_t out) {
    Row y(out);
    for (size_t o = 0; o < out; ++o) {
      for (size_t i = 0; i < x.size(); ++i) y[o] += double{matrix[o * x.size() + i]} * x[i];
    }
    return y;
  }

  Row Norm(const Row& x, const std::vector<float>& weight) const {
    double squares = 0;
    for (const double v : x) squares += v * v;
    Row y(x);
    for (size_t i = 0; i < x.size(); ++i) {
      y[i] = x[i] / std::sqrt(squares / x.size() + c_.norm_eps) * weight[i];
    }
    return y;
  }

  void Rotate(Row& x, size_t first, size_t position) const {
    const size_t half = c_.head_dim / 2;
    for (size_t i = 0; i < half; ++i) {
      const double angle = position / std::pow(c_.rope_theta, 2.0 * i / c_.head_dim);
      double &a = x[first + i], &b = x[first + half + i];
      const double rotated = a * std::cos(angle) - b * std::sin(angle);
      b = b * std::cos(angle) + a * std::sin(angle);
      a = rotated;
    }
  }

  Row Attend(size_t t, const std::vector<Row>& q, const std::vector<Row>& kv) const {
    const size_t dim = c_.head_dim;
    Row out(c_.query_width());
    for (size_t h = 0; h < c_.query_heads; ++h) {
      const size_t shared = h / (c_.query_heads / c_.kv_heads) * dim;
      Row p(t + 1);
      double sum = 0;
      for (size_t s = 0; s <= t; ++s) {
        double dot = 0;
        for (size_t d = 0; d < dim; ++d) dot += q[t][h * dim + d] * kv[s][shared + d];
        sum += p[s] = std::exp(dot / std::sqrt(dim));
      }
      for (size_t s = 0; s <= t; ++s) {
        for (size_t d = 0; d < dim; ++d) {
          out[h * dim + d] += p[s] / sum * kv[s][c_.kv_width() + shared + d];
        }
      }
    }
    return out;
  }

  void Layer(const LayerWeights& w, std::vector<Row>& x) {
    std::vector<Row> q, kv;
    for (size_t t = 0; t < x.size(); ++t) {
      const Row normed = Norm(x[t], w.attention_norm);
      q.push_back(Product(w.query, normed, c_.query_width()));
      kv.push_back(Product(w.key_value, normed, 2 * c_.kv_width()));
      for (size_t h = 0; h < c_.query_heads; ++h) Rotate(q[t], h * c_.head_dim, t);
      for (size_t h = 0; h < c_.kv_heads; ++h) Rotate(kv[t], h * c_.head_dim, t);
      queries[t].push_back(q[t]);
    }
    for (size_t t = 0; t < x.size(); ++t) {
      Add(x[t], Product(w.attention_out, Attend(t, q, kv), c_.hidden));
      const Row gate_up = Product(w.gate_up, Norm(x[t], w.mlp_norm), 2 * c_.intermediate);
      Row inner(c_.intermediate);
      for (size_t i = 0; i < inner.size(); ++i) {
        inner[i] = gate_up[i] / (1 + std::exp(-gate_up[i])) * gate_up[c_.intermediate + i];
      }
      Add(x[t], Product(w.down, inner, c_.hidden));
    }
  }

  static void Add(Row& x, const Row& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  const LlamaConfig c_;
  const LlamaWeights& w_;
};

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
    std::vector<Row> logits;
    std::vector<std::vector<float>> queries;  // [token][layers * width]
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
      Oracle oracle(config_, weights_);
      oracle.Run(s.tokens);
      for (size_t t = 0; t < s.tokens.size(); ++t) {
        for (size_t v = 0; v < config_.vocab; ++v) {
          ASSERT_NEAR(s.logits[t][v], oracle.logits[t][v], 2e-4) << "token " << t;
        }
        for (size_t i = 0; i < s.queries[t].size(); ++i) {
          ASSERT_NEAR(s.queries[t][i],
                      oracle.queries[t][i / config_.query_width()][i % config_.query_width()],
                      1e-4);
        }
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
    return sequences[number].queries[sequences[number].fed + index].data();
  };
  const std::vector<uint32_t> lengths = {70, 41, 19};
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence& s = sequences[i];
    s.tokens = RandomTokens(lengths[i]);
    s.session = kv.Open({.prompt_tokens = 1, .max_tokens = lengths[i]}).session;
    s.queries.assign(lengths[i], std::vector<float>(config_.layers * config_.query_width(), NAN));
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
