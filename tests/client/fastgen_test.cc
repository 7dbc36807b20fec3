// FastGen from both ends of the shared memory: the client profiles a prompt and marks its tokens,
// the agent takes up what it is offered if it checks out, and compacts each head by its class.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/fastgen.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <random>

#include "kernels/attention.h"
#include "kernels/token_flags.h"
#include "tests/client/loopback.h"

namespace kvpool {
namespace {

constexpr uint32_t kPrompt = 300, kMax = 700, kChunk = 64, kSlack = 32;
constexpr double kRecovery = 0.98;

// A worker of one session with random rows and queries. Heads differ: the first of each layer looks
// at its newest keys (its queries are its key), the others at everything.
class FastGenTest : public testing::Test {
 protected:
  void Start(const PolicyValues& parameters) {
    PolicyValues values = parameters;
    values.insert({"slack", int64_t{kSlack}});
    session_.reset();
    random_.seed(7);
    loop_ = std::make_unique<Loopback>(
        Loopback::Options{.slabs = 64, .lease = 64, .policy = *MakePolicySpec("fastgen", values)});
    session_ = *loop_->tenant().Open({.prompt_tokens = kPrompt, .max_tokens = kMax});
  }

  const Geometry& geometry() const { return loop_->tenant().layout().geometry(); }

  // One step of `tokens` tokens. The step's outcome, or that of its commit.
  absl::Status Feed(uint32_t tokens) {
    const Geometry& g = geometry();
    std::vector<uint8_t> flags;
    for (uint32_t i = 0; i < tokens; ++i) {
      const uint32_t position = session_->position() + i;
      flags.push_back(position == 0         ? kSpecialToken
                      : position % 17 == 16 ? uint8_t{kPunctuationToken | 0x80}
                                            : 0);
    }
    std::vector<Step> steps = {{.session = session_.get(), .tokens = tokens, .flags = flags}};
    if (absl::Status status = loop_->tenant().SafePoint(steps); !status.ok()) return status;
    if (!steps[0].outcome.ok()) return steps[0].outcome;
    const std::vector<float> queries = Write(tokens);  // [layers][tokens][query_heads][key_dim]
    if (session_->WantsProfile() && profiles_) Profile(tokens, queries);
    // As Commit wants them: [tokens][layers][query_heads][key_dim].
    const size_t floats = size_t{g.query_heads} * g.key_dim;
    std::vector<float> pushed;
    for (uint32_t i = 0; i < tokens; ++i) {
      for (uint32_t layer = 0; layer < g.layers; ++layer) {
        const auto from = queries.begin() + static_cast<ptrdiff_t>((layer * tokens + i) * floats);
        pushed.insert(pushed.end(), from, from + static_cast<ptrdiff_t>(floats));
      }
    }
    return session_->Commit(tokens, session_->WantsQueries(tokens) ? pushed.data() : nullptr);
  }

  void FeedPrompt() {
    for (uint32_t fed = 0; fed < kPrompt; fed += chunk_) {
      ASSERT_TRUE(Feed(std::min(chunk_, kPrompt - fed)).ok());
    }
  }
  // What the agent's "frequent" ranks a head's keys by; key [position].
  std::map<uint32_t, float> Sums(uint32_t plane) {
    std::map<uint32_t, float> sums;
    for (uint32_t row = 0; row < agent().planes.rows(plane); ++row) {
      sums[agent().planes.positions(plane)[row]] = agent().planes.Sum(plane, row);
    }
    return sums;
  }

  const AgentSession& agent() { return *loop_->attachment().Find(0); }

  bool profiles_ = true;
  uint32_t chunk_ = kChunk;
  std::unique_ptr<Loopback> loop_;
  std::unique_ptr<Session> session_;

