// Differences between JSON objects.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/json_diff.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvpool {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::string Text(const std::string& before, const std::string& after) {
  return boost::json::serialize(
      ToJson(Differences(boost::json::parse(before), boost::json::parse(after))));
}

TEST(JsonDiffTest, WhatIsEqualIsNotThere) {
  EXPECT_EQ(Text(R"({"a": 1, "b": {"c": [1]}})", R"({"b": {"c": [1]}, "a": 1})"), "[]");
  EXPECT_EQ(Text("null", "{}"), "[]");
}

TEST(JsonDiffTest, FieldsInsideAreNamedWithDots) {
  EXPECT_EQ(
      Text(R"({"a": 1, "b": {"c": {"d": 2}, "e": 3}})", R"({"a": 1, "b": {"c": {"d": "2"}}})"),
      R"([{"field":"b.c.d","before":2,"after":"2"},{"field":"b.e","before":3,"after":null}])");
}

TEST(JsonDiffTest, ListsAreComparedWhole) {
  EXPECT_EQ(Text(R"({"a": [1, 2]})", R"({"a": [2, 1]})"),
            R"([{"field":"a","before":[1,2],"after":[2,1]}])");
}

TEST(JsonDiffTest, AllOrNothing) {
  EXPECT_EQ(Text("null", R"({"b": 1, "a": {"x": 2}})"),
            R"([{"field":"a.x","before":null,"after":2},{"field":"b","before":null,"after":1}])");
  EXPECT_THAT(Differences(nullptr, 7), IsEmpty()) << "no fields";
  EXPECT_THAT(Differences(boost::json::object{{"a", 1}}, nullptr),
              ElementsAre(FieldChange{"a", 1, nullptr}));
}

}  // namespace
}  // namespace kvpool
