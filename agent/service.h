// The Cap'n Proto face of the agent towards workers: Agent, Tenant, Attachment, Session. Each
// handler reads parameters, calls Workers, and writes the outcome; no rule lives here. A
// capability's lifetime is the lifetime of what it stands for.
//
// RPC thread. KJ exceptions stay in this file's .cc; refusals are values.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <capnp/capability.h>

#include <functional>

#include "agent/tenant_book.h"
#include "agent/workers.h"
#include "common/rpc_listener.h"

namespace kvpool {

class AgentMetrics;

struct ServiceDeps {
  Workers* workers = nullptr;
  TenantBook* book = nullptr;
  PoolLedger* ledger = nullptr;
  kj::UnixEventPort* port = nullptr;
  // Asks the manager for news; resolves when they have come, or at once without a manager.
  std::function<kj::Promise<void>()> refresh;
  AgentMetrics* metrics = nullptr;
};

// The bootstrap capability of one worker's connection.
capnp::Capability::Client MakeAgentService(const ServiceDeps& deps, RpcPeer peer,
                                           kj::Own<RpcConnection> connection);

}  // namespace kvpool
