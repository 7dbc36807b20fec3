// What an operator may say about a policy: its name and its parameters, typed and checked. Shared
// by the manager, the CLI, the agent and the docs; it does not know how a policy works
// (kernels/policy). The table of policies is policy_schemas.cc.
// Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"

namespace kvpool {

// The value of a parameter: a whole number, a number, or one of a few names.
using PolicyValue = std::variant<int64_t, double, std::string>;
using PolicyValues = std::map<std::string, PolicyValue>;

// "256", "0.95", "inv_step". MakePolicySpec reads it back.
std::string ToString(const PolicyValue& value);

// What a parameter may be; bounds are inclusive.
struct IntegerRange {
  int64_t default_value, min, max;
};
struct NumberRange {
  double default_value, min, max;
};
struct Choices {
  std::vector<std::string> names;  // the first one is the default
};

// One parameter of a policy.
struct PolicyParameter {
  std::string name;
  std::string unit;         // "tokens", "queries"; empty for a share or a choice
  std::string description;  // one line
  std::variant<IntegerRange, NumberRange, Choices> allowed;

  PolicyValue DefaultValue() const;
};

// "32..1048576 tokens", "0.5..1", "inv_step or inv_cached".
std::string AllowedText(const PolicyParameter& parameter);

// A policy by name with a value of the right type for every parameter of its schema.
struct PolicySpec {
  std::string name;
  PolicyValues parameters;

  // Each requires that the parameter is in the policy's schema and of that type.
  int64_t Integer(const std::string& parameter) const;
  uint32_t Count(const std::string& parameter) const;  // an integer of 0..2^32-1
  double Number(const std::string& parameter) const;
  const std::string& Choice(const std::string& parameter) const;
  bool operator==(const PolicySpec&) const = default;
};

// When a policy shrinks a session.
enum class Acts : uint8_t {
  kGrowth,  // whenever it has grown, and under pressure
  kPrompt,  // by what it finds in the prompt, at its end
};

// One policy an operator can name.
struct PolicySchema {
  std::string name;
  std::string summary;  // one line, names the paper
  std::vector<PolicyParameter> parameters;
  // The rules between parameters, when there are any: fills in what follows from others, or says
  // what does not fit together. The values are already of the right type and within bounds.
  absl::Status (*rules)(PolicySpec& spec) = nullptr;
  Acts acts = Acts::kGrowth;
};

// Every policy, in the order in which help texts list them. The first is the default.
const std::vector<PolicySchema>& PolicySchemas();

// What every policy has, after its own: each schema's parameters end with these.
const std::vector<PolicyParameter>& CommonPolicyParameters();

// Checks name, parameter names, types and bounds, and the rules between parameters (such as
// recent + drop <= budget); fills in defaults. Text is read as the parameter's type, so that files
// and flags need not know it. InvalidArgument says which part is wrong and what is allowed.
absl::StatusOr<PolicySpec> MakePolicySpec(const std::string& name, const PolicyValues& parameters);

// Requires a spec made by MakePolicySpec.
Acts ActsOn(const PolicySpec& spec);

// What a tenant has unless somebody says otherwise: `full` with its defaults.
PolicySpec DefaultPolicySpec();

// "streaming(recent=252,sinks=4,slack=64)"
std::string ToString(const PolicySpec& spec);

}  // namespace kvpool
