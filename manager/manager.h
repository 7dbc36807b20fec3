// The manager: opens the store, then serves agents and operators while it leads, and stands by
// while another manager does. Everything is put together here and nowhere else. Made, used and
// destroyed on the thread that runs the KJ loop.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kj/async-io.h>

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/http_server.h"
#include "common/kj_asio.h"
#include "common/rpc_listener.h"
#include "common/tls.h"
#include "manager/agent_service.h"
#include "manager/api.h"
#include "manager/control.h"
#include "manager/leadership.h"
#include "manager/manager_config.h"
#include "manager/manager_metrics.h"

namespace kvpool {

class Manager {
 public:
  static absl::StatusOr<std::unique_ptr<Manager>> Start(kj::AsyncIoContext& io,
                                                        const ManagerConfig& config,
                                                        const ManagerSecrets& secrets);

  // With the ports that were picked, where the settings say 0.
  const Address& agents_address() const { return listener_->address(); }
  const HostPort& http_address() const { return http_->address(); }
  const Leadership& leadership() const { return leadership_; }
  // A token that was made because the store had none. It was printed, this once.
  const std::optional<std::string>& new_operator_token() const { return new_operator_token_; }

 private:
  static absl::StatusOr<std::unique_ptr<Store>> OpenStore(const ManagerConfig& config,
                                                          const ManagerSecrets& secrets);
  Manager(kj::AsyncIoContext& io, const ManagerConfig& config, const ManagerSecrets& secrets,
          std::unique_ptr<Store> store);
  kj::Promise<void> BeginToLead(Office office);
  absl::Status Listen(kj::AsyncIoContext& io);
  std::string MetricsPage();

  const ManagerConfig config_;
  const std::shared_ptr<TlsSource> agents_tls_, http_tls_, etcd_tls_;  // null: in the clear
  const std::optional<Sha256Hash> configured_operator_;
  std::optional<std::string> new_operator_token_;
  Leadership leadership_;
  Control control_;
  AgentService agents_;
  ManagerMetrics metrics_;
  Inbox inbox_;
  Api api_;
  kj::Promise<void> replacing_ = kj::READY_NOW;  // of the cluster, by an event
  std::unique_ptr<RpcListener> listener_;
  std::unique_ptr<HttpServer> http_;  // destroyed first: its thread posts to the inbox
};

// Runs a manager until SIGINT or SIGTERM.
absl::Status RunManager(const ManagerConfig& config, const ManagerSecrets& secrets);

}  // namespace kvpool
