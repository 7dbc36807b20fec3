// The operator API over HTTP: who may ask, which path means what, JSON in and out. What it does
// is Control's, what it shows is views.h. docs/operating.md lists the paths.
//
// Handle runs on the HTTP server's thread: it checks the token and parses; the rest runs on the RPC
// thread, which owns the cluster. Made and destroyed on the RPC thread, after the server stopped.
// A manager that stands by answers /healthz and /metrics, and everything else with 503 and who
// leads.
//
//   GET                 /v1/tenants            GET PUT DELETE  /v1/tenants/NAME
//   GET                 /v1/tenants/NAME/reclaims
//   POST                /v1/tenants/NAME/tokens       DELETE   /v1/tenants/NAME/tokens/ID
//   POST                /v1/apply
//   GET                 /v1/agents             GET DELETE      /v1/agents/NAME
//   GET without token   /metrics /healthz /readyz
//
// Errors are {"error": {"code": "not_found", "message": "..."}}.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kj/async.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/http_server.h"
#include "common/kj_asio.h"
#include "common/log.h"
#include "common/secret.h"
#include "manager/control.h"

namespace kvpool {

class Api final : private kj::TaskSet::ErrorHandler {
 public:
  // `metrics` returns the text of /metrics; it is called on the RPC thread.
  // Until SetOperators every request under /v1 is answered as one that another manager must get.
  Api(Inbox& inbox, Control& control, std::function<std::string()> metrics);

  // Whom to let in from now on.
  void SetOperators(std::vector<Sha256Hash> tokens);

  void Handle(HttpRequest request, HttpServer::Done done);

 private:
  // What is left to do on the RPC thread.
  using Action = kj::Function<kj::Promise<HttpResponse>()>;
  using Path = std::vector<std::string>;

  using Tokens = std::shared_ptr<const std::vector<Sha256Hash>>;

  static bool IsOperator(const Tokens& tokens, const HttpRequest& request);
  Tokens OperatorTokens();
  absl::StatusOr<Action> Route(const HttpRequest& request, const Path& path);
  absl::StatusOr<Action> RouteProbe(const HttpRequest& request, const std::string& what);
  absl::StatusOr<Action> RouteTenant(const HttpRequest& request, const std::string& name);
  absl::StatusOr<Action> RouteTokens(const HttpRequest& request, const Path& path);
  absl::StatusOr<Action> RouteAgent(const HttpRequest& request, const std::string& name);
  absl::StatusOr<Action> Put(const HttpRequest& request, const std::string& name);
  absl::StatusOr<Action> Apply(const HttpRequest& request);
  void taskFailed(kj::Exception&& error) override;

  Inbox& inbox_;
  Control& control_;
  const std::function<std::string()> metrics_;
  const Logger log_;
  std::mutex mutex_;
  Tokens operator_tokens_;  // guarded by mutex_; null before SetOperators
  kj::TaskSet tasks_;
};

}  // namespace kvpool
