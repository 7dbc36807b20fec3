// The tenants as the operator has set them: budgets, policies and tokens. Pure: a change is planned
// (checked, nothing happens), made durable by someone else, and then committed here. Knows nothing
// of leases and use. One thread at a time.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/ids.h"
#include "common/secret.h"
#include "common/tenants_file.h"

namespace kvpool {

// Where on its ladder a tenant is, and why. It is the manager's, no part of what the operator set,
// and counts no revision.
struct TenantRung {
  uint32_t index = 0;
  std::string reason;  // of the last change; empty: there was none

  bool operator==(const TenantRung&) const = default;
};

struct Tenant {
  TenantId id;
  TenantSpec spec;
  uint64_t revision = 0;           // counts the changes of `spec`, from 1
  bool leaving = false;            // without a budget; removed once nothing is leased to it
  std::vector<Sha256Hash> tokens;  // of its workers
  TenantRung rung;                 // of spec.ladder, if it has one

  // What its sessions are opened under now.
  const PolicySpec& policy() const {
    return spec.ladder.has_value() ? spec.ladder->rungs[rung.index] : spec.policy;
  }
};

// How people name a token that they cannot see any more: the first digits of its hash.
std::string TokenId(const Sha256Hash& hash);

// What budgets are checked against.
struct Pools {
  std::map<std::string, Bytes> agents;     // the pool of each known agent; none: nothing to check
  int64_t oversubscription_percent = 400;  // most that limits may sum up to, of all pools
};

class TenantTable {
 public:
  // `next_id` is above every id that was ever given.
  TenantTable(std::vector<Tenant> tenants, TenantId next_id);

  const std::map<std::string, Tenant>& by_name() const { return tenants_; }
  TenantId next_id() const { return next_id_; }
  const Tenant* Find(const std::string& name) const;
  // NotFound, in words.
  absl::StatusOr<Tenant> Get(const std::string& name) const;

  // The tenants that differ from now if these were created or updated, which keeps one that was
  // leaving; the others stay. All or
  // nothing. InvalidArgument, with the sum, when the guarantees do not fit the pools, the floors at
  // an agent its pool, or the limits what oversubscription allows; but a change that makes such a
  // sum no larger passes. ResourceExhausted above limits::kTenants.
  absl::StatusOr<std::vector<Tenant>> PlanApply(const std::vector<TenantSpec>& specs,
                                                const Pools& pools) const;
  // Aborted unless the tenant has this revision (0: does not exist).
  absl::Status CheckRevision(const std::string& name, uint64_t revision) const;

  // As it is while it leaves. NotFound.
  absl::StatusOr<Tenant> PlanLeave(const std::string& name) const;

  // NotFound; FailedPrecondition for one that leaves; ResourceExhausted above
  // limits::kTokensPerTenant.
  absl::StatusOr<Tenant> PlanAddToken(const std::string& name, const Sha256Hash& hash) const;
  absl::StatusOr<Tenant> PlanRevokeToken(const std::string& name,
                                         const std::string& token_id) const;

  void Commit(const std::vector<Tenant>& changed);
  void Remove(const std::string& name);

 private:
  std::map<std::string, Tenant> tenants_;
  TenantId next_id_;
};

}  // namespace kvpool
