// Numbers and what is kept.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/audit.h"

#include <algorithm>
#include <ctime>
#include <utility>

#include "proto/limits.h"

namespace kvpool {

std::string UtcText(std::chrono::system_clock::time_point time) {
  const std::time_t seconds = std::chrono::system_clock::to_time_t(time);
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  char text[sizeof("2026-11-21T20:58:07Z") + 16];
  return std::string(text, std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc));
}

boost::json::object ToJson(const AuditEntry& entry) {
  return {{"seq", entry.seq},       {"time", entry.time},   {"actor", entry.actor},
          {"action", entry.action}, {"kind", entry.kind},   {"name", entry.name},
          {"before", entry.before}, {"after", entry.after}, {"revision", entry.revision}};
}

AuditLog::AuditLog(std::vector<AuditEntry> entries) {
  std::sort(entries.begin(), entries.end(),
            [](const AuditEntry& a, const AuditEntry& b) { return a.seq < b.seq; });
  entries_.assign(entries.begin(), entries.end());
  DropOldest();
}

std::vector<AuditEntry> AuditLog::Number(std::vector<AuditEntry> entries) const {
  uint64_t seq = entries_.empty() ? 0 : entries_.back().seq;
  for (AuditEntry& entry : entries) entry.seq = ++seq;
  return entries;
}

std::vector<uint64_t> AuditLog::Dropped(size_t more) const {
  const size_t sum = entries_.size() + more;
  const size_t dropped = sum > limits::kAuditKept ? sum - limits::kAuditKept : 0;
  std::vector<uint64_t> numbers;
  for (size_t i = 0; i < std::min(dropped, entries_.size()); ++i) {
    numbers.push_back(entries_[i].seq);
  }
  return numbers;
}

void AuditLog::Commit(const std::vector<AuditEntry>& numbered) {
  entries_.insert(entries_.end(), numbered.begin(), numbered.end());
  DropOldest();
}

void AuditLog::DropOldest() {
  while (entries_.size() > limits::kAuditKept) entries_.pop_front();
}

std::vector<AuditEntry> AuditLog::Find(const AuditQuery& query) const {
  std::vector<AuditEntry> found;
  const auto wanted = [&](const AuditEntry& entry) {
    return query.tenant.empty() || (entry.kind == "tenant" && entry.name == query.tenant);
  };
  if (query.after.has_value()) {
    for (const AuditEntry& entry : entries_) {
      if (found.size() == query.limit) break;
      if (entry.seq > *query.after && wanted(entry)) found.push_back(entry);
    }
    return found;
  }
  for (auto entry = entries_.rbegin(); entry != entries_.rend(); ++entry) {
    if (found.size() == query.limit) break;
    if (wanted(*entry)) found.push_back(*entry);
  }
  std::reverse(found.begin(), found.end());
  return found;
}

}  // namespace kvpool
