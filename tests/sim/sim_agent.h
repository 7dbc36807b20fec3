// An agent of the simulation: one life of it is the real pool ledger, tenant book, reclaim planner
// and message conversions, with the order of calls of agent/reclaimer.cc and manager_link.cc around
// them (agent_workers.h has that of agent/workers.cc). As in the product a crash ends the pool: the
// next life is a new incarnation, which begins with the floors that lie on the agent's disk. What
// its journal would have rebuilt is checked then.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "agent/pool.h"
#include "agent/tenant_book.h"
#include "tests/sim/agent_workers.h"
#include "tests/sim/network.h"
#include "tests/sim/sim_device.h"
#include "tests/sim/sim_manager.h"
#include "tests/sim/world.h"

namespace kvpool::sim {

// Brings tenants back to their leases. See agent/reclaimer.h.
class AgentReclaimer {
 public:
  struct Deps {
    World* world = nullptr;
    Process* process = nullptr;
    PoolLedger* ledger = nullptr;
    std::shared_ptr<SimDevice> device;
    AgentWorkers* workers = nullptr;
  };
  AgentReclaimer(const Deps& deps, std::function<void()> on_progress)
      : deps_(deps), on_progress_(std::move(on_progress)) {}

  void Look(TenantId tenant);

 private:
  void Pass(TenantId tenant);
  ReclaimInput Input(TenantId tenant) const;
  void DrainEmpty(TenantId tenant);
  void Drain(SlabIndex slab);
  void Destroy(SlabIndex slab);
  void Settle(SlabIndex slab, ReturnProof emptied);

  const Deps deps_;
  const std::function<void()> on_progress_;
  std::map<TenantId, bool> pending_;
};

struct AgentShape {
  std::string name;
  uint32_t slabs = 16;  // the reserve included
  uint32_t reserve = 1;
  Bytes slab_bytes;
};

class SimAgent {
 public:
  struct Deps {
    World* world = nullptr;
    Network* network = nullptr;
    Process* process = nullptr;
    std::function<SimManager*()> dial;  // whom the address leads to now; nullptr: nobody
  };
  SimAgent(const Deps& deps, AgentShape shape) : deps_(deps), shape_(std::move(shape)) {}

  void Start();
  void Crash(Network::Loss loss);
  // The machine comes back without what was on it.
  void WipeDisk() { disk_ = KeptOrders(); }
  bool running() const { return life_ != nullptr; }
  Process* process() const { return deps_.process; }
  const AgentShape& shape() const { return shape_; }
  int64_t capacity() const { return int64_t{shape_.slabs} - shape_.reserve; }

  // Of the life that runs.
  const PoolLedger& ledger() const { return *life_->ledger; }
  const TenantBook& book() const { return life_->book; }
  SimDevice& device() { return *life_->device; }
  const SimDevice& device() const { return *life_->device; }
  AgentWorkers& workers() { return life_->workers; }
  const AgentWorkers& workers() const { return life_->workers; }
  uint64_t incarnation() const { return life_->incarnation; }
  bool registered() const { return life_->registered; }
  // For saboteurs.
  PoolLedger& mutable_ledger() { return *life_->ledger; }
  TenantBook& mutable_book() { return life_->book; }
  void CorruptJournal();

  // Slabs that a tenant may hold here from now on, by all that this agent was told.
  int64_t MayHold(TenantId tenant) const;

 private:
  struct Life {
    Life(const Deps& deps, const AgentShape& shape, uint64_t incarnation);

    std::vector<std::byte> journal;
    std::optional<PoolLedger> ledger;
    TenantBook book;
    std::shared_ptr<SimDevice> device;
    AgentWorkers workers;
    const uint64_t incarnation;
    std::optional<AgentReclaimer> reclaimer;
    // The link to the manager; a new number for each try, so that what belongs to an old one is
    // known.
    uint64_t try_number = 0;
    ConnectionId connection = ConnectionId::kNone;
    SimManager* manager = nullptr;
    bool registered = false;
    uint64_t seq = 0;
    uint32_t failures = 0;
    bool exchanging = false;
    bool hurried = false;
    TimePoint last_answer;
    bool keeping = false;  // a write of the disk is under way
  };

  PoolConfig Config() const {
    return {
        .slabs = shape_.slabs, .reserve_slabs = shape_.reserve, .slab_bytes = shape_.slab_bytes};
  }
  void CheckJournal();
  void Dial();
  void Register();
  void OnRegistered(const Registered& registered);
  void Exchange();
  void Apply(const Message& message);
  void NextExchange();
  void Hurry();
  void LinkFailed(uint64_t try_number);
  void Restore();
  void Keep();

  const Deps deps_;
  const AgentShape shape_;
  KeptOrders disk_;
  std::unique_ptr<Life> life_;
};

}  // namespace kvpool::sim
