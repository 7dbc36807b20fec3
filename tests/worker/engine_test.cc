// The engine on a small random model: who runs, who waits, who gives way, and that none of it
// changes a token.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/worker/llama_reference.h"
#include "tests/worker/support.h"

namespace kvpool {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;

class EngineTest : public testing::Test {
 protected:
  EngineTest() : threads_(1), model_(config_, RandomWeights(config_, 3), &threads_) {}

  std::unique_ptr<ScriptedKv> Memory(uint32_t pages) {
    return std::make_unique<ScriptedKv>(MakePrivateKv(config_, pages));
  }

  // Prompts of 1 .. 60 tokens, generating 1 .. 60 more.
  std::vector<Request> RandomRequests(size_t count, float temperature = 0) {
    std::mt19937 random(5);
    std::vector<Request> requests;
    for (size_t id = 0; id < count; ++id) {
      Request request{.id = id,
                      .max_new_tokens = static_cast<uint32_t>(1 + random() % 60),
                      .sampling = {.temperature = temperature, .seed = id}};
      request.prompt.resize(1 + random() % 60);
      for (int32_t& token : request.prompt) token = random() % config_.vocab;
      requests.push_back(std::move(request));
    }
    return requests;
  }

  std::vector<std::vector<int32_t>> Generated(const std::map<uint64_t, Result>& results) {
    std::vector<std::vector<int32_t>> tokens;
    for (const auto& [id, result] : results) tokens.push_back(result.generated);
    return tokens;
  }

