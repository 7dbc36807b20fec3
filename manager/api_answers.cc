// What each endpoint of the operator API answers.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/json.h"
#include "common/metrics.h"
#include "common/tenant_json.h"
#include "manager/api.h"
#include "manager/explain.h"
#include "manager/http_replies.h"
#include "manager/openapi.h"
#include "manager/views.h"

namespace kvpool {
namespace {

constexpr auto kEmptyOrError = [](const absl::Status& status) {
  return status.ok() ? JsonResponse({}) : ErrorResponse(status);
};

auto RehearsalOrEmpty(Effect effect) {
  return [effect](const absl::StatusOr<Outcome>& outcome) {
    if (!outcome.ok()) return ErrorResponse(outcome.status());
    return JsonResponse(effect == Effect::kRehearse ? RehearsalView(*outcome)
                                                    : boost::json::object());
  };
}

// The answer to a change of tenants: what became of each.
boost::json::object Changes(const Cluster& cluster, const std::vector<TenantSpec>& specs,
                            const std::vector<AuditEntry>& changes) {
  boost::json::array tenants;
  for (const TenantSpec& spec : specs) {
    const auto change = std::find_if(changes.begin(), changes.end(), [&](const AuditEntry& each) {
      return each.name == spec.name;
    });
    boost::json::object tenant{{"name", spec.name}};
    if (change == changes.end()) {
      tenant["change"] = "unchanged";
      const Tenant* now = cluster.tenants().Find(spec.name);
      tenant["revision"] = now == nullptr ? 0 : now->revision;
    } else {
      tenant["change"] = change->before.is_null() ? "created" : "updated";
      tenant["revision"] = change->revision;
    }
    boost::json::array notes;
    for (const std::string& note : BudgetNotes(cluster, spec)) notes.emplace_back(note);
    tenant["notes"] = std::move(notes);
    tenants.push_back(std::move(tenant));
  }
  return {{"tenants", std::move(tenants)}};
}

// A whole number of the query, or `otherwise` where it is not given.
absl::StatusOr<uint64_t> QueryNumber(const std::map<std::string, std::string>& query,
                                     const std::string& name, uint64_t otherwise, uint64_t most) {
  const auto given = query.find(name);
  if (given == query.end()) return otherwise;
  uint64_t number = 0;
  if (absl::SimpleAtoi(given->second, &number) && number <= most) return number;
  return absl::InvalidArgumentError(
      absl::StrCat("the query's \"", name, "\" must be a whole number, at most ", most));
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
  if (const absl::Status leads = control_.leadership().CheckLeads(); !leads.ok()) {
    return ErrorResponse(leads);
  }
  if (control_.cluster().Learning(BootClock::now())) {
    return ErrorResponse(absl::UnavailableError("learning leases from the agents after a start"));
  }
  return JsonResponse({{"status", "ok"}});
}

Api::Answer Api::OpenApi(const Call&) { return HttpResponse{.body = kOpenApiDocument}; }

Api::Answer Api::GetTenants(const Call&) {
  return JsonResponse(TenantsView(control_.cluster(), BootClock::now()));
}

Api::Answer Api::GetTenant(const Call& call) {
  const auto tenant = control_.cluster().tenants().Get(call.names[0]);
  if (!tenant.ok()) return ErrorResponse(tenant.status());
  return JsonResponse(TenantView(control_.cluster(), *tenant));
}

absl::StatusOr<Asker> Api::AskerOf(const Call& call) {
  Asker asker{.actor = call.actor};
  const auto given = call.query.find("dry_run");
  if (given == call.query.end()) return asker;
  if (given->second != "true" && given->second != "false") {
    return absl::InvalidArgumentError("the query's \"dry_run\" must be true or false");
  }
  if (given->second == "true") asker.effect = Effect::kRehearse;
  return asker;
}

Api::Answer Api::PutTenant(const Call& call) {
  const auto asker = AskerOf(call);
  if (!asker.ok()) return ErrorResponse(asker.status());
  const auto request = ReadTenantRequest(call.body, call.names[0]);
  if (!request.ok()) return ErrorResponse(request.status());
  return ApplyAll(*asker, {request->spec}, request->revision);
}

Api::Answer Api::ApplyAll(const Asker& asker, const std::vector<TenantSpec>& specs,
                          std::optional<uint64_t> revision) {
  return control_.Apply(asker, specs, revision)
      .then([this, specs, effect = asker.effect](absl::StatusOr<Outcome> outcome) {
        if (!outcome.ok()) return ErrorResponse(outcome.status());
        return JsonResponse(effect == Effect::kRehearse
                                ? RehearsalView(*outcome)
                                : Changes(control_.cluster(), specs, outcome->changes));
      });
}

Api::Answer Api::DeleteTenant(const Call& call) {
  const auto asker = AskerOf(call);
  if (!asker.ok()) return ErrorResponse(asker.status());
  return control_.RemoveTenant(*asker, call.names[0])
      .then([this, name = call.names[0],
             effect = asker->effect](const absl::StatusOr<Outcome>& outcome) {
        const Tenant* left = control_.cluster().tenants().Find(name);
        if (effect == Effect::kRehearse || !outcome.ok() || left == nullptr || !left->leaving) {
          return RehearsalOrEmpty(effect)(outcome);
        }
        return JsonResponse(TenantView(control_.cluster(), *left), 202);
      });
}

Api::Answer Api::GetReclaims(const Call& call) {
  const auto tenant = control_.cluster().tenants().Get(call.names[0]);
  if (!tenant.ok()) return ErrorResponse(tenant.status());
  return JsonResponse(ReclaimsView(control_.cluster(), *tenant, BootClock::now()));
}

Api::Answer Api::CreateToken(const Call& call) {
  return control_.CreateToken(call.actor, call.names[0])
      .then([](absl::StatusOr<std::string> token) {
        if (!token.ok()) return ErrorResponse(token.status());
        return JsonResponse({{"id", TokenId(Sha256(*token))}, {"token", *token}}, 201);
      });
}

Api::Answer Api::RevokeToken(const Call& call) {
  return control_.RevokeToken(call.actor, call.names[0], call.names[1]).then(kEmptyOrError);
}

Api::Answer Api::Apply(const Call& call) {
  const auto asker = AskerOf(call);
  if (!asker.ok()) return ErrorResponse(asker.status());
  const auto json = ParseJson(call.body);
  if (!json.ok()) return ErrorResponse(json.status());
  const auto specs = TenantsFromJson(*json);
  if (!specs.ok()) return ErrorResponse(specs.status());
  return ApplyAll(*asker, *specs, std::nullopt);
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

Api::Answer Api::ExplainTenant(const Call& call) {
  const auto tenant = control_.cluster().tenants().Get(call.names[0]);
  if (!tenant.ok()) return ErrorResponse(tenant.status());
  return JsonResponse(ExplainView(control_.cluster(), *tenant, BootClock::now()));
}

Api::Answer Api::SetDrain(const Call& call, Drain drain) {
  const auto asker = AskerOf(call);
  if (!asker.ok()) return ErrorResponse(asker.status());
  return control_.DrainAgent(*asker, call.names[0], drain).then(RehearsalOrEmpty(asker->effect));
}

Api::Answer Api::DrainAgent(const Call& call) { return SetDrain(call, Drain::kOn); }

Api::Answer Api::UndrainAgent(const Call& call) { return SetDrain(call, Drain::kOff); }

Api::Answer Api::ForgetAgent(const Call& call) {
  const auto asker = AskerOf(call);
  if (!asker.ok()) return ErrorResponse(asker.status());
  return control_.ForgetAgent(*asker, call.names[0]).then(RehearsalOrEmpty(asker->effect));
}

Api::Answer Api::GetAudit(const Call& call) {
  constexpr uint64_t kUsual = 100;
  const auto limit = QueryNumber(call.query, "limit", kUsual, limits::kAuditReply);
  if (!limit.ok()) return ErrorResponse(limit.status());
  const auto after = QueryNumber(call.query, "after", 0, std::numeric_limits<int64_t>::max());
  if (!after.ok()) return ErrorResponse(after.status());
  AuditQuery query{.limit = *limit};
  if (call.query.contains("after")) query.after = *after;
  if (const auto tenant = call.query.find("tenant"); tenant != call.query.end()) {
    query.tenant = tenant->second;
  }
  boost::json::array entries;
  for (const AuditEntry& entry : control_.audit().Find(query)) entries.push_back(ToJson(entry));
  return JsonResponse({{"entries", std::move(entries)}});
}

Api::Answer Api::GetOperators(const Call&) {
  return JsonResponse(OperatorsView(control_.operators()));
}

Api::Answer Api::CreateOperator(const Call& call) {
  const auto request = ReadOperatorRequest(call.body);
  if (!request.ok()) return ErrorResponse(request.status());
  return control_.CreateOperator(call.actor, request->name, request->scope)
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
  return control_.RevokeOperator(call.actor, call.names[0]).then(kEmptyOrError);
}

}  // namespace kvpool
