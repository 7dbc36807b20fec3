// The frame that every benchmark case runs in: rounds, yardsticks, medians, one table, one JSON
// file.
//
// A case measures one number and, beside it in every round, a yardstick: the same work done the
// ideal or the obvious way on the same machine in the same minute. Not a micro-benchmark library: a
// round may be a whole decode of a model. Runs on the calling thread; a case may have threads of
// its own.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace kvpool::bench {

inline constexpr int kLeastRounds = 5;

// One measurement in the case's unit. An error ends the case.
using Measure = std::function<absl::StatusOr<double>()>;

// A case made ready to run. What it needs lives in the closures and ends with them.
struct Instance {
  Measure value;
  Measure yardstick;                  // empty: no yardstick makes sense
  std::function<std::string()> note;  // empty: nothing more to say; asked for after the last round
};

enum class Summary {
  kMedian,   // of the rounds
  kMaximum,  // over the rounds, for promises about the worst case
};

struct Case {
  std::string name;                                   // what scripts/bench is asked for
  std::string unit;                                   // of value and yardstick: "ns", "GB/s"
  std::string what;                                   // one sentence: what is measured against what
  std::function<absl::StatusOr<Instance>()> prepare;  // not timed
  int rounds = kLeastRounds;                          // at least kLeastRounds
  Summary summary = Summary::kMedian;
};

struct Result {
  double value = 0;
  std::optional<double> yardstick;
  std::optional<double> ratio;  // value / yardstick
  double spread = 0;            // (largest - smallest value) / median value
  std::string note;
};

// Runs the rounds: in each the value and the yardstick once, which of them first alternating.
// Writes one line per round to `progress`.
absl::StatusOr<Result> RunCase(const Case& bench_case, std::ostream& progress);

// The middle one, or the mean of the middle two. Needs at least one.
double Median(std::vector<double> values);

}  // namespace kvpool::bench
