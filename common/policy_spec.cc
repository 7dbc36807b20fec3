// The checks on what an operator wrote about a policy.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/policy_spec.h"

#include <charconv>
#include <cmath>
#include <optional>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace kvpool {
namespace {

template <typename... Cases>
struct Overload : Cases... {
  using Cases::operator()...;
};
template <typename... Cases>
Overload(Cases...) -> Overload<Cases...>;

// The shortest text that reads back as the same number.
std::string NumberText(double number) {
  char text[32];
  const auto [end, code] = std::to_chars(text, text + sizeof(text), number);
  return code == std::errc() ? std::string(text, end) : "nan";
}

template <typename T>
std::optional<T> Parse(const std::string& text) {
  T value{};
  const char* const end = text.data() + text.size();
  const auto [rest, code] = std::from_chars(text.data(), end, value);
  if (code != std::errc() || rest != end) return std::nullopt;
  return value;
}

// JSON and YAML may write a whole number as 256.0 or 1e3.
std::optional<int64_t> Whole(double number) {
  if (std::trunc(number) != number || std::abs(number) >= 0x1p63) return std::nullopt;
  return static_cast<int64_t>(number);
}

std::optional<int64_t> AsInteger(const PolicyValue& value) {
  return std::visit(Overload{[](int64_t number) { return std::optional<int64_t>(number); },
                             [](double number) { return Whole(number); },
                             [](const std::string& text) {
                               if (const auto whole = Parse<int64_t>(text)) return whole;
                               const auto number = Parse<double>(text);
                               return number ? Whole(*number) : std::nullopt;
                             }},
                    value);
}

std::optional<double> AsNumber(const PolicyValue& value) {
  return std::visit(
      Overload{[](int64_t number) { return std::optional<double>(static_cast<double>(number)); },
               [](double number) { return std::optional<double>(number); },
               [](const std::string& text) { return Parse<double>(text); }},
      value);
}

// `value` as the parameter's type and within its bounds; nullopt: it is not.
std::optional<PolicyValue> Fit(const PolicyParameter& parameter, const PolicyValue& value) {
  return std::visit(Overload{[&](const IntegerRange& range) -> std::optional<PolicyValue> {
                               const auto number = AsInteger(value);
                               if (!number || *number < range.min || *number > range.max)
                                 return std::nullopt;
                               return *number;
                             },
                             [&](const NumberRange& range) -> std::optional<PolicyValue> {
                               const auto number = AsNumber(value);
                               // Written so that NaN is outside.
                               if (!number || !(*number >= range.min && *number <= range.max))
                                 return std::nullopt;
                               return *number;
                             },
                             [&](const Choices& choices) -> std::optional<PolicyValue> {
                               const auto* const text = std::get_if<std::string>(&value);
                               for (const std::string& name : choices.names) {
                                 if (text != nullptr && *text == name) return name;
                               }
                               return std::nullopt;
                             }},
                    parameter.allowed);
}

template <typename T>
const T* FindByName(const std::vector<T>& list, const std::string& name) {
  for (const T& entry : list) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

template <typename T>
std::string Names(const std::vector<T>& list) {
  return absl::StrJoin(list, ", ", [](std::string* out, const T& entry) { *out += entry.name; });
}

}  // namespace

std::string ToString(const PolicyValue& value) {
  return std::visit(Overload{[](int64_t number) { return absl::StrCat(number); },
                             [](double number) { return NumberText(number); },
                             [](const std::string& text) { return text; }},
                    value);
}

PolicyValue PolicyParameter::DefaultValue() const {
  return std::visit(
      Overload{[](const IntegerRange& range) { return PolicyValue(range.default_value); },
               [](const NumberRange& range) { return PolicyValue(range.default_value); },
               [](const Choices& choices) { return PolicyValue(choices.names.front()); }},
      allowed);
}

std::string AllowedText(const PolicyParameter& parameter) {
  const std::string unit = parameter.unit.empty() ? "" : " " + parameter.unit;
  return std::visit(
      Overload{
          [&](const IntegerRange& range) { return absl::StrCat(range.min, "..", range.max, unit); },
          [&](const NumberRange& range) {
            return absl::StrCat(NumberText(range.min), "..", NumberText(range.max), unit);
          },
          [](const Choices& choices) { return absl::StrJoin(choices.names, " or "); }},
      parameter.allowed);
}

int64_t PolicySpec::Integer(const std::string& parameter) const {
  return std::get<int64_t>(parameters.at(parameter));
}

uint32_t PolicySpec::Count(const std::string& parameter) const {
  return static_cast<uint32_t>(Integer(parameter));
}

double PolicySpec::Number(const std::string& parameter) const {
  return std::get<double>(parameters.at(parameter));
}

const std::string& PolicySpec::Choice(const std::string& parameter) const {
  return std::get<std::string>(parameters.at(parameter));
}

absl::StatusOr<PolicySpec> MakePolicySpec(const std::string& name, const PolicyValues& parameters) {
  const PolicySchema* schema = FindByName(PolicySchemas(), name);
  if (schema == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("policy \"", name, "\" is not known; known are ", Names(PolicySchemas())));
  }
  PolicySpec spec{.name = name, .parameters = {}};
  for (const PolicyParameter& parameter : schema->parameters) {
    spec.parameters[parameter.name] = parameter.DefaultValue();
  }
  for (const auto& [key, value] : parameters) {
    const PolicyParameter* parameter = FindByName(schema->parameters, key);
    if (parameter == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("policy ", name, " has no parameter \"", key,
                                                     "\"; it has ", Names(schema->parameters)));
    }
    const std::optional<PolicyValue> fitting = Fit(*parameter, value);
    if (!fitting.has_value()) {
      const bool broken =
          std::holds_alternative<IntegerRange>(parameter->allowed) && !AsInteger(value);
      return absl::InvalidArgumentError(absl::StrCat(
          "policy ", name, ": ", key, " = ", ToString(value), " is not allowed; it must be ",
          broken ? "a whole number, " : "", AllowedText(*parameter)));
    }
    spec.parameters[key] = *fitting;
  }
  if (schema->rules != nullptr) {
    if (absl::Status status = schema->rules(spec); !status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("policy ", name, ": ", std::string(status.message())));
    }
  }
  return spec;
}

Acts ActsOn(const PolicySpec& spec) { return FindByName(PolicySchemas(), spec.name)->acts; }

PolicySpec DefaultPolicySpec() { return *MakePolicySpec(PolicySchemas().front().name, {}); }

std::string ToString(const PolicySpec& spec) {
  std::string text = spec.name;
  const char* separator = "(";
  for (const auto& [key, value] : spec.parameters) {
    absl::StrAppend(&text, separator, key, "=", ToString(value));
    separator = ",";
  }
  if (!spec.parameters.empty()) text += ")";
  return text;
}

}  // namespace kvpool
