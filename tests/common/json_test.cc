// JSON from outside: limits, duplicates, types, unknown fields.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvpool {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string ParseError(const std::string& text) {
  const auto value = ParseJson(text);
  return value.ok() ? "" : std::string(value.status().message());
}

template <typename T>
std::string Message(const absl::StatusOr<T>& result) {
  return std::string(result.status().message());
}

TEST(JsonTest, ParsesAndRefuses) {
  EXPECT_EQ(ParseJson(" {\"a\": [1, {\"a\": 2}]} \n")->at("a").at(0).as_int64(), 1);
  EXPECT_THAT(ParseError(""), HasSubstr("not JSON"));
  EXPECT_THAT(ParseError("{\"a\": 1"), HasSubstr("not JSON"));
  EXPECT_THAT(ParseError("{} x"), HasSubstr("not JSON"));
  EXPECT_THAT(ParseError("{'a': 1}"), HasSubstr("at byte 1"));
  EXPECT_THAT(ParseError("\"\xff\xfe\""), HasSubstr("not JSON"));
  EXPECT_THAT(ParseError("{\"a\": 1, \"b\": {\"c\": 1, \"c\": 2}}"),
              HasSubstr("key \"c\" is there twice"));
  EXPECT_THAT(ParseError("{\"\\u0061\": 1, \"a\": 2}"), HasSubstr("key \"a\" is there twice"));
  EXPECT_THAT(ParseError(std::string(1000, '[')), HasSubstr("too deep"));
  const auto nested = [](size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_EQ(ParseError(nested(limits::kJsonDepth)), "");
  EXPECT_THAT(ParseError(nested(limits::kJsonDepth + 1)), HasSubstr("too deep"));
  EXPECT_THAT(ParseError(std::string(limits::kHttpBodyBytes + 1, ' ')), HasSubstr("at most"));
}

TEST(JsonTest, TypedFields) {
  const auto value = *ParseJson(
      R"({"name": "a", "n": 7, "big": 1e30, "f": 1.5, "on": true, "limit": "12 GiB", "raw": 42,
          "bad": "12 GB", "nul": "12 GiB\u0000"})");
  auto object = *JsonObject::From(value, "tenant");
  EXPECT_EQ(*object.Text("name"), "a");
  EXPECT_EQ(*object.Integer("n", 0, 7), 7);
  EXPECT_EQ(*object.Quantity("limit", 0_B, 100_GiB), 12_GiB);
  EXPECT_EQ(*object.Quantity("raw", 0_B, 100_GiB), 42_B);
  EXPECT_EQ(Message(object.Text("n")), "tenant: field \"n\" must be a string");
  EXPECT_EQ(Message(object.Text("gone")), "tenant: field \"gone\" is missing");
  EXPECT_THAT(Message(object.Text("name", 0)), HasSubstr("at most 0 bytes"));
  EXPECT_THAT(Message(object.Integer("n", 8, 9)), HasSubstr("whole number within 8..9"));
  for (const char* field : {"f", "big", "name", "on"}) {
    EXPECT_THAT(Message(object.Integer(field, INT64_MIN, INT64_MAX)), HasSubstr("whole number"));
  }
  EXPECT_THAT(Message(object.Quantity("bad", 0_B, 1_GiB)), HasSubstr("KiB"));
  EXPECT_FALSE(object.Quantity("nul", 0_B, 100_GiB).ok());
  EXPECT_THAT(Message(object.Quantity("f", 0_B, 1_GiB)), HasSubstr("field \"f\""));
  EXPECT_THAT(Message(object.Quantity("limit", 0_B, 1_GiB)), HasSubstr("outside 0 B..1 GiB"));
  const auto list = ParseJson("[]");
  EXPECT_FALSE(JsonObject::From(*list, "tenant").ok());
}

TEST(JsonTest, UnknownFieldsAreRefused) {
  const auto value = *ParseJson(R"({"name": "a", "limt": 1})");
  auto object = *JsonObject::From(value, "tenant");
  EXPECT_TRUE(object.Text("name").ok());
  EXPECT_EQ(object.Take("limit"), nullptr);
  EXPECT_THAT(std::string(object.Finish().message()),
              AllOf(HasSubstr("\"limt\" is unknown"), HasSubstr("allowed are name, limit")));
  EXPECT_NE(object.Take("limt"), nullptr);
  EXPECT_TRUE(object.Finish().ok());
}

TEST(JsonTest, ErrorBodyIsJson) {
  const auto error = ParseJson(JsonError("invalid", "a \"b\"\n"));
  EXPECT_EQ(error->at("error").at("code").as_string(), "invalid");
  EXPECT_EQ(error->at("error").at("message").as_string(), "a \"b\"\n");
}

}  // namespace
}  // namespace kvpool
