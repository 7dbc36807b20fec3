// Benchmark cases of what the seed methods cost: method_overhead, method_processor.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "tests/bench/bench.h"

namespace kvpool::bench {

std::vector<Case> MethodCases();

}  // namespace kvpool::bench
