// Columns and objects.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/report.h"

#include <boost/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace kvpool::sim {
namespace {

double Seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

void AppendCounts(const char* title, const std::map<std::string, uint64_t>& counts,
                  std::string* text) {
  absl::StrAppend(text, title, "\n");
  for (const auto& [name, count] : counts)
    absl::StrAppendFormat(text, "  %-20s %12d\n", name, count);
}

boost::json::object CountsJson(const std::map<std::string, uint64_t>& counts) {
  boost::json::object object;
  for (const auto& [name, count] : counts) object[name] = count;
  return object;
}

}  // namespace

void Summary::Add(const Result& result) {
  ++seeds;
  events += result.events;
  checks += result.checks;
  simulated += result.simulated;
  for (const auto& [name, count] : result.event_counts) event_counts[name] += count;
  for (const auto& [name, count] : result.fault_counts) fault_counts[name] += count;
  if (result.violation.has_value()) failed.push_back(result);
}

std::string ToTable(const Summary& summary) {
  std::string text;
  AppendCounts("what happened", summary.event_counts, &text);
  AppendCounts("faults", summary.fault_counts, &text);
  absl::StrAppendFormat(&text,
                        "%d seeds, %d with a broken invariant; %d events, %s checked %d times\n",
                        summary.seeds, summary.failed.size(), summary.events,
                        absl::StrJoin(kInvariants, " "), summary.checks);
  absl::StrAppendFormat(&text, "%.0f s of simulated time in %.1f s: %.1f seeds/s\n",
                        Seconds(summary.simulated), Seconds(summary.wall),
                        static_cast<double>(summary.seeds) / Seconds(summary.wall));
  return text;
}

std::string Explain(const Result& failed, const std::string& replay) {
  std::string text;
  for (const std::string& line : failed.last_events) absl::StrAppend(&text, "  ", line, "\n");
  absl::StrAppendFormat(&text, "seed %d: %s is broken after %.6f s: %s\n", failed.seed,
                        failed.violation->invariant, Seconds(failed.simulated),
                        failed.violation->what);
  absl::StrAppend(&text, "the same again, with its whole history:\n  ", replay, "\n");
  return text;
}

std::string ToJson(const Summary& summary) {
  boost::json::array failed;
  for (const Result& result : summary.failed) {
    failed.push_back(boost::json::object{{"seed", result.seed},
                                         {"invariant", result.violation->invariant},
                                         {"what", result.violation->what}});
  }
  const boost::json::object object{
      {"seeds", summary.seeds},
      {"failed", failed},
      {"events", summary.events},
      {"checks", summary.checks},
      {"simulated_seconds", Seconds(summary.simulated)},
      {"wall_seconds", Seconds(summary.wall)},
      {"seeds_per_second", static_cast<double>(summary.seeds) / Seconds(summary.wall)},
      {"by_kind", CountsJson(summary.event_counts)},
      {"faults", CountsJson(summary.fault_counts)}};
  return boost::json::serialize(object) + "\n";
}

}  // namespace kvpool::sim
