// The settings of kvpool-manager, and the secrets in the files they name. Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/config.h"
#include "common/tls.h"
#include "proto/limits.h"

namespace kvpool {

struct ManagerConfig {
  std::string agents = "127.0.0.1:7600";
  std::string tls_certificate, tls_key, tls_ca;
  std::string http = "127.0.0.1:7610";
  std::string http_tls_certificate, http_tls_key;
  std::string store = "sqlite";
  std::string database = "/var/lib/kvpool/manager.db";
  std::string etcd_endpoints = "127.0.0.1:2379";
  std::string etcd_prefix = "/kvpool";
  Duration etcd_ttl = std::chrono::seconds(5);
  std::string etcd_user;
  std::string etcd_password_file;
  std::string etcd_ca, etcd_certificate, etcd_key;
  std::string advertise;
  std::string agent_token_file;
  std::string operator_token_file;
  Duration learning = std::max<Duration>(std::chrono::seconds(5),
                                         std::chrono::milliseconds(3 * limits::kReportMillis));
  int64_t oversubscription_percent = 400;
  std::string log_level = "info";
  std::string log_format = "text";
};

void Declare(ManagerConfig* config, Settings* settings);

// Checks what no single setting can tell: InvalidArgument says which ones do not fit together.
absl::Status CheckTogether(const ManagerConfig& config);

struct ManagerSecrets {
  std::string agent_token;
  std::optional<std::string> operator_token;  // when a file was named
  std::string etcd_password;                  // with etcd_user
  // Null where the settings ask for no TLS.
  std::shared_ptr<TlsSource> agents_tls, http_tls, etcd_tls;
};

// Warns of what goes in the clear to and from other machines.
absl::StatusOr<ManagerSecrets> ReadSecrets(const ManagerConfig& config);

}  // namespace kvpool
