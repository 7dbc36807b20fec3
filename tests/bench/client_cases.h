// Benchmark cases of the client library on a real agent: page_cycle and session_open.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "tests/bench/bench.h"

namespace kvpool::bench {

std::vector<Case> ClientCases();

}  // namespace kvpool::bench
