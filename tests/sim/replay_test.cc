// Traces that are read and refused, rooms for prefixes against exhaustive search, and replays: of a
// trace made here always, of the real one where it lies beside the project.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/replay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/json.h"
#include "tests/paths.h"
#include "tests/sim/trace_main.h"

namespace kvpool::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

constexpr Duration kAll = Duration::max();
constexpr const char* kAzureHeader = "TIMESTAMP,ContextTokens,GeneratedTokens\n";

// A file for as long as it lives.
class File {
 public:
  explicit File(const std::string& text)
      : path_(absl::StrCat(::testing::TempDir(), "kvpool_replay_test_", getpid(), "_",
                           reinterpret_cast<uintptr_t>(this))) {
    std::ofstream(path_) << text;
  }
  ~File() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

absl::StatusOr<Arrivals> Read(const std::string& text, size_t most = 1000,
                              Duration longest = kAll) {
  return ReadArrivals(File(text).path(), most, longest);
}

std::string Line(int64_t millis, int64_t prompt, int64_t answer,
                 const std::vector<uint64_t>& blocks) {
  return absl::StrCat("{\"timestamp\": ", millis, ", \"input_length\": ", prompt,
                      ", \"output_length\": ", answer, ", \"hash_ids\": [",
                      absl::StrJoin(blocks, ", "), "]}\n");
}

// ---- Reading -----------------------------------------------------------------------------------

TEST(Arrivals, ReadsBothFormats) {
  const auto conversations = Read(Line(1000, 600, 5, {0, 7}) + Line(1500, 512, 0, {0}));
  ASSERT_TRUE(conversations.ok()) << conversations.status();
  ASSERT_EQ(conversations->requests.size(), 2u);
  EXPECT_EQ(conversations->requests[0].at, Duration(0)) << "times count from the first request";
  EXPECT_EQ(conversations->requests[0].blocks, (std::vector<uint64_t>{0, 7}));
  EXPECT_EQ(conversations->requests[1].at, milliseconds(500));
  EXPECT_EQ(conversations->requests[1].answer_tokens, 1u) << "a session generates something";

  const auto code = Read(absl::StrCat(kAzureHeader,
                                      "2023-11-16 23:59:59.9000000,4808,10\r\n"
                                      "2023-11-17 00:00:00.1500000,110,27\r\n"));
  ASSERT_TRUE(code.ok()) << code.status();
  ASSERT_EQ(code->requests.size(), 2u);
  EXPECT_EQ(code->requests[1].at, milliseconds(250));
  EXPECT_EQ(code->requests[1].prompt_tokens, 110u);
  EXPECT_TRUE(code->requests[1].blocks.empty());
}

TEST(Arrivals, StopsWhereItIsTold) {
  std::string text;
  for (int i = 0; i < 10; ++i) text += Line(i * 1000, 512, 5, {0});
  EXPECT_EQ(Read(text, 3)->requests.size(), 3u);
  EXPECT_EQ(Read(text, 100, seconds(4))->requests.size(), 4u);
}

TEST(Arrivals, WhatIsWrongIsSaidWithFileAndLine) {
  const std::string good = Line(1000, 512, 5, {0});
  const std::string azure = absl::StrCat(kAzureHeader, "2023-11-16 18:17:03.9799600,4808,10\n");
  const std::vector<std::pair<std::string, std::string>> cases = {
      {good + "{\"timestamp\": 1", ":2: "},
      {good + "\n" + good, ":2: "},
      {good + Line(999, 512, 5, {0}), ":2: this request comes before the one above it"},
      {good + Line(-1, 512, 5, {0}), ":2: "},
      {good + Line(1000, 0, 5, {}), "input_length"},
      {good + Line(1000, -5, 5, {0}), "input_length"},
      {good + Line(1000, 512, int64_t{1} << 40, {0}), "output_length"},
      {good + Line(1000, 513, 5, {0}), "a prompt of 513 tokens has 2 blocks of 512"},
      {good + "{\"timestamp\": 99999999999999999999, \"input_length\": 1}\n", ":2: "},
      {good + "{\"timestamp\": 1000, \"input_length\": 5, \"output_length\": 5}\n", "hash_ids"},
      {good + "{\"timestamp\": 1000, \"input_length\": 5, \"output_length\": 5, "
              "\"hash_ids\": [-1]}\n",
       "hash_ids"},
      {good + "[1, 2]\n", ":2: "},
      {azure + "2023-11-16 18:17:02.0000000,5,5\n", ":3: this request comes before"},
      {azure + "2023-11-16 18:17:04.0000000,5\n", ":3: three fields"},
      {azure + "2023-11-16 18:17:04.0000000,-5,5\n", "ContextTokens"},
      {azure + "2023-11-16 18:17:04.0000000,5,999999999999999999999\n", "GeneratedTokens"},
      {azure + "2023-13-16 18:17:04.0000000,5,5\n", "TIMESTAMP"},
      {azure + "2023-02-30 18:17:04.0000000,5,5\n", "TIMESTAMP"},
      {azure + "yesterday,5,5\n", "TIMESTAMP"},
      {"time,tokens\n1,2\n", ":1: neither"},
      {std::string("\0\0\0\n", 4), ":1: neither"},
      {"", "has no request"},
      {kAzureHeader, "has no request"}};
  for (size_t i = 0; i < cases.size(); ++i) {
    const File file(cases[i].first);
    const auto arrivals = ReadArrivals(file.path(), 100, kAll);
    ASSERT_FALSE(arrivals.ok()) << "case " << i << ": " << cases[i].first;
    const std::string message(arrivals.status().message());
    EXPECT_THAT(message, HasSubstr(cases[i].second)) << "case " << i;
    EXPECT_THAT(message, HasSubstr(file.path())) << "case " << i;
  }
  EXPECT_EQ(ReadArrivals("/nowhere/trace", 1, kAll).status().code(), absl::StatusCode::kNotFound);
}

TEST(Models, ShapesComeFromTheTable) {
  const File table(
      "model,attention,layers,q_heads,kv_heads,head_dim,kv_dtype,local_layers,note\n"
      "grouped,GQA,32,32,8,128,bf16,0,\"one, two\"\n"
      "latent,MLA,61,128,1,576,bf16,0,\n"
      "sliding,GQA+SWA,26,8,4,256,bf16,13,\n"
      "broken,GQA,many,8,4,256,bf16,0,\n");
  const auto grouped = ReadGeometry(table.path(), "grouped");
  ASSERT_TRUE(grouped.ok()) << grouped.status();
  EXPECT_EQ(grouped->layers, 32u);
  EXPECT_EQ(grouped->kv_heads, 8u);
  EXPECT_EQ(grouped->value_dim, 128u);
  EXPECT_EQ(ReadGeometry(table.path(), "latent")->value_dim, 0u);
  EXPECT_THAT(std::string(ReadGeometry(table.path(), "sliding").status().message()),
              HasSubstr("sliding window"));
  EXPECT_THAT(std::string(ReadGeometry(table.path(), "broken").status().message()),
              HasSubstr(":5: layers"));
  EXPECT_THAT(std::string(ReadGeometry(table.path(), "other").status().message()),
              HasSubstr("grouped, latent"));
}

// ---- Rooms for prefixes ------------------------------------------------------------------------

using Chains = std::vector<std::vector<PrefixKey>>;

Chains RandomChains(uint64_t seed, size_t count) {
  std::mt19937_64 random(seed);
  Chains chains;
  for (size_t i = 0; i < count; ++i) {
    std::vector<uint64_t> blocks;
    const size_t length = 1 + random() % 3;
    for (size_t j = 0; j < length; ++j) blocks.push_back(random() % 2);
    chains.push_back(ChainKeys(blocks));
  }
  return chains;
}

// The most that is found from chain `i` on with these blocks there, by trying everything that a
// room can keep.
uint64_t Search(const Chains& chains, size_t i, const std::set<PrefixKey>& there, size_t room) {
  if (i == chains.size()) return 0;
  uint64_t found = 0;
  while (found < chains[i].size() && there.contains(chains[i][found])) ++found;
  std::set<PrefixKey> all = there;
  all.insert(chains[i].begin(), chains[i].end());
  const std::vector<PrefixKey> blocks(all.begin(), all.end());
  uint64_t most = 0;
  for (uint32_t kept = 0; kept < 1u << blocks.size(); ++kept) {
    if (static_cast<size_t>(std::popcount(kept)) > room) continue;
    std::set<PrefixKey> next;
    for (size_t b = 0; b < blocks.size(); ++b) {
      if ((kept >> b & 1) != 0) next.insert(blocks[b]);
    }
    most = std::max(most, Search(chains, i + 1, next, room));
  }
  return found + most;
}

TEST(PrefixRoom, TheBestIsTheBestOfAllThatCanBeKept) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    const Chains chains = RandomChains(seed, 5);
    EXPECT_EQ(BlocksFoundAtBest(chains, 2), Search(chains, 0, {}, 2)) << "seed " << seed;
  }
}

