// What values a policy's parameters take, however they are written.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/policy_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace kvpool {
namespace {

using ::testing::HasSubstr;

TEST(PolicySpecTest, AWholeNumberIsOneHoweverItIsWritten) {
  for (const PolicyValue& value :
       {PolicyValue(1000), PolicyValue(1000.0), PolicyValue("1000"), PolicyValue("1e3")}) {
    const auto spec = MakePolicySpec("h2o", {{"budget", value}});
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_EQ(spec->Integer("budget"), 1000);
  }
}

TEST(PolicySpecTest, WhatIsNotAWholeNumberIsRefused) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const PolicyValue& value :
       {PolicyValue(256.5), PolicyValue("256.5"), PolicyValue(0x1p63), PolicyValue(-0x1p63),
        PolicyValue(kInfinity), PolicyValue(std::numeric_limits<double>::quiet_NaN()),
        PolicyValue("nan"), PolicyValue("256 "), PolicyValue("")}) {
    const auto spec = MakePolicySpec("h2o", {{"budget", value}});
    ASSERT_FALSE(spec.ok()) << ToString(value);
    EXPECT_THAT(std::string(spec.status().message()),
                HasSubstr("it must be a whole number, 16..1048576 tokens"));
  }
}

}  // namespace
}  // namespace kvpool
