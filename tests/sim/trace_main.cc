// See trace_main.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/trace_main.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <limits>
#include <numeric>
#include <thread>

#include "absl/strings/str_cat.h"
#include "kernels/layout.h"
#include "tests/sim/replay_report.h"

namespace kvpool::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr const char* kDefaultModel = "Llama-3.1-8B";
constexpr auto kQuiet = std::chrono::seconds(2);            // before there is a line of progress
constexpr double kRooms[] = {0.01, 0.02, 0.05, 0.1, 0.25};  // of all different blocks
constexpr uint32_t kWarmUpLayers = 10;                      // w of LCKV's paper
constexpr int64_t kKeptTokens = 4096;                       // of policies with a budget

// Layer-Condensed KV Cache (arXiv 2405.10637): a few warm-up layers at both ends keep their own
// keys, all between them use those of the topmost.
Geometry Condensed(Geometry geometry) {
  const uint32_t layers = geometry.model_layers();
  const uint32_t ends = std::min(kWarmUpLayers, layers - 1) / 2;
  geometry.layers = 2 * ends + 1;
  for (uint32_t i = 0; i < layers; ++i) {
    const uint32_t from_top = layers - 1 - i;
    geometry.kv_of_layer[i] = static_cast<uint16_t>(
        i < ends ? i : (from_top < ends ? geometry.layers - 1 - from_top : ends));
    if (i >= ends && from_top > ends) geometry.self_masked.push_back(static_cast<uint16_t>(i));
  }
  return geometry;
}

Geometry DefaultModel() {
  Geometry geometry{.layers = 32,
                    .query_heads = 32,
                    .kv_heads = 8,
                    .key_dim = 128,
                    .value_dim = 128,
                    .kv_of_layer = std::vector<uint16_t>(32)};
  std::iota(geometry.kv_of_layer.begin(), geometry.kv_of_layer.end(), uint16_t{0});
  return geometry;
}

absl::StatusOr<Geometry> ModelOf(const TraceCommand& command) {
  if (!command.models_path.empty()) return ReadGeometry(command.models_path, command.model);
  if (command.model == kDefaultModel) return DefaultModel();
  return absl::InvalidArgumentError(absl::StrCat(
      "without --models only ", kDefaultModel, " is known; name a table that has ", command.model));
}

// Runs each contender, `threads` at a time, and says now and then how far they are.
absl::StatusOr<std::vector<ReplayResult>> RunAll(const std::vector<Request>& requests,
                                                 const ReplayOptions& options,
                                                 const std::vector<Contender>& contenders,
                                                 uint32_t threads) {
  const auto start = steady_clock::now();
  std::vector<absl::StatusOr<ReplayResult>> outcomes(contenders.size(), absl::UnknownError(""));
  std::atomic<size_t> next{0}, done{0};
  std::atomic<uint64_t> arrived{0};
  const auto work = [&] {
    for (size_t i = next++; i < contenders.size(); i = next++) {
      outcomes[i] = Replay(requests, options, contenders[i], &arrived);
      ++done;
    }
  };
  std::vector<std::thread> pool;
  for (uint32_t i = 0; i < threads; ++i) pool.emplace_back(work);
  while (isatty(STDERR_FILENO) != 0 && done < contenders.size()) {
    std::this_thread::sleep_for(milliseconds(200));
    if (steady_clock::now() - start < kQuiet) continue;
    std::cerr << "\r" << done << " of " << contenders.size() << " replays, "
              << 100 * arrived / (requests.size() * contenders.size()) << " % of the requests"
              << std::flush;
  }
  for (std::thread& thread : pool) thread.join();
  if (isatty(STDERR_FILENO) != 0) std::cerr << "\r\033[K";
  std::vector<ReplayResult> results;
  for (absl::StatusOr<ReplayResult>& outcome : outcomes) {
    if (!outcome.ok()) return outcome.status();
    results.push_back(*std::move(outcome));
  }
  return results;
}

void CompareParking(const std::vector<Request>& requests, ReplayReport* report) {
  std::vector<std::vector<PrefixKey>> chains;
  absl::flat_hash_map<PrefixKey, uint32_t> different;
  for (const Request& request : requests) {
    if (request.blocks.empty()) continue;
    chains.push_back(request.blocks);
    for (const PrefixKey key : request.blocks) ++different[key];
    report->block_uses += request.blocks.size();
  }
  if (chains.empty()) return;
  for (const double part : kRooms) {
    const auto room =
        std::max<size_t>(1, static_cast<size_t>(part * static_cast<double>(different.size())));
    report->rooms.push_back({.blocks = room,
                             .part = part,
                             .shipped = BlocksFound(chains, ParkingRule::kShipped, room),
                             .lru = BlocksFound(chains, ParkingRule::kLru, room),
                             .best = BlocksFoundAtBest(chains, room)});
  }
}

