// The last reclaims of one tenant, as runs: what an agent does over and over again for one reason
// under one policy is one line with a count, so that it does not push everything else out. Pure:
// knows no agents and no clock. One thread at a time.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <string>

#include "common/clock.h"
#include "common/ids.h"
#include "common/units.h"

namespace kvpool {

// Recovery over what could be measured: a mean, weighted by count, and the least of a head.
struct RecoverySummary {
  double mean = -1;  // negative: nothing was measured
  double min = -1;
  uint64_t count = 0;  // compactions that were measured

  void Add(const RecoverySummary& other);
};

// Things done to a tenant that was over its lease or due by its policy: one, or a run of them.
struct ReclaimEntry {
  TenantId tenant;
  std::string agent;
  TimePoint first, last;  // equal for one
  std::string step;       // "compaction"
  std::string reason;     // "lease-shrink"
  std::string policy;
  uint64_t count = 1;
  uint64_t sessions = 0;
  Bytes bytes;                 // freed; for a refusal, refused
  Bytes before;                // of the sessions' pages, summed as `bytes` is; 0: not told
  RecoverySummary recovery;    // of each compaction
  RecoverySummary cumulative;  // of their sessions since these were opened
};

class ReclaimLog {
 public:
  // Joins the run of the same agent, step, reason and policy, when that is the newest one or was
  // touched within the last ten seconds: reclaims of two kinds often take turns. Else it begins a
  // run, and the one above limits::kReclaimsKept that was not touched for longest goes.
  void Add(ReclaimEntry entry);

  // Newest first, by their last record.
  const std::deque<ReclaimEntry>& runs() const { return runs_; }

 private:
  std::deque<ReclaimEntry> runs_;
};

}  // namespace kvpool
