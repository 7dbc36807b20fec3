// See bench.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/bench.h"

#include <algorithm>
#include <cmath>
#include <ostream>

#include "absl/strings/str_cat.h"

namespace kvpool::bench {
namespace {

absl::Status Append(const Measure& measure, std::vector<double>& to) {
  absl::StatusOr<double> measured = measure();
  if (!measured.ok()) return measured.status();
  if (!std::isfinite(*measured)) return absl::InternalError("measured no finite number");
  to.push_back(*measured);
  return absl::OkStatus();
}

// Numbers of the rounds so far, in the order of the rounds.
struct Rounds {
  std::vector<double> values;
  std::vector<double> yardsticks;
};

absl::Status RunRound(const Instance& instance, int round, Rounds& rounds) {
  const bool value_first = round % 2 == 0;
  if (value_first) {
    if (absl::Status status = Append(instance.value, rounds.values); !status.ok()) return status;
  }
  if (instance.yardstick) {
    absl::Status status = Append(instance.yardstick, rounds.yardsticks);
    if (!status.ok())
      return absl::Status(status.code(), absl::StrCat("yardstick: ", status.message()));
  }
  return value_first ? absl::OkStatus() : Append(instance.value, rounds.values);
}

Result Summarise(const Case& bench_case, const Rounds& rounds) {
  const auto [least, most] = std::minmax_element(rounds.values.begin(), rounds.values.end());
  const double median = Median(rounds.values);
  Result result;
  result.value = bench_case.summary == Summary::kMaximum ? *most : median;
  result.spread = median == 0 ? 0 : (*most - *least) / std::abs(median);
  if (!rounds.yardsticks.empty()) {
    result.yardstick = Median(rounds.yardsticks);
    if (*result.yardstick != 0) result.ratio = result.value / *result.yardstick;
  }
  return result;
}

}  // namespace

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

absl::StatusOr<Result> RunCase(const Case& bench_case, std::ostream& progress) {
  if (bench_case.rounds < kLeastRounds) {
    return absl::InvalidArgumentError(
        absl::StrCat(bench_case.name, ": ", bench_case.rounds, " rounds, at least ", kLeastRounds));
  }
  progress << bench_case.name << ": preparing" << std::endl;
  absl::StatusOr<Instance> instance = bench_case.prepare();
  if (!instance.ok()) return instance.status();

  Rounds rounds;
  for (int round = 0; round < bench_case.rounds; ++round) {
    if (absl::Status status = RunRound(*instance, round, rounds); !status.ok()) return status;
    progress << bench_case.name << ": round " << round + 1 << "/" << bench_case.rounds << ": "
             << rounds.values.back() << " " << bench_case.unit;
    if (instance->yardstick) progress << ", yardstick " << rounds.yardsticks.back();
    progress << std::endl;
  }
  Result result = Summarise(bench_case, rounds);
  if (instance->note) result.note = instance->note();
  return result;
}

}  // namespace kvpool::bench
