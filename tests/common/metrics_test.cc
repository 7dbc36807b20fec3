// What a scrape sees.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "common/version.h"

namespace kvpool {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(MetricsTest, SeriesAndBasics) {
  Metrics metrics("kvpool-test");
  auto reclaims = metrics.CounterFamily("kvpool_reclaims_total", "Reclaims.");
  reclaims.With({{"tenant", "a"}}).Add();
  reclaims.With({{"tenant", "a"}}).Add(2);
  reclaims.With({{"tenant", "b"}}).Add();
  metrics.GaugeFamily("kvpool_used_bytes", "Used.").With().Set(42);
  auto wait = metrics.HistogramFamily("kvpool_wait_seconds", "Waits.", {0.1, 1});
  wait.With().Observe(0.5);
  const std::string text = metrics.Serialize();
  EXPECT_THAT(text, HasSubstr("# TYPE kvpool_reclaims_total counter"));
  EXPECT_THAT(text, HasSubstr("kvpool_reclaims_total{tenant=\"a\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("kvpool_used_bytes 42\n"));
  EXPECT_THAT(text, HasSubstr("kvpool_wait_seconds_bucket{le=\"0.1\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("kvpool_wait_seconds_bucket{le=\"1\"} 1\n"));
  EXPECT_THAT(text, HasSubstr(std::string("kvpool_build_info{program=\"kvpool-test\",version=\"") +
                              Version() + "\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("process_open_fds "));
  EXPECT_THAT(text, Not(HasSubstr("process_resident_memory_bytes 0\n")));

  reclaims.Remove({{"tenant", "a"}});
  EXPECT_THAT(metrics.Serialize(), Not(HasSubstr("tenant=\"a\"")));
  EXPECT_THAT(metrics.Serialize(), HasSubstr("tenant=\"b\""));
}

TEST(MetricsTest, RaiseToNeverFalls) {
  Metrics metrics("kvpool-test");
  Counter counter = metrics.CounterFamily("kvpool_x_total", "X.").With();
  counter.RaiseTo(5);
  counter.RaiseTo(3);
  EXPECT_EQ(counter.Value(), 5);
  counter.RaiseTo(9);
  EXPECT_EQ(counter.Value(), 9);
}

TEST(MetricsTest, ThreadsMayCountWhileAScrapeRuns) {
  Metrics metrics("kvpool-test");
  auto family = metrics.CounterFamily("kvpool_x_total", "X.");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&family, t] {
      Counter counter = family.With({{"t", std::to_string(t % 2)}});
      for (int i = 0; i < 1000; ++i) counter.Add();
    });
  }
  for (int i = 0; i < 20; ++i) metrics.Serialize();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(family.With({{"t", "0"}}).Value(), 2000);
}

TEST(MetricsDeathTest, NamesThatBreakTheRules) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  Metrics metrics("kvpool-test");
  EXPECT_DEATH(metrics.GaugeFamily("used_bytes", "x"), "breaks the rules");
  EXPECT_DEATH(metrics.GaugeFamily("kvpool_Used", "x"), "breaks the rules");
  EXPECT_DEATH(metrics.CounterFamily("kvpool_reclaims", "x"), "breaks the rules");
  EXPECT_DEATH(metrics.GaugeFamily("kvpool_reclaims_total", "x"), "breaks the rules");
}

}  // namespace
}  // namespace kvpool
