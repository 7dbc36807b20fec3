// kvpool-simulate --trace: reads a trace, replays it under each contender on all cores, and prints
// what each served. What a replay is: replay.h. Main thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "tests/sim/replay.h"

namespace kvpool::sim {

struct TraceCommand {
  std::string path;
  std::string model = "Llama-3.1-8B";
  std::string models_path;  // empty: only the default model is known
  double pool_gib = 32;
  double minutes = 0;   // 0: all
  size_t requests = 0;  // 0: all
  double patience_seconds = 30;
  uint32_t prompt_speed = 8000, answer_speed = 25;
  uint32_t agents = 4, tenants = 8, threads = 1;
  std::string json_path;
};

// All ways to divide memory that are compared for a model.
std::vector<Contender> Contenders(const Geometry& geometry);

// The process's exit code: 0, or 2 when an input is not what it must be.
int RunTrace(const TraceCommand& command);

}  // namespace kvpool::sim
