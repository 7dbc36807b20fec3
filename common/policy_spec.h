// What an operator may say about a policy: its name and its parameters, checked. Shared by the
// manager, the CLI, the agent and the docs; it does not know how a policy works (kernels/policy).
// Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace kvpool {

// One parameter of a policy: an integer with a unit, a default and inclusive bounds.
struct PolicyParameter {
  std::string name;
  std::string unit;         // "tokens", "queries"
  std::string description;  // one line
  int64_t default_value;
  int64_t min;
  int64_t max;
};

// One policy an operator can name.
struct PolicySchema {
  std::string name;
  std::string summary;  // one line, names the paper
  std::vector<PolicyParameter> parameters;
};

// Default of full's `recovery_every`.
inline constexpr int64_t kRecoveryEvery = 16;

// A policy by name with a value for every parameter of its schema.
struct PolicySpec {
  std::string name = "full";
  std::map<std::string, int64_t> parameters = {{"recovery_every", kRecoveryEvery}};

  // Requires that the parameter is in the policy's schema.
  int64_t Get(const std::string& parameter) const { return parameters.at(parameter); }
  bool operator==(const PolicySpec&) const = default;
};

// Every policy, in the order in which help texts list them.
const std::vector<PolicySchema>& PolicySchemas();

// Checks name, parameter names and bounds, and the rules between parameters (such as
// recent + drop <= budget); fills in defaults. InvalidArgument says which part is wrong and what is
// allowed.
absl::StatusOr<PolicySpec> MakePolicySpec(const std::string& name,
                                          const std::map<std::string, int64_t>& parameters);

// "scissorhands(budget=256,drop=128,recent=10,window=400)"
std::string ToString(const PolicySpec& spec);

}  // namespace kvpool
