// What kvpoolctl can do: each command calls the API and returns the text to print. Main thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/api_client.h"

namespace kvpool {

enum class Output { kTable, kJson };

// What `set tenant` changes; what is not set stays.
struct TenantChange {
  std::string name;
  std::optional<std::string> guaranteed;  // "8 MiB"
  std::optional<std::string> limit;
  std::optional<std::string> policy;    // by name: its parameters begin at their defaults
  std::vector<std::string> parameters;  // "budget=256"
  std::optional<int64_t> if_revision;   // refuse when it is another one by now
};

// Errors as ApiClient's; InvalidArgument for a file or value that is wrong.
absl::StatusOr<std::string> GetTenants(const ApiClient& api, Output output);
absl::StatusOr<std::string> GetAgents(const ApiClient& api, Output output);
absl::StatusOr<std::string> DescribeTenant(const ApiClient& api, const std::string& name,
                                           Output output);
absl::StatusOr<std::string> DescribeAgent(const ApiClient& api, const std::string& name,
                                          Output output);
absl::StatusOr<std::string> SetTenant(const ApiClient& api, const TenantChange& change,
                                      Output output);
absl::StatusOr<std::string> DeleteTenant(const ApiClient& api, const std::string& name,
                                         Output output);
absl::StatusOr<std::string> Apply(const ApiClient& api, const std::string& file, Output output);
absl::StatusOr<std::string> CreateToken(const ApiClient& api, const std::string& tenant,
                                        Output output);
absl::StatusOr<std::string> RevokeToken(const ApiClient& api, const std::string& tenant,
                                        const std::string& id, Output output);
// One picture of agents and tenants.
absl::StatusOr<std::string> Top(const ApiClient& api, Output output);

}  // namespace kvpool