TEST(PrefixRoom, NoOrderFindsMoreThanTheBestAndALargeRoomFindsAll) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    const Chains chains = RandomChains(seed, 200);
    for (const size_t room : {1, 3, 6}) {
      const uint64_t best = BlocksFoundAtBest(chains, room);
      EXPECT_LE(BlocksFound(chains, ParkingRule::kShipped, room), best) << "seed " << seed;
      EXPECT_LE(BlocksFound(chains, ParkingRule::kLru, room), best) << "seed " << seed;
    }
    uint64_t uses = 0;
    std::set<PrefixKey> different;
    for (const auto& chain : chains) {
      uses += chain.size();
      different.insert(chain.begin(), chain.end());
    }
    const uint64_t again = uses - different.size();
    EXPECT_EQ(BlocksFound(chains, ParkingRule::kShipped, 100), again);
    EXPECT_EQ(BlocksFound(chains, ParkingRule::kLru, 100), again);
    EXPECT_EQ(BlocksFoundAtBest(chains, 100), again);
  }
}

// ---- Replays -----------------------------------------------------------------------------------

Geometry Model() {
  Geometry geometry{.layers = 32,
                    .query_heads = 32,
                    .kv_heads = 8,
                    .key_dim = 128,
                    .value_dim = 128,
                    .kv_of_layer = std::vector<uint16_t>(32)};
  for (uint16_t i = 0; i < 32; ++i) geometry.kv_of_layer[i] = i;
  return geometry;
}

