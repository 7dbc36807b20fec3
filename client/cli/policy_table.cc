// From the table of schemas to JSON and to text.
//
// SPDX-License-Identifier: Apache-2.0
#include "client/cli/policy_table.h"

#include <span>

#include "client/cli/table.h"
#include "common/policy_ladder.h"
#include "common/policy_spec.h"

namespace kvpool {
namespace {

namespace json = boost::json;

json::value ToJson(const PolicyValue& value) {
  return std::visit([](const auto& held) { return json::value(held); }, value);
}

json::object ParameterDocument(const PolicyParameter& parameter) {
  json::object document{{"name", parameter.name},
                        {"unit", parameter.unit},
                        {"description", parameter.description},
                        {"default", ToJson(parameter.DefaultValue())},
                        {"allowed", AllowedText(parameter)}};
  if (const auto* choices = std::get_if<Choices>(&parameter.allowed)) {
    document["choices"] = json::array(choices->names.begin(), choices->names.end());
  } else if (const auto* integers = std::get_if<IntegerRange>(&parameter.allowed)) {
    document["min"] = integers->min;
    document["max"] = integers->max;
  } else {
    const auto& numbers = std::get<NumberRange>(parameter.allowed);
    document["min"] = numbers.min;
    document["max"] = numbers.max;
  }
  return document;
}

using Parameters = std::span<const PolicyParameter>;

std::string Section(const std::string& name, const std::string& summary, Parameters parameters) {
  Table table({{"PARAMETER"}, {"DEFAULT", Align::kRight}, {"ALLOWED"}, {"MEANING"}});
  for (const PolicyParameter& parameter : parameters) {
    table.Add({parameter.name, ToString(parameter.DefaultValue()), AllowedText(parameter),
               parameter.description});
  }
  return name + ": " + summary + "\n" + table.ToText(2);
}

}  // namespace

json::object PolicyDocument() {
  json::array policies;
  for (const PolicySchema& schema : PolicySchemas()) {
    json::array parameters;
    for (const PolicyParameter& parameter : schema.parameters) {
      parameters.push_back(ParameterDocument(parameter));
    }
    policies.push_back(
        {{"name", schema.name}, {"summary", schema.summary}, {"parameters", parameters}});
  }
  json::array rungs;
  for (const NamedRung& rung : BuiltInRungs()) {
    rungs.push_back({{"name", rung.name}, {"policy", ToString(rung.policy)}, {"why", rung.why}});
  }
  return {{"policies", policies}, {"rungs", rungs}};
}

std::string PolicyTable() {
  const std::vector<PolicyParameter>& common = CommonPolicyParameters();
  std::string text;
  for (const PolicySchema& schema : PolicySchemas()) {
    const Parameters all = schema.parameters;
    text += Section(schema.name, schema.summary, all.first(all.size() - common.size())) + "\n";
  }
  text += Section("every policy", "What they all have beside their own.", common);
  Table rungs({{"RUNG"}, {"POLICY"}, {"WHY"}});
  for (const NamedRung& rung : BuiltInRungs()) {
    rungs.Add({rung.name, ToString(rung.policy), rung.why});
  }
  return absl::StrCat(text, "\n", kAutoPolicy, ": Policies from mild to strong, climbed under ",
                      "pressure and left after it; without `allowed` these.\n", rungs.ToText(2));
}

}  // namespace kvpool
