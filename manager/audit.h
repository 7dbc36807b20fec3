// What operators have changed, and the manager for them (the rungs of policy `auto`): who, when,
// what, from what to what. Keeps the newest limits::kAuditKept changes. Pure: entries are numbered
// here, made durable together with the change by someone else, and then committed here. One thread
// at a time.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json.hpp>
#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

namespace kvpool {

struct AuditEntry {
  uint64_t seq = 0;    // from 1, no number twice
  std::string time;    // for people: "2026-11-21T20:58:07Z"
  std::string actor;   // the operator's name; "manager" for what no operator asked for
  std::string action;  // "tenant.update"
  std::string kind;    // of what was changed: "tenant", "agent", "operator"
  std::string name;    // likewise
  boost::json::value before, after;  // null: it was not there, it is no more
  uint64_t revision = 0;             // of a tenant, after the change; else 0

  bool operator==(const AuditEntry&) const = default;
};

// RFC 3339 in UTC, whole seconds.
std::string UtcText(std::chrono::system_clock::time_point time);

// As it is stored and answered.
boost::json::object ToJson(const AuditEntry& entry);

struct AuditQuery {
  std::optional<uint64_t> after;  // the first ones after this number; none: the newest
  size_t limit = 0;               // most entries
  std::string tenant;             // only changes of this tenant; empty: all
};

class AuditLog {
 public:
  AuditLog() = default;
  // In any order.
  explicit AuditLog(std::vector<AuditEntry> entries);

  // With the numbers that these will have.
  std::vector<AuditEntry> Number(std::vector<AuditEntry> entries) const;
  // The entries that go when so many more come.
  std::vector<uint64_t> Dropped(size_t more) const;
  // Entries that Number has returned last.
  void Commit(const std::vector<AuditEntry>& numbered);

  // Oldest first.
  std::vector<AuditEntry> Find(const AuditQuery& query) const;

 private:
  void DropOldest();

  std::deque<AuditEntry> entries_;  // oldest first
};

}  // namespace kvpool
