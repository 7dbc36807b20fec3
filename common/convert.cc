// A policy is a name and a list of named values.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/convert.h"

#include "absl/strings/str_cat.h"

namespace kvpool {

namespace {

PolicyValue ValueOf(rpc::Parameter::Reader parameter) {
  switch (parameter.which()) {
    case rpc::Parameter::INTEGER:
      return parameter.getInteger();
    case rpc::Parameter::NUMBER:
      return parameter.getNumber();
    case rpc::Parameter::CHOICE:
      return std::string(parameter.getChoice().cStr());
  }
  return std::string();  // of a newer peer: no parameter allows it
}

// Those that the receiver would not fill in by itself, so that messages stay small and an older
// peer is not told of parameters that it does not know and nobody has set.
PolicyValues WithoutDefaults(const PolicySpec& spec) {
  PolicyValues values = spec.parameters;
  for (const PolicySchema& schema : PolicySchemas()) {
    if (schema.name != spec.name) continue;
    for (const PolicyParameter& parameter : schema.parameters) {
      const auto found = values.find(parameter.name);
      if (found != values.end() && found->second == parameter.DefaultValue()) values.erase(found);
    }
  }
  return values;
}

}  // namespace

absl::StatusOr<PolicySpec> FromProto(rpc::PolicySpec::Reader from) {
  PolicyValues parameters;
  for (const auto parameter : from.getParameters()) {
    const std::string name = parameter.getName().cStr();
    if (!parameters.emplace(name, ValueOf(parameter)).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("policy parameter \"", name, "\" comes twice"));
    }
  }
  return MakePolicySpec(from.getName().cStr(), parameters);
}

void ToProto(const PolicySpec& spec, rpc::PolicySpec::Builder to) {
  to.setName(spec.name.c_str());
  const PolicyValues values = WithoutDefaults(spec);
  auto parameters = to.initParameters(static_cast<unsigned>(values.size()));
  unsigned i = 0;
  for (const auto& [name, value] : values) {
    parameters[i].setName(name.c_str());
    if (const auto* integer = std::get_if<int64_t>(&value)) parameters[i].setInteger(*integer);
    if (const auto* number = std::get_if<double>(&value)) parameters[i].setNumber(*number);
    if (const auto* choice = std::get_if<std::string>(&value)) {
      parameters[i].setChoice(choice->c_str());
    }
    ++i;
  }
}

void ToProto(const PolicyLadder& ladder, uint32_t rung, rpc::TenantOrder::Builder to) {
  auto rungs = to.initLadder(static_cast<unsigned>(ladder.rungs.size()));
  for (unsigned i = 0; i < rungs.size(); ++i) ToProto(ladder.rungs[i], rungs[i]);
  to.setRung(rung);
  to.setMinRecovery(ladder.min_recovery);
}

}  // namespace kvpool