absl::StatusOr<ReplayReport> MakeReport(const TraceCommand& command) {
  const auto start = steady_clock::now();
  using Seconds = std::chrono::duration<double>;
  const auto longest = command.minutes > 0
                           ? std::chrono::duration_cast<Duration>(Seconds(command.minutes * 60))
                           : Duration::max();
  const size_t most = command.requests > 0 ? command.requests : std::numeric_limits<size_t>::max();
  const absl::StatusOr<Geometry> geometry = ModelOf(command);
  if (!geometry.ok()) return geometry.status();
  const absl::StatusOr<Layout> layout = Layout::Make(*geometry, kReplaySlab);
  if (!layout.ok()) return layout.status();
  const absl::StatusOr<Arrivals> arrivals = ReadArrivals(command.path, most, longest);
  if (!arrivals.ok()) return arrivals.status();
  ReplayReport report{.trace = command.path.substr(command.path.rfind('/') + 1),
                      .format = arrivals->format,
                      .model = command.model,
                      .options = {.agents = command.agents,
                                  .tenants = command.tenants,
                                  .pool = kReplaySlab * static_cast<int64_t>(command.pool_gib * 32),
                                  .patience = std::chrono::duration_cast<Duration>(
                                      Seconds(command.patience_seconds)),
                                  .prompt_tokens_per_second = command.prompt_speed,
                                  .answer_tokens_per_second = command.answer_speed},
                      .traced = arrivals->requests.back().at,
                      .page = layout->page_bytes()};
  const std::vector<Request> requests = DivideArrivals(*arrivals, report.options);
  std::vector<Contender> contenders = Contenders(*geometry);
  if (std::all_of(requests.begin(), requests.end(),
                  [](const Request& request) { return request.blocks.empty(); })) {
    std::erase_if(contenders, [](const Contender& contender) {
      return contender.parking == ParkingRule::kLru;  // there is nothing to park
    });
  }
  auto results = RunAll(requests, report.options, contenders, command.threads);
  if (!results.ok()) return results.status();
  report.results = *std::move(results);
  CompareParking(requests, &report);
  report.wall = steady_clock::now() - start;
  return report;
}

}  // namespace

std::vector<Contender> Contenders(const Geometry& geometry) {
  const auto policy = [](const std::string& name, const PolicyValues& values) {
    return MakePolicySpec(name, values).value();
  };
  const PolicyValues budget = {{"budget", kKeptTokens}};
  std::vector<Contender> contenders = {
      {.name = "static partition", .division = Contender::Division::kStatic},
      {.name = "static partition, LRU",
       .division = Contender::Division::kStatic,
       .parking = ParkingRule::kLru},
      {.name = "budgets, full"},
      {.name = "budgets, full, LRU", .parking = ParkingRule::kLru},
      {.name = "budgets, scissorhands", .policy = policy("scissorhands", budget)},
      {.name = "budgets, corm", .policy = policy("corm", {})},
      {.name = "budgets, fastgen", .policy = policy("fastgen", {})},
      {.name = "budgets, lckv"},
      {.name = "budgets, streaming", .policy = policy("streaming", {{"recent", kKeptTokens - 4}})},
      {.name = "budgets, h2o",
       .policy = policy("h2o", {{"budget", kKeptTokens}, {"recent", kKeptTokens / 2}})},
      {.name = "budgets, snapkv", .policy = policy("snapkv", budget)}};
  for (Contender& contender : contenders) {
    contender.geometry = contender.name == "budgets, lckv" ? Condensed(geometry) : geometry;
  }
  return contenders;
}

int RunTrace(const TraceCommand& command) {
  const absl::StatusOr<ReplayReport> report = MakeReport(command);
  if (!report.ok()) {
    std::cerr << "kvpool-simulate: " << report.status().message() << "\n";
    return 2;
  }
  std::cout << ToTable(*report);
  if (command.json_path.empty()) return 0;
  std::ofstream file(command.json_path);
  if (!(file << ToJson(*report)).flush()) {
    std::cerr << "cannot write " << command.json_path << "\n";
    return 2;
  }
  return 0;
}

}  // namespace kvpool::sim
