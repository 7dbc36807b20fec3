// How benchmark results are shown: a table for people, JSON for programs, the facts of the machine.
//
// Values in, text out, apart from ThisMachine, which reads /proc and /etc.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tests/bench/bench.h"

namespace kvpool::bench {

// Facts without which a number says little, in the order they are shown: name, value.
using Facts = std::vector<std::pair<std::string, std::string>>;

// `commit` is the source's version; the binary does not know it.
Facts ThisMachine(const std::string& commit);

struct Entry {
  const Case* bench_case;
  Result result;
};

// One line per fact, then one per entry with what was measured below it.
std::string ToTable(const Facts& facts, const std::vector<Entry>& entries);

// {NAME: {value, unit, yardstick, ratio, spread, what}}, and the facts under "_machine". Yardstick
// and ratio are null where there is none; a note follows `what`.
std::string ToJson(const Facts& facts, const std::vector<Entry>& entries);

}  // namespace kvpool::bench