// For 64 slabs of 256 tokens, a quarter for each tenant: room for one of these prompts, of about
// four turns a conversation that come twice a second. The first tenant has half of them.
std::string MadeText() {
  std::mt19937_64 random(7);
  std::string text;
  for (int i = 0; i < 300; ++i) {
    const uint64_t conversation = i / 40 * 10 + random() % 10;
    const uint64_t turns = 1 + random() % 3;
    std::vector<uint64_t> blocks = {0};
    for (uint64_t j = 0; j < turns; ++j) blocks.push_back(1000 * (conversation + 1) + j);
    text += Line(500 * i, static_cast<int64_t>(512 * blocks.size()), 64, blocks);
  }
  return text;
}

Arrivals MadeTrace() { return Read(MadeText()).value(); }

const ReplayOptions kOptions{
    .agents = 1, .tenants = 4, .pool = kReplaySlab * 64, .patience = seconds(3)};

ReplayResult RunMade(const Contender& contender) {
  const auto result = Replay(DivideArrivals(MadeTrace(), kOptions), kOptions, contender, nullptr);
  EXPECT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->served + result->refused(), result->requests) << contender.name;
  EXPECT_EQ(result->requests, 300u);
  EXPECT_EQ(result->bytes_over, 0) << contender.name;
  return *result;
}

TEST(Replay, BudgetsServeWhatAStaticPartitionRefuses) {
  const ReplayResult fixed =
      RunMade({.name = "static", .division = Contender::Division::kStatic, .geometry = Model()});
  const ReplayResult budgets = RunMade({.name = "budgets", .geometry = Model()});
  EXPECT_GT(fixed.refused(), 30u);
  EXPECT_LT(budgets.refused(), fixed.refused() / 2);
  EXPECT_EQ(fixed.claims, 0u) << "a static part is always there";
  EXPECT_GT(budgets.claims, 0u);
  EXPECT_GT(fixed.found_tokens, 0u);
  EXPECT_GT(budgets.found_tokens, 0u);
  EXPECT_EQ(fixed.compactions + budgets.compactions, 0u);
}

TEST(Replay, TheSameTraceGivesTheSameResult) {
  const Contender contender{.name = "budgets", .geometry = Model()};
  EXPECT_EQ(RunMade(contender), RunMade(contender));
}

