// kvpool-bench: runs the benchmark cases that the command line names, all when it names none.
//
// Table on standard output, progress on standard error. Exit codes: 0 all measured, 1 a case
// failed, 2 the command line is wrong.
//
// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <iostream>

#include "tests/bench/cases.h"
#include "tests/bench/report.h"

namespace kvpool::bench {
namespace {

struct Options {
  std::string json_path;
  std::string commit = "unknown";
  std::vector<std::string> names;
};

// The named cases in the order of the list, or all.
std::vector<const Case*> Chosen(const std::vector<Case>& cases, const Options& options) {
  std::vector<const Case*> chosen;
  for (const Case& one : cases) {
    const auto& names = options.names;
    if (names.empty() || std::find(names.begin(), names.end(), one.name) != names.end()) {
      chosen.push_back(&one);
    }
  }
  return chosen;
}

int RunAll(const std::vector<const Case*>& chosen, const Options& options) {
  std::vector<Entry> entries;
  for (const Case* one : chosen) {
    absl::StatusOr<Result> result = RunCase(*one, std::cerr);
    if (result.ok()) {
      entries.push_back({one, *std::move(result)});
    } else {
      std::cerr << one->name << ": FAILED: " << result.status().ToString() << std::endl;
    }
  }
  const Facts facts = ThisMachine(options.commit);
  std::cout << ToTable(facts, entries);
  if (!options.json_path.empty()) {
    std::ofstream file(options.json_path);
    if (!(file << ToJson(facts, entries)).flush()) {
      std::cerr << "cannot write " << options.json_path << std::endl;
      return 1;
    }
  }
  return entries.size() == chosen.size() ? 0 : 1;
}

int Main(int argc, char** argv) {
  const std::vector<Case> cases = AllCases();
  Options options;
  CLI::App app("Benchmarks of kvpool, each beside a yardstick.", "kvpool-bench");
  app.add_option("--json", options.json_path, "write {NAME: {value, unit, ...}} to this file");
  app.add_option("--commit", options.commit, "version of the source, for the record");
  bool list = false;
  app.add_flag("--list", list, "print the names and what they measure, run nothing");
  std::vector<std::string> known;
  known.reserve(cases.size());
  for (const Case& one : cases) known.push_back(one.name);
  app.add_option("NAME", options.names, "cases to run")->check(CLI::IsMember(known));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (list) {
    for (const Case& one : cases) std::cout << one.name << ": " << one.what << "\n";
    return 0;
  }
  return RunAll(Chosen(cases, options), options);
}

}  // namespace
}  // namespace kvpool::bench

int main(int argc, char** argv) { return kvpool::bench::Main(argc, argv); }
