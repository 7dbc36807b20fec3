// A tenant as the operator API writes it, for both of its ends:
//   {"name": "chat", "guaranteed": 8388608, "limit": "24 MiB", "policy": {"name": "streaming",
//    "recent": 252}}
// Byte counts come out as integers, and go in as integers or as text with a unit. Values, any
// thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/json.h"
#include "common/tenants_file.h"

namespace kvpool {

boost::json::object ToJson(const PolicySpec& policy);
// {"name": "auto", "min_recovery": 0.95, "allowed": [...]}
boost::json::object ToJson(const PolicyLadder& ladder);
boost::json::object ToJson(const TenantSpec& spec);

// InvalidArgument names the field.
absl::StatusOr<PolicySpec> PolicyFromJson(const boost::json::value& value);
absl::StatusOr<PolicyLadder> LadderFromJson(const boost::json::value& value);
// Takes the fields of a tenant and leaves others to the caller. Without a name in the object it is
// `name`; with one it must be that, unless `name` is empty.
absl::StatusOr<TenantSpec> TenantFromJson(JsonObject& object, const std::string& name);

// {"version": 1, "tenants": [...]}: the tenants file as JSON.
boost::json::object ToJson(const std::vector<TenantSpec>& specs);
absl::StatusOr<std::vector<TenantSpec>> TenantsFromJson(const boost::json::value& value);

}  // namespace kvpool
