// What an operator says about a tenant, and the YAML file that says it for many. Used by the
// manager and by kvpoolctl, so that both refuse the same things in the same words. It knows nothing
// of ids, leases or the cluster's capacity. Values, any thread.
//
//   version: 1
//   tenants:
//     - name: chat
//       guaranteed: 8 MiB
//       limit: 24 MiB
//       policy: {name: scissorhands, budget: 256}
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/policy_spec.h"
#include "common/units.h"

namespace kvpool {

// A tenant's budget over the whole cluster, and what to do to its sessions.
struct TenantSpec {
  std::string name;
  Bytes guaranteed;                         // can always be held, where its demand can be placed
  Bytes limit;                              // never exceeded
  PolicySpec policy = DefaultPolicySpec();  // unless said otherwise

  bool operator==(const TenantSpec&) const = default;
};

// Letters a-z, digits and hyphens, with a letter or digit at both ends, at most limits::kNameBytes.
// The rule for tenants' and agents' names. `what` begins the message: "tenant", "agent".
absl::Status CheckName(const std::string& what, const std::string& name);

// The name's rule; guaranteed <= limit; both within 0..limits::kTenantBytes.
absl::Status CheckTenantSpec(const TenantSpec& spec);

// The tenants in the file's order. Every error names file and line. The policy may be left out;
// name, guaranteed and limit may not.
absl::StatusOr<std::vector<TenantSpec>> ParseTenants(const std::string& text,
                                                     const std::string& file);
absl::StatusOr<std::vector<TenantSpec>> ReadTenantsFile(const std::string& path);

}  // namespace kvpool
