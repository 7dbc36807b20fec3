// Putting the parts together.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/manager.h"

#include <kj/async-unix.h>
#include <signal.h>

#include <iostream>
#include <utility>

#include "common/log.h"
#include "manager/etcd_store.h"
#include "manager/records.h"
#include "manager/sqlite_store.h"

namespace kvpool {

namespace {

std::optional<Sha256Hash> HashOf(const std::optional<std::string>& token) {
  if (!token.has_value()) return std::nullopt;
  return Sha256(*token);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Store>> Manager::OpenStore(const ManagerConfig& config,
                                                          const ManagerSecrets& secrets) {
  if (config.store == "sqlite") return SqliteStore::Open(config.database);
  absl::StatusOr<HttpServers> members = ParseHttpServers(config.etcd_endpoints);
  if (!members.ok()) return members.status();
  return std::make_unique<EtcdStore>(
      EtcdStoreOptions{.endpoints = std::move(members->addresses),
                       .tls = secrets.etcd_tls,
                       .user = config.etcd_user,
                       .password = secrets.etcd_password,
                       .prefix = config.etcd_prefix,
                       .ttl = config.etcd_ttl,
                       .advertise = config.advertise.empty() ? config.http : config.advertise});
}

Manager::Manager(kj::AsyncIoContext& io, const ManagerConfig& config, const ManagerSecrets& secrets,
                 std::unique_ptr<Store> store)
    : config_(config),
      agents_tls_(secrets.agents_tls),
      http_tls_(secrets.http_tls),
      etcd_tls_(secrets.etcd_tls),
      configured_operator_(HashOf(secrets.operator_token)),
      leadership_(io.provider->getTimer(), std::move(store),
                  {.operator_token = secrets.operator_token,
                   .on_elected = [this](Office office) { return BeginToLead(std::move(office)); },
                   .on_lost = [this] { replacing_ = control_.Replace({}); }}),
      control_(leadership_),
      agents_(control_, io.provider->getTimer(), secrets.agent_token),
      inbox_(io.unixEventPort),
      api_(inbox_, control_, [this] { return MetricsPage(); }) {}

kj::Promise<void> Manager::BeginToLead(Office office) {
  if (office.new_operator_token.has_value()) {
    new_operator_token_ = std::move(office.new_operator_token);
    std::cout << "operator token, shown this once: " << *new_operator_token_ << std::endl;
  }
  Records& records = office.records;
  Cluster cluster({.epoch = office.epoch,
                   .tenants = TenantTable(std::move(records.tenants), records.next_tenant_id),
                   .known_agents = std::move(records.agents),
                   .learn_until = BootClock::now() + config_.learning,
                   .oversubscription_percent = config_.oversubscription_percent});
  return control_
      .Replace({.cluster = std::move(cluster),
                .operators = OperatorTable(records.operators, configured_operator_),
                .audit = AuditLog(std::move(records.audit))})
      .then([this] { control_.RemoveLeft(); });
}

std::string Manager::MetricsPage() {
  metrics_.UpdateTls({{"agents", agents_tls_}, {"http", http_tls_}, {"etcd", etcd_tls_}});
  metrics_.Update(control_.cluster(), leadership_, agents_.counters(), listener_->counters(),
                  http_->counters(), BootClock::now());
  return metrics_.Serialize();
}

absl::Status Manager::Listen(kj::AsyncIoContext& io) {
  const absl::StatusOr<HostPort> agents = ParseHostPort(config_.agents);
  if (!agents.ok()) return agents.status();
  auto listener = RpcListener::Listen(
      *io.lowLevelProvider,
      {.address = *agents, .connections = limits::kAgents, .tls = agents_tls_}, agents_.Factory());
  if (!listener.ok()) return listener.status();
  listener_ = *std::move(listener);

  const absl::StatusOr<HostPort> http = ParseHostPort(config_.http);
  if (!http.ok()) return http.status();
  auto server = HttpServer::Start({.address = *http, .tls = http_tls_},
                                  [this](HttpRequest request, HttpServer::Done done) {
                                    api_.Handle(std::move(request), std::move(done));
                                  });
  if (!server.ok()) return server.status();
  http_ = *std::move(server);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Manager>> Manager::Start(kj::AsyncIoContext& io,
                                                        const ManagerConfig& config,
                                                        const ManagerSecrets& secrets) {
  absl::StatusOr<std::unique_ptr<Store>> store = OpenStore(config, secrets);
  if (!store.ok()) return store.status();
  std::unique_ptr<Manager> manager(new Manager(io, config, secrets, *std::move(store)));
  absl::StatusOr<std::optional<Office>> office = manager->leadership_.Start();
  if (!office.ok()) return office.status();
  if (office->has_value()) manager->replacing_ = manager->BeginToLead(**std::move(office));
  if (absl::Status status = manager->Listen(io); !status.ok()) return status;
  return manager;
}

absl::Status RunManager(const ManagerConfig& config, const ManagerSecrets& secrets) {
  kj::UnixEventPort::captureSignal(SIGINT);
  kj::UnixEventPort::captureSignal(SIGTERM);
  kj::AsyncIoContext io = kj::setupAsyncIo();
  const KjLogScope kj_logs;
  auto manager = Manager::Start(io, config, secrets);
  if (!manager.ok()) return manager.status();
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