 private:
  // Stores rows whose keys turn slowly with the position, and returns queries like them.
  std::vector<float> Write(uint32_t tokens) {
    const Geometry& g = geometry();
    std::normal_distribution<float> normal;
    std::vector<float> queries(size_t{g.layers} * tokens * g.query_heads * g.key_dim);
    for (uint32_t layer = 0; layer < g.layers; ++layer) {
      for (uint32_t i = 0; i < tokens; ++i) {
        const uint32_t position = session_->position() + i;
        for (uint32_t head = 0; head < g.kv_heads; ++head) {
          std::vector<float> key(g.key_dim), value(g.value_dim, 1);
          for (uint32_t d = 0; d < g.key_dim; ++d) {
            const double angle = position / 50.0 + d * 1.5707963;
            key[d] = static_cast<float>(std::cos(angle)) * 3 + normal(random_) * 0.1f;
          }
          StoreRow(loop_->tenant().layout(), loop_->tenant().base(),
                   session_->WriteBlock(layer, head, i), session_->WriteRow(i), key.data(),
                   value.data());
          for (uint32_t j = 0; j < g.group_size(); ++j) {
            float* const query = &queries[((size_t{layer} * tokens + i) * g.query_heads +
                                           head * g.group_size() + j) *
                                          g.key_dim];
            for (uint32_t d = 0; d < g.key_dim; ++d) {
              query[d] = head == 0 ? key[d] * 0.5f : normal(random_) * 0.1f;
            }
          }
        }
      }
    }
    return queries;
  }

  void Profile(uint32_t tokens, const std::vector<float>& queries) {
    const Geometry& g = geometry();
    std::vector<float> out(size_t{tokens} * g.query_heads * g.value_dim);
    std::vector<float> lse(size_t{tokens} * g.query_heads);
    for (uint32_t layer = 0; layer < g.layers; ++layer) {
      const float* of_layer = &queries[size_t{layer} * tokens * g.query_heads * g.key_dim];
      Attention({.layout = &loop_->tenant().layout(),
                 .base = loop_->tenant().base(),
                 .layer = layer,
                 .session = session_->View(tokens),
                 .queries = of_layer,
                 .query_count = tokens,
                 .scale = 1.0f / std::sqrt(static_cast<float>(g.key_dim)),
                 .out = out.data(),
                 .lse = lse.data()});
      for (uint32_t head = 0; head < g.kv_heads; ++head) {
        session_->Profile({.model_layer = layer,
                           .head = head,
                           .queries = of_layer,
                           .lse = lse.data(),
                           .query_count = tokens});
      }
    }
  }

