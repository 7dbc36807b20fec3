// The API's answers as text for people. A field that is missing, as in an answer of another
// version, shows as nothing or zero. Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json.hpp>
#include <string>

namespace kvpool {

// Lists of what GET /v1/tenants and /v1/agents return.
std::string RenderTenants(const boost::json::array& tenants);
std::string RenderAgents(const boost::json::array& agents);
// One tenant, with the answer of GET /v1/tenants/NAME/reclaims; one agent.
std::string RenderTenant(const boost::json::object& tenant, const boost::json::object& reclaims);
std::string RenderAgent(const boost::json::object& agent);
// One screen of `top`.
std::string RenderTop(const boost::json::object& tenants, const boost::json::object& agents);
// The list of GET /v1/operators.
std::string RenderOperators(const boost::json::array& operators);
// The token in the answer that made it, and nothing else.
std::string RenderToken(const boost::json::object& answer);
// The list of GET /v1/audit.
std::string RenderAudit(const boost::json::array& entries);
// What a change did: one line for each tenant.
std::string RenderChanges(const boost::json::object& answer);

// What a change would do: its fields, and whose leases would differ.
std::string RenderRehearsal(const boost::json::object& answer);
// The tenant that a DELETE has answered with because it still has leases.
std::string RenderLeaving(const boost::json::object& tenant);
// The answer of GET /v1/tenants/NAME/explain.
std::string RenderExplanation(const boost::json::object& answer);
// {"tenants": [{"name", "change", "fields"}]}, what a file and the cluster differ in.
std::string RenderDiff(const boost::json::object& document);

// The list under `key`, empty when there is none.
boost::json::array ListOf(const boost::json::object& object, const std::string& key);

}  // namespace kvpool
