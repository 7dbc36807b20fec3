// Columns and objects.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/replay_report.h"

#include <algorithm>
#include <boost/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace kvpool::sim {
namespace {

double Seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }
double GiB(Bytes bytes) { return static_cast<double>(bytes.value()) / (int64_t{1} << 30); }
double Ratio(uint64_t part, uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

// "34 ms", "1.2 s"
std::string Time(Duration duration) {
  const double seconds = Seconds(duration);
  return seconds < 1 ? absl::StrFormat("%.0f ms", seconds * 1000)
                     : absl::StrFormat("%.1f s", seconds);
}

void AppendContenders(const ReplayReport& report, std::string* text) {
  size_t widest = 0;
  for (const ReplayResult& result : report.results) widest = std::max(widest, result.name.size());
  absl::StrAppendFormat(text, "%-*s %6s %7s %9s %9s %9s %6s %6s %6s %8s %8s %9s %4s %9s\n",
                        static_cast<int>(widest), "", "served", "refused", "too large", "preempted",
                        "compacted", "found", "used", "kept", "wait p50", "wait p99", "claim p99",
                        "over", "+overhead");
  for (const ReplayResult& result : report.results) {
    absl::StrAppendFormat(
        text, "%-*s %6d %7d %9d %9d %9d %5.1f%% %5.1f%% %5.1f%% %8s %8s %9s %4d %5d MiB\n",
        static_cast<int>(widest), result.name, result.served, result.refused(), result.too_large,
        result.preempted, result.compactions,
        100 * Ratio(result.found_tokens, result.prompt_tokens), 100 * result.mean_used,
        100 * result.mean_kept, Time(result.wait_p50), Time(result.wait_p99),
        result.claims == 0 ? "-" : Time(result.claim_p99), result.bytes_over,
        result.bytes_over_with_overhead >> 20);
  }
}

void AppendRooms(const ReplayReport& report, std::string* text) {
  absl::StrAppendFormat(text,
                        "\nparked prefixes, in a room of a fixed size: of %d blocks of %d tokens "
                        "that prompts had, found\n%10s %8s %8s %8s %8s\n",
                        report.block_uses, kBlockTokens, "room", "of all", "LRU", "shipped",
                        "at best");
  for (const RoomResult& room : report.rooms) {
    absl::StrAppendFormat(text, "%10d %7.1f%% %7.2f%% %7.2f%% %7.2f%%\n", room.blocks,
                          100 * room.part, 100 * Ratio(room.lru, report.block_uses),
                          100 * Ratio(room.shipped, report.block_uses),
                          100 * Ratio(room.best, report.block_uses));
  }
}

boost::json::object ToObject(const ReplayResult& result) {
  return {{"name", result.name},
          {"requests", result.requests},
          {"served", result.served},
          {"refused", result.refused()},
          {"refused_too_large", result.too_large},
          {"refused_waited", result.impatient},
          {"preempted", result.preempted},
          {"compactions", result.compactions},
          {"prompt_tokens", result.prompt_tokens},
          {"found_tokens", result.found_tokens},
          {"served_tokens", result.served_tokens},
          {"bytes_over_budget", result.bytes_over},
          {"bytes_over_budget_with_overhead", result.bytes_over_with_overhead},
          {"mean_used_ratio", result.mean_used},
          {"mean_kept_ratio", result.mean_kept},
          {"wait_p50_seconds", Seconds(result.wait_p50)},
          {"wait_p99_seconds", Seconds(result.wait_p99)},
          {"claims", result.claims},
          {"claim_p50_seconds", Seconds(result.claim_p50)},
          {"claim_p99_seconds", Seconds(result.claim_p99)},
          {"claim_max_seconds", Seconds(result.claim_max)},
          {"events", result.events}};
}

}  // namespace

std::string ToTable(const ReplayReport& report) {
  const ReplayOptions& options = report.options;
  std::string text;
  absl::StrAppendFormat(
      &text,
      "%s (%s): %d requests in %.0f s, of %d tenants on %d GPUs with %.1f GiB of cache each\n"
      "%s: pages of 16 tokens and %.2f MiB in slabs of %.0f MiB; prompts at %d tokens/s, in chunks "
      "of %d,\nanswers at %d tokens/s, 16 at a time, each session by itself; a request waits at "
      "most %.0f s\n\n",
      report.trace, report.format, report.results.empty() ? 0 : report.results.front().requests,
      Seconds(report.traced), options.tenants, options.agents, GiB(options.pool), report.model,
      GiB(report.page) * 1024, GiB(kReplaySlab) * 1024, options.prompt_tokens_per_second,
      kReplayChunk, options.answer_tokens_per_second, Seconds(options.patience));
  AppendContenders(report, &text);
  absl::StrAppend(
      &text,
      "\nrefused: not admitted in time, or too large, which could never fit; preempted: sessions "
      "ended, to begin anew;\ncompacted: times that a session was; found: part of the prompts' "
      "tokens that lay in kept prefixes; used, kept:\nmean parts of the pools that sessions' pages "
      "and unused prefixes take; wait: of what was served, for admission;\nclaim: until a tenant "
      "has the lease for what it wants of its guarantee; over: most bytes that a tenant held\n"
      "above its limit, in slabs; +overhead: and with what its sessions are charged besides\n");
  if (!report.rooms.empty()) AppendRooms(report, &text);
  absl::StrAppendFormat(&text, "\nreplayed %d times in %.1f s\n", report.results.size(),
                        Seconds(report.wall));
  return text;
}

std::string ToJson(const ReplayReport& report) {
  boost::json::array contenders, parking;
  for (const ReplayResult& result : report.results) contenders.push_back(ToObject(result));
  for (const RoomResult& room : report.rooms) {
    parking.push_back(boost::json::object{{"blocks", room.blocks},
                                          {"part", room.part},
                                          {"lru", Ratio(room.lru, report.block_uses)},
                                          {"shipped", Ratio(room.shipped, report.block_uses)},
                                          {"best", Ratio(room.best, report.block_uses)}});
  }
  const ReplayOptions& options = report.options;
  const boost::json::object object{
      {"trace", report.trace},
      {"format", report.format},
      {"model", report.model},
      {"requests", report.results.empty() ? 0 : report.results.front().requests},
      {"traced_seconds", Seconds(report.traced)},
      {"wall_seconds", Seconds(report.wall)},
      {"options",
       boost::json::object{{"agents", options.agents},
                           {"tenants", options.tenants},
                           {"pool_bytes", options.pool.value()},
                           {"page_bytes", report.page.value()},
                           {"slab_bytes", kReplaySlab.value()},
                           {"patience_seconds", Seconds(options.patience)},
                           {"prompt_tokens_per_second", options.prompt_tokens_per_second},
                           {"answer_tokens_per_second", options.answer_tokens_per_second},
                           {"chunk_tokens", kReplayChunk}}},
      {"contenders", contenders},
      {"parking", parking}};
  return boost::json::serialize(object) + "\n";
}

}  // namespace kvpool::sim
