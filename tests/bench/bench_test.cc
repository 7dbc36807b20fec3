// Tests of the benchmark frame with made-up measurements.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <limits>
#include <memory>
#include <sstream>

#include "tests/bench/report.h"

namespace kvpool::bench {
namespace {

using ::testing::DoubleEq;
using ::testing::HasSubstr;
using ::testing::Optional;

// Measures the given numbers one after the other and writes down the order of the calls.
struct Script {
  std::vector<double> values;
  std::vector<double> yardsticks;
  std::string calls;
  size_t next_value = 0;
  size_t next_yardstick = 0;
};

Case ScriptedCase(std::shared_ptr<Script> script) {
  Case result{.name = "fake", .unit = "ns", .what = "numbers of the test"};
  result.rounds = static_cast<int>(script->values.size());
  result.prepare = [script]() -> absl::StatusOr<Instance> {
    Instance instance;
    instance.value = [script] {
      script->calls += 'v';
      return script->values[script->next_value++];
    };
    if (script->yardsticks.empty()) return instance;
    instance.yardstick = [script] {
      script->calls += 'y';
      return script->yardsticks[script->next_yardstick++];
    };
    return instance;
  };
  return result;
}

TEST(BenchTest, MedianOfOddAndEvenCounts) {
  EXPECT_EQ(Median({3, 1, 2}), 2);
  EXPECT_EQ(Median({4, 1, 3, 2}), 2.5);
}

TEST(BenchTest, MediansRatioAndSpreadOfAlternatingRounds) {
  auto script = std::make_shared<Script>(Script{{30, 10, 20, 50, 40}, {5, 1, 2, 3, 4}});
  std::ostringstream progress;
  absl::StatusOr<Result> result = RunCase(ScriptedCase(script), progress);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->value, 30);
  EXPECT_THAT(result->yardstick, Optional(DoubleEq(3)));
  EXPECT_THAT(result->ratio, Optional(DoubleEq(10)));
  EXPECT_DOUBLE_EQ(result->spread, (50.0 - 10.0) / 30.0);
  EXPECT_EQ(script->calls, "vyyvvyyvvy");
  EXPECT_THAT(progress.str(), HasSubstr("fake: round 5/5: 40 ns, yardstick 4\n"));
}

TEST(BenchTest, MaximumOverTheRounds) {
  Case worst = ScriptedCase(std::make_shared<Script>(Script{{1, 9, 2, 3, 4}, {}}));
  worst.summary = Summary::kMaximum;
  std::ostringstream progress;
  absl::StatusOr<Result> result = RunCase(worst, progress);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->value, 9);
  EXPECT_EQ(result->yardstick, std::nullopt);
  EXPECT_EQ(result->ratio, std::nullopt);
}

TEST(BenchTest, TooFewRoundsAreRefused) {
  std::ostringstream progress;
  const Case four = ScriptedCase(std::make_shared<Script>(Script{{1, 2, 3, 4}, {}}));
  EXPECT_EQ(RunCase(four, progress).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(BenchTest, ErrorsOfACaseAreItsResult) {
  std::ostringstream progress;
  Case broken = ScriptedCase(std::make_shared<Script>(Script{{1, 2, 3, 4, 5}, {}}));
  broken.prepare = []() -> absl::StatusOr<Instance> {
    return Instance{
        .value = [] { return 1.0; },
        .yardstick = []() -> absl::StatusOr<double> { return absl::UnavailableError("no peer"); }};
  };
  EXPECT_EQ(RunCase(broken, progress).status(), absl::UnavailableError("yardstick: no peer"));
  broken.prepare = []() -> absl::StatusOr<Instance> {
    return Instance{.value = [] { return std::numeric_limits<double>::quiet_NaN(); }};
  };
  EXPECT_EQ(RunCase(broken, progress).status().code(), absl::StatusCode::kInternal);
  broken.prepare = []() -> absl::StatusOr<Instance> { return absl::NotFoundError("no file"); };
  EXPECT_EQ(RunCase(broken, progress).status(), absl::NotFoundError("no file"));
}

TEST(ReportTest, JsonHasTheNamedEntriesAndTheMachine) {
  const Case plain{.name = "plain", .unit = "s", .what = "alone"};
  const Case beside{.name = "beside", .unit = "GB/s", .what = "beside a copy"};
  const std::vector<Entry> entries = {
      {&plain, {.value = 2, .spread = 0.5}},
      {&beside, {.value = 3, .yardstick = 4, .ratio = 0.75, .spread = 0.1, .note = "2 threads"}}};
  const boost::json::value json = boost::json::parse(ToJson({{"cores", "2"}}, entries));
  EXPECT_EQ(json, boost::json::parse(R"({
    "_machine": {"cores": "2"},
    "plain": {"value": 2E0, "unit": "s", "yardstick": null, "ratio": null, "spread": 5E-1,
              "what": "alone"},
    "beside": {"value": 3E0, "unit": "GB/s", "yardstick": 4E0, "ratio": 7.5E-1, "spread": 1E-1,
               "what": "beside a copy; 2 threads"}})"));
}

TEST(ReportTest, TableShowsFactsAndNumbers) {
  const Case plain{.name = "plain", .unit = "s", .what = "alone"};
  const std::string table = ToTable({{"cores", "2"}}, {{&plain, {.value = 2, .spread = 0.5}}});
  EXPECT_THAT(table, HasSubstr("cores     2\n"));
  EXPECT_THAT(table,
              HasSubstr("plain                       2 s               -          -   50.0%\n"));
  EXPECT_THAT(table, HasSubstr("\n    alone\n"));
}

TEST(ReportTest, NoFactOfThisMachineIsEmpty) {
  for (const auto& [name, value] : ThisMachine("abc")) EXPECT_NE(value, "") << name;
}

}  // namespace
}  // namespace kvpool::bench
