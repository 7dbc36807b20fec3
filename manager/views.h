// The cluster as operators see it: sums over agents, and JSON. Pure, any thread that may read the
// cluster. docs/operating.md explains each number.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json.hpp>
#include <string>
#include <vector>

#include "common/clock.h"
#include "manager/cluster.h"
#include "manager/operators.h"
#include "manager/outcome.h"

namespace kvpool {

// One tenant over all agents.
struct TenantTotals {
  Bytes leased;   // all that counts: what it may hold, and what it has not given back yet
  Bytes ordered;  // what it may hold once every agent has followed its orders
  Bytes held;     // slabs in its hands
  Bytes used;     // pages in sessions
  Bytes charged;  // peaks and overhead of the sessions that were admitted
  Bytes wanted;   // what it could use now
  uint64_t sessions = 0;
  uint64_t workers = 0;
  uint64_t refusals = 0;
  uint64_t compactions = 0;
  double recovery_sum = 0;
  uint64_t recovery_count = 0;
  double recovery_min = 1;
  Duration over{};             // the longest that an agent has waited for it to fit its lease there
  bool past_deadline = false;  // at an agent, that is longer than its grace
  std::vector<RungUse> rungs;  // of its ladder, since each agent applied it; empty without one
};

TenantTotals TotalsOf(const Cluster& cluster, const Tenant& tenant);

// A budget as it counts: whole slabs, rounded down. As it is while no agent has said how large its
// slabs are.
Bytes Effective(const Cluster& cluster, Bytes budget);
// What an operator should know about a tenant's budgets, such as "limit 10 MiB is 2 slabs of 4 MiB
// = 8 MiB"; empty when all is as written.
std::vector<std::string> BudgetNotes(const Cluster& cluster, const TenantSpec& spec);

// Where on its ladder a tenant is, and what each rung has done; null without a ladder.
boost::json::value LadderView(const Tenant& tenant, const TenantTotals& totals);
boost::json::object TenantView(const Cluster& cluster, const Tenant& tenant);
boost::json::object TenantsView(const Cluster& cluster, TimePoint now);
boost::json::object AgentView(const Cluster& cluster, const Cluster::Agent& agent, TimePoint now);
boost::json::object AgentsView(const Cluster& cluster, TimePoint now);
boost::json::object ReclaimsView(const Cluster& cluster, const Tenant& tenant, TimePoint now);
// What a rehearsed change would change, field by field, and whose leases would differ.
boost::json::object RehearsalView(const Outcome& outcome);
boost::json::object OperatorsView(const OperatorTable& operators);

}  // namespace kvpool
