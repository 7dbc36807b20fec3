// See manager_config.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/manager_config.h"

#include <utility>
#include <vector>

#include "common/address.h"
#include "common/secret.h"

namespace kvpool {
namespace {

absl::Status CheckHostPort(const std::string& text) { return ParseHostPort(text).status(); }
absl::Status CheckServers(const std::string& text) { return ParseHttpServers(text).status(); }

absl::Status CheckPrefix(const std::string& text) {
  if (text.size() > 1 && text.front() == '/' && text.back() != '/') return absl::OkStatus();
  return absl::InvalidArgumentError("it must begin with a / and not end with one, such as /kvpool");
}

absl::Status CheckAdvertise(const std::string& text) {
  return text.empty() ? absl::OkStatus() : CheckHostPort(text);
}

// Null without files.
absl::Status OpenInto(std::shared_ptr<TlsSource>& source, TlsFiles files) {
  if (files.certificate.empty() && files.ca.empty()) return absl::OkStatus();
  auto opened = TlsSource::Open(std::move(files));
  if (!opened.ok()) return opened.status();
  source = *std::move(opened);
  return absl::OkStatus();
}

absl::Status OpenTls(const ManagerConfig& c, ManagerSecrets& secrets) {
  absl::Status status = OpenInto(
      secrets.agents_tls, {.certificate = c.tls_certificate, .key = c.tls_key, .ca = c.tls_ca});
  if (!status.ok()) return status;
  status =
      OpenInto(secrets.http_tls, {.certificate = c.http_tls_certificate, .key = c.http_tls_key});
  if (!status.ok()) return status;
  status = OpenInto(secrets.etcd_tls,
                    {.certificate = c.etcd_certificate, .key = c.etcd_key, .ca = c.etcd_ca});
  if (!status.ok()) return status;

  const auto agents = ParseHostPort(c.agents), http = ParseHostPort(c.http);
  const auto etcd = ParseHttpServers(c.etcd_endpoints);
  if (agents.ok() && secrets.agents_tls == nullptr) {
    WarnInTheClear("agents", *agents, "the agent token, token hashes and leases",
                   "tls_certificate, tls_key, tls_ca");
  }
  if (http.ok() && secrets.http_tls == nullptr) {
    WarnInTheClear("http", *http, "operators' tokens, budgets and audit log",
                   "http_tls_certificate, http_tls_key");
  }
  if (c.store == "etcd" && etcd.ok() && secrets.etcd_tls == nullptr) {
    for (const HostPort& member : etcd->addresses) {
      WarnInTheClear("etcd_endpoints", member, "budgets, token hashes and etcd's password",
                     "https:// in etcd_endpoints, etcd_ca");
    }
  }
  return absl::OkStatus();
}

}  // namespace

void Declare(ManagerConfig* c, Settings* s) {
  s->Add("agents", "host:port that agents connect to", &c->agents, CheckHostPort);
  s->Add(
      "tls_certificate",
      "for TLS with agents: PEM file with the certificate of this manager, for the host name that"
      " agents dial",
      &c->tls_certificate);
  s->Add("tls_key", "for TLS with agents: PEM file with the certificate's key", &c->tls_key);
  s->Add("tls_ca", "for TLS with agents: PEM file with the CAs that sign agents' certificates",
         &c->tls_ca);
  s->Add("http", "host:port of the operator API, /metrics, /healthz and /readyz", &c->http,
         CheckHostPort);
  s->Add("http_tls_certificate", "for HTTPS: PEM file with the certificate of http",
         &c->http_tls_certificate);
  s->Add("http_tls_key", "for HTTPS: PEM file with the certificate's key", &c->http_tls_key);
  s->AddChoice("store",
               "where tenants, tokens and the epoch are kept: sqlite for one manager, etcd for"
               " several of which one leads",
               &c->store, {"sqlite", "etcd"});
  s->Add("database", "for sqlite: the file; its folder must exist", &c->database);
  s->Add("etcd_endpoints",
         "for etcd: client host:port of its members, with commas between them; over TLS with"
         " https:// before each",
         &c->etcd_endpoints, CheckServers);
  s->Add("etcd_prefix", "for etcd: what all keys of this cluster begin with", &c->etcd_prefix,
         CheckPrefix);
  s->Add("etcd_ttl",
         "for etcd: how long a leader leads that does not renew it; another one leads within twice"
         " that",
         &c->etcd_ttl, std::chrono::seconds(2), std::chrono::minutes(1));
  s->Add("etcd_user", "for etcd with authentication: the user", &c->etcd_user);
  s->Add("etcd_password_file", "for etcd with authentication: file that holds the password",
         &c->etcd_password_file);
  s->Add("etcd_ca", "for etcd with https://: PEM file with the CAs that sign its certificates",
         &c->etcd_ca);
  s->Add("etcd_certificate", "for etcd that asks for one: PEM file with a client certificate",
         &c->etcd_certificate);
  s->Add("etcd_key", "for etcd that asks for one: PEM file with the certificate's key",
         &c->etcd_key);
  s->Add("advertise",
         "for etcd: host:port of this manager's http as operators reach it, which the others name"
         " while it leads; without one the setting http",
         &c->advertise, CheckAdvertise);
  s->Add("agent_token_file", "file that holds the token which all agents share",
         &c->agent_token_file);
  s->Add("operator_token_file",
         "file that holds an operator's token; without one a token is made at the first start and"
         " printed once",
         &c->operator_token_file);
  s->Add("learning",
         "longest wait for known agents after a start or an election, before leases are changed",
         &c->learning, std::chrono::milliseconds(3 * limits::kReportMillis),
         std::chrono::minutes(10));
  s->Add("oversubscription_percent",
         "most that the limits of all tenants may sum up to, in percent of the agents' pools",
         &c->oversubscription_percent, 100, 100'000);
  s->AddChoice("log_level", "least severe message that is logged", &c->log_level,
               {"debug", "info", "warn", "error"});
  s->AddChoice("log_format", "text for people, json for machines", &c->log_format,
               {"text", "json"});
}

absl::Status CheckTogether(const ManagerConfig& config) {
  for (const auto& settings : std::vector<std::vector<std::pair<std::string, std::string>>>{
           {{"tls_certificate", config.tls_certificate},
            {"tls_key", config.tls_key},
            {"tls_ca", config.tls_ca}},
           {{"http_tls_certificate", config.http_tls_certificate},
            {"http_tls_key", config.http_tls_key}},
           {{"etcd_user", config.etcd_user}, {"etcd_password_file", config.etcd_password_file}},
           {{"etcd_certificate", config.etcd_certificate}, {"etcd_key", config.etcd_key}}}) {
    if (absl::Status status = CheckAllOrNone(settings); !status.ok()) return status;
  }
  const auto etcd = ParseHttpServers(config.etcd_endpoints);
  if (!etcd.ok()) return etcd.status();
  const bool https = etcd->scheme == Scheme::kHttps;
  if (https && config.etcd_ca.empty()) {
    return absl::InvalidArgumentError(
        "etcd_endpoints say https:// and etcd_ca is not set: set it to the PEM file with the CAs"
        " that sign etcd's certificates");
  }
  if (!https && !(config.etcd_ca.empty() && config.etcd_certificate.empty())) {
    return absl::InvalidArgumentError(
        "etcd_ca and etcd_certificate need TLS: write https:// before each of etcd_endpoints");
  }
  return absl::OkStatus();
}

absl::StatusOr<ManagerSecrets> ReadSecrets(const ManagerConfig& config) {
  if (config.agent_token_file.empty()) {
    return absl::InvalidArgumentError(
        "set agent_token_file; make one with: (umask 077; openssl rand -hex 32 > FILE)");
  }
  const absl::StatusOr<std::string> agent_token = ReadTokenFile(config.agent_token_file);
  if (!agent_token.ok()) return agent_token.status();
  ManagerSecrets secrets{.agent_token = *agent_token};
  if (!config.operator_token_file.empty()) {
    const absl::StatusOr<std::string> operator_token = ReadTokenFile(config.operator_token_file);
    if (!operator_token.ok()) return operator_token.status();
    secrets.operator_token = *operator_token;
  }
  if (!config.etcd_password_file.empty()) {
    const absl::StatusOr<std::string> password = ReadTokenFile(config.etcd_password_file);
    if (!password.ok()) return password.status();
    secrets.etcd_password = *password;
  }
  if (absl::Status status = OpenTls(config, secrets); !status.ok()) return status;
  return secrets;
}

}  // namespace kvpool
