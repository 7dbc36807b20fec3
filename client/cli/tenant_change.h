// What `set tenant` changes about a tenant. Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/tenants_file.h"

namespace kvpool {

// What is not given stays.
struct TenantChange {
  std::optional<Bytes> guaranteed;
  std::optional<Bytes> limit;
  std::vector<std::string> floors;  // "gpu-0=4 GiB"; 0 takes one away
  std::optional<int64_t> weight;
  std::optional<int64_t> priority;
  std::optional<Borrowing> borrowing;
  std::optional<Duration> grace_cold;
  std::optional<Duration> grace_running;
  std::optional<OverDeadline> over_deadline;
  std::optional<std::string> policy;    // its name; another one begins with its defaults
  std::vector<std::string> parameters;  // of the policy, "budget=256"
  std::optional<int64_t> if_revision;
};

// `now` with the change. InvalidArgument for what is no floor or no parameter; the manager checks
// the whole.
absl::StatusOr<TenantSpec> Changed(TenantSpec now, const TenantChange& change);

}  // namespace kvpool
