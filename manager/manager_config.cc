// See manager_config.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/manager_config.h"

#include "common/address.h"
#include "common/secret.h"

namespace kvpool {
namespace {

absl::Status CheckHostPort(const std::string& text) { return ParseHostPort(text).status(); }
absl::Status CheckHostPorts(const std::string& text) { return ParseHostPorts(text).status(); }

absl::Status CheckPrefix(const std::string& text) {
  if (text.size() > 1 && text.front() == '/' && text.back() != '/') return absl::OkStatus();
  return absl::InvalidArgumentError("it must begin with a / and not end with one, such as /kvpool");
}

absl::Status CheckAdvertise(const std::string& text) {
  return text.empty() ? absl::OkStatus() : CheckHostPort(text);
}

}  // namespace

void Declare(ManagerConfig* c, Settings* s) {
  s->Add("agents", "host:port that agents connect to", &c->agents, CheckHostPort);
  s->Add("http", "host:port of the operator API, /metrics, /healthz and /readyz", &c->http,
         CheckHostPort);
  s->AddChoice("store",
               "where tenants, tokens and the epoch are kept: sqlite for one manager, etcd for"
               " several of which one leads",
               &c->store, {"sqlite", "etcd"});
  s->Add("database", "for sqlite: the file; its folder must exist", &c->database);
  s->Add("etcd_endpoints", "for etcd: client host:port of its members, with commas between them",
         &c->etcd_endpoints, CheckHostPorts);
  s->Add("etcd_prefix", "for etcd: what all keys of this cluster begin with", &c->etcd_prefix,
         CheckPrefix);
  s->Add("etcd_ttl",
         "for etcd: how long a leader leads that does not renew it; another one leads within twice"
         " that",
         &c->etcd_ttl, std::chrono::seconds(2), std::chrono::minutes(1));
  s->Add("etcd_user", "for etcd with authentication: the user", &c->etcd_user);
  s->Add("etcd_password_file", "for etcd with authentication: file that holds the password",
         &c->etcd_password_file);
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
  if (config.etcd_user.empty() != config.etcd_password_file.empty()) {
    return absl::InvalidArgumentError("set both etcd_user and etcd_password_file, or neither");
  }
  if (!config.etcd_password_file.empty()) {
    const absl::StatusOr<std::string> password = ReadTokenFile(config.etcd_password_file);
    if (!password.ok()) return password.status();
    secrets.etcd_password = *password;
  }
  return secrets;
}

}  // namespace kvpool
