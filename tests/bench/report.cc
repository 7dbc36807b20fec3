// See report.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/report.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <fstream>
#include <string_view>

#include "absl/strings/str_format.h"

namespace kvpool::bench {
namespace {

// The value after `key` and a separator in a file of "key separator value" lines.
std::string LineValue(const char* path, std::string_view key, char separator) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const size_t at = line.find(separator);
    if (line.compare(0, key.size(), key) != 0 || at == std::string::npos) continue;
    const size_t first = line.find_first_not_of(" \t\"", at + 1);
    const size_t last = line.find_last_not_of(" \t\"");
    return first == std::string::npos ? "" : line.substr(first, last - first + 1);
  }
  return "unknown";
}

std::string Memory() {
  const double bytes = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  return absl::StrFormat("%.1f GiB", bytes / (1 << 30));
}

std::string Kernel() {
  utsname name{};
  uname(&name);
  return absl::StrFormat("%s %s", name.sysname, name.release);
}

std::string What(const Entry& entry) {
  const std::string& note = entry.result.note;
  return note.empty() ? entry.bench_case->what : entry.bench_case->what + "; " + note;
}

std::string OrDash(const std::optional<double>& number) {
  return number ? absl::StrFormat("%.4g", *number) : "-";
}

boost::json::value OrNull(const std::optional<double>& number) {
  return number ? boost::json::value(*number) : boost::json::value(nullptr);
}

}  // namespace

Facts ThisMachine(const std::string& commit) {
  return {
      {"cpu", LineValue("/proc/cpuinfo", "model name", ':')},
      {"cores", absl::StrFormat("%d", sysconf(_SC_NPROCESSORS_ONLN))},
      {"memory", Memory()},
      {"kernel", Kernel()},
      {"system", LineValue("/etc/os-release", "PRETTY_NAME", '=')},
      {"compiler", "GCC " __VERSION__},
      {"build", KVPOOL_BUILD_TYPE},
      {"commit", commit},
  };
}

std::string ToTable(const Facts& facts, const std::vector<Entry>& entries) {
  std::string table;
  for (const auto& [name, value] : facts) absl::StrAppendFormat(&table, "%-9s %s\n", name, value);
  absl::StrAppendFormat(&table, "\n%-18s %10s %-6s %10s %10s %7s\n", "name", "value", "unit",
                        "yardstick", "ratio", "spread");
  for (const Entry& entry : entries) {
    const Result& result = entry.result;
    absl::StrAppendFormat(&table, "%-18s %10.4g %-6s %10s %10s %6.1f%%\n    %s\n",
                          entry.bench_case->name, result.value, entry.bench_case->unit,
                          OrDash(result.yardstick), OrDash(result.ratio), 100 * result.spread,
                          What(entry));
  }
  return table;
}

std::string ToJson(const Facts& facts, const std::vector<Entry>& entries) {
  boost::json::object machine;
  for (const auto& [name, value] : facts) machine[name] = value;
  boost::json::object all{{"_machine", machine}};
  for (const Entry& entry : entries) {
    all[entry.bench_case->name] = {{"value", entry.result.value},
                                   {"unit", entry.bench_case->unit},
                                   {"yardstick", OrNull(entry.result.yardstick)},
                                   {"ratio", OrNull(entry.result.ratio)},
                                   {"spread", entry.result.spread},
                                   {"what", What(entry)}};
  }
  return boost::json::serialize(all) + "\n";
}

}  // namespace kvpool::bench
