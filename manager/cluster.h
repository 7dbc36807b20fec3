// All the manager knows, in one place: tenants, agents and their use, leases, the last reclaims.
// Turns an agent's report into its orders. Pure: it takes values and time; RPC, HTTP, SQLite and
// the clock are the shell's (agent_service.h, api.h, store.h). One thread at a time, the RPC
// thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/units.h"
#include "manager/decision_log.h"
#include "manager/lease_ledger.h"
#include "manager/lease_pacing.h"
#include "manager/reclaim_log.h"
#include "manager/tenants.h"

namespace kvpool {

// An agent as it introduced itself.
struct AgentInfo {
  std::string name;
  uint64_t incarnation = 0;  // another number: another pool
  Bytes pool_bytes;          // whole slabs that it can lease out
  Bytes slab_bytes;
  std::string device;  // for people

  int64_t slabs() const { return pool_bytes / slab_bytes; }
  bool operator==(const AgentInfo&) const = default;
};

// What an operator has set about an agent.
struct AgentSettings {
  bool draining = false;  // it gets no leases, and gives back those it has
  uint64_t revision = 0;  // counts the changes

  bool operator==(const AgentSettings&) const = default;
};

// What an agent says about one tenant; counts are since the agent started.
struct TenantUse {
  LeaseReport lease;
  int64_t held_slabs = 0;
  Bytes used;
  int64_t charged_slabs = 0;
  int64_t wanted_slabs = 0;
  uint32_t sessions = 0;
  uint32_t workers = 0;
  uint64_t refusals = 0;
  uint64_t compactions = 0;
  double recovery_sum = 0;
  uint64_t recovery_count = 0;
  double recovery_min = 1;
  Duration over{};             // for how long it has held more than its lease
  bool past_deadline = false;  // that is longer than its grace
};

struct AgentReport {
  uint64_t seq = 0;
  std::vector<TenantUse> tenants;
  std::vector<ReclaimEntry> reclaims;  // oldest first
  int64_t free_slabs = 0;
  int64_t stuck_slabs = 0;
};

struct TenantOrders {
  const Tenant* tenant;
  LeaseOrder lease;
  int64_t limit_slabs = 0;
  int64_t floor_slabs = 0;  // at that agent
};

struct AgentOrders {
  uint64_t epoch = 0;
  std::vector<TenantOrders> tenants;
  bool complete = false;  // false: an agent keeps what is not named
};

// What a manager of an earlier epoch left on record about an agent.
struct KnownAgent {
  AgentInfo info;
  LeaseBounds bounds;
  AgentSettings settings;

  bool operator==(const KnownAgent&) const = default;
};

enum class RegisterOutcome { kOk, kNameTaken, kTooMany, kBadPool, kStaleEpoch };

class Cluster {
 public:
  struct Agent {
    AgentInfo info;
    AgentSettings settings;
    bool connected = false;
    uint64_t link = 0;  // of its last connection
    TimePoint last_report;
    int64_t free_slabs = 0;
    int64_t stuck_slabs = 0;
    std::map<TenantId, TenantUse> use;
    bool planned = false;  // since what it wants changed
  };

  struct Start {
    uint64_t epoch = 0;
    TenantTable tenants{{}, TenantId(1)};
    std::vector<KnownAgent> known_agents;
    TimePoint learn_until;  // then it goes on without agents that have not come back
    int64_t oversubscription_percent = 400;
  };

  explicit Cluster(Start start);

  const TenantTable& tenants() const { return tenants_; }
  const std::map<std::string, Agent>& agents() const { return agents_; }
  const LeaseLedger& ledger() const { return ledger_; }
  uint64_t epoch() const { return ledger_.epoch(); }
  bool Learning(TimePoint now) const { return ledger_.Learning() && now < learn_until_; }
  // Of all known agents.
  Pools AgentPools() const;
  Bytes Capacity() const;
  // The size of every slab in the cluster; zero without agents.
  Bytes SlabBytes() const;
  // At most limits::kReclaimsKept runs, newest first.
  const std::deque<ReclaimEntry>& ReclaimsOf(TenantId tenant) const;
  // Why its leases moved: at most limits::kDecisionsKept runs, newest first.
  const std::deque<LeaseDecision>& DecisionsOf(TenantId tenant) const;

  // Whether the agent may register, with the highest epoch it has seen. All agents of a cluster
  // have slabs of one size.
  RegisterOutcome CheckAgent(const AgentInfo& info, uint64_t highest_epoch) const;
  // A new connection of an agent that passed; returns its link. A link of before is dead.
  uint64_t Connect(const AgentInfo& info);
  // Does nothing for a dead link.
  void Disconnect(const std::string& agent, uint64_t link);
  // FailedPrecondition while it is connected.
  absl::Status CheckForget(const std::string& agent) const;
  void Forget(const std::string& agent);

  // Of a known agent.
  void CommitSettings(const std::string& agent, const AgentSettings& settings);

  // Takes a report of a live link, and answers it. An older report changes nothing.
  bool IsLive(const std::string& agent, uint64_t link) const;
  AgentOrders Exchange(const std::string& agent, AgentReport report, TimePoint now);

  // When what the agent's last report wants anew will be planned for, if it was not yet: then call
  // PlanIfDue and give it OrdersFor.
  std::optional<TimePoint> AwaitsPlan(const std::string& agent) const;
  void PlanIfDue(TimePoint now);

  // Orders that an agent was not given because the bounds of its leases must be on record first:
  // record what PrepareBounds returns, say so, and give it OrdersFor. One agent's at a time.
  bool AwaitsBounds(const std::string& agent) const { return ledger_.AwaitsBounds(agent); }
  LeaseBounds PrepareBounds(const std::string& agent) { return ledger_.PrepareBounds(agent); }
  void BoundsRecorded(const std::string& agent, const LeaseBounds& bounds) {
    ledger_.BoundsRecorded(agent, bounds);
  }
  AgentOrders OrdersFor(const std::string& agent) const;

  // The slabs that each tenant would come to have, if nothing changed any more: what the allocator
  // gives for today's demand where orders can go, and what counts elsewhere. Empty without agents.
  std::map<TenantId, int64_t> Outlook() const;

  void CommitTenants(const std::vector<Tenant>& changed);
  // Requires that nothing is leased to it.
  void RemoveTenant(const std::string& tenant);

 private:
  void Take(Agent& agent, AgentReport report, TimePoint now);
  // The leases as they are and as they should be.
  PacingInput Allocation() const;
  void Plan(TimePoint now);
  // What the ledger has made of a plan's moves.
  void LogMoves(const std::vector<LeaseMove>& moves, TimePoint now);
  int64_t LimitSlabs(const Tenant& tenant) const;

  TenantTable tenants_;
  LeaseLedger ledger_;
  std::map<std::string, Agent> agents_;
  std::map<TenantId, ReclaimLog> reclaims_;
  std::map<TenantId, DecisionLog> decisions_;
  TimePoint learn_until_;
  int64_t oversubscription_percent_;
  TimePoint next_plan_;
  uint64_t last_link_ = 0;
};

}  // namespace kvpool
