// See cases.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/cases.h"

namespace kvpool::bench {

std::vector<Case> AllCases() { return {}; }

}  // namespace kvpool::bench
