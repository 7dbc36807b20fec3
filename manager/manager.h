// The manager: opens the store, then serves agents and operators. Everything is put together here
// and nowhere else. Made, used and destroyed on the thread that runs the KJ loop.
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
#include "manager/agent_service.h"
#include "manager/api.h"
#include "manager/control.h"
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
  // A token that this first start has made, to be shown once.
  const std::optional<std::string>& new_operator_token() const { return new_operator_token_; }

 private:
  struct Opened {
    Control::State state;
    std::unique_ptr<Store> store;
    std::optional<std::string> new_operator_token;
  };

  static absl::StatusOr<Opened> OpenStore(const ManagerConfig& config,
                                          const ManagerSecrets& secrets);
  Manager(kj::AsyncIoContext& io, Opened opened, const ManagerSecrets& secrets);
  absl::Status Listen(kj::AsyncIoContext& io, const ManagerConfig& config);
  std::string MetricsPage();

  std::optional<std::string> new_operator_token_;
  Control control_;
  AgentService agents_;
  ManagerMetrics metrics_;
  Inbox inbox_;
  Api api_;
  std::unique_ptr<RpcListener> listener_;
  std::unique_ptr<HttpServer> http_;  // destroyed first: its thread posts to the inbox
};

// Runs a manager until SIGINT or SIGTERM.
absl::Status RunManager(const ManagerConfig& config, const ManagerSecrets& secrets);

}  // namespace kvpool
