// Field by field, both ways.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/tenant_json.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/quantity.h"
#include "common/tenant_fields.h"

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

boost::json::object ToJson(const PolicyLadder& ladder) {
  boost::json::array rungs;
  for (const PolicySpec& rung : ladder.rungs) rungs.push_back(ToJson(rung));
  return {
      {"name", kAutoPolicy}, {"min_recovery", ladder.min_recovery}, {"allowed", std::move(rungs)}};
}

boost::json::object ToJson(const TenantSpec& spec) {
  boost::json::object floors;
  for (const auto& [agent, bytes] : spec.floors) floors[agent] = bytes.value();
  return {{"name", spec.name},
          {"guaranteed", spec.guaranteed.value()},
          {"limit", spec.limit.value()},
          {"policy", spec.ladder.has_value() ? ToJson(*spec.ladder) : ToJson(spec.policy)},
          {"floors", std::move(floors)},
          {"weight", spec.weight},
          {"priority", spec.priority},
          {"borrowing", ToString(spec.borrowing)},
          {"grace",
           {{"cold", FormatDuration(spec.grace.cold)},
            {"running", FormatDuration(spec.grace.running)}}},
          {"over_deadline", ToString(spec.over_deadline)}};
}

boost::json::object ToJson(const std::vector<TenantSpec>& specs) {
  boost::json::array tenants;
  for (const TenantSpec& spec : specs) tenants.push_back(ToJson(spec));
  return {{"version", kFileVersion}, {"tenants", std::move(tenants)}};
}

absl::StatusOr<PolicySpec> PolicyFromJson(const boost::json::value& value) {
  absl::StatusOr<JsonObject> object = JsonObject::From(value, "policy");
  if (!object.ok()) return object.status();
  return TenantFields(*object).ReadPolicy();
}

absl::StatusOr<PolicyLadder> LadderFromJson(const boost::json::value& value) {
  absl::StatusOr<JsonObject> object = JsonObject::From(value, "policy");
  if (!object.ok()) return object.status();
  return TenantFields(*object).ReadLadder();
}

absl::StatusOr<TenantSpec> TenantFromJson(JsonObject& object, const std::string& name) {
  auto spec = TenantFields(object).Read({.name = name});
  if (spec.ok() && !name.empty() && spec->name != name) {
    return absl::InvalidArgumentError(absl::StrCat("the tenant is called \"", spec->name,
                                                   "\" here and \"", name, "\" in the path"));
  }
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
