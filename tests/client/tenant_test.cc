// The client's shared-memory half against the agent's, in one process: what a worker writes is what
// attention reads, before and after compactions, and nothing leaks.
//
// SPDX-License-Identifier: Apache-2.0
#include "client/tenant.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>
#include <random>
#include <set>
#include <thread>

#include "kernels/attention.h"
#include "kernels/places.h"
#include "tests/client/loopback.h"

namespace kvpool {
namespace {

PolicySpec Scissorhands(int64_t budget) {
  return *MakePolicySpec("scissorhands", {{"budget", budget}, {"window", 64}, {"recent", 8}});
}

PolicySpec SealedStreaming(int64_t recent, int64_t slack) {
  return *MakePolicySpec(
      "streaming",
      {{"sinks", 4}, {"recent", recent}, {"slack", slack}, {"format", "int4"}, {"open", 16}});
}

// Drives sessions with random rows and remembers every row by its position.
class Driver {
 public:
  explicit Driver(Loopback* loop) : loop_(loop) {}

  absl::Status Advance(Session* session, uint32_t tokens) {
    Step step{.session = session, .tokens = tokens};
    if (absl::Status status = loop_->tenant().SafePoint({&step, 1}); !status.ok()) return status;
    if (!step.outcome.ok()) return step.outcome;
    const Geometry& g = loop_->tenant().layout().geometry();
    std::vector<float> queries(tokens * g.model_layers() * g.query_heads * g.key_dim);
    for (float& q : queries) q = Random();
    for (uint32_t i = 0; i < tokens; ++i) {
      for (uint32_t l = 0; l < g.layers; ++l) {
        for (uint32_t h = 0; h < g.kv_heads; ++h) {
          std::vector<float> row(g.key_dim + g.value_dim);
          for (float& x : row) x = Random();
          rows_[{session, l, h, session->position() + i}] = row;
          StoreRow(loop_->tenant().layout(), loop_->tenant().base(), session->WriteBlock(l, h, i),
                   session->WriteRow(i), row.data(), row.data() + g.key_dim);
        }
      }
    }
    if (!session->WantsQueries(tokens)) return session->Commit(tokens, nullptr);
    if (!lse_offset_.has_value()) return session->Commit(tokens, queries.data());
    const std::vector<float> lses = LogSumExps(session, tokens, queries);
    return session->Commit(tokens, queries.data(), lses.data());
  }

  // From now on commits tell the log-sum-exps of the queries, plus `offset`.
  void TellLogSumExps(float offset) { lse_offset_ = offset; }

  // Every row that the session still has, by (layer, head), must be one that was written; returns
  // the positions.
  std::vector<std::set<uint32_t>> Positions(Session* session) {
    const Layout& layout = loop_->tenant().layout();
    const Geometry& g = layout.geometry();
    const SessionView view = session->View(0);
    std::vector<std::set<uint32_t>> positions(g.planes());
    std::vector<float> key(g.key_dim), value(g.value_dim);
    for (uint32_t l = 0; l < g.layers; ++l) {
      for (uint32_t h = 0; h < g.kv_heads; ++h) {
        const uint32_t plane = l * g.kv_heads + h;
        for (uint32_t row = 0; row < view.Length(plane); ++row) {
          LoadRow(layout, loop_->tenant().base(), view.BlockOf(layout, l, h, row),
                  view.RowInBlock(plane, row), key.data(), value.data());
          std::vector<float> both = key;
          both.insert(both.end(), value.begin(), value.end());
          for (uint32_t p = 0; p < session->position(); ++p) {
            if (rows_[{session, l, h, p}] == both) positions[plane].insert(p);
          }
        }
        EXPECT_EQ(positions[plane].size(), view.Length(plane)) << "a row that nobody wrote";
      }
    }
    return positions;
  }

 private:
  // [tokens][layers][query_heads], from the attention of the step under way.
  std::vector<float> LogSumExps(Session* session, uint32_t tokens,
                                const std::vector<float>& queries) {
    const Layout& layout = loop_->tenant().layout();
    const Geometry& g = layout.geometry();
    std::vector<float> lses(size_t{tokens} * g.layers * g.query_heads);
    std::vector<float> out(g.query_heads * g.value_dim);
    for (uint32_t i = 0; i < tokens; ++i) {
      for (uint32_t l = 0; l < g.layers; ++l) {
        const size_t first = (size_t{i} * g.layers + l) * g.query_heads;
        Attention({.layout = &layout,
                   .base = loop_->tenant().base(),
                   .layer = l,
                   .session = session->View(i + 1),
                   .queries = queries.data() + first * g.key_dim,
                   .scale = 1.0f / std::sqrt(static_cast<float>(g.key_dim)),
                   .out = out.data(),
                   .lse = lses.data() + first});
      }
    }
    for (float& lse : lses) lse += *lse_offset_;
    return lses;
  }

