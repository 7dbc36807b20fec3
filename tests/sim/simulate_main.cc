// kvpool-simulate: runs seeds on all cores, or one seed with its history.
//
// The table goes to standard output, progress to standard error. Exit codes: 0 every invariant
// held, 1 one was broken, 2 the command line is wrong.
//
// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <iostream>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/sim/report.h"
#include "tests/sim/trace_main.h"

namespace kvpool::sim {
namespace {

constexpr size_t kFailuresExplained = 3;
constexpr uint64_t kReplayedEvery = 64;  // I8: such seeds are run twice

struct Command {
  Options options;
  double seconds = 20;
  uint64_t seeds = 300;
  uint64_t first = 1;
  std::optional<uint64_t> seed;
  uint32_t threads = std::max(1u, std::thread::hardware_concurrency());
  std::string json_path;

  std::string Replay(uint64_t seed) const {
    return absl::StrCat("scripts/simulate --seed ", seed, " --agents ", options.agents,
                        " --tenants ", options.tenants, " --duration ", seconds, " --verbose");
  }
};

Result RunSeed(uint64_t seed, const Options& options) {
  Result result = Simulate(seed, options);
  if (seed % kReplayedEvery == 0 && !result.violation.has_value()) {
    const Result again = Simulate(seed, options);
    if (again.hash != result.hash) {
      result.violation = Violation{"I8", "the same seed had another history the second time"};
    }
  }
  return result;
}

Summary RunSeeds(const Command& command) {
  const auto start = std::chrono::steady_clock::now();
  Summary summary;
  std::mutex mutex;
  std::atomic<uint64_t> next{0};
  const auto work = [&] {
    for (uint64_t i = next++; i < command.seeds; i = next++) {
      const Result result = RunSeed(command.first + i, command.options);
      const std::lock_guard lock(mutex);
      summary.Add(result);
      if (isatty(STDERR_FILENO) != 0) {
        std::cerr << "\r" << summary.seeds << " of " << command.seeds << " seeds, "
                  << summary.failed.size() << " broken" << std::flush;
      }
    }
  };
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < command.threads; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  if (isatty(STDERR_FILENO) != 0) std::cerr << "\n";
  summary.wall = std::chrono::steady_clock::now() - start;
  std::sort(summary.failed.begin(), summary.failed.end(),
            [](const Result& a, const Result& b) { return a.seed < b.seed; });
  return summary;
}

int Finish(const Command& command, const Summary& summary) {
  std::cout << ToTable(summary);
  for (size_t i = 0; i < std::min(summary.failed.size(), kFailuresExplained); ++i) {
    Result failed = summary.failed[i];
    if (failed.last_events.empty() && failed.violation->invariant != "I8") {
      Options options = command.options;
      options.recording = World::Recording::kLastEvents;
      failed = Simulate(failed.seed, options);
    }
    std::cout << "\n" << Explain(failed, command.Replay(failed.seed));
  }
  if (summary.failed.size() > kFailuresExplained) {
    std::cout << "\nother broken seeds:";
    for (size_t i = kFailuresExplained; i < summary.failed.size(); ++i) {
      std::cout << " " << summary.failed[i].seed;
    }
    std::cout << "\n";
  }
  if (!command.json_path.empty()) {
    std::ofstream file(command.json_path);
    if (!(file << ToJson(summary)).flush()) {
      std::cerr << "cannot write " << command.json_path << "\n";
      return 1;
    }
  }
  return summary.failed.empty() ? 0 : 1;
}

void AddSeedOptions(CLI::App& app, Command* command) {
  app.add_option("--seeds", command->seeds, "how many seeds to run")->capture_default_str();
  app.add_option("--first", command->first, "the first of them")->capture_default_str();
  app.add_option("--seed", command->seed, "run this one only");
  app.add_option("--agents", command->options.agents,
                 "most agents of a cluster; with --trace: GPUs")
      ->check(CLI::Range(1, 16))
      ->capture_default_str();
  app.add_option("--tenants", command->options.tenants,
                 "most tenants at a time; with --trace: tenants, 8 unless said")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--duration", command->seconds, "simulated seconds with faults")
      ->check(CLI::Range(0.1, 100000.0))
      ->capture_default_str();
  app.add_option("--threads", command->threads, "seeds at a time")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--json", command->json_path, "write the outcome to this file");
}

void AddTraceOptions(CLI::App& app, TraceCommand* trace) {
  CLI::Option* path =
      app.add_option("--trace", trace->path,
                     "replay these arrivals: Mooncake's JSON lines or Azure's CSV, as published");
  const auto add = [&](const char* name, auto& value, const char* text) {
    return app.add_option(name, value, text)->needs(path)->capture_default_str();
  };
  add("--pool", trace->pool_gib, "GiB of each GPU that tenants can have")
      ->check(CLI::Range(0.03125, 4096.0));
  add("--geometry", trace->model, "the model whose cache it is");
  add("--models", trace->models_path, "table of models for --geometry, CSV (docs/simulation.md)");
  add("--minutes", trace->minutes, "so much of the trace; 0: all")
      ->check(CLI::Range(0.0, 1000000.0));
  add("--requests", trace->requests, "so many requests of the trace; 0: all");
  add("--patience", trace->patience_seconds, "seconds that a request waits for admission")
      ->check(CLI::Range(0.0, 100000.0));
  add("--prompt-speed", trace->prompt_speed, "tokens a second at which a session takes its prompt")
      ->check(CLI::Range(1, 1000000));
  add("--answer-speed", trace->answer_speed, "tokens a second at which a session answers")
      ->check(CLI::Range(1, 1000000));
}

int Main(int argc, char** argv) {
  Command command;
  CLI::App app(
      "Simulates managers, agents and workers with everything that can go wrong, from one number\n"
      "each: crashes, stopped processes, partitions, lost connections, clock jumps, full disks,\n"
      "memory that does not come back, workers that lie. After every event the invariants I1 to\n"
      "I10 are checked (tests/sim/invariants.h). The same seed and options give the same history.\n"
      "\n"
      "  scripts/simulate --seeds 10000           every seed from 1, on all cores\n"
      "  scripts/simulate --seed 42 --verbose     one seed, with its history\n"
      "\n"
      "With --trace it replays real arrivals instead, without faults: the trace's conversations\n"
      "become tenants of very different size on GPUs of a given pool, once with a static part of\n"
      "every GPU for each tenant, once with budgets that guarantee the same and lend the rest, "
      "and\n"
      "then with each policy that compacts. The table says what each served (docs/simulation.md).\n"
      "\n"
      "  scripts/simulate --trace mooncake_conversation.jsonl --pool 32\n"
      "  scripts/simulate --trace azure2023_code.csv --pool 4 --minutes 10 --json outcome.json",
      "kvpool-simulate");
  bool verbose = false;
  AddSeedOptions(app, &command);
  TraceCommand trace;
  AddTraceOptions(app, &trace);
  app.add_flag("--verbose", verbose, "print the history (with --seed)");
  try {
    app.parse(argc, argv);
    if (verbose && !command.seed.has_value()) {
      throw CLI::ValidationError("--verbose", "prints one history: name its --seed");
    }
    for (const char* of_seeds : {"--seeds", "--first", "--seed", "--duration"}) {
      if (trace.path.empty() || app.count(of_seeds) == 0) continue;
      throw CLI::ValidationError(of_seeds, "a replay of a --trace has no seeds");
    }
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (!trace.path.empty()) {
    if (app.count("--agents") > 0) trace.agents = command.options.agents;
    if (app.count("--tenants") > 0) trace.tenants = command.options.tenants;
    trace.threads = command.threads;
    trace.json_path = command.json_path;
    return RunTrace(trace);
  }
  using std::chrono::duration_cast;
  command.options.faulty = duration_cast<Duration>(std::chrono::duration<double>(command.seconds));
  if (verbose) command.options.recording = World::Recording::kPrint;
  if (command.seed.has_value()) {
    command.first = *command.seed;
    command.seeds = 1;
  }
  const Summary summary = RunSeeds(command);
  command.options.recording = World::Recording::kOff;
  return Finish(command, summary);
}

}  // namespace
}  // namespace kvpool::sim

int main(int argc, char** argv) { return kvpool::sim::Main(argc, argv); }