TEST(Replay, ShorterSessionsTakeLessMemory) {
  const ReplayResult full = RunMade({.name = "full", .geometry = Model()});
  const ReplayResult streaming =
      RunMade({.name = "streaming",
               .policy = *MakePolicySpec("streaming", {{"recent", int64_t{508}}}),
               .geometry = Model()});
  EXPECT_GT(streaming.compactions, 0u);
  EXPECT_LT(streaming.mean_used, full.mean_used / 2);
  EXPECT_LE(streaming.refused(), full.refused());
}

TEST(Replay, ARequestThatCanNeverFitIsRefusedAtOnce) {
  Arrivals arrivals;
  arrivals.requests.push_back({.prompt_tokens = 100'000, .answer_tokens = 1});
  const auto result = Replay(DivideArrivals(arrivals, kOptions), kOptions,
                             {.name = "budgets", .geometry = Model()}, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->too_large, 1u);
  EXPECT_EQ(result->served, 0u);
}

TEST(Replay, APoolTooSmallForItsTenantsIsRefused) {
  ReplayOptions options = kOptions;
  options.pool = kReplaySlab * 3;
  const auto result = Replay(DivideArrivals(MadeTrace(), options), options,
                             {.name = "budgets", .geometry = Model()}, nullptr);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Replay, TheCommandComparesEveryContender) {
  const File trace(MadeText());
  const File json("");
  ::testing::internal::CaptureStdout();
  const int code = RunTrace({.path = trace.path(),
                             .pool_gib = 2,
                             .agents = 1,
                             .tenants = 4,
                             .threads = 2,
                             .json_path = json.path()});
  const std::string table = ::testing::internal::GetCapturedStdout();
  EXPECT_EQ(code, 0);
  std::ifstream file(json.path());
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  const auto report = ParseJson(text);
  ASSERT_TRUE(report.ok()) << report.status();
  const auto& contenders = report->at("contenders").as_array();
  EXPECT_EQ(contenders.size(), Contenders(Model()).size());
  for (const auto& contender : contenders) {
    const std::string name(contender.at("name").as_string().c_str());
    EXPECT_THAT(table, HasSubstr(name));
    EXPECT_EQ(contender.at("bytes_over_budget").as_int64(), 0) << name;
    EXPECT_EQ(contender.at("served").as_int64() + contender.at("refused").as_int64(), 300) << name;
  }
  EXPECT_EQ(report->at("parking").as_array().size(), 5u);
  EXPECT_THAT(table, HasSubstr("at best"));
}

TEST(Replay, TheCommandSaysWhatIsWrong) {
  const auto error_of = [](const TraceCommand& command) {
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(RunTrace(command), 2);
    return ::testing::internal::GetCapturedStderr();
  };
  EXPECT_THAT(error_of({.path = "/nowhere/trace"}), HasSubstr("/nowhere/trace"));
  EXPECT_THAT(error_of({.path = "/nowhere/trace", .model = "Qwen3-8B"}), HasSubstr("--models"));
  const File trace(MadeText());
  EXPECT_THAT(error_of({.path = trace.path(), .pool_gib = 0.1}), HasSubstr("8 tenants"));
}

// The figures of the trace's own description: LRU finds 5.4 % at 2,000 blocks, the optimum 25.1 %,
// of all blocks, the last short one of each prompt included.
TEST(Replay, TheRealTraceIsTheOneThatIsDescribed) {
  const std::string path = SharedDirectory() + "/data/traces/mooncake_conversation.jsonl";
  if (!std::filesystem::exists(path)) {
    GTEST_SKIP() << "traces are not part of the project, and " << path
                 << " does not exist; KVPOOL_SHARED may name their folder";
  }
  const auto arrivals = ReadArrivals(path, 1'000'000, kAll);
  ASSERT_TRUE(arrivals.ok()) << arrivals.status();
  Chains chains;
  double uses = 0;
  for (const Arrival& arrival : arrivals->requests) {
    chains.push_back(ChainKeys(arrival.blocks));
    uses += static_cast<double>(arrival.blocks.size());
  }
  const double lru = static_cast<double>(BlocksFound(chains, ParkingRule::kLru, 2000)) / uses;
  const double best = static_cast<double>(BlocksFoundAtBest(chains, 2000)) / uses;
  const double shipped =
      static_cast<double>(BlocksFound(chains, ParkingRule::kShipped, 2000)) / uses;
  EXPECT_NEAR(lru, 0.054, 0.002);
  EXPECT_NEAR(best, 0.251, 0.002);
  EXPECT_GT(shipped, 1.8 * lru);
}

}  // namespace
}  // namespace kvpool::sim
