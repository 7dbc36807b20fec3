// What came out of many simulations: sums, a table for people, JSON for programs. Values in, text
// out.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tests/sim/simulation.h"

namespace kvpool::sim {

struct Summary {
  uint64_t seeds = 0;
  uint64_t events = 0;
  uint64_t checks = 0;
  Duration simulated{0};
  Duration wall{0};
  std::map<std::string, uint64_t> event_counts, fault_counts;
  std::vector<Result> failed;  // by seed

  void Add(const Result& result);
};

std::string ToTable(const Summary& summary);

// What broke, the last events before it, and the command that shows it again.
std::string Explain(const Result& failed, const std::string& replay);

// {"seeds", "failed": [{"seed", "invariant", "what"}], "events", "checks", "simulated_seconds",
// "wall_seconds", "seeds_per_second", "by_kind": {}, "faults": {}}
std::string ToJson(const Summary& summary);

}  // namespace kvpool::sim
