// Between the wire's reports and orders and the cluster's. Reports come from agents that may be
// broken or hostile: every field is checked before it becomes a value. KJ thread (readers and
// builders belong to it).
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "manager/cluster.h"
#include "proto/manager.capnp.h"

namespace kvpool {

// An agent's introduction: InvalidArgument when the name breaks its rules or a size is absurd.
absl::StatusOr<AgentInfo> CheckedAgentInfo(rpc::RegisterParams::Reader from);

// InvalidArgument names the field that is impossible for this agent.
absl::StatusOr<AgentReport> CheckedReport(rpc::Report::Reader from, const AgentInfo& agent,
                                          TimePoint now);

void ToProto(const AgentOrders& orders, rpc::Orders::Builder to);

}  // namespace kvpool
