// Routing and the translation of outcomes into HTTP.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/api.h"

#include <limits>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/json.h"
#include "common/metrics.h"
#include "common/tenant_json.h"
#include "manager/views.h"

namespace kvpool {
namespace {

struct HttpError {
  int status;
  const char* code;
};

HttpError ToHttp(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
      return {400, "invalid"};
    case absl::StatusCode::kUnauthenticated:
      return {401, "unauthenticated"};
    case absl::StatusCode::kNotFound:
      return {404, "not_found"};
    case absl::StatusCode::kUnimplemented:
      return {405, "method_not_allowed"};
    case absl::StatusCode::kAborted:
      return {409, "stale_revision"};
    case absl::StatusCode::kFailedPrecondition:
      return {409, "in_use"};
    case absl::StatusCode::kResourceExhausted:
      return {422, "too_many"};
    case absl::StatusCode::kUnavailable:
      return {503, "not_ready"};
    case absl::StatusCode::kCancelled:
      return {503, "not_leader"};
    case absl::StatusCode::kUnknown:
      return {503, "unknown_outcome"};
    default:
      return {500, "internal"};
  }
}

HttpResponse ErrorResponse(const absl::Status& status) {
  const auto [http, code] = ToHttp(status.code());
  HttpResponse response{.status = http, .body = JsonError(code, std::string(status.message()))};
  if (http == 401) response.headers["WWW-Authenticate"] = "Bearer";
  return response;
}

HttpResponse JsonResponse(const boost::json::object& json, int status = 200) {
  return {.status = status, .body = boost::json::serialize(json) + "\n"};
}

constexpr auto kEmptyOrError = [](const absl::Status& status) {
  return status.ok() ? JsonResponse({}) : ErrorResponse(status);
};

// To who came before it was known whom to let in.
constexpr auto kTooEarly = []() -> kj::Promise<HttpResponse> {
  return ErrorResponse(absl::UnavailableError("this manager only begins to lead; try again"));
};

std::vector<std::string> Split(const std::string& path) {
  std::vector<std::string> parts;
  for (size_t begin = 1; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    parts.push_back(path.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

absl::Status NoSuchPath(const HttpRequest& request) {
  return absl::NotFoundError(absl::StrCat("no such path: ", request.path));
}

absl::Status NoSuchMethod(const HttpRequest& request) {
  return absl::UnimplementedError(
      absl::StrCat(request.method, " is not possible for ", request.path));
}

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

}  // namespace

Api::Api(Inbox& inbox, Control& control, std::function<std::string()> metrics)
    : inbox_(inbox), control_(control), metrics_(std::move(metrics)), log_("api"), tasks_(*this) {}

void Api::taskFailed(kj::Exception&& error) {
  log_.Error("a request failed", {{"error", error.getDescription().cStr()}});
}

void Api::SetOperators(std::vector<Sha256Hash> tokens) {
  const std::lock_guard lock(mutex_);
  operator_tokens_ = std::make_shared<const std::vector<Sha256Hash>>(std::move(tokens));
}

Api::Tokens Api::OperatorTokens() {
  const std::lock_guard lock(mutex_);
  return operator_tokens_;
}

bool Api::IsOperator(const Tokens& tokens, const HttpRequest& request) {
  constexpr std::string_view kScheme = "Bearer ";
  const std::string header = request.Header("authorization");
  if (header.size() > kScheme.size() + limits::kTokenBytes || !header.starts_with(kScheme)) {
    return false;
  }
  const Sha256Hash hash = Sha256(std::string_view(header).substr(kScheme.size()));
  bool known = false;
  for (const Sha256Hash& token : *tokens) known |= EqualInConstantTime(token, hash);
  return known;
}

void Api::Handle(HttpRequest request, HttpServer::Done done) {
  const Path path = Split(request.path);
  const bool probe = path.size() == 1;
  const Tokens tokens = OperatorTokens();
  if (!probe && tokens != nullptr && !IsOperator(tokens, request)) {
    done(ErrorResponse(absl::UnauthenticatedError(
        "a valid operator token is needed: send \"Authorization: Bearer TOKEN\"")));
    return;
  }
  absl::StatusOr<Action> action = Action(kTooEarly);
  if (probe) {
    action = RouteProbe(request, path[0]);
  } else if (tokens != nullptr) {
    action = Route(request, path);
  }
  if (!action.ok()) {
    done(ErrorResponse(action.status()));
    return;
  }
  inbox_.Post([this, probe, action = *std::move(action), done = std::move(done)]() mutable {
    const absl::Status leads = control_.leadership().CheckLeads();
    if (!probe && !leads.ok()) return done(ErrorResponse(leads));
    // Whoever drops `done` uncalled has answered 500.
    tasks_.add(kj::evalNow([&] {
                 return action();
               }).then([done = std::move(done)](HttpResponse response) mutable {
      done(std::move(response));
    }));
  });
}

absl::StatusOr<Api::Action> Api::RouteProbe(const HttpRequest& request, const std::string& what) {
  if (what != "metrics" && what != "healthz" && what != "readyz") return NoSuchPath(request);
  if (request.method != "GET") return NoSuchMethod(request);
  return Action([this, what]() -> kj::Promise<HttpResponse> {
    if (what == "metrics") {
      return HttpResponse{.content_type = kMetricsContentType, .body = metrics_()};
    }
    const absl::Status leads = control_.leadership().CheckLeads();
    if (what == "readyz" && !leads.ok()) return ErrorResponse(leads);
    if (what == "readyz" && control_.cluster().Learning(BootClock::now())) {
      return ErrorResponse(absl::UnavailableError("learning leases from the agents after a start"));
    }
    return JsonResponse({{"status", "ok"}});
  });
}

absl::StatusOr<Api::Action> Api::Route(const HttpRequest& request, const Path& path) {
  if (path[0] != "v1" || path.size() > 5) return NoSuchPath(request);
  const std::string& kind = path[1];
  if (path.size() == 2) {
    if (kind == "apply") return Apply(request);
    if (kind != "tenants" && kind != "agents") return NoSuchPath(request);
    if (request.method != "GET") return NoSuchMethod(request);
    return Action([this, kind]() -> kj::Promise<HttpResponse> {
      const TimePoint now = BootClock::now();
      return JsonResponse(kind == "tenants" ? TenantsView(control_.cluster(), now)
                                            : AgentsView(control_.cluster(), now));
    });
  }
  if (kind == "agents" && path.size() == 3) return RouteAgent(request, path[2]);
  if (kind != "tenants") return NoSuchPath(request);
  if (path.size() == 3) return RouteTenant(request, path[2]);
  if (path[3] == "tokens") return RouteTokens(request, path);
  if (path[3] != "reclaims" || path.size() > 4) return NoSuchPath(request);
  if (request.method != "GET") return NoSuchMethod(request);
  return Action([this, name = path[2]]() -> kj::Promise<HttpResponse> {
    const auto tenant = control_.cluster().tenants().Get(name);
    if (!tenant.ok()) return ErrorResponse(tenant.status());
    return JsonResponse(ReclaimsView(control_.cluster(), *tenant, BootClock::now()));
  });
}

absl::StatusOr<Api::Action> Api::RouteTenant(const HttpRequest& request, const std::string& name) {
  if (request.method == "PUT") return Put(request, name);
  if (request.method == "GET") {
    return Action([this, name]() -> kj::Promise<HttpResponse> {
      const auto tenant = control_.cluster().tenants().Get(name);
      if (!tenant.ok()) return ErrorResponse(tenant.status());
      return JsonResponse(TenantView(control_.cluster(), *tenant));
    });
  }
  if (request.method == "DELETE") {
    return Action([this, name] { return control_.RemoveTenant(name).then(kEmptyOrError); });
  }
  return NoSuchMethod(request);
}

absl::StatusOr<Api::Action> Api::RouteTokens(const HttpRequest& request, const Path& path) {
  const std::string& name = path[2];
  if (path.size() == 4) {
    if (request.method != "POST") return NoSuchMethod(request);
    return Action([this, name] {
      return control_.CreateToken(name).then([](absl::StatusOr<std::string> token) {
        if (!token.ok()) return ErrorResponse(token.status());
        return JsonResponse({{"id", TokenId(Sha256(*token))}, {"token", *token}}, 201);
      });
    });
  }
  if (request.method != "DELETE") return NoSuchMethod(request);
  return Action(
      [this, name, id = path[4]] { return control_.RevokeToken(name, id).then(kEmptyOrError); });
}

absl::StatusOr<Api::Action> Api::RouteAgent(const HttpRequest& request, const std::string& name) {
  if (request.method == "GET") {
    return Action([this, name]() -> kj::Promise<HttpResponse> {
      const auto& agents = control_.cluster().agents();
      const auto agent = agents.find(name);
      if (agent == agents.end()) {
        return ErrorResponse(
            absl::NotFoundError(absl::StrCat("agent \"", name, "\" does not exist")));
      }
      return JsonResponse(AgentView(control_.cluster(), agent->second, BootClock::now()));
    });
  }
  if (request.method == "DELETE") {
    return Action([this, name] { return control_.ForgetAgent(name).then(kEmptyOrError); });
  }
  return NoSuchMethod(request);
}

absl::StatusOr<Api::Action> Api::Put(const HttpRequest& request, const std::string& name) {
  const auto json = ParseJson(request.body);
  if (!json.ok()) return json.status();
  auto object = JsonObject::From(*json, "tenant");
  if (!object.ok()) return object.status();
  auto spec = TenantFromJson(*object, name);
  if (!spec.ok()) return spec.status();
  std::optional<uint64_t> revision;
  if (object->Has("revision")) {
    const auto given = object->Integer("revision", 0, std::numeric_limits<int64_t>::max());
    if (!given.ok()) return given.status();
    revision = static_cast<uint64_t>(*given);
  }
  if (absl::Status status = object->Finish(); !status.ok()) return status;
  return Action([this, spec = *std::move(spec), revision] {
    return control_.Apply({spec}, revision)
        .then([this, name = spec.name](absl::StatusOr<std::vector<Tenant>> changed) {
          if (!changed.ok()) return ErrorResponse(changed.status());
          return JsonResponse(Changes(control_.cluster(), {name}, *changed));
        });
  });
}

absl::StatusOr<Api::Action> Api::Apply(const HttpRequest& request) {
  if (request.method != "POST") return NoSuchMethod(request);
  const auto json = ParseJson(request.body);
  if (!json.ok()) return json.status();
  auto specs = TenantsFromJson(*json);
  if (!specs.ok()) return specs.status();
  std::vector<std::string> names;
  for (const TenantSpec& spec : *specs) names.push_back(spec.name);
  return Action([this, specs = *std::move(specs), names = std::move(names)] {
    return control_.Apply(specs, std::nullopt)
        .then([this, names](absl::StatusOr<std::vector<Tenant>> changed) {
          if (!changed.ok()) return ErrorResponse(changed.status());
          return JsonResponse(Changes(control_.cluster(), names, *changed));
        });
  });
}

}  // namespace kvpool
