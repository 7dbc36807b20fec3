// Policies through the wire and back, and what a peer may send instead.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/convert.h"

#include <capnp/message.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/common/policy_values.h"

namespace kvpool {
namespace {

using ::testing::HasSubstr;

TEST(ConvertTest, EveryPolicySurvives) {
  for (const PolicySchema& schema : PolicySchemas()) {
    for (const PolicySpec& spec : {*MakePolicySpec(schema.name, {}), WithoutDefaults(schema)}) {
      SCOPED_TRACE(ToString(spec));
      capnp::MallocMessageBuilder message;
      auto builder = message.initRoot<rpc::PolicySpec>();
      ToProto(spec, builder);
      const auto back = FromProto(builder.asReader());
      ASSERT_TRUE(back.ok()) << back.status();
      EXPECT_EQ(*back, spec);
    }
  }
}

TEST(ConvertTest, EveryBoundOfEveryParameterSurvives) {
  for (const PolicySchema& schema : PolicySchemas()) {
    for (const PolicyParameter& parameter : schema.parameters) {
      std::vector<PolicyValue> values = OtherValues(parameter);
      if (const auto* range = std::get_if<IntegerRange>(&parameter.allowed)) {
        values.insert(values.end(), {range->min, range->max});
      } else if (const auto* numbers = std::get_if<NumberRange>(&parameter.allowed)) {
        values.insert(values.end(), {numbers->min, numbers->max});
      }
      size_t tried = 0;
      for (const PolicyValue& value : values) {
        const auto spec = MakePolicySpec(schema.name, {{parameter.name, value}});
        if (!spec.ok()) continue;  // a rule between parameters
        ++tried;
        capnp::MallocMessageBuilder message;
        auto builder = message.initRoot<rpc::PolicySpec>();
        ToProto(*spec, builder);
        const auto back = FromProto(builder.asReader());
        ASSERT_TRUE(back.ok()) << back.status();
        EXPECT_EQ(*back, *spec) << parameter.name;
      }
      EXPECT_GT(tried, 0u) << schema.name << " " << parameter.name;
    }
  }
}

// What has its default does not travel. `drop` = 128 is no default here: that would be budget / 2.
TEST(ConvertTest, OnlyWhatSomebodySetTravels) {
  const PolicySpec spec =
      *MakePolicySpec("scissorhands", {{"budget", 512}, {"drop", 128}, {"format", "int4"}});
  capnp::MallocMessageBuilder message;
  auto builder = message.initRoot<rpc::PolicySpec>();
  ToProto(spec, builder);
  EXPECT_EQ(builder.getParameters().size(), 3u);
  EXPECT_EQ(*FromProto(builder.asReader()), spec);
}

TEST(ConvertTest, BadSpecsAreRefused) {
  capnp::MallocMessageBuilder message;
  auto builder = message.initRoot<rpc::PolicySpec>();
  EXPECT_THAT(std::string(FromProto(builder.asReader()).status().message()),
              HasSubstr("not known"));
  builder.setName("streaming");
  auto parameters = builder.initParameters(2);
  for (auto parameter : parameters) {
    parameter.setName("sinks");
    parameter.setInteger(4);
  }
  EXPECT_THAT(std::string(FromProto(builder.asReader()).status().message()),
              HasSubstr("comes twice"));
  parameters[1].setName("recent");
  EXPECT_EQ(FromProto(builder.asReader())->Integer("recent"), 4);
  parameters[1].setInteger(-1);
  EXPECT_THAT(std::string(FromProto(builder.asReader()).status().message()),
              HasSubstr("recent = -1 is not allowed; it must be 1..1048576 tokens"));
}

}  // namespace
}  // namespace kvpool
