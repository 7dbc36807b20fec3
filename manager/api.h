// The operator API over HTTP: who may ask, which path means what, JSON in and out. What it does
// is Control's, what it shows is views.h. docs/operating.md lists the paths.
//
// Handle is called on the HTTP server's thread and only passes on: everything else runs on the RPC
// thread, which owns the cluster and the operators. Made and destroyed on the RPC thread, after the
// server stopped. A manager that stands by answers what needs no token, and
// everything else with 503 and who leads.
//
// Errors are {"error": {"code": "not_found", "message": "..."}}.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kj/async.h>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/http_server.h"
#include "common/kj_asio.h"
#include "common/log.h"
#include "manager/control.h"

namespace kvpool {

class Api final : private kj::TaskSet::ErrorHandler {
 public:
  // `metrics` returns the text of /metrics; it is called on the RPC thread.
  Api(Inbox& inbox, Control& control, std::function<std::string()> metrics);

  void Handle(HttpRequest request, HttpServer::Done done);

  // What there is, and the scope that it takes: "PUT /v1/tenants/{tenant}" -> operate; none without
  // a token.
  static std::map<std::string, std::optional<Scope>> Operations();

 private:
  using Path = std::vector<std::string>;
  using Answer = kj::Promise<HttpResponse>;

  // One request that has found its endpoint and may have it.
  struct Call {
    std::string actor;  // the operator's name; empty where no token is asked for
    Path names;         // what stands for the {parts} of the path, in order
    std::map<std::string, std::string> query;
    std::string body;
  };
  // Who asks for a change, and whether as a rehearsal.
  static absl::StatusOr<Asker> AskerOf(const Call& call);
  struct Endpoint {
    std::string method;
    Path path;                   // "v1", "tenants", "{tenant}"
    std::optional<Scope> scope;  // what it takes; none: anybody, without a token
    Answer (Api::*answer)(const Call&);
    std::vector<std::string> query = {};  // the parameters that it knows
  };
  static const std::vector<Endpoint>& Endpoints();

  absl::StatusOr<const Operator*> Authenticate(const HttpRequest& request) const;
  Answer Dispatch(const HttpRequest& request);

  Answer Metrics(const Call& call);
  Answer Health(const Call& call);
  Answer Readiness(const Call& call);
  Answer OpenApi(const Call& call);
  Answer GetTenants(const Call& call);
  Answer GetTenant(const Call& call);
  Answer PutTenant(const Call& call);
  Answer DeleteTenant(const Call& call);
  Answer ApplyAll(const Asker& asker, const std::vector<TenantSpec>& specs,
                  std::optional<uint64_t> revision);
  Answer GetReclaims(const Call& call);
  Answer CreateToken(const Call& call);
  Answer RevokeToken(const Call& call);
  Answer Apply(const Call& call);
  Answer GetAgents(const Call& call);
  Answer GetAgent(const Call& call);
  Answer ExplainTenant(const Call& call);
  Answer DrainAgent(const Call& call);
  Answer UndrainAgent(const Call& call);
  Answer SetDrain(const Call& call, Drain drain);
  Answer ForgetAgent(const Call& call);
  Answer GetAudit(const Call& call);
  Answer GetOperators(const Call& call);
  Answer CreateOperator(const Call& call);
  Answer RevokeOperator(const Call& call);
  void taskFailed(kj::Exception&& error) override;

  Inbox& inbox_;
  Control& control_;
  const std::function<std::string()> metrics_;
  const Logger log_;
  kj::TaskSet tasks_;
};

}  // namespace kvpool
