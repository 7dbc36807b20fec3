// The two renderings of a log line, with hostile text.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cmath>

namespace kvpool {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// What goes to stderr.
std::string Captured(LogOptions options, const std::function<void(const Logger&)>& log) {
  testing::internal::CaptureStderr();
  InitLogging(options);
  log(Logger("pool"));
  return testing::internal::GetCapturedStderr();
}

TEST(LogTest, JsonLinesHaveTheirKeys) {
  const std::string line = Captured({.format = LogFormat::kJson}, [](const Logger& logger) {
    logger.Warn("slab stuck", {{"tenant",
                                "a\"b\n\x1f"
                                "c"},
                               {"slab", 7},
                               {"share", 0.5},
                               {"x", NAN}});
  });
  const auto object = boost::json::parse(line).as_object();
  EXPECT_EQ(object.at("level"), "warning");
  EXPECT_EQ(object.at("component"), "pool");
  EXPECT_EQ(object.at("msg"), "slab stuck");
  EXPECT_EQ(object.at("tenant"), "a\"b\n?c");
  EXPECT_EQ(object.at("slab").as_int64(), 7);
  EXPECT_EQ(object.at("share").as_double(), 0.5);
  EXPECT_EQ(object.at("x"), "nan");
  const std::string ts(object.at("ts").as_string());
  EXPECT_THAT(ts, ::testing::MatchesRegex("....-..-..T..:..:..\\....Z"));
}

TEST(LogTest, TextStaysOnOneLine) {
  const std::string line = Captured({}, [](const Logger& logger) {
    logger.Info("hello", {{"name", "x\ny"}, {"plain", "z"}, {"n", -1}, {"esc", "\x1b[31m"}});
  });
  EXPECT_THAT(line,
              HasSubstr("info pool: hello name=\"x\\ny\" plain=z n=-1 esc=\"\\u001b[31m\"\n"));
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
}

TEST(LogTest, LevelFilters) {
  const std::string lines = Captured({.level = LogLevel::kWarn}, [](const Logger& logger) {
    logger.Debug("d-line");
    logger.Info("i-line");
    logger.Warn("w-line");
    logger.Error("e-line");
  });
  EXPECT_THAT(lines, Not(HasSubstr("d-line")));
  EXPECT_THAT(lines, Not(HasSubstr("i-line")));
  EXPECT_THAT(lines, HasSubstr("w-line"));
  EXPECT_THAT(lines, HasSubstr("e-line"));
}

}  // namespace
}  // namespace kvpool
