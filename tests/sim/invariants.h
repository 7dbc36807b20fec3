// What must hold at every moment, checked against the truth of the simulation: control.md's I1 to
// I6 after each event; I7, I9 and I10 belong to the end of a run (simulation.cc), I8 to two runs of
// one seed.
//
//   I1 every slab is in one state and the sums match; the journal is the same ledger
//   I2 memory of a tenant is with nobody else; who has a slab mapped is known
//   I3 no slab is FREE with memory in it or mapped
//   I4 what agents may hold is never above a tenant's limit and an agent's capacity
//   I5 a tenant that is above its lease gets nothing more
//   I6 epochs, and leases within them, never go back
//   I7 what was begun ends exactly once
//   I8 one seed, one history
//   I9 when faults have stopped, every demand up to the guarantee is served
//   I10 when everybody has left, everything is as it was
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <utility>
#include <vector>

#include "tests/sim/sim_agent.h"
#include "tests/sim/sim_manager.h"
#include "tests/sim/world.h"

namespace kvpool::sim {

inline constexpr std::array<const char*, 10> kInvariants = {"I1", "I2", "I3", "I4", "I5",
                                                            "I6", "I7", "I8", "I9", "I10"};

class Invariants {
 public:
  Invariants(World& world, const std::deque<SimAgent>& agents,
             const std::deque<SimManager>& managers, Bytes slab_bytes)
      : world_(world), agents_(agents), managers_(managers), slab_bytes_(slab_bytes) {}

  // The cheap ones each time, the walk over every slab and page now and then.
  void AfterEvent();
  void Walk();

  uint64_t checks() const { return checks_; }

 private:
  // The last state of an agent's life that was seen.
  struct Seen {
    uint64_t incarnation = 0;
    uint64_t epoch = 0;
    std::map<TenantId, uint32_t> held;
    std::map<TenantId, std::pair<uint64_t, uint64_t>> lease;  // epoch, seq
  };

  void CheckAgent(size_t index);
  void CheckLimits();
  const Cluster* Leader();
  int64_t LimitSlabs(TenantId tenant) const;

  World& world_;
  const std::deque<SimAgent>& agents_;
  const std::deque<SimManager>& managers_;
  const Bytes slab_bytes_;
  std::map<size_t, Seen> seen_;
  std::map<TenantId, int64_t> may_hold_;  // over all agents, by what they were told
  std::map<TenantId, int64_t> bounds_;    // what that must not exceed
  uint64_t epoch_ = 0;                    // of the newest manager
  uint64_t events_ = 0;
  uint64_t checks_ = 0;
};

}  // namespace kvpool::sim
