// See agent_config.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/agent_config.h"

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

}  // namespace

void Declare(AgentConfig* c, Settings* s) {
  s->Add("name", "this agent's name, unique in the cluster", &c->name, CheckName);
  s->Add("socket", "unix socket that workers attach to", &c->socket);
  s->Add("manager",
         "host:port of the manager's agent port; of several managers all, with commas between them",
         &c->manager, CheckHostPorts);
  s->Add("manager_token", "the shared agent token", &c->manager_token);
  s->Add("manager_token_file", "file that holds the shared agent token", &c->manager_token_file);
  s->Add("http", "host:port for /metrics and /healthz", &c->http, CheckHostPort);
  s->AddChoice("device", "where the pool lies; auto takes an accelerator when there is one",
               &c->device, {"auto", "host"});
  s->Add("pool", "bytes of KV memory that this agent owns, whole slabs", &c->pool, 1_MiB,
         Bytes(int64_t{1} << 41));
  s->Add("slab_bytes", "bytes of a slab: the unit of leases; must hold a page", &c->slab_bytes,
         64_KiB, 1_GiB);
  s->Add("reserve_slabs", "slabs that no lease counts; sessions are requantised through them",
         &c->reserve_slabs, 0, 1024);
  s->Add("parked_ttl", "how long a prompt's beginning is kept for the next one that begins like it",
         &c->parked_ttl, std::chrono::seconds(1), std::chrono::hours(24 * 365));
  s->Add("threads", "threads that run kernels", &c->threads, 1, 256);
  s->AddChoice("log_level", "least severe message that is logged", &c->log_level,
               {"debug", "info", "warn", "error"});
  s->AddChoice("log_format", "text for people, json for machines", &c->log_format,
               {"text", "json"});
}

absl::Status CheckTogether(const AgentConfig& config) {
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
