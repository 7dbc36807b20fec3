// The list of all benchmark cases. Each folder of cases adds its own in cases.cc.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "tests/bench/bench.h"

namespace kvpool::bench {

std::vector<Case> AllCases();

}  // namespace kvpool::bench
