// Benchmark cases of memory on its way back, on a real agent: kill_reclaim, bytes_freed and
// limit_cut. Promises, not races: none has a yardstick.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "tests/bench/bench.h"

namespace kvpool::bench {

std::vector<Case> ReclaimCases();

}  // namespace kvpool::bench
