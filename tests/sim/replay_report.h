// What came out of the replays of one trace: a table for people, JSON for programs. Values in, text
// out.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/sim/replay.h"

namespace kvpool::sim {

// Blocks found in a room of a fixed size.
struct RoomResult {
  size_t blocks = 0;  // the room
  double part = 0;    // of all different blocks of the trace
  uint64_t shipped = 0, lru = 0, best = 0;
};

struct ReplayReport {
  std::string trace, format, model;
  ReplayOptions options;
  Duration traced{0};  // between the first request and the last
  Bytes page;
  std::vector<ReplayResult> results;
  uint64_t block_uses = 0;  // what the rooms' counts are of
  std::vector<RoomResult> rooms;
  Duration wall{0};
};

std::string ToTable(const ReplayReport& report);

// {"trace", "format", "model", "requests", "traced_seconds", "wall_seconds", "options": {},
// "contenders": [{"name", "served", ...}], "parking": [{"blocks", "lru", "shipped", "best"}]};
// times in seconds, memory in bytes, parts as ratios.
std::string ToJson(const ReplayReport& report);

}  // namespace kvpool::sim