  std::mt19937 random_{7};
};

TEST_F(FastGenTest, CompactsAtThePromptsEndAndThenEverySlack) {
  Start({{"recovery", kRecovery}});
  FeedPrompt();
  EXPECT_TRUE(loop_->compactions().empty());
  EXPECT_TRUE(agent().head_classes.empty());
  ASSERT_TRUE(Feed(1).ok());
  ASSERT_EQ(loop_->compactions().size(), 1u);
  EXPECT_TRUE(loop_->compactions()[0].status.ok()) << loop_->compactions()[0].status;
  EXPECT_GT(loop_->compactions()[0].freed_pages, 0u);
  EXPECT_EQ(loop_->used_pages() + loop_->compactions()[0].freed_pages,
            CeilDiv(kPrompt, kPageTokens));
  EXPECT_GE(loop_->compactions()[0].recovery.mean, kRecovery);
  ASSERT_EQ(agent().head_classes.size(), 4u);
  for (uint32_t plane = 0; plane < 4; ++plane) {
    const auto expected = plane % 2 == 0 ? HeadClass::kLocal : HeadClass::kFull;
    EXPECT_EQ(agent().head_classes[plane], static_cast<uint8_t>(expected)) << plane;
    EXPECT_EQ(agent().planes.rows(plane) == kPrompt, expected == HeadClass::kFull) << plane;
  }
  while (session_->position() < 600) ASSERT_TRUE(Feed(1).ok());
  // The hand-over at length L + slack comes before token L + slack + 1 is appended.
  EXPECT_EQ(loop_->compactions().size(), 1 + (600 - kPrompt - 1) / kSlack);
  for (const CompactionOutcome& outcome : loop_->compactions()) EXPECT_TRUE(outcome.status.ok());
}

// What stays of a compressed head: P4, special and punctuation; P6, as many local and frequent keys
// as their shares of the length allow, and nothing else.
TEST_F(FastGenTest, EachHeadKeepsWhatItsClassNames) {
  Start({{"recovery", kRecovery}});
  FeedPrompt();
  size_t compactions = 0;
  while (session_->position() < 500) {
    ASSERT_TRUE(Feed(1).ok());
    if (loop_->compactions().size() == compactions) continue;
    compactions = loop_->compactions().size();
    const uint32_t length = session_->position() - 1;  // one token came after it
    const std::vector<uint32_t>& kept = agent().planes.positions(0);
    const auto has = [&](uint32_t p) {
      return std::find(kept.begin(), kept.end(), p) != kept.end();
    };
    uint32_t others = 0, marked = 0;
    for (uint32_t p = 0; p < length; ++p) {
      const bool mark = p == 0 || p % 17 == 16, local = length - p <= length * 3 / 10;
      EXPECT_TRUE(has(p) || !(mark || local)) << p << " of " << length;
      marked += mark ? 1 : 0;
      others += has(p) && !mark && !local ? 1 : 0;
    }
    EXPECT_LE(others, length * 3 / 10) << "frequent";
    EXPECT_LE(kept.size(), marked + 2 * (length * 3 / 10)) << "of " << length;
  }
  EXPECT_GE(compactions, 5u);
}

// The sums that "frequent" ranks by begin with the prompt's and go on with every query after it. Of
// a sampled prompt each query counts for those that it stands for.
TEST_F(FastGenTest, FrequenciesCountEachQueryOnce) {
  for (const char* profile : {"exact", "sampled"}) {
    Start({{"recovery", kRecovery}, {"slack", int64_t{1000}}, {"profile", std::string(profile)}});
    FeedPrompt();
    ASSERT_TRUE(Feed(1).ok());
    const auto total = [&](uint32_t plane) {
      double sum = 0;
      for (const auto& [position, mass] : Sums(plane)) sum += mass;
      return sum;
    };
    // A row for each of the prompt's queries and of the two heads in a group, less what went.
    const double after_prompt = total(0);
    EXPECT_LE(after_prompt, 2.0 * RoundUp(kPrompt, 8u) + 0.1) << profile;
    EXPECT_GE(after_prompt, 2.0 * kPrompt * 0.5) << profile;
    while (session_->position() < kPrompt + 20) ASSERT_TRUE(Feed(1).ok());
    session_->Park();
    EXPECT_NEAR(total(0) - after_prompt, 2.0 * 20, 0.1) << profile;
  }
}

// A prompt that is sealed while it is fed has the profile of one that is not. Chunks of 20 tokens
// leave blocks in part, which a later hand-over fills with the last rows: rows change their order.
TEST_F(FastGenTest, APromptThatIsSealedWhileItIsFedHasItsProfile) {
  chunk_ = 20;
  const PolicyValues parameters = {{"recovery", kRecovery}, {"local", 0.2}};
  Start(parameters);
  FeedPrompt();
  ASSERT_TRUE(Feed(1).ok());
  std::vector<std::map<uint32_t, float>> native;
  for (uint32_t plane = 0; plane < 4; ++plane) native.push_back(Sums(plane));
  for (const char* format : {"fp8", "int8", "int4"}) {
    PolicyValues values = parameters;
    values.insert({{"format", std::string(format)}, {"open", int64_t{16}}});
    Start(values);
    FeedPrompt();
    ASSERT_GT(loop_->compactions().size(), 1u);
    EXPECT_EQ(loop_->compactions()[0].sealing, CompactionOutcome::Sealing::kSealed);
    ASSERT_TRUE(Feed(1).ok());
    EXPECT_EQ(loop_->attachment().bad_profiles(), 0u);
    EXPECT_EQ(loop_->attachment().missing_profiles(), 0u) << "it came with the last chunk";
    ASSERT_EQ(agent().head_classes, (std::vector<uint8_t>{3, 4, 3, 4})) << format;
    EXPECT_EQ(agent().planes.rows(1), kPrompt);
    const auto kept = Sums(0);
    size_t common = 0;
    for (const auto& [position, mass] : kept) {
      const auto found = native[0].find(position);
      if (found == native[0].end()) continue;
      ++common;
      EXPECT_NEAR(mass, found->second, 0.1 * found->second + 0.1) << format << " " << position;
    }
    EXPECT_GE(common, native[0].size() * 9 / 10) << format;
    while (session_->position() < 500) ASSERT_TRUE(Feed(1).ok());
  }
}

TEST_F(FastGenTest, WithoutAProfileASessionStaysFull) {
  profiles_ = false;
  Start({{"recovery", 0.0}});
  FeedPrompt();
  while (session_->position() < 500) ASSERT_TRUE(Feed(1).ok());
  EXPECT_TRUE(loop_->compactions().empty());
  EXPECT_GE(agent().planes.rows(0), 480u);  // as of the last drain
  EXPECT_EQ(loop_->attachment().bad_profiles(), 0u);
  EXPECT_EQ(loop_->attachment().missing_profiles(), 1u);
  loop_->attachment().AskHandOver(0);
  ASSERT_TRUE(Feed(1).ok());
  EXPECT_EQ(loop_->attachment().missing_profiles(), 1u) << "a session once";
}

TEST_F(FastGenTest, ASampledProfileFindsTheSameHeads) {
  Start({{"recovery", kRecovery}, {"profile", std::string("sampled")}});
  FeedPrompt();
  ASSERT_TRUE(Feed(1).ok());
  ASSERT_EQ(agent().head_classes.size(), 4u);
  for (uint32_t plane = 0; plane < 4; ++plane) {
    const auto expected = plane % 2 == 0 ? HeadClass::kLocal : HeadClass::kFull;
    EXPECT_EQ(agent().head_classes[plane], static_cast<uint8_t>(expected)) << plane;
  }
}

TEST_F(FastGenTest, WhenEveryHeadIsFullNothingIsEverDue) {
  Start({{"recovery", 1.0}});
  FeedPrompt();
  while (session_->position() < 400) ASSERT_TRUE(Feed(1).ok());
  EXPECT_EQ(agent().head_classes, std::vector<uint8_t>(4, 4));
  EXPECT_TRUE(loop_->compactions().empty());
  EXPECT_EQ(loop_->attachment().regions().table(0).compact_at.load(), 0u);
}

// What a worker may write where its profile should be.
class HostileProfileTest : public FastGenTest {
 protected:
  shm::ShmSizes Sizes() { return loop_->attachment().regions().sizes(); }
  shm::SessionSlot& Slot() {
    return *reinterpret_cast<shm::SessionSlot*>(loop_->control() + shm::SlotOffset(Sizes(), 0));
  }
  std::byte* Area() { return loop_->control() + shm::ProfileOffset(Sizes(), 0); }
};

TEST_F(HostileProfileTest, AnUnknownClassIsRefusedForGood) {
  Start({{"recovery", kRecovery}});
  FeedPrompt();
  Area()[1] = std::byte{5};
  ASSERT_TRUE(Feed(1).ok());
  EXPECT_EQ(loop_->attachment().bad_profiles(), 1u);
  EXPECT_TRUE(agent().head_classes.empty());
  Area()[1] = std::byte{4};
  loop_->attachment().AskHandOver(0);
  ASSERT_TRUE(Feed(1).ok());
  EXPECT_EQ(loop_->attachment().bad_profiles(), 1u);
  EXPECT_TRUE(loop_->compactions().empty());
}

TEST_F(HostileProfileTest, AProfileOfAnotherLengthIsRefused) {
  for (uint32_t tokens : {1u, kPrompt - 1, kPrompt + 1, UINT32_MAX}) {
    Start({{"recovery", kRecovery}});
    FeedPrompt();
    Slot().profiled.store(tokens);
    ASSERT_TRUE(Feed(1).ok());
    EXPECT_EQ(loop_->attachment().bad_profiles(), 1u) << tokens;
    EXPECT_TRUE(loop_->compactions().empty());
    session_.reset();
  }
}

TEST_F(HostileProfileTest, AProfileBeforeThePromptIsCommittedIsRefused) {
  Start({{"recovery", kRecovery}});
  ASSERT_TRUE(Feed(kChunk).ok());
  memset(Area(), 0, 4);  // special: drop all
  Slot().profiled.store(kPrompt);
  loop_->attachment().AskHandOver(0);
  ASSERT_TRUE(Feed(kChunk).ok());
  EXPECT_EQ(loop_->attachment().bad_profiles(), 1u);
  EXPECT_TRUE(loop_->compactions().empty());
}

TEST_F(HostileProfileTest, RubbishFrequenciesCountAsNone) {
  Start({{"recovery", kRecovery}});
  FeedPrompt();
  const float rubbish[] = {std::nanf(""), -1e30f, std::numeric_limits<float>::infinity()};
  for (uint32_t key = 0; key < kPrompt; ++key) {
    memcpy(Area() + shm::ProfileFrequencyOffset(Sizes(), 0) + key * sizeof(float),
           &rubbish[key % 3], sizeof(float));
  }
  ASSERT_TRUE(Feed(1).ok());
  ASSERT_EQ(loop_->compactions().size(), 1u);
  EXPECT_TRUE(loop_->compactions()[0].status.ok());
  for (uint32_t row = 0; row < agent().planes.rows(0); ++row) {
    EXPECT_TRUE(std::isfinite(agent().planes.Sum(0, row)));
  }
  while (session_->position() < 400) ASSERT_TRUE(Feed(1).ok());
}

}  // namespace
}  // namespace kvpool
