// Between proto's structures and ours, where more than one program needs it. Checked on the way in.
// KJ thread (readers and builders belong to it).
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "common/policy_ladder.h"
#include "common/policy_spec.h"
#include "proto/manager.capnp.h"

namespace kvpool {

// InvalidArgument as MakePolicySpec says, or for a parameter that comes twice.
absl::StatusOr<PolicySpec> FromProto(rpc::PolicySpec::Reader from);
// Leaves out what has its default.
void ToProto(const PolicySpec& spec, rpc::PolicySpec::Builder to);
// A ladder and the rung that its tenant is on.
void ToProto(const PolicyLadder& ladder, uint32_t rung, rpc::TenantOrder::Builder to);

}  // namespace kvpool
