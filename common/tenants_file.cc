// From strict YAML to checked tenants.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/tenants_file.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/quantity.h"
#include "common/yaml.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

constexpr int64_t kFileVersion = 1;
constexpr Bytes kMaxBytes(limits::kTenantBytes);

absl::StatusOr<std::string> RequiredName(const YamlNode& map) {
  const auto node = map.Require("name");
  if (!node.ok()) return node.status();
  return (*node)->AsText(limits::kNameBytes);
}

absl::StatusOr<Bytes> RequiredBytes(const YamlNode& map, const std::string& key) {
  const auto node = map.Require(key);
  if (!node.ok()) return node.status();
  return (*node)->AsBytes(0_B, kMaxBytes);
}

absl::StatusOr<PolicySpec> ParsePolicy(const YamlNode& node) {
  if (node.kind != YamlNode::Kind::kMap) {
    return node.Error("expected a policy such as {name: scissorhands, budget: 256}");
  }
  const auto name = RequiredName(node);
  if (!name.ok()) return name.status();
  PolicyValues parameters;
  for (const YamlEntry& entry : node.entries) {
    if (entry.key == "name") continue;
    const auto value = entry.value.AsText(limits::kNameBytes);
    if (!value.ok()) return value.status();
    parameters[entry.key] = *value;
  }
  const auto spec = MakePolicySpec(*name, parameters);
  if (!spec.ok()) return node.Error(std::string(spec.status().message()));
  return spec;
}

absl::StatusOr<TenantSpec> ParseTenant(const YamlNode& node) {
  if (absl::Status status = node.CheckKeys({"name", "guaranteed", "limit", "policy"});
      !status.ok()) {
    return status;
  }
  const auto name = RequiredName(node);
  if (!name.ok()) return name.status();
  const auto guaranteed = RequiredBytes(node, "guaranteed");
  if (!guaranteed.ok()) return guaranteed.status();
  const auto limit = RequiredBytes(node, "limit");
  if (!limit.ok()) return limit.status();
  TenantSpec spec{.name = *name, .guaranteed = *guaranteed, .limit = *limit};
  if (const YamlNode* policy = node.Find("policy"); policy != nullptr) {
    const auto parsed = ParsePolicy(*policy);
    if (!parsed.ok()) return parsed.status();
    spec.policy = *parsed;
  }
  if (absl::Status status = CheckTenantSpec(spec); !status.ok()) {
    return node.Error(std::string(status.message()));
  }
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

absl::Status CheckTenantSpec(const TenantSpec& spec) {
  if (absl::Status status = CheckName("tenant", spec.name); !status.ok()) return status;
  const std::string who = absl::StrCat("tenant \"", spec.name, "\": ");
  for (const Bytes bytes : {spec.guaranteed, spec.limit}) {
    if (bytes < 0_B || bytes > kMaxBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(who, bytes.value(), " bytes is outside 0..", FormatBytes(kMaxBytes)));
    }
  }
  if (spec.guaranteed > spec.limit) {
    return absl::InvalidArgumentError(
        absl::StrCat(who, "guaranteed must not exceed limit, got ", FormatBytes(spec.guaranteed),
                     " > ", FormatBytes(spec.limit), "; lower guaranteed or raise limit"));
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
