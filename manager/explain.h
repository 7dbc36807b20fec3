// Why a tenant has what it has: the numbers side by side, and sentences for people. Pure, any
// thread that may read the cluster.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json.hpp>

#include "common/clock.h"
#include "manager/cluster.h"

namespace kvpool {

// {"tenant", "revision", "leaving", "requested", "effective": {"guaranteed", "limit"}, "wanted",
// "leased", "ordered", "held", "charged", "used", "overage", "why": ["It wants ..."],
// "short": [{"agent", "wanted", "ordered", "others": [{"tenant", "ordered"}]}],
// "decisions", "reclaims"}: `short` are the agents where it is ordered less than it wants, and who
// has the rest, most first; `decisions` why its leases moved, `reclaims` what its agents did,
// newest first.
boost::json::object ExplainView(const Cluster& cluster, const Tenant& tenant, TimePoint now);

}  // namespace kvpool
