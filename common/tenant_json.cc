// Field by field, both ways.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/tenant_json.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

constexpr int64_t kFileVersion = 1;

}  // namespace

boost::json::object ToJson(const PolicySpec& policy) {
  boost::json::object json{{"name", policy.name}};
  for (const auto& [name, value] : policy.parameters) {
    std::visit([&, &name = name](const auto& typed) { json[name] = typed; }, value);
  }
  return json;
}

boost::json::object ToJson(const TenantSpec& spec) {
  return {{"name", spec.name},
          {"guaranteed", spec.guaranteed.value()},
          {"limit", spec.limit.value()},
          {"policy", ToJson(spec.policy)}};
}

boost::json::object ToJson(const std::vector<TenantSpec>& specs) {
  boost::json::array tenants;
  for (const TenantSpec& spec : specs) tenants.push_back(ToJson(spec));
  return {{"version", kFileVersion}, {"tenants", std::move(tenants)}};
}

absl::StatusOr<PolicySpec> PolicyFromJson(const boost::json::value& value) {
  absl::StatusOr<JsonObject> object = JsonObject::From(value, "policy");
  if (!object.ok()) return object.status();
  const auto name = object->Text("name", limits::kNameBytes);
  if (!name.ok()) return name.status();
  PolicyValues parameters;
  for (const auto& field : value.get_object()) {
    const std::string key(field.key());
    if (key == "name") continue;
    const boost::json::value& given = *object->Take(key);
    if (given.is_string()) {
      parameters[key] = std::string(given.get_string());
    } else if (given.is_double()) {
      parameters[key] = given.get_double();
    } else {
      const auto number = object->Integer(key, std::numeric_limits<int64_t>::min(),
                                          std::numeric_limits<int64_t>::max());
      if (!number.ok()) return number.status();
      parameters[key] = *number;
    }
  }
  return MakePolicySpec(*name, parameters);
}

absl::StatusOr<TenantSpec> TenantFromJson(JsonObject& object, const std::string& name) {
  TenantSpec spec{.name = name};
  if (name.empty() || object.Has("name")) {
    const auto given = object.Text("name", limits::kNameBytes);
    if (!given.ok()) return given.status();
    if (!name.empty() && *given != name) {
      return absl::InvalidArgumentError(absl::StrCat("the tenant is called \"", *given,
                                                     "\" here and \"", name, "\" in the path"));
    }
    spec.name = *given;
  }
  const auto guaranteed = object.Quantity("guaranteed", 0_B, Bytes(limits::kTenantBytes));
  if (!guaranteed.ok()) return guaranteed.status();
  spec.guaranteed = *guaranteed;
  const auto limit = object.Quantity("limit", 0_B, Bytes(limits::kTenantBytes));
  if (!limit.ok()) return limit.status();
  spec.limit = *limit;
  if (const boost::json::value* policy = object.Take("policy"); policy != nullptr) {
    const auto parsed = PolicyFromJson(*policy);
    if (!parsed.ok()) return parsed.status();
    spec.policy = *parsed;
  }
  if (absl::Status status = CheckTenantSpec(spec); !status.ok()) return status;
  return spec;
}

absl::StatusOr<std::vector<TenantSpec>> TenantsFromJson(const boost::json::value& value) {
  absl::StatusOr<JsonObject> object = JsonObject::From(value, "tenants file");
  if (!object.ok()) return object.status();
  if (const auto version = object->Integer("version", kFileVersion, kFileVersion); !version.ok()) {
    return version.status();
  }
  const boost::json::value* list = object->Take("tenants");
  if (list == nullptr || !list->is_array()) {
    return absl::InvalidArgumentError("tenants file: \"tenants\" must be a list");
  }
  if (absl::Status status = object->Finish(); !status.ok()) return status;
  std::vector<TenantSpec> specs;
  for (const boost::json::value& item : list->get_array()) {
    absl::StatusOr<JsonObject> tenant = JsonObject::From(item, "tenant");
    if (!tenant.ok()) return tenant.status();
    absl::StatusOr<TenantSpec> spec = TenantFromJson(*tenant, "");
    if (!spec.ok()) return spec.status();
    if (absl::Status status = tenant->Finish(); !status.ok()) return status;
    specs.push_back(*std::move(spec));
  }
  return specs;
}

}  // namespace kvpool
