// What must survive the manager: tenants, tokens (as hashes), known agents, and the epoch. SQLite,
// one file, held exclusively; every change is durable when its call returns. Leases are not here:
// agents are the truth about them. Blocking; one thread at a time (the shell runs it on a pool of
// one thread).
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "manager/cluster.h"

struct sqlite3;

namespace kvpool {

class Store {
 public:
  struct Contents {
    uint64_t epoch = 0;
    std::vector<Tenant> tenants;
    TenantId next_tenant_id;  // above every id that was ever given
    std::vector<AgentInfo> agents;
    std::vector<Sha256Hash> operator_tokens;
  };

  // Opens or creates the database and checks it. FailedPrecondition, with advice, when it is
  // damaged, written by a newer version, no database, or in use.
  static absl::StatusOr<std::unique_ptr<Store>> Open(const std::string& path);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // Raises the epoch, and returns it with everything else. Once, before the first message.
  absl::StatusOr<Contents> Begin();

  // Each is one transaction: all or nothing.
  absl::Status SaveTenants(const std::vector<Tenant>& tenants);
  absl::Status RemoveTenant(TenantId tenant);
  absl::Status SaveAgent(const AgentInfo& agent);
  absl::Status RemoveAgent(const std::string& name);
  absl::Status AddOperatorToken(const Sha256Hash& hash);

 private:
  class Statement;
  class Transaction;

  explicit Store(sqlite3* database, std::string path);

  absl::Status Prepare();
  absl::Status Execute(const char* sql);
  absl::Status SaveTenant(const Tenant& tenant);
  absl::Status LoadTenants(Contents& contents);
  absl::Status LoadTokens(Contents& contents);
  absl::Status LoadAgents(Contents& contents);
  absl::Status Error(const std::string& what) const;

  sqlite3* database_;
  std::string path_;
};

}  // namespace kvpool
