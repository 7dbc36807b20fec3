// See reclaim_records.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/reclaim_records.h"

#include <map>
#include <string>

namespace kvpool {
namespace {

using Outcomes = std::vector<const CompactionOutcome*>;  // of one policy

void Add(uint32_t pages_before, uint32_t freed_pages, Bytes page, ReclaimRecord* record) {
  ++record->sessions;
  record->bytes += freed_pages * static_cast<uint64_t>(page.value());
  record->bytes_before += pages_before * static_cast<uint64_t>(page.value());
}

ReclaimRecord Compacted(ReclaimRecord record, Bytes page, const Outcomes& outcomes) {
  record.step = ReclaimStep::kCompaction;
  std::vector<RecoveryStats> recovery, cumulative;
  for (const CompactionOutcome* outcome : outcomes) {
    if (outcome->effect != CompactionOutcome::Effect::kCompacted) continue;
    Add(outcome->pages_before, outcome->freed_pages, page, &record);
    recovery.push_back(outcome->recovery);
    cumulative.push_back(outcome->cumulative);
  }
  record.recovery = StatsOf(recovery);
  record.cumulative = StatsOf(cumulative);
  return record;
}

ReclaimRecord Sealed(ReclaimRecord record, Bytes page, const Outcomes& outcomes) {
  record.step = ReclaimStep::kRequantisation;
  for (const CompactionOutcome* outcome : outcomes) {
    if (outcome->sealing == CompactionOutcome::Sealing::kSealed) {
      Add(outcome->pages_before - outcome->freed_pages, outcome->sealing_freed, page, &record);
    }
  }
  return record;
}

// Compactions that the floor of recovery has refused.
ReclaimRecord Held(ReclaimRecord record, Bytes page, const Outcomes& outcomes) {
  record.step = ReclaimStep::kRefusal;
  record.reason = ReclaimReason::kFloor;
  for (const CompactionOutcome* outcome : outcomes) {
    if (outcome->floor == CompactionOutcome::Floor::kHeld) {
      Add(0, outcome->held_pages, page, &record);
    }
  }
  return record;
}

ReclaimRecord Ended(ReclaimRecord record, Bytes page, const Outcomes& outcomes) {
  record.step = ReclaimStep::kPreemption;
  for (const CompactionOutcome* outcome : outcomes) {
    if (outcome->effect == CompactionOutcome::Effect::kEnded) {
      Add(outcome->pages_before, outcome->freed_pages, page, &record);
    }
  }
  return record;
}

}  // namespace

std::vector<ReclaimRecord> RecordsOf(const ReclaimRecord& common, Bytes page,
                                     std::span<const CompactionOutcome> outcomes) {
  std::map<std::string, Outcomes> by_policy;
  for (const CompactionOutcome& outcome : outcomes) by_policy[outcome.policy].push_back(&outcome);
  std::vector<ReclaimRecord> records;
  for (const auto& [policy, same] : by_policy) {
    ReclaimRecord record = common;
    record.policy = policy;
    for (const ReclaimRecord& made : {Compacted(record, page, same), Sealed(record, page, same),
                                      Held(record, page, same), Ended(record, page, same)}) {
      if (made.sessions > 0) records.push_back(made);
    }
  }
  return records;
}

}  // namespace kvpool
