// Tenants, tokens (as hashes) and known agents as records of a store: one JSON object each. What
// this manager cannot read it refuses: a record of a newer manager, or a damaged one. Pure, any
// thread.
//
//   tenant/7          {"id": 7, "revision": 4, "spec": {...}, "tokens": ["<sha-256>"]}
//                     and "leaving": true while it is being deleted, and with a ladder that it has
//                     climbed "rung": {"index": 2, "reason": "..."}
//   next-tenant       8           above every id that was ever given
//   bounds/gpu-0      {"7": 16}   slabs that each tenant's lease there stays within
//   agent/gpu-0       {"incarnation": "17", "pool": 67108864, "slab": 2097152, "device": "host"}
//   drain/gpu-0       {"draining": true, "revision": 3}
//   audit/<20 digits>   {"seq": 7, "time": "2026-11-21T20:58:07Z", "actor": "ci", ...}
//   operator/<sha-256>  {"name": "ci", "scope": "read"}; {} of an earlier manager is an admin
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/secret.h"
#include "manager/audit.h"
#include "manager/cluster.h"
#include "manager/operators.h"
#include "manager/store.h"
#include "manager/tenants.h"

namespace kvpool {

struct Records {
  std::vector<Tenant> tenants;
  TenantId next_tenant_id{1};  // above every id that was ever given
  std::vector<KnownAgent> agents;
  std::vector<Operator> operators;
  std::vector<AuditEntry> audit;
};

// FailedPrecondition names the record that cannot be read, and what to do.
absl::StatusOr<Records> ReadRecords(const Store::Contents& contents);

// `next_id` is above every id that was ever given, those of `tenants` included.
Store::Changes SaveTenants(const std::vector<Tenant>& tenants, TenantId next_id);
Store::Changes RemoveTenant(TenantId tenant);
Store::Changes SaveAgent(const AgentInfo& agent);
Store::Changes SaveBounds(const std::string& agent, const LeaseBounds& bounds);
Store::Changes SaveSettings(const std::string& agent, const AgentSettings& settings);
Store::Changes RemoveAgent(const std::string& name);
Store::Changes SaveOperator(const Operator& added);
Store::Changes RemoveOperator(const Sha256Hash& token);
// Adds numbered entries, and removes those that `dropped` numbers.
Store::Changes SaveAudit(const std::vector<AuditEntry>& numbered,
                         const std::vector<uint64_t>& dropped);

}  // namespace kvpool
