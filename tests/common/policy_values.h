// Policies of which no parameter has its default: what travels, is stored and takes room.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "common/policy_spec.h"

namespace kvpool {

// Values other than the default, in the order in which to try them: rules between parameters may
// forbid some.
inline std::vector<PolicyValue> OtherValues(const PolicyParameter& parameter) {
  if (const auto* range = std::get_if<IntegerRange>(&parameter.allowed)) {
    std::vector<PolicyValue> values;
    for (int64_t value : {range->default_value + 2, range->default_value - 2}) {
      if (value >= range->min && value <= range->max) values.emplace_back(value);
    }
    return values;
  }
  if (const auto* range = std::get_if<NumberRange>(&parameter.allowed)) {
    return {(range->min + 2 * range->default_value) / 3, (range->max + range->default_value) / 2};
  }
  const std::vector<std::string>& names = std::get<Choices>(parameter.allowed).names;
  return {names.begin() + 1, names.end()};
}

// Gives every parameter of the policy another value than its default.
inline PolicySpec WithoutDefaults(const PolicySchema& schema) {
  PolicyValues values;
  for (const PolicyParameter& parameter : schema.parameters) {
    for (const PolicyValue& value : OtherValues(parameter)) {
      values[parameter.name] = value;
      if (MakePolicySpec(schema.name, values).ok()) break;
      values.erase(parameter.name);
    }
    EXPECT_TRUE(values.contains(parameter.name)) << schema.name << " " << parameter.name;
  }
  return *MakePolicySpec(schema.name, values);
}

}  // namespace kvpool
