// Places what tenants want on the agents where they want it, fairly and as much as fits: a flow
// from tenants over their wants to agents. What is placed can still move between agents, but no
// tenant ever loses in sum. It knows neither guarantees nor limits: those are allocator.h's, which
// calls Raise once for each step. A pure state machine, one thread at a time.
//
// Sources: Megiddo, "Optimal flows in networks with multiple sources and sinks" (1974), for what
// fair means here; Groenevelt, "Two algorithms for maximizing a separable concave function over a
// polymatroid feasible region" (1991), for the way there; Dinitz (1970) for the flows.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "manager/index_set.h"
#include "manager/max_min.h"

namespace kvpool {

class Placement {
 public:
  // free[agent]: slabs to place on. Nobody wants anything yet.
  Placement(std::vector<int64_t> free, size_t tenants);

  // What a tenant wants at an agent, more than none; once for each pair, before anything is placed.
  void SetWant(size_t tenant, size_t agent, int64_t slabs);

  // Raises the tenants' sums, [tenant] by at most claims[tenant].want. A tenant asks each agent for
  // a part of its claim in proportion to its unmet wants there, each agent shares its free slabs
  // max-min between those who ask; again while something moves, but kRounds times at most.
  void Fill(const std::vector<Claim>& claims);

  // The same, exactly. Together the tenants gain as much as any placement can give them, and what
  // each gains is max-min: one slab after the other goes to the poorest, the one with the smallest
  // gain / weight, unless no placement has room for it; earlier tenants win ties. Which sums come
  // out depends on nothing else. The placement is Fill's where that is fair already, and else as
  // few moves away as augmenting paths need.
  void Raise(const std::vector<Claim>& claims);

  // [agent]: slabs that nobody holds.
  const std::vector<int64_t>& free() const { return free_; }
  // What the tenant has there.
  int64_t placed(size_t tenant, size_t agent) const { return At(tenant, agent).placed; }
  // [tenant]: what the last Fill or Raise gave it.
  const std::vector<int64_t>& gained() const { return gained_; }

 private:
  static constexpr int kRounds = 6;

  struct Pair {
    int64_t unmet = 0, placed = 0;
  };

  struct Asked {
    size_t tenant;
    int64_t slabs;
  };

  // Tenants and agents between which slabs may still move; whatever they have with others is final.
  struct Part {
    IndexSet tenants, agents;
  };

  const Pair& At(size_t tenant, size_t agent) const {
    return pairs_[tenant * free_.size() + agent];
  }
  void Ask(size_t tenant, int64_t amount);
  bool Serve(size_t agent, const std::vector<Claim>& claims);
  int64_t Unmet(size_t tenant) const;
  // Gives a slab, or more, to a tenant; takes them from it where negative.
  void Move(size_t tenant, size_t agent, int64_t slabs);

  void SetTargets(const Part& part, const std::vector<Claim>& claims);
  bool AnyShort(const Part& part) const;
  void PushAll(const Part& part);
  bool FindLayers(const Part& part);
  Part SplitOffReached(Part& part) const;
  int64_t PushFromTenant(size_t tenant, size_t layer, int64_t amount);
  int64_t PushFromAgent(size_t agent, size_t layer, int64_t amount);

  std::vector<int64_t> free_;              // [agent]
  std::vector<int64_t> gained_;            // [tenant]
  std::vector<Pair> pairs_;                // [tenant * agents + agent]
  std::vector<IndexSet> want_more_;        // [tenant]: agents where something is unmet
  std::vector<IndexSet> holders_;          // [agent]: tenants for whom something is placed
  std::vector<std::vector<Asked>> asked_;  // [agent]: in the round of Fill that is under way

  // The flow that is being pushed: from tenants that are short, in turns to agents where they want
  // more and to tenants that hold something there, ending at free slabs or at an excess.
  std::vector<int64_t> short_, excess_;  // [tenant]
  std::vector<Part> layers_;             // by the number of steps; less those who are used up
};

}  // namespace kvpool
