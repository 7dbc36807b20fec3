// The table of policies and the checks on what an operator wrote.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/policy_spec.h"

#include "absl/strings/str_cat.h"

namespace kvpool {
namespace {

constexpr int64_t kMaxTokens = 1 << 20;

const PolicySchema* FindSchema(const std::string& name) {
  for (const PolicySchema& schema : PolicySchemas()) {
    if (schema.name == name) return &schema;
  }
  return nullptr;
}

std::string KnownPolicies() {
  std::string names;
  for (const PolicySchema& schema : PolicySchemas()) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", schema.name);
  }
  return names;
}

const PolicyParameter* FindParameter(const PolicySchema& schema, const std::string& name) {
  for (const PolicyParameter& parameter : schema.parameters) {
    if (parameter.name == name) return &parameter;
  }
  return nullptr;
}

absl::Status CheckRules(const PolicySpec& spec) {
  if (spec.name == "scissorhands") {
    const int64_t budget = spec.Get("budget"), drop = spec.Get("drop"), recent = spec.Get("recent");
    if (recent + drop > budget) {
      return absl::InvalidArgumentError(
          absl::StrCat("policy scissorhands: recent + drop must not exceed budget, got ", recent,
                       " + ", drop, " > ", budget));
    }
  }
  return absl::OkStatus();
}

}  // namespace

const std::vector<PolicySchema>& PolicySchemas() {
  static const auto* const schemas = new std::vector<PolicySchema>{
      {"full",
       "Keeps every key; never compacted.",
       {{"recovery_every", "queries", "one query in this many is scored, for recovery; 0: none",
         kRecoveryEvery, 0, 65535}}},
      {"streaming",
       "StreamingLLM (arXiv 2309.17453): the first `sinks` and the last `recent` keys.",
       {{"sinks", "tokens", "first keys that always stay", 4, 0, kMaxTokens},
        {"recent", "tokens", "newest keys that always stay", 252, 1, kMaxTokens},
        {"slack", "tokens", "growth between two compactions", 64, 16, kMaxTokens}}},
      {"scissorhands",
       "Scissorhands (arXiv 2305.17118, Alg. 1 and 2): at most `budget` keys a head.",
       {{"budget", "tokens", "B: most keys a head may hold", 256, 32, kMaxTokens},
        {"window", "queries", "w: how many last queries vote", 400, 1, 65535},
        {"recent", "tokens", "r: newest keys that always stay", 10, 1, kMaxTokens},
        {"drop", "tokens", "m: keys dropped at a compaction; 0 means budget / 2", 0, 0,
         kMaxTokens}}},
  };
  return *schemas;
}

absl::StatusOr<PolicySpec> MakePolicySpec(const std::string& name,
                                          const std::map<std::string, int64_t>& parameters) {
  const PolicySchema* schema = FindSchema(name);
  if (schema == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("policy \"", name, "\" is not known; known are ", KnownPolicies()));
  }
  PolicySpec spec{.name = name, .parameters = {}};
  for (const PolicyParameter& parameter : schema->parameters) {
    spec.parameters[parameter.name] = parameter.default_value;
  }
  for (const auto& [key, value] : parameters) {
    const PolicyParameter* parameter = FindParameter(*schema, key);
    if (parameter == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("policy ", name, " has no parameter \"", key, "\""));
    }
    if (value < parameter->min || value > parameter->max) {
      return absl::InvalidArgumentError(absl::StrCat("policy ", name, ": ", key, " = ", value,
                                                     " is outside ", parameter->min, "..",
                                                     parameter->max, " ", parameter->unit));
    }
    spec.parameters[key] = value;
  }
  if (name == "scissorhands" && spec.Get("drop") == 0) {
    spec.parameters["drop"] = spec.Get("budget") / 2;
  }
  if (absl::Status status = CheckRules(spec); !status.ok()) return status;
  return spec;
}

std::string ToString(const PolicySpec& spec) {
  std::string text = spec.name;
  const char* separator = "(";
  for (const auto& [key, value] : spec.parameters) {
    absl::StrAppend(&text, separator, key, "=", value);
    separator = ",";
  }
  if (!spec.parameters.empty()) text += ")";
  return text;
}

}  // namespace kvpool