  const LlamaConfig config_ = TinyConfig();
  ThreadPool threads_;
  Llama model_;
};

TEST_F(EngineTest, ManyAtOnceGiveTheTokensOfOneAtATime) {
  const auto requests = RandomRequests(20);
  auto kv = Memory(1000);
  const auto alone = RunAll(model_, {kv.get()}, requests, {.batch = 1, .chunk = 64});
  const auto together = RunAll(model_, {kv.get()}, requests, {.batch = 7, .chunk = 16});
  ASSERT_EQ(together.size(), requests.size());
  EXPECT_EQ(Generated(together), Generated(alone));
  for (const auto& [id, result] : together) {
    EXPECT_TRUE(result.reason == FinishReason::kLength || result.reason == FinishReason::kStop);
    if (result.reason == FinishReason::kLength) {
      EXPECT_EQ(result.generated.size(), requests[id].max_new_tokens);
    }
  }
  EXPECT_EQ(kv->memory().free_pages(), 1000u) << "every page came back";
}

TEST_F(EngineTest, UnderAPageLimitAllFinishWithTheSameTokens) {
  const auto requests = RandomRequests(20);
  auto roomy = Memory(1000), tight = Memory(10);  // the longest session takes 8
  std::vector<TenantStats> stats;
  const auto free = RunAll(model_, {roomy.get()}, requests, {.batch = 7});
  const auto limited = RunAll(model_, {tight.get()}, requests, {.batch = 7}, &stats);
  ASSERT_EQ(limited.size(), requests.size());
  EXPECT_EQ(Generated(limited), Generated(free));
  EXPECT_GT(stats[0].preemptions, 0u);
  EXPECT_GT(stats[0].paused_steps, 0u);
  EXPECT_GT(stats[0].refused_opens, 0u);
  EXPECT_EQ(stats[0].finished, requests.size());
  EXPECT_EQ(tight->memory().free_pages(), 10u);
}

TEST_F(EngineTest, SamplingRepeatsBySeedWhoeverElseRuns) {
  auto requests = RandomRequests(8, 1.0f);
  auto kv = Memory(1000);
  const auto first = RunAll(model_, {kv.get()}, requests, {.batch = 8});
  EXPECT_EQ(Generated(RunAll(model_, {kv.get()}, requests, {.batch = 3})), Generated(first));
  for (Request& request : requests) request.sampling.seed += 100;
  EXPECT_NE(Generated(RunAll(model_, {kv.get()}, requests, {.batch = 8})), Generated(first));
}

TEST_F(EngineTest, StopsAtEndOfSequence) {
  auto kv = Memory(1000);
  Request request{.prompt = {1, 7, 9}, .max_new_tokens = 12};
  const Result whole = RunAll(model_, {kv.get()}, {request}, {})[0];
  ASSERT_EQ(whole.reason, FinishReason::kLength);
  // The same model, whose end of sequence is the first token not seen before in that run.
  size_t stop = 1;
  while (std::count(whole.generated.begin(), whole.generated.begin() + stop,
                    whole.generated[stop]) > 0) {
    ASSERT_LT(++stop, whole.generated.size());
  }
  LlamaConfig config = config_;
  config.eos = {49, whole.generated[stop]};
  ASSERT_NE(whole.generated[stop], 49);
  Llama stopping(config, RandomWeights(config, 3), &threads_);
  const Result result = RunAll(stopping, {kv.get()}, {request}, {})[0];
  EXPECT_EQ(result.reason, FinishReason::kStop);
  EXPECT_EQ(result.generated,
            std::vector<int32_t>(whole.generated.begin(), whole.generated.begin() + stop));
}

TEST_F(EngineTest, WhatCanNeverFitFailsWithAReason) {
  auto kv = Memory(4);
  std::vector<TenantStats> stats;
  Request context{.id = 0, .prompt = std::vector<int32_t>(100, 1), .max_new_tokens = 29};
  Request memory{.id = 1, .prompt = std::vector<int32_t>(60, 1), .max_new_tokens = 5};
  Request fits{.id = 2, .prompt = std::vector<int32_t>(60, 1), .max_new_tokens = 4};
  const auto results = RunAll(model_, {kv.get()}, {context, memory, fits}, {}, &stats);
  EXPECT_EQ(results.at(0).reason, FinishReason::kTooLarge);
  EXPECT_THAT(results.at(0).text, HasSubstr("context has 128"));
  EXPECT_EQ(results.at(1).reason, FinishReason::kTooLarge);
  EXPECT_THAT(results.at(1).text, HasSubstr("may need 5 pages"));
  EXPECT_EQ(results.at(2).reason, FinishReason::kLength);
  EXPECT_EQ(stats[0].failed, 2u);
  EXPECT_EQ(stats[0].finished, 1u);
}

TEST_F(EngineTest, ARefusedOpenIsAskedAgainWithBackOff) {
  auto kv = Memory(100);
  int refusals = 0;
  kv->on_open = [&](const OpenRequest&) {
    return ++refusals <= 10 ? OpenOutcome::kNoSpace : OpenOutcome::kOpened;
  };
  ManualWaiter waiter;
  std::vector<Result> results;
  Engine engine(&model_, {kv.get()}, &waiter, {},
                [&](Result result) { results.push_back(std::move(result)); });
  engine.Submit({.prompt = {1}, .max_new_tokens = 1});
  while (engine.Step()) ASSERT_LT(waiter.waits, 100);
  ASSERT_EQ(results.size(), 1u);
  EXPECT_EQ(results[0].reason, FinishReason::kLength);
  EXPECT_EQ(engine.stats(0).refused_opens, 10u);
  // 10 + 20 + ... + 320 + 4 * 500 ms: doubling, then capped.
  EXPECT_EQ(waiter.Now(), TimePoint{} + milliseconds(630 + 4 * 500));
}

TEST_F(EngineTest, AnEndOfASessionLetsARefusedOneTryAtOnce) {
  auto kv = Memory(100);
  int opened = 0;
  kv->on_open = [&](const OpenRequest&) {
    // Admission of one at a time: the second is refused while the first holds pages.
    if (kv->memory().free_pages() < 100) return OpenOutcome::kNoSpace;
    ++opened;
    return OpenOutcome::kOpened;
  };
  ManualWaiter waiter;
  size_t finished = 0;
  Engine engine(&model_, {kv.get()}, &waiter, {}, [&](const Result&) { ++finished; });
  for (uint64_t id = 0; id < 3; ++id) {
    engine.Submit({.id = id, .prompt = {1, 5}, .max_new_tokens = 40});
  }
  for (int steps = 0; engine.Step(); ++steps) ASSERT_LT(steps, 1000);
  EXPECT_EQ(finished, 3u);
  EXPECT_EQ(waiter.waits, 0) << "there was always something to do";
}

TEST_F(EngineTest, ASessionRefusedForeverFailsAfterItsTime) {
  auto kv = Memory(100);
  kv->on_prepare = [](int, const KvStep&) { return Readiness::kNoSpace; };
  ManualWaiter waiter;
  std::vector<Result> results;
  Engine engine(&model_, {kv.get()}, &waiter,
                {.preempt_after = milliseconds(50), .give_up_after = seconds(2)},
                [&](Result result) { results.push_back(std::move(result)); });
  engine.Submit({.prompt = {1}, .max_new_tokens = 1});
  while (engine.Step()) ASSERT_LT(waiter.waits, 10'000);
  ASSERT_EQ(results.size(), 1u);
  EXPECT_EQ(results[0].reason, FinishReason::kNoSpace);
  EXPECT_THAT(results[0].text, HasSubstr("limit"));
  EXPECT_GE(waiter.Now(), TimePoint{} + seconds(2));
  EXPECT_LT(waiter.Now(), TimePoint{} + seconds(3));
}

TEST_F(EngineTest, TheYoungestGivesWayToTheOldest) {
  auto kv = Memory(100);
  // The oldest gets nothing while another session is there.
  size_t open_sessions = 3;
  std::vector<int> dropped;
  kv->on_prepare = [&](int number, const KvStep&) {
    return number == 0 && open_sessions > 1 ? Readiness::kNoSpace : Readiness::kReady;
  };
  ManualWaiter waiter;
  std::vector<uint64_t> order;
  Engine engine(&model_, {kv.get()}, &waiter, {.preempt_after = Duration{}},
                [&](const Result& result) { order.push_back(result.id); });
  for (uint64_t id = 0; id < 3; ++id) {
    engine.Submit({.id = id, .prompt = {1}, .max_new_tokens = 30});
  }
  while (engine.Step()) {
    open_sessions = engine.running();
    ASSERT_LT(engine.steps(), 1000u);
  }
  EXPECT_EQ(order.front(), 0u);
  EXPECT_EQ(order.size(), 3u);
  EXPECT_EQ(engine.stats(0).preemptions, 2u)
      << "each once; nobody comes back before the oldest ends";
}

// What was generated is no prompt: policies act at the end of the prompt that was asked for.
TEST_F(EngineTest, APreemptedSequenceKeepsItsPrompt) {
  auto kv = Memory(100);
  std::vector<uint32_t> prompts;
  kv->on_open = [&](const OpenRequest& request) {
    prompts.push_back(request.prompt_tokens);
    EXPECT_EQ(request.max_tokens, 20u + 30u);
    return OpenOutcome::kOpened;
  };
  // The oldest is held up once the other has generated ten tokens. What each session is fed:
  size_t open_sessions = 2;
  std::map<int, std::vector<uint32_t>> pieces;
  kv->on_prepare = [&](int number, const KvStep& step) {
    if (number == 0 && pieces[1].size() > 10 && open_sessions > 1) return Readiness::kNoSpace;
    pieces[number].push_back(step.tokens);
    return Readiness::kReady;
  };
  ManualWaiter waiter;
  std::vector<Result> results;
  Engine engine(&model_, {kv.get()}, &waiter, {.chunk = 16, .preempt_after = Duration{}},
                [&](Result result) { results.push_back(std::move(result)); });
  for (uint64_t id = 0; id < 2; ++id) {
    engine.Submit({.id = id, .prompt = std::vector<int32_t>(20, 1), .max_new_tokens = 30});
  }
  while (engine.Step()) {
    open_sessions = engine.running();
    ASSERT_LT(engine.steps(), 1000u);
  }
  ASSERT_EQ(engine.stats(0).preemptions, 1u);
  EXPECT_EQ(prompts, (std::vector<uint32_t>{20, 20, 20}));
  ASSERT_GE(pieces[2].size(), 3u);
  EXPECT_EQ(pieces[2][0] + pieces[2][1], 20u) << "a piece ends at the prompt's end";
  EXPECT_GT(pieces[2][2], 1u) << "what was generated is fed in pieces, too";
  EXPECT_EQ(results.at(0).generated, results.at(1).generated);
}

// The owner of the memory ends two sessions in one step, and refuses new ones for a while.
TEST_F(EngineTest, SequencesWhoseSessionsWereEndedAreFedAgainAndSayTheSame) {
  std::vector<Request> requests = RandomRequests(4);
  for (Request& request : requests) {
    request.prompt.resize(20 + request.id, 3);
    request.max_new_tokens = 40;
  }
  auto free = Memory(1000), pressed = Memory(1000);
  const auto expected = RunAll(model_, {free.get()}, requests, {.batch = 4, .chunk = 16});
  int steps = 0, refusals = 0;
  pressed->on_prepare = [&](int number, const KvStep&) {
    steps += number == 0;
    const bool ended = steps == 4 && (number == 2 || number == 3);
    return ended ? Readiness::kPreempted : Readiness::kReady;
  };
  std::vector<uint32_t> reopened;
  pressed->on_open = [&](const OpenRequest& request) {
    if (steps >= 4) {
      if (++refusals < 4) return OpenOutcome::kNoSpace;
      reopened.push_back(request.prompt_tokens);
    }
    return OpenOutcome::kOpened;
  };
  std::vector<TenantStats> stats;
  const auto results = RunAll(model_, {pressed.get()}, requests, {.batch = 4, .chunk = 16}, &stats);
  EXPECT_EQ(Generated(results), Generated(expected));
  EXPECT_EQ(stats[0].preemptions, 2u);
  EXPECT_EQ(stats[0].failed, 0u);
  ASSERT_EQ(reopened.size(), 2u);
  EXPECT_EQ(reopened[0], requests[2].prompt.size()) << "the older one first";
  EXPECT_EQ(reopened[1], requests[3].prompt.size());
  EXPECT_EQ(pressed->memory().free_pages(), 1000u);
}

// Nobody is left whose end a sequence that gave way before could wait for.
TEST_F(EngineTest, WhenAllSessionsWereEndedTheQueueMovesOn) {
  auto kv = Memory(100);
  int oldest_steps = 0;
  kv->on_prepare = [&](int number, const KvStep&) {
    if (number > 0) return Readiness::kReady;
    ++oldest_steps;
    return oldest_steps < 5 ? Readiness::kNoSpace : Readiness::kPreempted;
  };
  std::vector<TenantStats> stats;
  const auto results = RunAll(model_, {kv.get()},
                              {{.id = 0, .prompt = {1}, .max_new_tokens = 20},
                               {.id = 1, .prompt = {1}, .max_new_tokens = 20}},
                              {.preempt_after = Duration{}}, &stats, 10'000);
  EXPECT_EQ(results.size(), 2u);
  EXPECT_EQ(stats[0].preemptions, 2u) << "one by us, one by the agent";
}

TEST_F(EngineTest, ABusySessionIsSkippedAndTheOthersGoOn) {
  auto kv = Memory(100);
  int busy = 0;
  kv->on_prepare = [&](int number, const KvStep&) {
    return number == 0 && ++busy <= 20 ? Readiness::kBusy : Readiness::kReady;
  };
  ManualWaiter waiter;
  std::vector<Result> results;
  Engine engine(&model_, {kv.get()}, &waiter, {},
                [&](Result result) { results.push_back(std::move(result)); });
  engine.Submit({.id = 0, .prompt = {1}, .max_new_tokens = 5});
  engine.Submit({.id = 1, .prompt = {1}, .max_new_tokens = 10});
  while (engine.Step()) ASSERT_LT(waiter.waits, 1000);
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0].id, 1u) << "the other one went on";
  const int its_steps = static_cast<int>(results[0].generated.size()) +
                        (results[0].reason == FinishReason::kStop ? 1 : 0);
  EXPECT_EQ(waiter.waits, 20 - its_steps) << "a wait only while nobody else ran";
}

TEST_F(EngineTest, ALostSessionFailsAlone) {
  auto kv = Memory(100);
  kv->on_prepare = [](int number, const KvStep&) {
    return number == 1 ? Readiness::kFailed : Readiness::kReady;
  };
  std::vector<TenantStats> stats;
  const auto results = RunAll(model_, {kv.get()},
                              {{.id = 0, .prompt = {1}, .max_new_tokens = 5},
                               {.id = 1, .prompt = {1}, .max_new_tokens = 5},
                               {.id = 2, .prompt = {1}, .max_new_tokens = 5}},
                              {}, &stats);
  EXPECT_EQ(results.at(1).reason, FinishReason::kFailed);
  EXPECT_EQ(results.at(1).text, "scripted failure");
  EXPECT_EQ(results.at(0).generated, results.at(2).generated);
  EXPECT_EQ(stats[0].finished, 2u);
}

TEST_F(EngineTest, AStuckTenantDoesNotHoldUpAnother) {
  auto stuck = Memory(100), free = Memory(100);
  stuck->on_prepare = [](int, const KvStep&) { return Readiness::kNoSpace; };
  ManualWaiter waiter;
  std::vector<Result> results;
  Engine engine(&model_, {stuck.get(), free.get()}, &waiter, {.batch = 4},
                [&](Result result) { results.push_back(std::move(result)); });
  for (uint64_t id = 0; id < 8; ++id) {
    engine.Submit({.id = id, .tenant = 0, .prompt = {1}, .max_new_tokens = 5});
  }
  for (uint64_t id = 8; id < 16; ++id) {
    engine.Submit({.id = id, .tenant = 1, .prompt = {1}, .max_new_tokens = 5});
  }
  for (int i = 0; i < 100 && results.size() < 8; ++i) ASSERT_TRUE(engine.Step());
  ASSERT_EQ(results.size(), 8u);
  for (const Result& result : results) EXPECT_EQ(result.tenant, 1u);
  EXPECT_EQ(waiter.Now(), TimePoint{}) << "without a wait";
}

TEST_F(EngineTest, ScoreIsTheSameInPiecesAndAfterPreemption) {
  std::vector<Request> requests = RandomRequests(10);
  for (Request& request : requests) request.kind = RequestKind::kScore;
  auto roomy = Memory(1000), tight = Memory(5);
  std::vector<TenantStats> stats;
  const auto whole = RunAll(model_, {roomy.get()}, requests, {.chunk = 64});
  const auto single = RunAll(model_, {roomy.get()}, requests, {.chunk = 1});
  const auto pressed = RunAll(model_, {tight.get()}, requests, {.chunk = 16}, &stats);
  EXPECT_GT(stats[0].preemptions, 0u);
  for (const auto& [id, result] : whole) {
    EXPECT_EQ(result.reason, FinishReason::kScored);
    EXPECT_EQ(result.scored_tokens, requests[id].prompt.size() - 1);
    EXPECT_NEAR(single.at(id).log_probability, result.log_probability, 1e-3);
    EXPECT_NEAR(pressed.at(id).log_probability, result.log_probability, 1e-3);
    if (result.scored_tokens > 0) {
      EXPECT_LT(result.log_probability, -0.1);
    }
  }
}

// Cyclic layers: one by one a prompt's pieces do not matter, nor does feeding generated tokens anew
// after a preemption; in passes they may.
TEST_F(EngineTest, SequentialPromptsOfCyclicLayersDoNotDependOnPieces) {
  const LlamaConfig config = SharingConfig("0_4_4_4_4_5");
  Llama model(config, RandomWeights(config, 3), &threads_);
  const auto requests = RandomRequests(20);
  const auto run = [&](uint32_t pages, const EngineOptions& options) {
    auto kv = MakePrivateKv(config, pages);
    std::vector<TenantStats> stats;
    const auto results = RunAll(model, {kv.get()}, requests, options, &stats);
    EXPECT_EQ(results.size(), requests.size());
    EXPECT_EQ(stats[0].preemptions > 0, pages < 100);
    return Generated(results);
  };
  const auto exact = run(1000, {.batch = 7, .chunk = 1});
  for (const uint32_t chunk : {7u, 64u}) {
    EXPECT_EQ(run(1000, {.batch = 7, .chunk = chunk, .prompt = PromptMode::kSequential}), exact);
  }
  EXPECT_EQ(run(10, {.batch = 7, .chunk = 64, .prompt = PromptMode::kSequential}), exact);
  EXPECT_EQ(run(1000, {.batch = 7, .chunk = 9}), exact) << "no piece longer than the passes";
  EXPECT_NE(run(1000, {.batch = 7, .chunk = 64}), exact);
}

}  // namespace
}  // namespace kvpool
