// Putting the parts together.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/manager.h"

#include <kj/async-unix.h>
#include <signal.h>

#include <algorithm>
#include <iostream>
#include <utility>

#include "common/log.h"
#include "manager/records.h"
#include "manager/sqlite_store.h"

namespace kvpool {

absl::StatusOr<Manager::Opened> Manager::OpenStore(const ManagerConfig& config,
                                                   const ManagerSecrets& secrets) {
  absl::StatusOr<std::unique_ptr<SqliteStore>> store = SqliteStore::Open(config.database);
  if (!store.ok()) return store.status();
  const absl::StatusOr<Store::Contents> contents = (*store)->Begin();
  if (!contents.ok()) return contents.status();
  absl::StatusOr<Records> records = ReadRecords(*contents);
  if (!records.ok()) return records.status();
  AuditLog audit(std::move(records->audit));
  std::optional<Sha256Hash> configured;
  std::optional<std::string> new_token;
  if (secrets.operator_token.has_value()) {
    configured = Sha256(*secrets.operator_token);
  } else if (std::none_of(records->operators.begin(), records->operators.end(),
                          [](const Operator& each) { return each.scope == Scope::kAdmin; })) {
    absl::StatusOr<std::string> token = NewToken();
    if (!token.ok()) return token.status();
    const Sha256Hash hash = Sha256(*token);
    const Operator first{.name = NameOfFirst(hash), .scope = Scope::kAdmin, .token = hash};
    const auto entries = audit.Number({OperatorCreated("manager", first)});
    Store::Changes changes = SaveOperator(first);
    changes.merge(SaveAudit(entries, audit.Dropped(entries.size())));
    if (absl::Status status = (*store)->Write(changes); !status.ok()) return status;
    audit.Commit(entries);
    records->operators.push_back(first);
    new_token = *std::move(token);
  }
  TenantTable tenants(std::move(records->tenants), records->next_tenant_id);
  Cluster cluster({.epoch = contents->epoch,
                   .tenants = std::move(tenants),
                   .known_agents = std::move(records->agents),
                   .learn_until = BootClock::now() + config.learning,
                   .oversubscription_percent = config.oversubscription_percent});
  return Opened{.state = {.cluster = std::move(cluster),
                          .operators = OperatorTable(records->operators, configured),
                          .audit = std::move(audit)},
                .store = *std::move(store),
                .new_operator_token = std::move(new_token)};
}

Manager::Manager(kj::AsyncIoContext& io, Opened opened, const ManagerSecrets& secrets)
    : new_operator_token_(std::move(opened.new_operator_token)),
      control_(std::move(opened.state), std::move(opened.store)),
      agents_(control_, secrets.agent_token),
      inbox_(io.unixEventPort),
      api_(inbox_, control_, [this] { return MetricsPage(); }) {
  control_.RemoveLeft();
}

std::string Manager::MetricsPage() {
  metrics_.Update(control_.cluster(), agents_.counters(), listener_->counters(), http_->counters(),
                  BootClock::now());
  return metrics_.Serialize();
}

absl::Status Manager::Listen(kj::AsyncIoContext& io, const ManagerConfig& config) {
  const absl::StatusOr<HostPort> agents = ParseHostPort(config.agents);
  if (!agents.ok()) return agents.status();
  auto listener =
      RpcListener::Listen(*io.lowLevelProvider,
                          {.address = *agents, .connections = limits::kAgents}, agents_.Factory());
  if (!listener.ok()) return listener.status();
  listener_ = *std::move(listener);

  const absl::StatusOr<HostPort> http = ParseHostPort(config.http);
  if (!http.ok()) return http.status();
  auto server =
      HttpServer::Start({.address = *http}, [this](HttpRequest request, HttpServer::Done done) {
        api_.Handle(std::move(request), std::move(done));
      });
  if (!server.ok()) return server.status();
  http_ = *std::move(server);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Manager>> Manager::Start(kj::AsyncIoContext& io,
                                                        const ManagerConfig& config,
                                                        const ManagerSecrets& secrets) {
  absl::StatusOr<Opened> opened = OpenStore(config, secrets);
  if (!opened.ok()) return opened.status();
  std::unique_ptr<Manager> manager(new Manager(io, *std::move(opened), secrets));
  if (absl::Status status = manager->Listen(io, config); !status.ok()) return status;
  return manager;
}

absl::Status RunManager(const ManagerConfig& config, const ManagerSecrets& secrets) {
  kj::UnixEventPort::captureSignal(SIGINT);
  kj::UnixEventPort::captureSignal(SIGTERM);
  kj::AsyncIoContext io = kj::setupAsyncIo();
  const KjLogScope kj_logs;
  auto manager = Manager::Start(io, config, secrets);
  if (!manager.ok()) return manager.status();
  if ((*manager)->new_operator_token().has_value()) {
    std::cout << "operator token, shown this once: " << *(*manager)->new_operator_token()
              << std::endl;
  }
  const Logger log("manager");
  log.Info("manager started", {{"agents", ToString((*manager)->agents_address())},
                               {"http", ToString((*manager)->http_address())}});
  const siginfo_t signal = io.unixEventPort.onSignal(SIGTERM)
                               .exclusiveJoin(io.unixEventPort.onSignal(SIGINT))
                               .wait(io.waitScope);
  log.Info("manager stops", {{"signal", signal.si_signo}});
  return absl::OkStatus();
}

}  // namespace kvpool
