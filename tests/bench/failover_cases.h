// Benchmark cases about several managers: what the loss of the one that leads costs.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "tests/bench/bench.h"

namespace kvpool::bench {

std::vector<Case> FailoverCases();

}  // namespace kvpool::bench
