// See cases.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/cases.h"

#include "tests/bench/kernel_cases.h"

namespace kvpool::bench {

std::vector<Case> AllCases() { return KernelCases(); }

}  // namespace kvpool::bench
