// Benchmark cases of the host kernels: attention_host and compaction_host, each on one thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "tests/bench/bench.h"

namespace kvpool::bench {

std::vector<Case> KernelCases();

}  // namespace kvpool::bench
