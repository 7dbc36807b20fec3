// See commands.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "client/cli/commands.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/cli/table.h"
#include "common/policy_spec.h"
#include "common/quantity.h"
#include "common/tenant_json.h"
#include "common/tenants_file.h"

namespace kvpool {
namespace {

using boost::json::object;
using boost::json::value;
constexpr auto kRight = Column::Align::kRight;

std::string Pretty(const value& json) { return boost::json::serialize(json) + "\n"; }

// The objects of an array field; empty when there is none.
std::vector<object> Objects(const value& json, const char* field) {
  std::vector<object> objects;
  const value* array = json.is_object() ? json.as_object().if_contains(field) : nullptr;
  if (array == nullptr || !array->is_array()) return objects;
  for (const value& element : array->as_array()) {
    if (element.is_object()) objects.push_back(element.as_object());
  }
  return objects;
}

object Nested(const object& json, const char* field) {
  const value* nested = json.if_contains(field);
  return nested != nullptr && nested->is_object() ? nested->as_object() : object();
}

std::string TenantTable(const std::vector<object>& tenants) {
  std::vector<std::vector<std::string>> rows;
  for (const object& t : tenants) {
    const object recovery = Nested(t, "recovery");
    rows.push_back({TextCell(t, "name"), BytesCell(t, "guaranteed"), BytesCell(t, "limit"),
                    BytesCell(t, "leased"), BytesCell(t, "used"), TextCell(t, "sessions"),
                    TextCell(t, "refusals"), TextCell(t, "compactions"),
                    RatioCell(recovery, "mean"), RatioCell(recovery, "min"), PolicyCell(t)});
  }
  return FormatTable({{"NAME"},
                      {"GUARANTEED", kRight},
                      {"LIMIT", kRight},
                      {"LEASED", kRight},
                      {"USED", kRight},
                      {"SESSIONS", kRight},
                      {"REFUSALS", kRight},
                      {"COMPACTIONS", kRight},
                      {"RECOVERY", kRight},
                      {"MINIMUM", kRight},
                      {"POLICY"}},
                     rows);
}

std::string AgentTable(const std::vector<object>& agents) {
  std::vector<std::vector<std::string>> rows;
  for (const object& a : agents) {
    rows.push_back({TextCell(a, "name"), TextCell(a, "connected"), TextCell(a, "device"),
                    BytesCell(a, "pool"), BytesCell(a, "leased"), BytesCell(a, "free"),
                    BytesCell(a, "stuck"), AgeCell(a, "report_age_ms")});
  }
  return FormatTable({{"NAME"},
                      {"CONNECTED"},
                      {"DEVICE"},
                      {"POOL", kRight},
                      {"LEASED", kRight},
                      {"FREE", kRight},
                      {"STUCK", kRight},
                      {"REPORTED", kRight}},
                     rows);
}

std::string ShareTable(const std::vector<object>& shares, const char* key, const char* header) {
  std::vector<std::vector<std::string>> rows;
  for (const object& s : shares) {
    rows.push_back({TextCell(s, key), BytesCell(s, "leased"), BytesCell(s, "held"),
                    BytesCell(s, "used"), BytesCell(s, "wanted"), TextCell(s, "sessions"),
                    TextCell(s, "workers")});
  }
  return FormatTable({{header},
                      {"LEASED", kRight},
                      {"HELD", kRight},
                      {"USED", kRight},
                      {"WANTED", kRight},
                      {"SESSIONS", kRight},
                      {"WORKERS", kRight}},
                     rows);
}

std::string ReclaimTable(const std::vector<object>& reclaims) {
  std::vector<std::vector<std::string>> rows;
  for (const object& r : reclaims) {
    rows.push_back({AgeCell(r, "age_ms"), TextCell(r, "agent"), TextCell(r, "step"),
                    TextCell(r, "reason"), TextCell(r, "sessions"), BytesCell(r, "bytes"),
                    RatioCell(r, "recovery"), TextCell(r, "policy")});
  }
  return FormatTable({{"AGE", kRight},
                      {"AGENT"},
                      {"STEP"},
                      {"REASON"},
                      {"SESSIONS", kRight},
                      {"BYTES", kRight},
                      {"RECOVERY", kRight},
                      {"POLICY"}},
                     rows);
}

// "tenant press: changed, revision 3", a line each.
std::string ChangeLines(const value& answer) {
  std::string text;
  for (const object& change : Objects(answer, "tenants")) {
    absl::StrAppend(&text, "tenant ", TextCell(change, "name"), ": ", TextCell(change, "change"),
                    ", revision ", TextCell(change, "revision"), "\n");
  }
  return text;
}

absl::StatusOr<PolicySpec> ChangedPolicy(const PolicySpec& now, const TenantChange& change) {
  const bool same = !change.policy.has_value() || *change.policy == now.name;
  std::map<std::string, int64_t> parameters;
  if (same) parameters = now.parameters;
  for (const std::string& parameter : change.parameters) {
    const size_t equals = parameter.find('=');
    int64_t number = 0;
    if (equals == std::string::npos || !absl::SimpleAtoi(parameter.substr(equals + 1), &number)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--param ", parameter, ": write NAME=NUMBER, such as budget=256"));
    }
    parameters[parameter.substr(0, equals)] = number;
  }
  return MakePolicySpec(change.policy.value_or(now.name), parameters);
}

// The tenant as it is, without what the API only shows.
absl::StatusOr<TenantSpec> SpecOf(const value& view) {
  if (!view.is_object()) return absl::InternalError("the server sent no tenant");
  object fields;
  for (const char* field : {"name", "guaranteed", "limit", "policy"}) {
    const value* known = view.as_object().if_contains(field);
    if (known == nullptr) return absl::InternalError("the server sent half a tenant");
    fields[field] = *known;
  }
  const value json(std::move(fields));
  absl::StatusOr<JsonObject> parsed = JsonObject::From(json, "tenant");
  if (!parsed.ok()) return parsed.status();
  return TenantFromJson(*parsed, "");
}

}  // namespace

absl::StatusOr<std::string> GetTenants(const ApiClient& api, Output output) {
  const absl::StatusOr<value> answer = api.Call("GET", "/v1/tenants");
  if (!answer.ok()) return answer.status();
  return output == Output::kJson ? Pretty(*answer) : TenantTable(Objects(*answer, "tenants"));
}

absl::StatusOr<std::string> GetAgents(const ApiClient& api, Output output) {
  const absl::StatusOr<value> answer = api.Call("GET", "/v1/agents");
  if (!answer.ok()) return answer.status();
  return output == Output::kJson ? Pretty(*answer) : AgentTable(Objects(*answer, "agents"));
}

absl::StatusOr<std::string> DescribeTenant(const ApiClient& api, const std::string& name,
                                           Output output) {
  const absl::StatusOr<value> tenant = api.Call("GET", "/v1/tenants/" + name);
  if (!tenant.ok()) return tenant.status();
  const absl::StatusOr<value> reclaims = api.Call("GET", "/v1/tenants/" + name + "/reclaims");
  if (!reclaims.ok()) return reclaims.status();
  if (output == Output::kJson) {
    object both = tenant->is_object() ? tenant->as_object() : object();
    if (const value* list = reclaims->as_object().if_contains("reclaims")) {
      both["reclaims"] = *list;
    }
    return Pretty(both);
  }
  const std::vector<object> records = Objects(*reclaims, "reclaims");
  return absl::StrCat(TenantTable({tenant->as_object()}), "\nBy agent\n",
                      ShareTable(Objects(*tenant, "agents"), "agent", "AGENT"), "\nLast reclaims\n",
                      records.empty() ? "none\n" : ReclaimTable(records));
}

absl::StatusOr<std::string> DescribeAgent(const ApiClient& api, const std::string& name,
                                          Output output) {
  const absl::StatusOr<value> agent = api.Call("GET", "/v1/agents/" + name);
  if (!agent.ok()) return agent.status();
  if (output == Output::kJson) return Pretty(*agent);
  return absl::StrCat(AgentTable({agent->as_object()}), "\nBy tenant\n",
                      ShareTable(Objects(*agent, "tenants"), "tenant", "TENANT"));
}

absl::StatusOr<std::string> SetTenant(const ApiClient& api, const TenantChange& change,
                                      Output output) {
  const absl::StatusOr<value> now = api.Call("GET", "/v1/tenants/" + change.name);
  if (!now.ok()) return now.status();
  absl::StatusOr<TenantSpec> spec = SpecOf(*now);
  if (!spec.ok()) return spec.status();
  for (auto [text, bytes] :
       {std::pair(&change.guaranteed, &spec->guaranteed), std::pair(&change.limit, &spec->limit)}) {
    if (!text->has_value()) continue;
    const absl::StatusOr<Bytes> parsed = ParseBytes(**text);
    if (!parsed.ok()) return parsed.status();
    *bytes = *parsed;
  }
  absl::StatusOr<PolicySpec> policy = ChangedPolicy(spec->policy, change);
  if (!policy.ok()) return policy.status();
  spec->policy = *policy;
  if (absl::Status status = CheckTenantSpec(*spec); !status.ok()) return status;
  object body = ToJson(*spec);
  // What was read is what is changed: somebody else's change in between is a conflict.
  body["revision"] =
      change.if_revision.has_value() ? value(*change.if_revision) : now->as_object().at("revision");
  const absl::StatusOr<value> answer = api.Call("PUT", "/v1/tenants/" + change.name, body);
  if (!answer.ok()) return answer.status();
  return output == Output::kJson ? Pretty(*answer) : ChangeLines(*answer);
}

absl::StatusOr<std::string> DeleteTenant(const ApiClient& api, const std::string& name,
                                         Output output) {
  const absl::StatusOr<value> answer = api.Call("DELETE", "/v1/tenants/" + name);
  if (!answer.ok()) return answer.status();
  return output == Output::kJson ? Pretty(*answer) : absl::StrCat("tenant ", name, ": deleted\n");
}

absl::StatusOr<std::string> Apply(const ApiClient& api, const std::string& file, Output output) {
  const absl::StatusOr<std::vector<TenantSpec>> specs = ReadTenantsFile(file);
  if (!specs.ok()) return absl::InvalidArgumentError(std::string(specs.status().message()));
  const absl::StatusOr<value> answer = api.Call("POST", "/v1/apply", ToJson(*specs));
  if (!answer.ok()) return answer.status();
  return output == Output::kJson ? Pretty(*answer) : ChangeLines(*answer);
}

absl::StatusOr<std::string> CreateToken(const ApiClient& api, const std::string& tenant,
                                        Output output) {
  const absl::StatusOr<value> answer = api.Call("POST", "/v1/tenants/" + tenant + "/tokens");
  if (!answer.ok()) return answer.status();
  if (output == Output::kJson) return Pretty(*answer);
  return TextCell(answer->as_object(), "token") + "\n";
}

absl::StatusOr<std::string> RevokeToken(const ApiClient& api, const std::string& tenant,
                                        const std::string& id, Output output) {
  const absl::StatusOr<value> answer =
      api.Call("DELETE", absl::StrCat("/v1/tenants/", tenant, "/tokens/", id));
  if (!answer.ok()) return answer.status();
  return output == Output::kJson ? Pretty(*answer) : absl::StrCat("token ", id, ": revoked\n");
}

absl::StatusOr<std::string> Top(const ApiClient& api, Output output) {
  const absl::StatusOr<value> agents = api.Call("GET", "/v1/agents");
  if (!agents.ok()) return agents.status();
  const absl::StatusOr<value> tenants = api.Call("GET", "/v1/tenants");
  if (!tenants.ok()) return tenants.status();
  if (output == Output::kJson) {
    return Pretty(object{{"agents", agents->as_object().at("agents")},
                         {"tenants", tenants->as_object().at("tenants")}});
  }
  return absl::StrCat(AgentTable(Objects(*agents, "agents")), "\n",
                      TenantTable(Objects(*tenants, "tenants")));
}

}  // namespace kvpool
