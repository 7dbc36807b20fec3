// What the cases with daemons stand on: one kvpool-agent process, under a manager that does as it
// is told.
//
// Benchmark code; one caller thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/kvpool.h"
#include "common/policy_spec.h"
#include "common/units.h"
#include "tests/integration/fake_manager.h"
#include "tests/integration/process.h"
#include "tests/paths.h"

namespace kvpool::bench {

struct RigOptions {
  Bytes slab_bytes = 2_MiB;
  uint32_t slabs = 0;  // of the pool
};

class AgentRig {
 public:
  static absl::StatusOr<std::unique_ptr<AgentRig>> Start(const RigOptions& options);

  // Leases `slabs` to a tenant and waits until the agent has said that it has them.
  absl::Status Lease(uint32_t tenant, uint32_t slabs, const PolicySpec& policy);
  // The same without waiting.
  void Order(uint32_t tenant, uint32_t slabs, const PolicySpec& policy);

  // One connection, one tenant on it. Sessions go before their tenant, that before its connection.
  struct Attached {
    std::unique_ptr<Connection> connection;
    std::unique_ptr<Tenant> tenant;
  };
  absl::StatusOr<Attached> Attach(uint32_t tenant, const AttachOptions& options) const;

  // As the agent reported last: every few milliseconds.
  FakeUse Use(uint32_t tenant) { return manager_.Use(tenant); }
  const std::string& socket() const { return socket_; }

  // Of the agent's process: zero when it is gone.
  std::chrono::nanoseconds CpuTime() const;
  size_t OpenFiles() const;

 private:
  explicit AgentRig(const RigOptions& options);

  TempDir dir_;
  const std::string socket_ = dir_ / "agent.sock";
  FakeManager manager_;
  Process agent_;
};

// Polls until `condition` holds; DeadlineExceeded names what was waited for.
absl::Status Await(const std::string& what, const std::function<bool()>& condition);

// The model that cases run, in the source tree.
inline constexpr char kModel[] = "worker/models/prose-5m";

// The token of a tenant of the rig.
std::string RigToken(uint32_t tenant);

}  // namespace kvpool::bench
