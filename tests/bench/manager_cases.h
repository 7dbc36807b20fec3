// What the manager costs: see manager_cases.cc.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "tests/bench/bench.h"

namespace kvpool::bench {

// manager_reports.
std::vector<Case> ManagerCases();

}  // namespace kvpool::bench
