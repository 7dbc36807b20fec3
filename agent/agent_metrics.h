// The agent's /metrics: everything is read from the ledger, the tenant book and the workers when
// the page is asked for, except what only a moment can tell (turn times, recovery).
//
// RPC thread. dashboards/overview.json uses these names; a test compares them.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "agent/lease_keeper.h"
#include "agent/manager_link.h"
#include "agent/pool.h"
#include "agent/recovery.h"
#include "agent/tenant_book.h"
#include "agent/workers.h"
#include "common/clock.h"
#include "common/http_server.h"
#include "common/metrics.h"
#include "common/rpc_listener.h"
#include "common/tls.h"

namespace kvpool {

class AgentMetrics {
 public:
  struct Sources {
    const PoolLedger* ledger = nullptr;
    const TenantBook* book = nullptr;
    const Workers* workers = nullptr;
    const SealingReserve* reserve = nullptr;
    const RpcListener* listener = nullptr;
    const HttpServer* http = nullptr;
    const ManagerLink* link = nullptr;
    const LeaseKeeper* keeper = nullptr;
    TlsUses tls;
  };
  AgentMetrics(const std::string& device_kind, const std::string& device_name);

  // How long one turn of the RPC thread's work took.
  void ObserveTurn(Duration turn);
  // A call of a worker's that was refused, for a reason of the wire's.
  void CountRefusedCall(const std::string& reason);
  // What one compaction of a session kept, and all of its compactions so far; measured or not.
  void ObserveRecovery(const TenantState& tenant, const RecoveryStats& recovery,
                       const RecoveryStats& cumulative);
  // A sealing that stopped short.
  void CountFailedSealing(const TenantState& tenant);
  // One reclaim record, as it happens.
  void ObserveReclaim(const TenantState& tenant, const ReclaimRecord& record);

  // The page, with the state as it is now.
  std::string Page(const Sources& sources);

 private:
  void ShowDevice(const std::string& kind, const std::string& name);
  void UpdateTenant(const Sources& sources, const TenantState& tenant);
  void UpdateServers(const RpcListener::Counters& rpc, const HttpServer::Counters& http);

  Metrics metrics_;
  MetricFamily<Gauge> slabs_;
  MetricFamily<Gauge> reserve_bytes_;
  MetricFamily<Gauge> lease_bytes_;
  MetricFamily<Gauge> held_bytes_;
  MetricFamily<Gauge> used_bytes_;
  MetricFamily<Gauge> charged_bytes_;
  MetricFamily<Gauge> magazine_bytes_;
  MetricFamily<Gauge> over_lease_;
  MetricFamily<Gauge> over_deadline_;
  MetricFamily<Gauge> sessions_;
  MetricFamily<Gauge> workers_;
  MetricFamily<Counter> compactions_;
  MetricFamily<Counter> refusals_;
  MetricFamily<Counter> refused_calls_;
  MetricFamily<Counter> connections_refused_;
  MetricFamily<Counter> http_;
  MetricFamily<Counter> reclaims_;
  MetricFamily<Counter> reclaimed_bytes_;
  MetricFamily<Counter> failed_sealings_;
  MetricFamily<Histogram> recovery_;
  MetricFamily<Histogram> cumulative_recovery_;
  Gauge epoch_;
  Counter reserve_waits_;
  Counter bad_page_lists_;
  Counter bad_profiles_;
  Counter missing_profiles_;
  Counter bad_returns_;
  Counter unscored_;
  Counter bad_orders_;
  MetricFamily<Counter> state_writes_;
  Histogram turn_;
};

// One turn of the RPC thread, from construction to destruction. A variable in a function that does
// not wait.
class Turn {
 public:
  explicit Turn(AgentMetrics* metrics) : metrics_(metrics), begin_(BootClock::now()) {}
  ~Turn() { metrics_->ObserveTurn(BootClock::now() - begin_); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  AgentMetrics* const metrics_;
  const TimePoint begin_;
};

}  // namespace kvpool
