// A policy is a name and a list of named numbers.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/convert.h"

#include "absl/strings/str_cat.h"

namespace kvpool {

absl::StatusOr<PolicySpec> FromProto(rpc::PolicySpec::Reader from) {
  std::map<std::string, int64_t> parameters;
  for (const auto parameter : from.getParameters()) {
    const std::string name = parameter.getName().cStr();
    if (!parameters.emplace(name, parameter.getValue()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("policy parameter \"", name, "\" comes twice"));
    }
  }
  return MakePolicySpec(from.getName().cStr(), parameters);
}

void ToProto(const PolicySpec& spec, rpc::PolicySpec::Builder to) {
  to.setName(spec.name.c_str());
  auto parameters = to.initParameters(static_cast<unsigned>(spec.parameters.size()));
  unsigned i = 0;
  for (const auto& [name, value] : spec.parameters) {
    parameters[i].setName(name.c_str());
    parameters[i].setValue(value);
    ++i;
  }
}

}  // namespace kvpool
