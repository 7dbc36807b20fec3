// How soon a new budget is in force: see budget_cases.cc.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "tests/bench/bench.h"

namespace kvpool::bench {

// budget_change_free, budget_change_reclaim.
std::vector<Case> BudgetCases();

}  // namespace kvpool::bench
