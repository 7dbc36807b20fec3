// Names, help texts and where each number comes from.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/manager_metrics.h"

#include "manager/views.h"

namespace kvpool {
namespace {

double Number(Bytes bytes) { return static_cast<double>(bytes.value()); }

}  // namespace

ManagerMetrics::ManagerMetrics()
    : metrics_("kvpool-manager"),
      epoch_(metrics_
                 .GaugeFamily("kvpool_manager_epoch",
                              "Rises with each leadership; 0 while it stands by.")
                 .With()),
      leads_(metrics_.GaugeFamily("kvpool_manager_leads", "1 while it leads, 0 while it stands by.")
                 .With()),
      learning_(metrics_
                    .GaugeFamily("kvpool_manager_learning",
                                 "1 while leases are being learned after a start, then 0.")
                    .With()),
      tenants_(metrics_.GaugeFamily("kvpool_manager_tenants", "Tenants that exist.").With()),
      capacity_(metrics_
                    .GaugeFamily("kvpool_manager_capacity_bytes",
                                 "Pools of all known agents, connected or not.")
                    .With()),
      guaranteed_(
          metrics_.GaugeFamily("kvpool_manager_guaranteed_bytes", "Sum of all guarantees.").With()),
      agents_(metrics_.GaugeFamily("kvpool_manager_agents", "Known agents by state.")),
      elections_(metrics_
                     .CounterFamily("kvpool_manager_elections_total",
                                    "How often this manager came to lead.")
                     .With()),
      registrations_(metrics_.CounterFamily("kvpool_manager_registrations_total",
                                            "Registrations of agents by outcome.")),
      reports_(metrics_.CounterFamily("kvpool_manager_reports_total",
                                      "Agents' reports; bad ones had impossible fields.")),
      rpc_refused_(metrics_.CounterFamily("kvpool_manager_connections_refused_total",
                                          "Agents' connections cut, by reason.")),
      http_(
          metrics_.CounterFamily("kvpool_manager_http_requests_total",
                                 "Requests of operators by outcome; bad ones could not be read.")),
      tenant_guaranteed_(metrics_.GaugeFamily("kvpool_tenant_guaranteed_bytes",
                                              "What the tenant can always hold.")),
      tenant_limit_(
          metrics_.GaugeFamily("kvpool_tenant_limit_bytes", "What the tenant may never exceed.")),
      tenant_leased_(metrics_.GaugeFamily("kvpool_tenant_leased_bytes",
                                          "Leased, with what has not been given back yet.")),
      tenant_held_(
          metrics_.GaugeFamily("kvpool_tenant_held_bytes", "Slabs in the tenant's hands.")),
      tenant_used_(metrics_.GaugeFamily("kvpool_tenant_used_bytes", "Pages in sessions.")),
      tenant_charged_(metrics_.GaugeFamily("kvpool_tenant_charged_bytes",
                                           "What admission counts against the lease.")),
      tenant_wanted_(
          metrics_.GaugeFamily("kvpool_tenant_wanted_bytes", "What the tenant could use now.")),
      tenant_over_deadline_(metrics_.GaugeFamily(
          "kvpool_tenant_over_deadline",
          "1 while the tenant has held more than its lease at an agent for longer than its "
          "grace, else 0.")),
      tenant_rung_(metrics_.GaugeFamily(
          "kvpool_tenant_rung",
          "The rung of the tenant's ladder; 0 is the mildest, and a fixed policy.")),
      tenant_rung_changes_(metrics_.CounterFamily(
          "kvpool_tenant_rung_changes_total",
          "Changes of the tenant's rung since this manager leads, by direction.")) {}

void ManagerMetrics::Update(const Cluster& cluster, const Leadership& leadership,
                            const AgentService::Counters& agents, const RpcListener::Counters& rpc,
                            const HttpServer::Counters& http, TimePoint now) {
  epoch_.Set(static_cast<double>(cluster.epoch()));
  leads_.Set(leadership.Leads() ? 1 : 0);
  elections_.RaiseTo(static_cast<double>(leadership.elections()));
  learning_.Set(cluster.Learning(now) ? 1 : 0);
  capacity_.Set(Number(cluster.Capacity()));
  double connected = 0, away = 0;
  for (const auto& [name, agent] : cluster.agents()) ++(agent.connected ? connected : away);
  agents_.With({{"state", "connected"}}).Set(connected);
  agents_.With({{"state", "away"}}).Set(away);

  const auto raise = [](MetricFamily<Counter>& family, const Labels& labels, uint64_t total) {
    family.With(labels).RaiseTo(static_cast<double>(total));
  };
  raise(registrations_, {{"outcome", "accepted"}}, agents.registrations);
  raise(registrations_, {{"outcome", "refused"}}, agents.refused);
  raise(reports_, {{"outcome", "taken"}}, agents.reports);
  raise(reports_, {{"outcome", "bad"}}, agents.bad_reports);
  raise(rpc_refused_, {{"reason", "maximum"}}, rpc.above_maximum);
  raise(rpc_refused_, {{"reason", "unauthenticated"}}, rpc.unauthenticated);
  raise(rpc_refused_, {{"reason", "handshake"}}, rpc.handshake);
  raise(rpc_refused_, {{"reason", "garbage"}}, rpc.garbage);
  raise(rpc_refused_, {{"reason", "unread"}}, rpc.unread);
  raise(http_, {{"outcome", "handled"}}, http.handled);
  raise(http_, {{"outcome", "refused"}}, http.refused);
  raise(http_, {{"outcome", "bad"}}, http.bad_requests);
  raise(http_, {{"outcome", "above_maximum"}}, http.above_maximum);
  raise(http_, {{"outcome", "timed_out"}}, http.timed_out);
  UpdateTenants(cluster);
}

void ManagerMetrics::UpdateTls(const TlsUses& uses) {
  ShowExpiry(uses, metrics_.GaugeFamily("kvpool_manager_certificate_expiry_timestamp_seconds",
                                        kExpiryHelp));
}

void ManagerMetrics::UpdateTenants(const Cluster& cluster) {
  std::set<std::string> gone = std::move(shown_tenants_);
  shown_tenants_.clear();
  Bytes guaranteed;
  for (const auto& [name, tenant] : cluster.tenants().by_name()) {
    const TenantTotals totals = TotalsOf(cluster, tenant);
    const Labels labels{{"tenant", name}};
    tenant_guaranteed_.With(labels).Set(Number(tenant.spec.guaranteed));
    tenant_limit_.With(labels).Set(Number(tenant.spec.limit));
    tenant_leased_.With(labels).Set(Number(totals.leased));
    tenant_held_.With(labels).Set(Number(totals.held));
    tenant_used_.With(labels).Set(Number(totals.used));
    tenant_charged_.With(labels).Set(Number(totals.charged));
    tenant_wanted_.With(labels).Set(Number(totals.wanted));
    tenant_over_deadline_.With(labels).Set(totals.past_deadline ? 1 : 0);
    tenant_rung_.With(labels).Set(tenant.rung.index);
    const RungChanges& changes = cluster.RungChangesOf(tenant.id);
    tenant_rung_changes_.With({{"tenant", name}, {"direction", "climb"}})
        .RaiseTo(static_cast<double>(changes.climbs));
    tenant_rung_changes_.With({{"tenant", name}, {"direction", "descend"}})
        .RaiseTo(static_cast<double>(changes.descents));
    guaranteed += tenant.spec.guaranteed;
    shown_tenants_.insert(name);
    gone.erase(name);
  }
  guaranteed_.Set(Number(guaranteed));
  tenants_.Set(static_cast<double>(shown_tenants_.size()));
  for (const std::string& name : gone) {
    for (MetricFamily<Gauge>* family :
         {&tenant_guaranteed_, &tenant_limit_, &tenant_leased_, &tenant_held_, &tenant_used_,
          &tenant_charged_, &tenant_wanted_, &tenant_over_deadline_, &tenant_rung_}) {
      family->Remove({{"tenant", name}});
    }
    for (const char* direction : {"climb", "descend"}) {
      tenant_rung_changes_.Remove({{"tenant", name}, {"direction", direction}});
    }
  }
}

}  // namespace kvpool
