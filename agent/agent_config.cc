// See agent_config.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/agent_config.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/address.h"
#include "common/ids.h"
#include "common/quantity.h"
#include "common/secret.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

absl::Status CheckName(const std::string& name) {
  const bool plain =
      name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-") == std::string::npos;
  if (plain && !name.empty() && name.size() <= limits::kNameBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("allowed are 1 to ", limits::kNameBytes, " characters of a-z, 0-9 and -"));
}

absl::Status CheckHostPort(const std::string& text) { return ParseHostPort(text).status(); }
absl::Status CheckHostPorts(const std::string& text) { return ParseHostPorts(text).status(); }

absl::Status CheckTls(const AgentConfig& config) {
  absl::Status status = CheckAllOrNone({{"tls_certificate", config.tls_certificate},
                                        {"tls_key", config.tls_key},
                                        {"tls_ca", config.tls_ca}});
  if (!status.ok()) return status;
  status = CheckAllOrNone({{"http_tls_certificate", config.http_tls_certificate},
                           {"http_tls_key", config.http_tls_key}});
  if (!status.ok()) return status;
  if (config.tls_ca.empty()) {
    return config.tls_manager_name.empty() ? absl::OkStatus()
                                           : absl::InvalidArgumentError(
                                                 "tls_manager_name is set without TLS: set "
                                                 "tls_certificate, tls_key and tls_ca");
  }
  const auto managers = ParseHostPorts(config.manager);
  if (!managers.ok()) return managers.status();
  for (const HostPort& manager : *managers) {
    if (!IsNumeric(manager) || !config.tls_manager_name.empty()) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "manager is ", ToString(manager), ", and with TLS an address cannot be checked: write the",
        " host name in its certificate instead, or set tls_manager_name to it"));
  }
  return absl::OkStatus();
}

}  // namespace

void Declare(AgentConfig* c, Settings* s) {
  s->Add("name", "this agent's name, unique in the cluster", &c->name, CheckName);
  s->Add("socket", "unix socket that workers attach to", &c->socket);
  s->Add("manager",
         "host:port of the manager's agent port; of several managers all, with commas between them",
         &c->manager, CheckHostPorts);
  s->Add("manager_token", "the shared agent token", &c->manager_token);
  s->Add("manager_token_file", "file that holds the shared agent token", &c->manager_token_file);
  s->Add("tls_certificate",
         "for TLS to the manager: PEM file with this agent's certificate; its common name is the"
         " setting name",
         &c->tls_certificate);
  s->Add("tls_key", "for TLS to the manager: PEM file with the certificate's key", &c->tls_key);
  s->Add("tls_ca", "for TLS to the manager: PEM file with the CAs that sign managers' certificates",
         &c->tls_ca);
  s->Add("tls_manager_name",
         "for TLS: the host name in the managers' certificates; without one that in manager",
         &c->tls_manager_name);
  s->Add("state_file",
         "keeps floors, policies and token hashes over a restart; empty: nothing is kept",
         &c->state_file);
  s->Add("http", "host:port for /metrics and /healthz", &c->http, CheckHostPort);
  s->Add("http_tls_certificate", "for HTTPS: PEM file with the certificate of http",
         &c->http_tls_certificate);
  s->Add("http_tls_key", "for HTTPS: PEM file with the certificate's key", &c->http_tls_key);
  s->AddChoice("device", "where the pool lies; auto takes an accelerator when there is one",
               &c->device, {"auto", "host"});
  s->Add("pool", "bytes of KV memory that this agent owns, whole slabs", &c->pool, 1_MiB,
         Bytes(int64_t{1} << 41));
  s->Add("slab_bytes", "bytes of a slab: the unit of leases; must hold a page", &c->slab_bytes,
         64_KiB, 1_GiB);
  s->Add("reserve_slabs", "slabs that no lease counts; sessions are requantised through them",
         &c->reserve_slabs, 0, 1024);
  s->Add("threads", "threads that run kernels", &c->threads, 1, 256);
  s->AddChoice("log_level", "least severe message that is logged", &c->log_level,
               {"debug", "info", "warn", "error"});
  s->AddChoice("log_format", "text for people, json for machines", &c->log_format,
               {"text", "json"});
}

absl::Status CheckTogether(const AgentConfig& config) {
  if (absl::Status status = CheckTls(config); !status.ok()) return status;
  if (config.slab_bytes.value() % 4096 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("slab_bytes is ", config.slab_bytes.value(),
                                                   ", it must be a multiple of 4096"));
  }
  if (config.slab_bytes > config.pool) {
    return absl::InvalidArgumentError(absl::StrCat("slab_bytes is ", FormatBytes(config.slab_bytes),
                                                   ", pool only ", FormatBytes(config.pool),
                                                   ": make pool larger or slab_bytes smaller"));
  }
  const int64_t slabs = config.pool / config.slab_bytes;
  if (slabs <= config.reserve_slabs) {
    return absl::InvalidArgumentError(
        absl::StrCat("pool holds ", slabs, " slabs of slab_bytes, and reserve_slabs keeps ",
                     config.reserve_slabs, " of them: nothing is left to lease"));
  }
  if (config.pool.value() / kGranuleBytes > int64_t{UINT32_MAX}) {
    return absl::InvalidArgumentError("pool is too large: block ids reach 2 TiB");
  }
  return absl::OkStatus();
}

absl::StatusOr<AgentTls> OpenTls(const AgentConfig& config) {
  AgentTls tls;
  if (!config.tls_ca.empty()) {
    auto source = TlsSource::Open(
        {.certificate = config.tls_certificate, .key = config.tls_key, .ca = config.tls_ca});
    if (!source.ok()) return source.status();
    tls.manager = *std::move(source);
  } else if (const auto managers = ParseHostPorts(config.manager); managers.ok()) {
    for (const HostPort& manager : *managers) {
      WarnInTheClear("manager", manager, "the agent token, token hashes and leases",
                     "tls_certificate, tls_key, tls_ca");
    }
  }
  if (!config.http_tls_certificate.empty()) {
    auto source =
        TlsSource::Open({.certificate = config.http_tls_certificate, .key = config.http_tls_key});
    if (!source.ok()) return source.status();
    tls.http = *std::move(source);
  } else if (const auto http = ParseHostPort(config.http); http.ok()) {
    WarnInTheClear("http", *http, "names and numbers of tenants",
                   "http_tls_certificate, http_tls_key");
  }
  return tls;
}

absl::Status ReadToken(AgentConfig* config) {
  if (!config->manager_token_file.empty()) {
    absl::StatusOr<std::string> token = ReadTokenFile(config->manager_token_file);
    if (!token.ok()) return token.status();
    config->manager_token = *std::move(token);
  }
  if (config->manager_token.empty()) {
    return absl::InvalidArgumentError("set manager_token_file (or manager_token)");
  }
  return absl::OkStatus();
}

}  // namespace kvpool
