// From a request to its endpoint: paths, tokens, scopes. What each endpoint answers is in
// api_answers.cc.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/api.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/secret.h"
#include "manager/http_replies.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

std::vector<std::string> Split(const std::string& path) {
  std::vector<std::string> parts;
  for (size_t begin = 1; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    parts.push_back(path.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

// What stands for the {parts} of `pattern`; none when it is another path.
std::optional<std::vector<std::string>> Match(const std::vector<std::string>& pattern,
                                              const std::vector<std::string>& path) {
  if (pattern.size() != path.size()) return std::nullopt;
  std::vector<std::string> names;
  for (size_t i = 0; i < path.size(); ++i) {
    if (pattern[i].starts_with('{')) {
      names.push_back(path[i]);
    } else if (pattern[i] != path[i]) {
      return std::nullopt;
    }
  }
  return names;
}

// "limit=3&tenant=chat". Values are names and numbers, so nothing needs decoding.
absl::StatusOr<std::map<std::string, std::string>> ReadQuery(
    const std::string& query, const std::vector<std::string>& known) {
  std::map<std::string, std::string> values;
  for (size_t begin = 0; begin < query.size();) {
    const size_t end = std::min(query.find('&', begin), query.size());
    const std::string part = query.substr(begin, end - begin);
    const size_t equals = std::min(part.find('='), part.size());
    const std::string name = part.substr(0, equals);
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the query \"", query, "\" has a parameter that is not known here; there ",
                       known.empty() ? "is none" : "are: " + absl::StrJoin(known, ", ")));
    }
    if (equals == part.size() || !values.emplace(name, part.substr(equals + 1)).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("the query's \"", name, "\" must be there once, with a value"));
    }
    begin = end + 1;
  }
  return values;
}

}  // namespace

const std::vector<Api::Endpoint>& Api::Endpoints() {
  static const std::vector<Endpoint> endpoints = {
      {"GET", {"metrics"}, std::nullopt, &Api::Metrics},
      {"GET", {"healthz"}, std::nullopt, &Api::Health},
      {"GET", {"readyz"}, std::nullopt, &Api::Readiness},
      {"GET", {"v1", "openapi.json"}, std::nullopt, &Api::OpenApi},
      {"GET", {"v1", "tenants"}, Scope::kRead, &Api::GetTenants},
      {"GET", {"v1", "tenants", "{tenant}"}, Scope::kRead, &Api::GetTenant},
      {"PUT", {"v1", "tenants", "{tenant}"}, Scope::kOperate, &Api::PutTenant, {"dry_run"}},
      {"DELETE", {"v1", "tenants", "{tenant}"}, Scope::kOperate, &Api::DeleteTenant, {"dry_run"}},
      {"GET", {"v1", "tenants", "{tenant}", "reclaims"}, Scope::kRead, &Api::GetReclaims},
      {"GET", {"v1", "tenants", "{tenant}", "explain"}, Scope::kRead, &Api::ExplainTenant},
      {"POST", {"v1", "tenants", "{tenant}", "tokens"}, Scope::kAdmin, &Api::CreateToken},
      {"DELETE",
       {"v1", "tenants", "{tenant}", "tokens", "{token}"},
       Scope::kAdmin,
       &Api::RevokeToken},
      {"POST", {"v1", "apply"}, Scope::kOperate, &Api::Apply, {"dry_run"}},
      {"GET", {"v1", "agents"}, Scope::kRead, &Api::GetAgents},
      {"GET", {"v1", "agents", "{agent}"}, Scope::kRead, &Api::GetAgent},
      {"DELETE", {"v1", "agents", "{agent}"}, Scope::kOperate, &Api::ForgetAgent, {"dry_run"}},
      {"POST",
       {"v1", "agents", "{agent}", "drain"},
       Scope::kOperate,
       &Api::DrainAgent,
       {"dry_run"}},
      {"POST",
       {"v1", "agents", "{agent}", "undrain"},
       Scope::kOperate,
       &Api::UndrainAgent,
       {"dry_run"}},
      {"GET", {"v1", "audit"}, Scope::kAdmin, &Api::GetAudit, {"after", "limit", "tenant"}},
      {"GET", {"v1", "operators"}, Scope::kAdmin, &Api::GetOperators},
      {"POST", {"v1", "operators"}, Scope::kAdmin, &Api::CreateOperator},
      {"DELETE", {"v1", "operators", "{operator}"}, Scope::kAdmin, &Api::RevokeOperator},
  };
  return endpoints;
}

