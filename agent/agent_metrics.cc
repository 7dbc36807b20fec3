// See agent_metrics.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/agent_metrics.h"

#include <array>
#include <utility>

namespace kvpool {
namespace {

const std::vector<double> kTurnBuckets = {1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4,
                                          1e-3, 2.5e-3, 5e-3, 1e-2, 1e-1};
const std::vector<double> kRecoveryBuckets = {0.5,  0.6,  0.7,  0.8,  0.85, 0.9,
                                              0.93, 0.95, 0.97, 0.98, 0.99, 1.0};
// A product of many: falls far below one compaction's.
const std::vector<double> kCumulativeBuckets = {0.001, 0.01, 0.05, 0.1, 0.2, 0.3,  0.4,
                                                0.5,   0.6,  0.7,  0.8, 0.9, 0.95, 1.0};

// A counter without labels.
Counter Single(Metrics& metrics, const std::string& name, const std::string& help) {
  return metrics.CounterFamily(name, help).With();
}

Gauge SingleGauge(Metrics& metrics, const std::string& name, const std::string& help) {
  return metrics.GaugeFamily(name, help).With();
}

double ToDouble(Bytes bytes) { return static_cast<double>(bytes.value()); }

}  // namespace

AgentMetrics::AgentMetrics(const std::string& device_kind, const std::string& device_name)
    : metrics_("kvpool-agent"),
      slabs_(metrics_.GaugeFamily("kvpool_agent_slabs", "Slabs of the pool by state.")),
      reserve_bytes_(metrics_.GaugeFamily("kvpool_agent_reserve_bytes",
                                          "Bytes that no lease counts, by whether sessions are "
                                          "being sealed through them.")),
      lease_bytes_(metrics_.GaugeFamily("kvpool_agent_tenant_lease_bytes",
                                        "Bytes that a tenant may hold at this agent.")),
      held_bytes_(metrics_.GaugeFamily("kvpool_agent_tenant_held_bytes",
                                       "Bytes of the slabs that a tenant holds.")),
      used_bytes_(metrics_.GaugeFamily("kvpool_agent_tenant_used_bytes",
                                       "Bytes of a tenant's pages in sessions.")),
      charged_bytes_(metrics_.GaugeFamily("kvpool_agent_tenant_charged_bytes",
                                          "Bytes that admission counts against a tenant's lease.")),
      magazine_bytes_(metrics_.GaugeFamily("kvpool_agent_tenant_magazine_bytes",
                                           "Bytes of a tenant's pages in magazines.")),
      over_lease_(metrics_.GaugeFamily("kvpool_agent_tenant_over_lease_seconds",
                                       "For how long it has held more than its lease.")),
      over_deadline_(metrics_.GaugeFamily("kvpool_agent_tenant_over_deadline",
                                          "1 while that is longer than its grace, else 0.")),
      sessions_(metrics_.GaugeFamily("kvpool_agent_sessions", "Open sessions of a tenant.")),
      workers_(metrics_.GaugeFamily("kvpool_agent_workers", "Attached workers of a tenant.")),
      compactions_(metrics_.CounterFamily("kvpool_agent_compactions_total",
                                          "Sessions compacted for a tenant.")),
      refusals_(metrics_.CounterFamily("kvpool_agent_refusals_total",
                                       "Typed refusals of pages or sessions.")),
      refused_calls_(metrics_.CounterFamily("kvpool_agent_refused_calls_total",
                                            "Calls of workers that were refused, by reason.")),
      connections_refused_(metrics_.CounterFamily("kvpool_agent_connections_refused_total",
                                                  "Workers' connections cut, by reason.")),
      http_(metrics_.CounterFamily("kvpool_agent_http_requests_total",
                                   "Requests of operators by outcome; bad ones: unreadable.")),
      reclaims_(metrics_.CounterFamily("kvpool_agent_reclaims_total",
                                       "Reclaims by step of the reclaim order and reason.")),
      reclaimed_bytes_(metrics_.CounterFamily("kvpool_agent_reclaimed_bytes_total",
                                              "Bytes freed, or refused, by step.")),
      failed_sealings_(metrics_.CounterFamily("kvpool_agent_failed_sealings_total",
                                              "Requantisations that would free no page.")),
      recovery_(metrics_.HistogramFamily("kvpool_agent_recovery_ratio",
                                         "Mean recovery over heads of each compaction.",
                                         kRecoveryBuckets)),
      cumulative_recovery_(metrics_.HistogramFamily(
          "kvpool_agent_cumulative_recovery_ratio",
          "Mean over heads of a session's recovery since it was opened, at each compaction.",
          kCumulativeBuckets)),
      epoch_(SingleGauge(metrics_, "kvpool_agent_manager_epoch_info",
                         "Highest manager epoch this agent has accepted.")),
      reserve_waits_(Single(metrics_, "kvpool_agent_reserve_waits_total",
                            "Hand-overs that waited until the reserve was free.")),
      bad_page_lists_(Single(metrics_, "kvpool_agent_bad_page_lists_total",
                             "Sessions failed because their page list did not check out.")),
      bad_profiles_(Single(metrics_, "kvpool_agent_bad_profiles_total",
                           "Prompt profiles refused because they did not check out.")),
      missing_profiles_(Single(metrics_, "kvpool_agent_missing_profiles_total",
                               "Sessions whose prompt ended without the profile that their policy "
                               "needs.")),
      bad_returns_(
          Single(metrics_, "kvpool_agent_bad_returns_total", "Rubbish found in return rings.")),
      unscored_(Single(metrics_, "kvpool_agent_unscored_queries_total",
                       "Queries that a worker dropped before they were scored.")),
      bad_orders_(Single(metrics_, "kvpool_agent_bad_orders_total",
                         "Orders of managers that were ignored as impossible or old.")),
      state_writes_(metrics_.CounterFamily("kvpool_agent_state_writes_total",
                                           "Writes of the state file, by their result.")),
      turn_(metrics_
                .HistogramFamily("kvpool_agent_rpc_turn_seconds",
                                 "Time the RPC thread spent in one piece of work.", kTurnBuckets)
                .With()) {
  ShowDevice(device_kind, device_name);
}

void AgentMetrics::ShowDevice(const std::string& kind, const std::string& name) {
  metrics_.GaugeFamily("kvpool_agent_device_info", "The device this agent uses; always 1.")
      .With({{"kind", kind}, {"name", name}})
      .Set(1);
}

void AgentMetrics::ObserveTurn(Duration turn) {
  turn_.Observe(std::chrono::duration<double>(turn).count());
}

void AgentMetrics::CountRefusedCall(const std::string& reason) {
  refused_calls_.With({{"reason", reason}}).Add();
}

void AgentMetrics::CountFailedSealing(const TenantState& tenant) {
  failed_sealings_.With({{"tenant", tenant.name}}).Add();
}

void AgentMetrics::ObserveReclaim(const TenantState& tenant, const ReclaimRecord& record) {
  const std::string step = ToString(record.step), reason = ToString(record.reason);
  reclaims_.With({{"tenant", tenant.name}, {"step", step}, {"reason", reason}}).Add();
  reclaimed_bytes_.With({{"tenant", tenant.name}, {"step", step}})
      .Add(static_cast<double>(record.bytes));
  if (record.step == ReclaimStep::kRefusal) {
    refusals_.With({{"tenant", tenant.name}, {"reason", reason}}).Add();
  }
}

void AgentMetrics::ObserveRecovery(const TenantState& tenant, const RecoveryStats& recovery,
                                   const RecoveryStats& cumulative) {
  const Labels labels = {{"tenant", tenant.name}};
  if (recovery.measured()) recovery_.With(labels).Observe(recovery.mean);
  if (cumulative.measured()) cumulative_recovery_.With(labels).Observe(cumulative.mean);
}

void AgentMetrics::UpdateTenant(const Sources& sources, const TenantState& tenant) {
  const Labels labels = {{"tenant", tenant.name}};
  const TenantUsage usage = sources.ledger->Usage(tenant.id);
  const Bytes slab = sources.ledger->config().slab_bytes;
  lease_bytes_.With(labels).Set(ToDouble(slab * tenant.lease_slabs));
  held_bytes_.With(labels).Set(ToDouble(slab * usage.held_slabs));
  const Bytes used = sources.workers->UsedBytes(tenant.id);
  used_bytes_.With(labels).Set(ToDouble(used));
  charged_bytes_.With(labels).Set(ToDouble(slab * sources.workers->ChargedSlabs(tenant.id)));
  magazine_bytes_.With(labels).Set(ToDouble(usage.owned_bytes + usage.granted_bytes - used));
  const TimePoint now = BootClock::now();
  over_lease_.With(labels).Set(std::chrono::duration<double>(tenant.overage.Lasted(now)).count());
  over_deadline_.With(labels).Set(tenant.PastDeadline(now) ? 1 : 0);
  const WorkerCounts counts = sources.workers->Count(tenant.id);
  sessions_.With(labels).Set(counts.sessions);
  workers_.With(labels).Set(counts.workers);
  compactions_.With(labels).RaiseTo(static_cast<double>(tenant.counters.compactions));
}

void AgentMetrics::UpdateServers(const RpcListener::Counters& rpc,
                                 const HttpServer::Counters& http) {
  const auto raise = [](MetricFamily<Counter>& family, const Labels& labels, uint64_t total) {
    family.With(labels).RaiseTo(static_cast<double>(total));
  };
  raise(connections_refused_, {{"reason", "maximum"}}, rpc.above_maximum);
  raise(connections_refused_, {{"reason", "unauthenticated"}}, rpc.unauthenticated);
  raise(connections_refused_, {{"reason", "garbage"}}, rpc.garbage);
  raise(connections_refused_, {{"reason", "unread"}}, rpc.unread);
  raise(http_, {{"outcome", "handled"}}, http.handled);
  raise(http_, {{"outcome", "refused"}}, http.refused);
  raise(http_, {{"outcome", "bad"}}, http.bad_requests);
  raise(http_, {{"outcome", "above_maximum"}}, http.above_maximum);
  raise(http_, {{"outcome", "timed_out"}}, http.timed_out);
}

std::string AgentMetrics::Page(const Sources& sources) {
  ShowExpiry(sources.tls, metrics_.GaugeFamily("kvpool_agent_certificate_expiry_timestamp_seconds",
                                               kExpiryHelp));
  for (const auto& [id, tenant] : sources.book->tenants()) UpdateTenant(sources, tenant);
  std::array<uint32_t, 5> by_state{};
  for (uint32_t i = 0; i < sources.ledger->config().slabs; ++i) {
    const std::optional<SlabUsage> slab = sources.ledger->Slab(SlabIndex(i));
    if (slab.has_value()) ++by_state[static_cast<size_t>(slab->state)];
  }
  constexpr std::array<const char*, 5> kNames = {"free", "leased", "evacuating", "draining",
                                                 "stuck"};
  for (size_t i = 0; i < kNames.size(); ++i) {
    slabs_.With({{"state", kNames[i]}}).Set(by_state[i]);
  }
  const Bytes slab = sources.ledger->config().slab_bytes;
  const SealingReserve& reserve = *sources.reserve;
  reserve_bytes_.With({{"state", "used"}}).Set(ToDouble(slab * reserve.in_use()));
  reserve_bytes_.With({{"state", "free"}})
      .Set(ToDouble(slab * (reserve.size() - reserve.in_use())));
  reserve_waits_.RaiseTo(static_cast<double>(reserve.waits()));
  epoch_.Set(static_cast<double>(sources.book->highest_epoch()));
  const Hostilities hostilities = sources.workers->hostilities();
  bad_page_lists_.RaiseTo(static_cast<double>(hostilities.bad_page_lists));
  bad_profiles_.RaiseTo(static_cast<double>(hostilities.bad_profiles));
  missing_profiles_.RaiseTo(static_cast<double>(hostilities.missing_profiles));
  bad_returns_.RaiseTo(static_cast<double>(hostilities.bad_returns));
  unscored_.RaiseTo(static_cast<double>(hostilities.unscored));
  bad_orders_.RaiseTo(static_cast<double>(sources.link->bad_orders()));
  state_writes_.With({{"result", "ok"}}).RaiseTo(static_cast<double>(sources.keeper->writes()));
  state_writes_.With({{"result", "failed"}})
      .RaiseTo(static_cast<double>(sources.keeper->failures()));
  UpdateServers(sources.listener->counters(), sources.http->counters());
  return metrics_.Serialize();
}

}  // namespace kvpool
