// See manager_config.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/manager_config.h"

#include "common/address.h"
#include "common/secret.h"

namespace kvpool {
namespace {

absl::Status CheckHostPort(const std::string& text) { return ParseHostPort(text).status(); }

}  // namespace

void Declare(ManagerConfig* c, Settings* s) {
  s->Add("agents", "host:port that agents connect to", &c->agents, CheckHostPort);
  s->Add("http", "host:port of the operator API, /metrics, /healthz and /readyz", &c->http,
         CheckHostPort);
  s->Add("database", "file that keeps tenants, tokens and the epoch; its folder must exist",
         &c->database);
  s->Add("agent_token_file", "file that holds the token which all agents share",
         &c->agent_token_file);
  s->Add("operator_token_file",
         "file that holds an operator's token; without one a token is made at the first start and"
         " printed once",
         &c->operator_token_file);
  s->Add("learning", "longest wait for known agents after a start, before leases are changed",
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
  return secrets;
}

}  // namespace kvpool
