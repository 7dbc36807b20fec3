// See agent_rig.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/agent_rig.h"

#include <time.h>

#include <filesystem>
#include <iterator>

#include "absl/strings/str_cat.h"

namespace kvpool::bench {

absl::Status Await(const std::string& what, const std::function<bool()>& condition) {
  if (Eventually(condition)) return absl::OkStatus();
  return absl::DeadlineExceededError("waited in vain: " + what);
}

std::string RigToken(uint32_t tenant) { return absl::StrCat("kvp_tenant_", tenant); }

AgentRig::AgentRig(const RigOptions& options)
    : agent_(
          "kvpool-agent",
          {"--name", "bench", "--socket", socket_, "--manager", manager_.address(),
           "--manager-token", FakeManager::kToken, "--http", "127.0.0.1:0", "--pool",
           absl::StrCat(options.slab_bytes.value() / 1024 * options.slabs, " KiB"), "--slab-bytes",
           absl::StrCat(options.slab_bytes.value() / 1024, " KiB"), "--reserve-slabs", "0"},
          dir_ / "agent.log") {}

absl::StatusOr<std::unique_ptr<AgentRig>> AgentRig::Start(const RigOptions& options) {
  std::unique_ptr<AgentRig> rig(new AgentRig(options));
  absl::Status up =
      Await("the agent's first reports", [&] { return rig->manager_.reports() >= 2; });
  if (!up.ok()) return up;
  return rig;
}

void AgentRig::Order(uint32_t tenant, uint32_t slabs, const PolicySpec& policy) {
  manager_.Set(tenant, {.name = absl::StrCat("tenant-", tenant),
                        .token = RigToken(tenant),
                        .lease_slabs = slabs,
                        .limit_slabs = slabs,
                        .policy = policy});
}

absl::Status AgentRig::Lease(uint32_t tenant, uint32_t slabs, const PolicySpec& policy) {
  Order(tenant, slabs, policy);
  return Await("the lease", [&] { return Use(tenant).lease_slabs == slabs; });
}

absl::StatusOr<AgentRig::Attached> AgentRig::Attach(uint32_t tenant,
                                                    const AttachOptions& options) const {
  auto connection = Connection::Open({.socket = socket_, .worker = "bench"});
  if (!connection.ok()) return connection.status();
  auto attached = (*connection)->Attach(RigToken(tenant), options);
  if (!attached.ok()) return attached.status();
  return Attached{*std::move(connection), *std::move(attached)};
}

std::chrono::nanoseconds AgentRig::CpuTime() const {
  clockid_t clock;
  timespec t{};
  if (clock_getcpuclockid(agent_.pid(), &clock) == 0) clock_gettime(clock, &t);
  return std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec);
}

size_t AgentRig::OpenFiles() const {
  const std::filesystem::directory_iterator files(absl::StrCat("/proc/", agent_.pid(), "/fd"));
  return std::distance(begin(files), end(files));
}

}  // namespace kvpool::bench
