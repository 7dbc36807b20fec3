// Which slabs every tenant may hold at every agent, as far as the manager can know: revoke by
// acknowledgement. A pure state machine: it takes reports and targets and returns orders; it has no
// clock, sends nothing and keeps nothing on disk. One thread at a time.
//
// The rule: a lease counts from the moment it is ordered until the agent has acknowledged a newer
// order, and a promise counts until the agent has made a lower one. A grow is ordered only when all
// that counts still fits afterwards; a shrink frees nothing before it is acknowledged. So messages
// may be lost, doubled, late and reordered: memory can stay unused for a while, a tenant's limit
// and an agent's capacity are never exceeded. Time alone never takes a lease away.
//
// A new manager (a higher epoch) knows no leases. It orders nothing until it has learned them: from
// the first report of every agent it knows of. An agent of an unknown or returning name is learned
// from its own first report.
//
// An agent may never report again. So that its leases still count after a restart, an order goes
// out only once a bound of it is on record: a number of slabs that the lease stays within, kept
// where it survives the manager. Bounds are generous (powers of two), so that they seldom change.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/ids.h"

namespace kvpool {

// One tenant's line in an agent's report.
struct LeaseReport {
  TenantId tenant;
  uint64_t epoch = 0;  // of the order that the agent applied last
  uint64_t seq = 0;    // likewise
  int64_t slabs = 0;   // the agent's promise: it holds at most these from now on
};

// One tenant's line in an agent's orders.
struct LeaseOrder {
  TenantId tenant;
  uint64_t seq = 0;   // unique within the epoch, counts up
  int64_t slabs = 0;  // what it may hold
};

// What the allocator would like a tenant to have.
struct LeaseTarget {
  TenantId tenant;
  int64_t limit = 0;           // slabs, over all agents
  std::vector<int64_t> slabs;  // [agent], in the order of LeaseLedger::ReadyAgents
};

// What is on record about an agent's leases: each stays within so many slabs, and one that is not
// listed is none.
using LeaseBounds = std::map<TenantId, int64_t>;

// Whom a manager of an earlier epoch may have given leases.
struct LeaseHolder {
  std::string agent;
  uint64_t incarnation = 0;
  LeaseBounds bounds;
};

// What is leased of some tenants, for a plan. Tables are [tenant][agent].
struct LeaseTable {
  std::vector<std::string> agents;  // as LeaseLedger::ReadyAgents
  std::vector<int64_t> capacity;    // [agent]
  std::vector<int64_t> others;      // [agent]: committed there to tenants that were not asked for
  std::vector<std::vector<int64_t>> ordered;
  std::vector<std::vector<int64_t>> committed;
  std::vector<int64_t> elsewhere;  // [tenant]: committed at agents that are not ready
};

class LeaseLedger {
 public:
  LeaseLedger(uint64_t epoch, const std::vector<LeaseHolder>& known_agents);

  uint64_t epoch() const { return epoch_; }
  // Whether Plan does nothing yet. Ends when every known agent has reported.
  bool Learning() const { return !unheard_.empty(); }
  // Goes on without the known agents that are missing; their bounds count until they are back or
  // forgotten.
  void StopLearning() { unheard_.clear(); }

  // A new connection of an agent; its report numbers start again. Another incarnation than before
  // has a new pool, follows no orders yet, and may have kept some of its leases: what counted does
  // so until its first report.
  void Connect(const std::string& agent, uint64_t incarnation, int64_t capacity_slabs);
  // Its leases stay, and nothing is ordered from it.
  void Disconnect(const std::string& agent);
  // Its leases count no more. Requires that it is not connected.
  void Forget(const std::string& agent);
  // Drops the orders for a tenant that is no more. Requires that nothing of it is committed.
  void Remove(TenantId tenant);

  // Takes a connected agent's report; returns false and ignores it unless `seq` is higher than in
  // the report before. A tenant that is not listed and was never ordered has no lease.
  bool Report(const std::string& agent, uint64_t seq, const std::vector<LeaseReport>& tenants);

  // Orders what brings the leases nearer to the targets, as far as the rule allows: all shrinks,
  // and those grows (or parts of them) that fit now. Tenants without a target are left alone.
  void Plan(const std::vector<LeaseTarget>& targets);

  // The standing order for each tenant that has one and whose bound is on record. To be repeated
  // until acknowledged.
  std::vector<LeaseOrder> Orders(const std::string& agent) const;

  // Whether an order waits for its bound.
  bool AwaitsBounds(const std::string& agent) const;
  // The bounds to put on record now. Until BoundsRecorded, orders keep within these and the old
  // ones; so one write at a time, and a write that failed changes nothing.
  LeaseBounds PrepareBounds(const std::string& agent);
  void BoundsRecorded(const std::string& agent, const LeaseBounds& bounds);

  // Agents that Plan can order from: connected, and heard since. Sorted by name.
  std::vector<std::string> ReadyAgents() const;
  // In a time that grows with the leases there are.
  LeaseTable LeasesOf(const std::vector<TenantId>& tenants) const;
  // All that counts: at the agent, and for the tenant at the agent or at all agents.
  int64_t CommittedAt(const std::string& agent) const { return agents_.at(agent).Committed(); }
  int64_t Committed(TenantId tenant, const std::string& agent) const;
  int64_t Committed(TenantId tenant) const;
  // What the tenant may hold at the agent by the standing order.
  int64_t Ordered(TenantId tenant, const std::string& agent) const;

 private:
  struct Order {
    uint64_t seq;
    int64_t slabs;
  };

  struct Lease {
    int64_t promise = 0;
    // The standing order last; before it those that the agent may still be following: from the
    // acknowledged one on, without any that a later, larger one covers. So slabs fall from front to
    // back.
    std::vector<Order> orders;

    int64_t Committed() const;
    int64_t Ordered() const { return orders.empty() ? promise : orders.back().slabs; }
    void Add(Order order);
    void Acknowledge(uint64_t seq, int64_t slabs);
  };

  struct Agent {
    bool connected = false;
    bool heard = false;  // reported since it connected
    uint64_t incarnation = 0;
    uint64_t report_seq = 0;
    int64_t capacity = 0;
    std::map<TenantId, Lease> leases;
    LeaseBounds bounds;

    bool Ready() const { return connected && heard; }
    int64_t Committed() const;
    int64_t Bound(TenantId tenant) const;
  };

  std::map<TenantId, int64_t> CommittedByTenant() const;
  const Lease* Find(TenantId tenant, const std::string& agent) const;

  uint64_t epoch_;
  uint64_t last_seq_ = 0;
  std::vector<std::string> unheard_;  // known agents that have not reported in this epoch
  std::map<std::string, Agent> agents_;
};

}  // namespace kvpool
