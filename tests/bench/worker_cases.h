// Benchmark case of the reference worker: worker_on_pool.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "tests/bench/bench.h"

namespace kvpool::bench {

std::vector<Case> WorkerCases();

}  // namespace kvpool::bench
