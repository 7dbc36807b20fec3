// The manager's metrics, brought up to date when they are asked for. Reads the cluster: RPC thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <set>
#include <string>

#include "common/http_server.h"
#include "common/metrics.h"
#include "common/rpc_listener.h"
#include "common/tls.h"
#include "manager/agent_service.h"
#include "manager/cluster.h"
#include "manager/leadership.h"

namespace kvpool {

class ManagerMetrics {
 public:
  ManagerMetrics();

  void Update(const Cluster& cluster, const Leadership& leadership,
              const AgentService::Counters& agents, const RpcListener::Counters& rpc,
              const HttpServer::Counters& http, TimePoint now);
  void UpdateTls(const TlsUses& uses);
  // The text of /metrics.
  std::string Serialize() { return metrics_.Serialize(); }

 private:
  void UpdateTenants(const Cluster& cluster);

  Metrics metrics_;
  Gauge epoch_, leads_, learning_, tenants_, capacity_, guaranteed_;
  MetricFamily<Gauge> agents_;
  Counter elections_;
  MetricFamily<Counter> registrations_, reports_, rpc_refused_, http_;
  MetricFamily<Gauge> tenant_guaranteed_, tenant_limit_, tenant_leased_, tenant_held_, tenant_used_,
      tenant_charged_, tenant_wanted_, tenant_over_deadline_, tenant_rung_;
  MetricFamily<Counter> tenant_rung_changes_;
  std::set<std::string> shown_tenants_;  // that have series
};

}  // namespace kvpool
