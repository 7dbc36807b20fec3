// Field by field.
//
// SPDX-License-Identifier: Apache-2.0
#include "client/cli/tenant_change.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/quantity.h"
#include "common/tenant_json.h"

namespace kvpool {
namespace {

template <typename T>
void Take(const std::optional<T>& given, T& field) {
  if (given.has_value()) field = *given;
}

// "NAME=VALUE" texts by name, none twice. `what` and `example` are for errors.
absl::StatusOr<std::map<std::string, std::string>> Pairs(const std::vector<std::string>& texts,
                                                         const char* what, const char* example) {
  std::map<std::string, std::string> pairs;
  for (const std::string& text : texts) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", text, "\" is not NAME=VALUE, such as ", example));
    }
    const std::string name = text.substr(0, equals);
    if (!pairs.emplace(name, text.substr(equals + 1)).second) {
      return absl::InvalidArgumentError(absl::StrCat(what, " ", name, " is there twice"));
    }
  }
  return pairs;
}

using Parameters = std::map<std::string, std::string>;

absl::StatusOr<PolicySpec> ChangedPolicy(const TenantSpec& now, const std::string& name,
                                         const Parameters& given) {
  PolicyValues parameters;
  if (!now.ladder.has_value() && name == now.policy.name) parameters = now.policy.parameters;
  for (const auto& [parameter, value] : given) parameters[parameter] = value;
  return MakePolicySpec(name, parameters);
}

// `allowed` is "full,int8,recent-2048": names of the built-in ladder; others take a file.
absl::StatusOr<PolicyLadder> ChangedLadder(const TenantSpec& now, const Parameters& given) {
  boost::json::object json{{"name", kAutoPolicy}};
  if (now.ladder.has_value()) json = ToJson(*now.ladder);
  for (const auto& [parameter, value] : given) {
    if (parameter == "allowed") {
      boost::json::array names;
      for (const absl::string_view name : absl::StrSplit(value, ',', absl::SkipEmpty())) {
        names.emplace_back(std::string(name));
      }
      json[parameter] = std::move(names);
    } else {
      json[parameter] = value;
    }
  }
  return LadderFromJson(json);
}

absl::Status ChangePolicy(const TenantChange& change, TenantSpec& now) {
  const auto given = Pairs(change.parameters, "parameter", "budget=256");
  if (!given.ok()) return given.status();
  const std::string name =
      change.policy.value_or(now.ladder.has_value() ? kAutoPolicy : now.policy.name);
  if (name == kAutoPolicy) {
    auto ladder = ChangedLadder(now, *given);
    if (!ladder.ok()) return ladder.status();
    SetLadder(*std::move(ladder), &now);
    return absl::OkStatus();
  }
  auto policy = ChangedPolicy(now, name, *given);
  if (!policy.ok()) return policy.status();
  SetPolicy(*std::move(policy), &now);
  return absl::OkStatus();
}

absl::Status ChangeFloors(const std::vector<std::string>& texts,
                          std::map<std::string, Bytes>& floors) {
  const auto given = Pairs(texts, "the floor at", "\"gpu-0=4 GiB\"");
  if (!given.ok()) return given.status();
  for (const auto& [agent, text] : *given) {
    const auto bytes = ParseBytes(text);
    if (!bytes.ok()) return bytes.status();
    if (*bytes == 0_B) {
      floors.erase(agent);
    } else {
      floors[agent] = *bytes;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TenantSpec> Changed(TenantSpec now, const TenantChange& change) {
  Take(change.guaranteed, now.guaranteed);
  Take(change.limit, now.limit);
  Take(change.weight, now.weight);
  Take(change.priority, now.priority);
  Take(change.borrowing, now.borrowing);
  Take(change.grace_cold, now.grace.cold);
  Take(change.grace_running, now.grace.running);
  Take(change.over_deadline, now.over_deadline);
  if (absl::Status status = ChangeFloors(change.floors, now.floors); !status.ok()) return status;
  if (absl::Status status = ChangePolicy(change, now); !status.ok()) return status;
  return now;
}

}  // namespace kvpool
