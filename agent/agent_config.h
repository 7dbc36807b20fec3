// The settings of kvpool-agent, each with its default and bounds. Read once at start-up.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/config.h"
#include "common/tls.h"
#include "common/units.h"

namespace kvpool {

struct AgentConfig {
  std::string name = "agent";
  std::string socket = "/run/kvpool/agent.sock";
  std::string manager = "127.0.0.1:7600";
  std::string manager_token;
  std::string manager_token_file;
  std::string tls_certificate, tls_key, tls_ca;
  std::string tls_manager_name;
  std::string state_file;
  std::string http = "127.0.0.1:7611";
  std::string http_tls_certificate, http_tls_key;
  std::string device = "auto";
  Bytes pool = 1_GiB;
  Bytes slab_bytes = 2_MiB;
  int64_t reserve_slabs = 2;
  Duration parked_ttl = std::chrono::hours(1);
  int64_t threads = 1;
  std::string log_level = "info";
  std::string log_format = "text";
};

// Declares every field of `config`, which must outlive `settings`.
void Declare(AgentConfig* config, Settings* settings);

// Checks what no single setting can tell: InvalidArgument says which ones do not fit together.
absl::Status CheckTogether(const AgentConfig& config);

// Reads the token file. InvalidArgument without a token, and the file's own errors.
absl::Status ReadToken(AgentConfig* config);

// Null where the settings ask for none.
struct AgentTls {
  std::shared_ptr<TlsSource> manager, http;
};

// Reads the files of TLS; warns of what goes in the clear to and from other machines.
absl::StatusOr<AgentTls> OpenTls(const AgentConfig& config);

}  // namespace kvpool
