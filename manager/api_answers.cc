// What each endpoint of the operator API answers.
//
// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/json.h"
#include "common/metrics.h"
#include "common/tenant_json.h"
#include "manager/api.h"
#include "manager/http_replies.h"
#include "manager/views.h"

namespace kvpool {
namespace {

constexpr auto kEmptyOrError = [](const absl::Status& status) {
  return status.ok() ? JsonResponse({}) : ErrorResponse(status);
};

// The answer to a change of tenants: what became of each.
boost::json::object Changes(const Cluster& cluster, const std::vector<std::string>& names,
                            const std::vector<Tenant>& changed) {
  std::set<std::string> changed_names;
  for (const Tenant& tenant : changed) changed_names.insert(tenant.spec.name);
  boost::json::array tenants;
  for (const std::string& name : names) {
    const Tenant* tenant = cluster.tenants().Find(name);
    const uint64_t revision = tenant == nullptr ? 0 : tenant->revision;
    const char* change = !changed_names.contains(name) ? "unchanged"
                         : revision == 1               ? "created"
                                                       : "updated";
    boost::json::array notes;
    if (tenant != nullptr) {
      for (const std::string& note : BudgetNotes(cluster, tenant->spec)) notes.emplace_back(note);
    }
    tenants.push_back(
        {{"name", name}, {"change", change}, {"revision", revision}, {"notes", std::move(notes)}});
  }
  return {{"tenants", std::move(tenants)}};
}

struct TenantRequest {
  TenantSpec spec;
  std::optional<uint64_t> revision;  // that the tenant must be at
};

absl::StatusOr<TenantRequest> ReadTenantRequest(const std::string& body, const std::string& name) {
  const auto json = ParseJson(body);
  if (!json.ok()) return json.status();
  auto object = JsonObject::From(*json, "tenant");
  if (!object.ok()) return object.status();
  auto spec = TenantFromJson(*object, name);
  if (!spec.ok()) return spec.status();
  TenantRequest request{.spec = *std::move(spec)};
  if (object->Has("revision")) {
    const auto given = object->Integer("revision", 0, std::numeric_limits<int64_t>::max());
    if (!given.ok()) return given.status();
    request.revision = static_cast<uint64_t>(*given);
  }
  if (absl::Status status = object->Finish(); !status.ok()) return status;
  return request;
}

struct OperatorRequest {
  std::string name;
  Scope scope;
};

absl::StatusOr<OperatorRequest> ReadOperatorRequest(const std::string& body) {
  const auto json = ParseJson(body);
  if (!json.ok()) return json.status();
  auto object = JsonObject::From(*json, "operator");
  if (!object.ok()) return object.status();
  const auto name = object->Text("name", limits::kNameBytes);
  if (!name.ok()) return name.status();
  const auto text = object->Text("scope", limits::kNameBytes);
  if (!text.ok()) return text.status();
  const auto scope = ParseScope(*text);
  if (!scope.ok()) return scope.status();
  if (absl::Status status = object->Finish(); !status.ok()) return status;
  return OperatorRequest{*name, *scope};
}

}  // namespace

Api::Answer Api::Metrics(const Call&) {
  return HttpResponse{.content_type = kMetricsContentType, .body = metrics_()};
}

Api::Answer Api::Health(const Call&) { return JsonResponse({{"status", "ok"}}); }

Api::Answer Api::Readiness(const Call&) {
  if (control_.cluster().Learning(BootClock::now())) {
    return ErrorResponse(absl::UnavailableError("learning leases from the agents after a start"));
  }
  return JsonResponse({{"status", "ok"}});
}

Api::Answer Api::GetTenants(const Call&) {
  return JsonResponse(TenantsView(control_.cluster(), BootClock::now()));
}

Api::Answer Api::GetTenant(const Call& call) {
  const auto tenant = control_.cluster().tenants().Get(call.names[0]);
  if (!tenant.ok()) return ErrorResponse(tenant.status());
  return JsonResponse(TenantView(control_.cluster(), *tenant));
}

Api::Answer Api::PutTenant(const Call& call) {
  const auto request = ReadTenantRequest(call.body, call.names[0]);
  if (!request.ok()) return ErrorResponse(request.status());
  return control_.Apply({request->spec}, request->revision)
      .then([this, name = request->spec.name](absl::StatusOr<std::vector<Tenant>> changed) {
        if (!changed.ok()) return ErrorResponse(changed.status());
        return JsonResponse(Changes(control_.cluster(), {name}, *changed));
      });
}

Api::Answer Api::DeleteTenant(const Call& call) {
  return control_.RemoveTenant(call.names[0]).then(kEmptyOrError);
}

Api::Answer Api::GetReclaims(const Call& call) {
  const auto tenant = control_.cluster().tenants().Get(call.names[0]);
  if (!tenant.ok()) return ErrorResponse(tenant.status());
  return JsonResponse(ReclaimsView(control_.cluster(), *tenant, BootClock::now()));
}

Api::Answer Api::CreateToken(const Call& call) {
  return control_.CreateToken(call.names[0]).then([](absl::StatusOr<std::string> token) {
    if (!token.ok()) return ErrorResponse(token.status());
    return JsonResponse({{"id", TokenId(Sha256(*token))}, {"token", *token}}, 201);
  });
}

Api::Answer Api::RevokeToken(const Call& call) {
  return control_.RevokeToken(call.names[0], call.names[1]).then(kEmptyOrError);
}

Api::Answer Api::Apply(const Call& call) {
  const auto json = ParseJson(call.body);
  if (!json.ok()) return ErrorResponse(json.status());
  const auto specs = TenantsFromJson(*json);
  if (!specs.ok()) return ErrorResponse(specs.status());
  std::vector<std::string> names;
  for (const TenantSpec& spec : *specs) names.push_back(spec.name);
  return control_.Apply(*specs, std::nullopt)
      .then([this, names = std::move(names)](absl::StatusOr<std::vector<Tenant>> changed) {
        if (!changed.ok()) return ErrorResponse(changed.status());
        return JsonResponse(Changes(control_.cluster(), names, *changed));
      });
}

Api::Answer Api::GetAgents(const Call&) {
  return JsonResponse(AgentsView(control_.cluster(), BootClock::now()));
}

Api::Answer Api::GetAgent(const Call& call) {
  const auto& agents = control_.cluster().agents();
  const auto agent = agents.find(call.names[0]);
  if (agent == agents.end()) {
    return ErrorResponse(
        absl::NotFoundError(absl::StrCat("agent \"", call.names[0], "\" does not exist")));
  }
  return JsonResponse(AgentView(control_.cluster(), agent->second, BootClock::now()));
}

Api::Answer Api::ForgetAgent(const Call& call) {
  return control_.ForgetAgent(call.names[0]).then(kEmptyOrError);
}

Api::Answer Api::GetOperators(const Call&) {
  return JsonResponse(OperatorsView(control_.operators()));
}

Api::Answer Api::CreateOperator(const Call& call) {
  const auto request = ReadOperatorRequest(call.body);
  if (!request.ok()) return ErrorResponse(request.status());
  return control_.CreateOperator(request->name, request->scope)
      .then([request = *request](absl::StatusOr<std::string> token) {
        if (!token.ok()) return ErrorResponse(token.status());
        return JsonResponse({{"name", request.name},
                             {"scope", ToString(request.scope)},
                             {"id", TokenId(Sha256(*token))},
                             {"token", *token}},
                            201);
      });
}

Api::Answer Api::RevokeOperator(const Call& call) {
  return control_.RevokeOperator(call.names[0]).then(kEmptyOrError);
}

}  // namespace kvpool
