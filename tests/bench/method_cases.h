// Benchmark case of the methods' own cost: method_overhead.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "tests/bench/bench.h"

namespace kvpool::bench {

std::vector<Case> MethodCases();

}  // namespace kvpool::bench
