// Benchmark cases of the manager's plan: allocator_1000x256 and allocator_1000x64, on one thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "tests/bench/bench.h"

namespace kvpool::bench {

std::vector<Case> AllocatorCases();

}  // namespace kvpool::bench
