// What kvpoolctl does, command by command. Prints to a stream and returns how it went; knows
// nothing of flags. One thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cli/api_client.h"
#include "client/cli/tenant_change.h"

namespace kvpool {

enum class OutputFormat { kTable, kJson };

// kRehearse: the manager checks all, changes nothing and says what would change.
enum class Effect { kChange, kRehearse };

enum class Comparison { kSame, kDiffers };

class Commands {
 public:
  Commands(const ApiClient& api, OutputFormat format, std::ostream& out)
      : api_(api), format_(format), out_(out) {}

  // All, or the one of that name.
  absl::Status GetTenants(const std::string& name);
  absl::Status GetAgents(const std::string& name);
  absl::Status DescribeTenant(const std::string& name);
  absl::Status DescribeAgent(const std::string& name);
  // Why the tenant has what it has.
  absl::Status ExplainTenant(const std::string& name);
  absl::Status SetTenant(const std::string& name, const TenantChange& change, Effect effect);
  // A tenants file, "-" for standard input.
  absl::Status Apply(const std::string& file, Effect effect);
  // What applying the file would change, without asking whether it fits.
  absl::StatusOr<Comparison> Diff(const std::string& file);
  absl::Status DeleteTenant(const std::string& name, Effect effect);
  // verb: "drain" or "undrain".
  absl::Status DrainAgent(const std::string& name, const std::string& verb, Effect effect);
  absl::Status ForgetAgent(const std::string& name, Effect effect);
  absl::Status CreateToken(const std::string& tenant);
  absl::Status RevokeToken(const std::string& tenant, const std::string& id);
  absl::Status CreateOperator(const std::string& name, const std::string& scope);
  absl::Status ListOperators();
  absl::Status RevokeOperator(const std::string& name);
  // The newest `limit` changes, of one tenant where one is named.
  absl::Status Audit(const std::string& tenant, int64_t limit);
  // These ask nobody. A tenants file, as it would be applied.
  absl::Status Check(const std::string& file);
  absl::Status ShowPolicies();
  // Prints one screen after the other, `before_each` first, until it says stop.
  enum class Next { kShow, kStop };
  absl::Status Top(const std::function<Next()>& before_each);

 private:
  // Of a change: what `done` says of it, or what it would have changed.
  absl::Status PrintChange(const absl::StatusOr<boost::json::object>& answer, Effect effect,
                           const std::function<std::string(const boost::json::object&)>& done);
  absl::Status Print(const absl::StatusOr<boost::json::object>& answer,
                     const std::function<std::string(const boost::json::object&)>& render);

  const ApiClient& api_;
  const OutputFormat format_;
  std::ostream& out_;
};

}  // namespace kvpool
