// From strict YAML to checked tenants.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/tenants_file.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/quantity.h"
#include "common/tenant_fields.h"
#include "common/yaml.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

constexpr int64_t kFileVersion = 1;
constexpr Bytes kMaxBytes(limits::kTenantBytes);

absl::StatusOr<TenantSpec> ParseTenant(const YamlNode& node) {
  auto object =
      YamlObject::From(node, "a tenant such as {name: chat, guaranteed: 0, limit: 8 GiB}");
  if (!object.ok()) return object.status();
  auto spec = TenantFields(*object).Read({});
  if (!spec.ok()) return spec;
  if (absl::Status status = object->Finish(); !status.ok()) return status;
  return spec;
}

absl::StatusOr<std::vector<TenantSpec>> ParseRoot(const YamlNode& root) {
  if (absl::Status status = root.CheckKeys({"version", "tenants"}); !status.ok()) return status;
  const auto version = root.Require("version");
  if (!version.ok()) return version.status();
  if (const auto number = (*version)->AsInteger(kFileVersion, kFileVersion); !number.ok()) {
    return number.status();
  }
  const auto list = root.Require("tenants");
  if (!list.ok()) return list.status();
  if (absl::Status status = (*list)->CheckList(); !status.ok()) return status;
  if ((*list)->items.size() > limits::kTenants) {
    return (*list)->Error(absl::StrCat((*list)->items.size(), " tenants are too many; at most ",
                                       limits::kTenants, " are allowed"));
  }
  std::vector<TenantSpec> tenants;
  std::map<std::string, std::string> seen;  // name -> where
  for (const YamlNode& item : (*list)->items) {
    auto spec = ParseTenant(item);
    if (!spec.ok()) return spec.status();
    const auto [first, is_new] = seen.emplace(spec->name, item.where);
    if (!is_new) {
      return item.Error(
          absl::StrCat("tenant \"", spec->name, "\" is there twice; first at ", first->second));
    }
    tenants.push_back(*std::move(spec));
  }
  return tenants;
}

absl::Status CheckFloors(const TenantSpec& spec) {
  const auto refuse = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat("tenant \"", spec.name, "\": ", parts...));
  };
  if (spec.floors.size() > limits::kFloorsPerTenant) {
    return refuse(spec.floors.size(), " floors are too many; at most ", limits::kFloorsPerTenant,
                  " are allowed");
  }
  Bytes sum;
  for (const auto& [agent, bytes] : spec.floors) {
    if (absl::Status status = CheckName("floors: agent", agent); !status.ok()) return status;
    if (bytes < 0_B || bytes > kMaxBytes) {
      return refuse("the floor at agent \"", agent, "\" is outside 0..", FormatBytes(kMaxBytes));
    }
    sum += bytes;
  }
  if (sum <= spec.guaranteed) return absl::OkStatus();
  return refuse("floors must not exceed guaranteed, got ", FormatBytes(sum), " in all > ",
                FormatBytes(spec.guaranteed), "; lower floors or raise guaranteed");
}

}  // namespace

absl::Status CheckName(const std::string& what, const std::string& name) {
  const auto alphanumeric = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  const bool good =
      !name.empty() && name.size() <= limits::kNameBytes && alphanumeric(name.front()) &&
      alphanumeric(name.back()) &&
      std::all_of(name.begin(), name.end(), [&](char c) { return alphanumeric(c) || c == '-'; });
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " name \"", name.substr(0, limits::kNameBytes),
                   "\" is not allowed; use a-z, 0-9 and hyphens inside, at most ",
                   limits::kNameBytes, " characters"));
}

std::string ToString(Borrowing borrowing) { return borrowing == Borrowing::kOn ? "on" : "off"; }

std::string ToString(OverDeadline action) {
  return action == OverDeadline::kHold ? "hold" : "preempt";
}

void SetLadder(PolicyLadder ladder, TenantSpec* spec) {
  spec->policy = ladder.rungs.empty() ? DefaultPolicySpec() : ladder.rungs.front();
  spec->ladder = std::move(ladder);
}

void SetPolicy(PolicySpec policy, TenantSpec* spec) {
  spec->policy = std::move(policy);
  spec->ladder.reset();
}

std::string PolicyText(const TenantSpec& spec) {
  return spec.ladder.has_value() ? ToString(*spec.ladder) : ToString(spec.policy);
}

absl::Status CheckTenantSpec(const TenantSpec& spec) {
  if (absl::Status status = CheckName("tenant", spec.name); !status.ok()) return status;
  const auto refuse = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat("tenant \"", spec.name, "\": ", parts...));
  };
  for (const Bytes bytes : {spec.guaranteed, spec.limit}) {
    if (bytes < 0_B || bytes > kMaxBytes) {
      return refuse(bytes.value(), " bytes is outside 0..", FormatBytes(kMaxBytes));
    }
  }
  if (spec.guaranteed > spec.limit) {
    return refuse("guaranteed must not exceed limit, got ", FormatBytes(spec.guaranteed), " > ",
                  FormatBytes(spec.limit), "; lower guaranteed or raise limit");
  }
  if (absl::Status status = CheckFloors(spec); !status.ok()) return status;
  if (spec.ladder.has_value()) {
    if (absl::Status status = CheckLadder(*spec.ladder); !status.ok()) {
      return refuse(std::string(status.message()));
    }
  }
  if (spec.weight < 1 || spec.weight > kMaxWeight) {
    return refuse("weight ", spec.weight, " is outside 1..", kMaxWeight);
  }
  if (spec.priority < 0 || spec.priority > kMaxPriority) {
    return refuse("priority ", spec.priority, " is outside 0..", kMaxPriority);
  }
  for (const Duration grace : {spec.grace.cold, spec.grace.running}) {
    if (grace < Duration(0) || grace > kMaxGrace) {
      return refuse("grace ", FormatDuration(grace), " is outside 0 s..",
                    FormatDuration(kMaxGrace));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TenantSpec>> ParseTenants(const std::string& text,
                                                     const std::string& file) {
  const auto root = ParseYaml(text, file);
  if (!root.ok()) return root.status();
  return ParseRoot(*root);
}

absl::StatusOr<std::vector<TenantSpec>> ReadTenantsFile(const std::string& path) {
  const auto root = ReadYamlFile(path);
  if (!root.ok()) return root.status();
  return ParseRoot(*root);
}

}  // namespace kvpool