std::map<std::string, std::optional<Scope>> Api::Operations() {
  std::map<std::string, std::optional<Scope>> operations;
  for (const Endpoint& each : Endpoints()) {
    operations[absl::StrCat(each.method, " /", absl::StrJoin(each.path, "/"))] = each.scope;
  }
  return operations;
}

Api::Api(Inbox& inbox, Control& control, std::function<std::string()> metrics)
    : inbox_(inbox), control_(control), metrics_(std::move(metrics)), log_("api"), tasks_(*this) {}

void Api::taskFailed(kj::Exception&& error) {
  log_.Error("a request failed", {{"error", error.getDescription().cStr()}});
}

void Api::Handle(HttpRequest request, HttpServer::Done done) {
  inbox_.Post([this, request = std::move(request), done = std::move(done)]() mutable {
    // Whoever drops `done` uncalled has answered 500.
    tasks_.add(kj::evalNow([&] {
                 return Dispatch(request);
               }).then([done = std::move(done)](HttpResponse response) mutable {
      done(std::move(response));
    }));
  });
}

absl::StatusOr<const Operator*> Api::Authenticate(const HttpRequest& request) const {
  constexpr std::string_view kScheme = "Bearer ";
  const std::string header = request.Header("authorization");
  const Operator* found = nullptr;
  if (header.size() <= kScheme.size() + limits::kTokenBytes && header.starts_with(kScheme)) {
    found =
        control_.operators().FindByToken(Sha256(std::string_view(header).substr(kScheme.size())));
  }
  if (found != nullptr) return found;
  return absl::UnauthenticatedError(
      "a valid operator token is needed: send \"Authorization: Bearer TOKEN\"");
}

// Nothing but a 401 is told to those without a token, whatever they ask for below /v1.
Api::Answer Api::Dispatch(const HttpRequest& request) {
  const Path path = Split(request.path);
  const Endpoint* endpoint = nullptr;
  Call call{.body = request.body};
  bool known_path = false;
  for (const Endpoint& each : Endpoints()) {
    std::optional<Path> names = Match(each.path, path);
    if (!names.has_value()) continue;
    known_path = true;
    if (each.method != request.method) continue;
    endpoint = &each;
    call.names = *std::move(names);
  }
  const bool open = endpoint != nullptr && !endpoint->scope.has_value();
  if (const absl::Status leads = control_.leadership().CheckLeads(); !open && !leads.ok()) {
    return ErrorResponse(leads);
  }
  Scope scope = Scope::kRead;
  if (path.size() > 1 && (endpoint == nullptr || endpoint->scope.has_value())) {
    const auto asker = Authenticate(request);
    if (!asker.ok()) return ErrorResponse(asker.status());
    call.actor = (*asker)->name;
    scope = (*asker)->scope;
  }
  if (!known_path) {
    return ErrorResponse(absl::NotFoundError(absl::StrCat("no such path: ", request.path)));
  }
  if (endpoint == nullptr) {
    return ErrorResponse(absl::UnimplementedError(
        absl::StrCat(request.method, " is not possible for ", request.path)));
  }
  if (endpoint->scope.has_value() && scope < *endpoint->scope) {
    return ErrorResponse(absl::PermissionDeniedError(absl::StrCat(
        request.method, " ", request.path, " takes the scope ", ToString(*endpoint->scope),
        "; operator \"", call.actor, "\" has ", ToString(scope))));
  }
  auto query = ReadQuery(request.query, endpoint->query);
  if (!query.ok()) return ErrorResponse(query.status());
  call.query = *std::move(query);
  return (this->*endpoint->answer)(call);
}

}  // namespace kvpool