  float Random() { return std::normal_distribution<float>()(random_); }

  std::optional<float> lse_offset_;
  Loopback* loop_;
  std::mt19937 random_{7};
  std::map<std::tuple<Session*, uint32_t, uint32_t, uint32_t>, std::vector<float>> rows_;
};

TEST(TenantTest, FullKeepsEveryRowAndGivesEveryPageBack) {
  Loopback loop({});
  Driver driver(&loop);
  auto session = *loop.tenant().Open({.prompt_tokens = 50, .max_tokens = 200});
  ASSERT_TRUE(driver.Advance(session.get(), 50).ok());
  for (int i = 0; i < 60; ++i) ASSERT_TRUE(driver.Advance(session.get(), 1).ok());
  for (const auto& positions : driver.Positions(session.get())) {
    EXPECT_EQ(positions.size(), 110u);
  }
  session.reset();
  EXPECT_EQ(loop.used_pages(), 0u);
  EXPECT_TRUE(loop.ledger().CheckInvariants().ok());
}

TEST(TenantTest, ScissorhandsNeverHoldsMoreThanItsBudgetAndKeepsTheRecent) {
  Loopback loop({.policy = Scissorhands(64)});
  Driver driver(&loop);
  auto session = *loop.tenant().Open({.prompt_tokens = 48, .max_tokens = 1000});
  ASSERT_TRUE(driver.Advance(session.get(), 48).ok());
  for (int i = 0; i < 300; ++i) {
    ASSERT_TRUE(driver.Advance(session.get(), 1).ok());
    ASSERT_LE(session->View(0).Length(0), 64u);
  }
  ASSERT_GE(loop.compactions().size(), 8u);
  float least = 1;
  RecoveryStats before{.mean = 1, .min = 1};
  for (const CompactionOutcome& outcome : loop.compactions()) {
    ASSERT_TRUE(outcome.status.ok());
    EXPECT_GT(outcome.recovery.mean, 0.1f);
    EXPECT_LE(outcome.recovery.mean, 1.0f);
    EXPECT_LE(outcome.recovery.min, outcome.recovery.mean);
    // A head's product falls with each compaction, and by no more than the worst head's loss.
    EXPECT_LT(outcome.cumulative.mean, before.mean);
    EXPECT_GE(outcome.cumulative.mean, before.mean * outcome.recovery.min * 0.999f);
    EXPECT_LE(outcome.cumulative.min, before.min);
    least *= outcome.recovery.min;
    EXPECT_GE(outcome.cumulative.min, least * 0.999f);
    before = outcome.cumulative;
  }
  auto second = *loop.tenant().Open({.prompt_tokens = 48, .max_tokens = 1000});
  const size_t compactions = loop.compactions().size();
  ASSERT_TRUE(driver.Advance(second.get(), 48).ok());
  while (loop.compactions().size() == compactions) {
    ASSERT_TRUE(driver.Advance(second.get(), 1).ok());
  }
  EXPECT_EQ(loop.compactions().back().cumulative.mean, loop.compactions().back().recovery.mean)
      << "a new session has lost nothing yet";
  second.reset();
  for (const auto& positions : driver.Positions(session.get())) {
    for (uint32_t p = 348 - 8; p < 348; ++p) EXPECT_TRUE(positions.contains(p)) << p;
  }
  EXPECT_LE(loop.used_pages(), 6u);
  EXPECT_TRUE(loop.ledger().CheckInvariants().ok());
  session.reset();
  EXPECT_EQ(loop.used_pages(), 0u);
}

// The agent takes a worker's own log-sum-exps for what they are, and makes them itself without.
TEST(TenantTest, LogSumExpsOfTheWorkerAreUsed) {
  const auto live = [](std::optional<float> offset) {
    Loopback loop(
        {.policy = *MakePolicySpec("h2o", {{"budget", 64}, {"recent", 32}, {"slack", 16}})});
    Driver driver(&loop);
    if (offset.has_value()) driver.TellLogSumExps(*offset);
    auto session = *loop.tenant().Open({.prompt_tokens = 60, .max_tokens = 300});
    EXPECT_TRUE(driver.Advance(session.get(), 60).ok());
    for (int i = 0; i < 60; ++i) EXPECT_TRUE(driver.Advance(session.get(), 1).ok());
    EXPECT_GE(loop.compactions().size(), 2u);
    return std::pair(loop.attachment().Find(0)->planes, loop.compactions());
  };
  const auto [without, compactions] = live(std::nullopt);
  const auto [with, same] = live(0.0f);
  const auto [half, shrunk] = live(std::log(2.0f));
  for (uint32_t plane = 0; plane < 4; ++plane) {
    ASSERT_EQ(with.positions(plane), without.positions(plane));
    for (uint32_t row = 0; row < with.rows(plane); ++row) {
      EXPECT_NEAR(with.Sum(plane, row), without.Sum(plane, row), 1e-3);
      EXPECT_NEAR(half.Sum(plane, row), without.Sum(plane, row) / 2, 1e-3)
          << "as if keys that have gone had taken half";
    }
  }
  EXPECT_NEAR(same[0].recovery.mean, compactions[0].recovery.mean, 1e-4);
}

// However the prompt is cut into chunks, and with a chunk of one token at its end.
TEST(TenantTest, APromptPolicyGetsThePromptsLastQueriesAndShrinksItOnce) {
  for (uint32_t chunk : {7u, 33u, 64u}) {
    Loopback loop(
        {.policy = *MakePolicySpec("snapkv", {{"budget", 60}, {"window", 40}, {"kernel", 3}})});
    Driver driver(&loop);
    auto session = *loop.tenant().Open({.prompt_tokens = 99, .max_tokens = 300});
    while (session->position() < 99) {
      ASSERT_TRUE(driver.Advance(session.get(), std::min(chunk, 99 - session->position())).ok());
    }
    EXPECT_EQ(session->View(0).Length(0), 99u);
    EXPECT_TRUE(loop.compactions().empty());
    for (int i = 0; i < 150; ++i) {
      ASSERT_TRUE(driver.Advance(session.get(), 1).ok());
      ASSERT_EQ(loop.compactions().size(), 1u);
      ASSERT_EQ(session->View(0).Length(0), 61u + i);
      if (i > 0) continue;
      std::vector<uint32_t> window(40);
      std::iota(window.begin(), window.end(), 59);
      EXPECT_EQ(loop.attachment().Find(0)->planes.window().positions, window);
    }
    EXPECT_GT(loop.compactions().front().recovery.mean, 0.4f);
    for (const auto& positions : driver.Positions(session.get())) {
      for (uint32_t p = 59; p < 249; ++p) EXPECT_TRUE(positions.contains(p)) << p;
    }
    // After the prompt its queries are sampled, one in 16, for recovery.
    EXPECT_LE(loop.attachment().Find(0)->planes.observed(), 40u + 150 / 16 + 1);
  }
}

// A policy without a budget is due again a little above what it kept, whatever that was.
TEST(TenantTest, CormIsDueAgainAfterItsSlack) {
  Loopback loop(
      {.policy = *MakePolicySpec("corm", {{"window", 64}, {"recent", 32}, {"slack", 16}})});
  Driver driver(&loop);
  auto session = *loop.tenant().Open({.prompt_tokens = 50, .max_tokens = 400});
  ASSERT_TRUE(driver.Advance(session.get(), 50).ok());
  uint32_t after = 0;
  for (size_t seen = 0; session->position() < 400;) {
    ASSERT_TRUE(driver.Advance(session.get(), 1).ok());
    uint32_t longest = 0;
    for (uint32_t p = 0; p < 4; ++p) longest = std::max(longest, session->View(0).Length(p));
    if (loop.compactions().size() > seen) {
      EXPECT_GT(session->position(), 64u) << "not before w queries";
      after = longest - 1;
      ++seen;
      ASSERT_EQ(loop.compactions().size(), seen);
    } else if (seen > 0) {
      ASSERT_LE(longest, after + 16);
      continue;
    }
    for (const auto& positions : driver.Positions(session.get())) {
      for (uint32_t p = session->position() - 32; p < session->position(); ++p) {
        ASSERT_TRUE(positions.contains(p)) << p;
      }
    }
  }
  EXPECT_GT(loop.compactions().size(), 10u);
}

std::vector<float> Attend(Loopback& loop, const Session& session) {
  const Geometry& g = loop.tenant().layout().geometry();
  std::vector<float> query(g.query_heads * g.key_dim, 0.1f), out(g.query_heads * g.value_dim);
  Attention({.layout = &loop.tenant().layout(),
             .base = loop.tenant().base(),
             .layer = 1,
             .session = session.View(0),
             .queries = query.data(),
             .scale = 0.2f,
             .out = out.data()});
  return out;
}

uint64_t UsedNow(Loopback& loop) {
  loop.attachment().SnapshotAll();
  return loop.used_pages();
}

// Nothing presses, and yet the older rows are sealed as the session grows. A worker reads them
// through the same view; the ledger counts pages whatever they hold.
TEST(TenantTest, FullWithAFormatKeepsEveryKeyInHalfThePages) {
  for (const std::string format : {"fp8", "int8", "int4"}) {
    SCOPED_TRACE(format);
    Loopback native({}),
        sealed({.policy = *MakePolicySpec("full", {{"format", format}, {"open", 16}})});
    Driver as_it_was(&native), as_it_is(&sealed);
    auto expected = *native.tenant().Open({.prompt_tokens = 64, .max_tokens = 1000});
    auto session = *sealed.tenant().Open({.prompt_tokens = 64, .max_tokens = 1000});
    for (int i = 0; i < 306; ++i) {
      const uint32_t tokens = i < 6 ? 64 : 1;
      ASSERT_TRUE(as_it_was.Advance(expected.get(), tokens).ok());
      ASSERT_TRUE(as_it_is.Advance(session.get(), tokens).ok());
      const SessionView view = session->View(0);
      for (uint32_t p = 0; p < 4; ++p) {
        ASSERT_EQ(view.Length(p), expected->View(0).Length(p));
        ASSERT_LE(view.Length(p) - view.SealedLength(p), 16u + 64 + 64) << "after " << i;
      }
    }
    EXPECT_EQ(session->View(0).sealed_format,
              SealRuleOf(*MakePolicySpec("full", {{"format", format}})).format);
    EXPECT_LT(UsedNow(sealed) * 2, UsedNow(native));
    const std::vector<float> exact = Attend(native, *expected), now = Attend(sealed, *session);
    for (size_t i = 0; i < exact.size(); ++i) ASSERT_NEAR(now[i], exact[i], 0.1) << i;
    ASSERT_GE(sealed.compactions().size(), 5u);
    EXPECT_LE(sealed.compactions().size(), 12u);
    for (const CompactionOutcome& outcome : sealed.compactions()) {
      EXPECT_EQ(outcome.sealing, CompactionOutcome::Sealing::kSealed);
      EXPECT_EQ(outcome.effect, CompactionOutcome::Effect::kMoved);
      EXPECT_FALSE(outcome.recovery.measured());
    }
    EXPECT_TRUE(sealed.ledger().CheckInvariants().ok());
    session.reset();
    EXPECT_EQ(sealed.used_pages(), 0u);
  }
}

// A format changes neither when a policy compacts nor how many keys it leaves.
TEST(TenantTest, ScissorhandsWithAFormatHoldsAsManyKeysAtEveryStep) {
  for (const uint32_t chunk : {16u, 64u}) {
    SCOPED_TRACE(chunk);
    const PolicyValues values = {{"budget", 256}, {"window", 64}, {"recent", 8}};
    PolicyValues with_format = values;
    with_format.insert({{"format", "int4"}, {"open", 32}});
    Loopback native({.chunk = chunk, .policy = *MakePolicySpec("scissorhands", values)});
    Loopback sealed({.chunk = chunk, .policy = *MakePolicySpec("scissorhands", with_format)});
    Driver as_it_was(&native), as_it_is(&sealed);
    auto expected = *native.tenant().Open({.prompt_tokens = 160, .max_tokens = 1000});
    auto session = *sealed.tenant().Open({.prompt_tokens = 160, .max_tokens = 1000});
    uint64_t pages = 0, native_pages = 0;  // summed over the steps
    while (session->position() < 900) {
      const uint32_t tokens = session->position() < 160 ? std::min(chunk, 40u) : 1;
      ASSERT_TRUE(as_it_was.Advance(expected.get(), tokens).ok());
      ASSERT_TRUE(as_it_is.Advance(session.get(), tokens).ok());
      for (uint32_t p = 0; p < 4; ++p) {
        ASSERT_EQ(session->View(0).Length(p), expected->View(0).Length(p)) << session->position();
        ASSERT_LE(session->View(0).Length(p), 256u);
      }
      pages += UsedNow(sealed);
      native_pages += UsedNow(native);
    }
    EXPECT_GT(session->View(0).SealedLength(0), 0u);
    EXPECT_LT(pages * 4, native_pages * 3);
    const auto compacted = [](const CompactionOutcome& outcome) {
      return outcome.effect == CompactionOutcome::Effect::kCompacted;
    };
    EXPECT_EQ(std::ranges::count_if(sealed.compactions(), compacted),
              std::ranges::count_if(native.compactions(), compacted));
    EXPECT_TRUE(sealed.ledger().CheckInvariants().ok());
  }
}

// A tenant without a free page is sealed through the reserve, and then has some.
TEST(TenantTest, ASessionWhoseLeaseIsUsedUpIsSealedAllTheSame) {
  Loopback loop({.slabs = 1,
                 .lease = 1,
                 .policy = *MakePolicySpec("full", {{"format", "int4"}, {"open", 0}})});
  Driver driver(&loop);
  auto session = *loop.tenant().Open({.prompt_tokens = 60, .max_tokens = 200});
  ASSERT_TRUE(driver.Advance(session.get(), 60).ok());
  std::vector<PageId> others(12);  // of 16: the session has the other four
  ASSERT_EQ(loop.attachment().Fill(12), 12u);
  ASSERT_TRUE(loop.magazine().Take(others));
  while (session->position() < 65) ASSERT_TRUE(driver.Advance(session.get(), 1).ok());
  ASSERT_EQ(loop.compactions().size(), 1u);
  EXPECT_TRUE(loop.compactions()[0].sealed.ok()) << loop.compactions()[0].sealed;
  EXPECT_EQ(session->View(0).SealedLength(0), 64u);
  for (uint32_t p = 0; p < 4; ++p) {
    const SessionView view = session->View(0);
    for (uint32_t row = 0; row < 64; row += 32) {
      EXPECT_EQ(
          loop.tenant().layout().SlabOf(view.BlockOf(loop.tenant().layout(), p / 2, p % 2, row)),
          SlabIndex(0));
    }
  }
  EXPECT_EQ(UsedNow(loop), 2u) << "one sealed page and the one of the newest token";
  EXPECT_TRUE(loop.ledger().CheckInvariants().ok());
}

// A sealing that fails costs a whole job: the next one waits for twice as many rows.
TEST(TenantTest, ASealingThatFailsIsToldAndTriedAgainLater) {
  Loopback loop({.policy = *MakePolicySpec("full", {{"format", "int4"}, {"open", 0}})});
  Driver driver(&loop);
  auto session = *loop.tenant().Open({.prompt_tokens = 64, .max_tokens = 1000});
  ASSERT_TRUE(driver.Advance(session.get(), 64).ok());
  session->Park();
  enum class Reserve { kKept, kTakenAway };
  const auto seal = [&](Reserve reserve) {
    EXPECT_TRUE(loop.attachment().regions().TakeIdle(0));
    auto job = loop.attachment().BeginCompaction(0, shm::State::kIdle, loop.ReservePages(0));
    EXPECT_TRUE(job.ok() && job->has_value());
    if (reserve == Reserve::kTakenAway) (*job)->reserve.clear();
    (*job)->Run();
    return loop.attachment().EndCompaction(0, **std::move(job), shm::State::kIdle);
  };
  const auto due = [&] { return loop.attachment().regions().table(0).compact_at.load(); };
  for (uint32_t rows : {64u, 128u, 256u, 512u, 1024u, 1024u}) {
    const CompactionOutcome outcome = seal(Reserve::kTakenAway);
    EXPECT_TRUE(outcome.status.ok());
    EXPECT_FALSE(outcome.sealed.ok());
    EXPECT_EQ(due(), 64 + rows);
  }
  const CompactionOutcome outcome = seal(Reserve::kKept);
  EXPECT_TRUE(outcome.sealed.ok()) << outcome.sealed;
  EXPECT_EQ(outcome.sealing, CompactionOutcome::Sealing::kSealed);
  EXPECT_EQ(due(), 64u + 64);
}

// Under pressure a session is sealed before it is due, and its policy has its say.
TEST(TenantTest, UnderPressureASessionIsSealedEarlier) {
  Loopback loop({.policy = SealedStreaming(60, 900)});
  Driver driver(&loop);
  auto session = *loop.tenant().Open({.prompt_tokens = 64, .max_tokens = 1000});
  for (int i = 0; i < 70; ++i) ASSERT_TRUE(driver.Advance(session.get(), 1).ok());
  ASSERT_TRUE(loop.compactions().empty());
  loop.attachment().AskHandOver(0);
  ASSERT_TRUE(driver.Advance(session.get(), 1).ok());
  ASSERT_EQ(loop.compactions().size(), 1u);
  EXPECT_EQ(loop.compactions()[0].effect, CompactionOutcome::Effect::kCompacted);
  EXPECT_EQ(loop.compactions()[0].sealing, CompactionOutcome::Sealing::kSealed);
  EXPECT_EQ(session->View(0).Length(0), 65u);
  EXPECT_EQ(session->View(0).SealedLength(0), 32u);
}

// A page of this geometry holds 80 rows of every head in int4, and 16 native ones. Of 768 rows 672
// are sealed, in 9 pages beside 6; of the 320 that stay 280 would be, in 4 beside 3. As native rows
// those 320 would take more pages than there are.
TEST(TenantTest, WhatACompactionOfASealedSessionFreesIsCountedInSealedPages) {
  Loopback loop({.policy = SealedStreaming(316, 600)});
  Driver driver(&loop);
  auto session = *loop.tenant().Open({.prompt_tokens = 64, .max_tokens = 1000});
  while (session->position() < 768) ASSERT_TRUE(driver.Advance(session.get(), 64).ok());
  session->Park();
  ASSERT_EQ(RowsPerPage(loop.tenant().layout(), SealedFormat::kInt4), 4u * 80);
  ASSERT_EQ(UsedNow(loop), 15u);
  ASSERT_EQ(loop.attachment().Find(0)->sealed_tokens(), 672u);
  EXPECT_EQ(loop.attachment().PagesFreedByCompaction(*loop.attachment().Find(0)), 8u);
  // This policy keeps the newest rows, so that more of those that stay are native than on average.
  ASSERT_TRUE(loop.attachment().regions().TakeIdle(0));
  auto job = loop.attachment().BeginCompaction(0, shm::State::kIdle, loop.ReservePages(0));
  ASSERT_TRUE(job.ok() && job->has_value());
  (*job)->Run();
  EXPECT_EQ(loop.attachment().EndCompaction(0, **std::move(job), shm::State::kIdle).freed_pages,
            6u);
}

TEST(TenantTest, AttentionAfterCompactionEqualsAttentionOverTheKeptRows) {
  Loopback loop({.policy = *MakePolicySpec("streaming", {{"sinks", 4}, {"recent", 28}})});
  Driver driver(&loop);
  auto session = *loop.tenant().Open({.prompt_tokens = 60, .max_tokens = 1000});
  ASSERT_TRUE(driver.Advance(session.get(), 60).ok());
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(driver.Advance(session.get(), 1).ok());
  ASSERT_FALSE(loop.compactions().empty());
  const auto positions = driver.Positions(session.get());
  for (uint32_t sink = 0; sink < 4; ++sink) EXPECT_TRUE(positions[0].contains(sink));
  const Geometry& g = loop.tenant().layout().geometry();
  std::vector<float> query(g.query_heads * g.key_dim, 0.25f), out(g.query_heads * g.value_dim);
  Attention({.layout = &loop.tenant().layout(),
             .base = loop.tenant().base(),
             .layer = 1,
             .session = session->View(0),
             .queries = query.data(),
             .scale = 0.2f,
             .out = out.data()});
  // Float64 over the kept rows, read through the view one by one.
  const SessionView view = session->View(0);
  for (uint32_t q = 0; q < g.query_heads; ++q) {
    const uint32_t h = q / g.group_size(), plane = g.kv_heads + h;
    double sum = 0;
    std::vector<double> expected(g.value_dim);
    std::vector<float> key(g.key_dim), value(g.value_dim);
    for (uint32_t row = 0; row < view.Length(plane); ++row) {
      LoadRow(loop.tenant().layout(), loop.tenant().base(),
              view.BlockOf(loop.tenant().layout(), 1, h, row), view.RowInBlock(plane, row),
              key.data(), value.data());
      double logit = 0;
      for (uint32_t d = 0; d < g.key_dim; ++d) logit += 0.25 * key[d];
      const double weight = std::exp(0.2 * logit);
      sum += weight;
      for (uint32_t d = 0; d < g.value_dim; ++d) expected[d] += weight * value[d];
    }
    for (uint32_t d = 0; d < g.value_dim; ++d) {
      EXPECT_NEAR(out[q * g.value_dim + d], expected[d] / sum, 1e-4);
    }
  }
}

TEST(TenantTest, AStepGetsAllItsPagesOrNone) {
  Loopback::Options options;
  options.slabs = options.lease = 1;
  Loopback loop(options);
  Driver driver(&loop);
  const uint32_t pages = loop.tenant().layout().pages_per_slab();
  ASSERT_GE(pages, 8u);
  auto first = *loop.tenant().Open({.prompt_tokens = 16, .max_tokens = 1000});
  auto second = *loop.tenant().Open({.prompt_tokens = 16, .max_tokens = 1000});
  for (uint32_t i = 0; i + 2 < pages; ++i) ASSERT_TRUE(driver.Advance(first.get(), 16).ok());
  EXPECT_EQ(driver.Advance(second.get(), 48).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(second->position(), 0u);
  EXPECT_TRUE(driver.Advance(second.get(), 32).ok());
  first.reset();
  EXPECT_TRUE(driver.Advance(second.get(), 48).ok());
}

// While the agent scores and compacts one session the others of its batch go on, and it comes back
// at the length that it left with.
TEST(TenantTest, ASessionWithTheAgentStallsNoOther) {
  Loopback loop({.policy = Scissorhands(64)});
  Driver driver(&loop);
  auto due = *loop.tenant().Open({.prompt_tokens = 60, .max_tokens = 1000});
  auto other = *loop.tenant().Open({.prompt_tokens = 20, .max_tokens = 1000});
  ASSERT_TRUE(driver.Advance(due.get(), 60).ok());
  ASSERT_TRUE(driver.Advance(other.get(), 20).ok());
  loop.HoldAnswers();
  // The last queries have to be scored, and then the session compacted.
  uint32_t steps_of_other = 0;
  while (loop.compactions().empty()) {
    for (int i = 0; i < 10; ++i, ++steps_of_other) {
      std::vector<Step> steps{{.session = due.get(), .tokens = 8},
                              {.session = other.get(), .tokens = 1}};
      ASSERT_TRUE(loop.tenant().SafePoint(steps).ok());
      ASSERT_TRUE(absl::IsAborted(steps[0].outcome)) << steps[0].outcome;
      ASSERT_TRUE(steps[1].outcome.ok()) << steps[1].outcome;
      ASSERT_TRUE(other->Commit(1, nullptr).ok());
      due->Park();  // changes nothing: it is not the worker's
    }
    ASSERT_TRUE(loop.AnswerNext());
  }
  EXPECT_GE(steps_of_other, 20u) << "while it was scored, and while it was compacted";
  ASSERT_TRUE(driver.Advance(due.get(), 8).ok());
  EXPECT_EQ(due->position(), 68u);
  EXPECT_EQ(other->position(), 20 + steps_of_other);
  EXPECT_EQ(due->View(0).Length(0), 32u + 8);
  EXPECT_EQ(driver.Positions(due.get()).size(), 4u);
}

// With nobody else to step, the safe point waits for the answers.
TEST(TenantTest, AloneASessionWaitsForTheAgent) {
  Loopback loop({.policy = Scissorhands(64)});
  Driver driver(&loop);
  auto session = *loop.tenant().Open({.prompt_tokens = 60, .max_tokens = 1000});
  ASSERT_TRUE(driver.Advance(session.get(), 60).ok());
  loop.HoldAnswers();
  std::atomic<bool> back{false};
  std::thread agent([&] {
    while (!back.load()) {
      if (!loop.AnswerNext()) std::this_thread::yield();
    }
  });
  EXPECT_TRUE(driver.Advance(session.get(), 8).ok());
  back.store(true);
  agent.join();
  EXPECT_EQ(loop.compactions().size(), 1u);
}

// When all of a batch are due at once, the first one back steps while the agent has the rest.
TEST(TenantTest, OfSessionsDueTogetherTheFirstBackSteps) {
  Loopback loop({.policy = Scissorhands(64)});
  Driver driver(&loop);
  auto first = *loop.tenant().Open({.prompt_tokens = 60, .max_tokens = 1000});
  auto second = *loop.tenant().Open({.prompt_tokens = 60, .max_tokens = 1000});
  ASSERT_TRUE(driver.Advance(first.get(), 60).ok());
  ASSERT_TRUE(driver.Advance(second.get(), 60).ok());
  loop.HoldAnswers();
  std::thread agent([&] {
    while (loop.compactions().empty()) {
      if (!loop.AnswerNext()) std::this_thread::yield();
    }
  });
  std::vector<Step> steps{{.session = first.get(), .tokens = 8},
                          {.session = second.get(), .tokens = 8}};
  EXPECT_TRUE(loop.tenant().SafePoint(steps).ok());
  agent.join();
  EXPECT_TRUE(steps[0].outcome.ok()) << steps[0].outcome;
  EXPECT_TRUE(absl::IsAborted(steps[1].outcome)) << steps[1].outcome;
  EXPECT_EQ(loop.compactions().size(), 1u);
}

TEST(TenantTest, AParkedSessionIsTakenBackAtTheNextSafePoint) {
  Loopback loop({.policy = Scissorhands(64)});
  Driver driver(&loop);
  auto session = *loop.tenant().Open({.prompt_tokens = 60, .max_tokens = 1000});
  ASSERT_TRUE(driver.Advance(session.get(), 60).ok());
  session->Park();
  // The agent compacts it meanwhile.
  ASSERT_TRUE(loop.attachment().regions().TakeIdle(0));
  auto job = loop.attachment().BeginCompaction(0, shm::State::kIdle, loop.ReservePages(0));
  ASSERT_TRUE(job.ok() && job->has_value());
  (*job)->Run();
  const CompactionOutcome outcome =
      loop.attachment().EndCompaction(0, **std::move(job), shm::State::kIdle);
  ASSERT_TRUE(outcome.status.ok());
  EXPECT_EQ(outcome.effect, CompactionOutcome::Effect::kCompacted);
  ASSERT_TRUE(driver.Advance(session.get(), 1).ok());
  EXPECT_EQ(session->View(0).Length(0), 33u);
  for (const auto& positions : driver.Positions(session.get())) {
    EXPECT_TRUE(positions.contains(60u));
  }
}

// More sessions than windows, one at a time, parked between its steps or only left alone: each
// query is scored, whichever window it went through.
TEST(TenantTest, AWindowGoesFromASessionThatStandsByToOneThatSteps) {
  Loopback loop({.windows = 1, .policy = Scissorhands(512)});
  Driver driver(&loop);
  auto a = *loop.tenant().Open({.prompt_tokens = 1, .max_tokens = 500});
  auto b = *loop.tenant().Open({.prompt_tokens = 1, .max_tokens = 500});
  for (int i = 0; i < 100; ++i) {
    for (Session* session : {a.get(), b.get()}) {
      ASSERT_TRUE(driver.Advance(session, 1).ok()) << i;
      if (i % 3 > 0) session->Park();
    }
  }
  EXPECT_EQ(loop.attachment().unscored(), 0u);
  for (uint32_t slot : {0u, 1u}) EXPECT_GE(loop.attachment().Find(slot)->drained, 99u);
}

TEST(TenantTest, OfMoreSessionsThanWindowsTheLastOnesDoNotStep) {
  Loopback loop({.windows = 2, .policy = Scissorhands(512)});
  std::vector<std::unique_ptr<Session>> sessions;
  std::vector<Step> steps;
  for (int i = 0; i < 3; ++i) {
    sessions.push_back(*loop.tenant().Open({.prompt_tokens = 1, .max_tokens = 500}));
    steps.push_back({.session = sessions.back().get(), .tokens = 1});
  }
  ASSERT_TRUE(loop.tenant().SafePoint(steps).ok());
  EXPECT_TRUE(steps[0].outcome.ok());
  EXPECT_TRUE(steps[1].outcome.ok());
  EXPECT_EQ(steps[2].outcome.code(), absl::StatusCode::kFailedPrecondition);
  const std::vector<float> queries(loop.attachment().regions().sizes().query_floats);
  EXPECT_FALSE(sessions[2]->Commit(1, queries.data()).ok());
  EXPECT_EQ(sessions[2]->position(), 0u) << "a commit that is refused changes nothing";
  EXPECT_TRUE(sessions[0]->Commit(1, queries.data()).ok());
  sessions.erase(sessions.begin());
  Step again{.session = sessions.back().get(), .tokens = 1};
  ASSERT_TRUE(loop.tenant().SafePoint({&again, 1}).ok());
  EXPECT_TRUE(again.outcome.ok());
}

TEST(TenantTest, SessionsWithAForeignPageFailAndOthersDoNot) {
  Loopback loop({.policy = Scissorhands(64)});
  Driver driver(&loop);
  auto good = *loop.tenant().Open({.prompt_tokens = 40, .max_tokens = 500});
  auto bad = *loop.tenant().Open({.prompt_tokens = 40, .max_tokens = 500});
  ASSERT_TRUE(driver.Advance(good.get(), 40).ok());
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(driver.Advance(good.get(), 1).ok());
  ASSERT_TRUE(driver.Advance(bad.get(), 40).ok());
  // Slot 1 is the second session's; its first page becomes one that the first session owns.
  const shm::ShmSizes& sizes = loop.attachment().regions().sizes();
  auto* list = reinterpret_cast<std::atomic<uint32_t>*>(loop.control() + shm::SlotOffset(sizes, 1) +
                                                        sizeof(shm::SessionSlot));
  const PageId stolen = (*loop.ledger().PagesOf(loop.attachment().Find(0)->id))[0];
  list[0].store(stolen.value());
  absl::Status status;
  for (int i = 0; i < 60 && status.ok(); ++i) status = driver.Advance(bad.get(), 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_TRUE(loop.ledger().CheckInvariants().ok());
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(driver.Advance(good.get(), 1).ok());
  driver.Positions(good.get());
}

}  // namespace
}  // namespace kvpool
