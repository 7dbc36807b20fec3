// Merging. See reclaim_log.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/reclaim_log.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "proto/limits.h"

namespace kvpool {
namespace {

constexpr std::chrono::seconds kRunGap(10);
// Far above what is real, and two of them are still no overflow.
constexpr int64_t kMostBytes = int64_t{1} << 62;

bool SameKind(const ReclaimEntry& a, const ReclaimEntry& b) {
  return std::tie(a.agent, a.step, a.reason, a.policy) ==
         std::tie(b.agent, b.step, b.reason, b.policy);
}

Bytes Sum(Bytes a, Bytes b) { return Bytes(std::min((a + b).value(), kMostBytes)); }

void Merge(const ReclaimEntry& entry, ReclaimEntry* run) {
  run->first = std::min(run->first, entry.first);
  run->last = std::max(run->last, entry.last);
  run->count += entry.count;
  run->sessions += entry.sessions;
  run->bytes = Sum(run->bytes, entry.bytes);
  run->before = Sum(run->before, entry.before);
  run->recovery.Add(entry.recovery);
  run->cumulative.Add(entry.cumulative);
}

}  // namespace

void RecoverySummary::Add(const RecoverySummary& other) {
  if (other.count == 0) return;
  min = count == 0 ? other.min : std::min(min, other.min);
  mean = count == 0 ? other.mean
                    : mean + (other.mean - mean) * static_cast<double>(other.count) /
                                 static_cast<double>(count + other.count);
  count += other.count;
}

void ReclaimLog::Add(ReclaimEntry entry) {
  const auto run = std::find_if(runs_.begin(), runs_.end(),
                                [&](const ReclaimEntry& run) { return SameKind(run, entry); });
  const bool joins =
      run != runs_.end() && (run == runs_.begin() || entry.first - run->last <= kRunGap);
  if (joins) {
    Merge(entry, &*run);
    std::rotate(runs_.begin(), run, run + 1);
    return;
  }
  runs_.push_front(std::move(entry));
  if (runs_.size() > limits::kReclaimsKept) runs_.pop_back();
}

}  // namespace kvpool
