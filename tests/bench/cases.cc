// See cases.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/cases.h"

#include <utility>

#include "tests/bench/allocator_cases.h"
#include "tests/bench/budget_cases.h"
#include "tests/bench/client_cases.h"
#include "tests/bench/failover_cases.h"
#include "tests/bench/kernel_cases.h"
#include "tests/bench/manager_cases.h"
#include "tests/bench/method_cases.h"
#include "tests/bench/reclaim_cases.h"
#include "tests/bench/worker_cases.h"

namespace kvpool::bench {

std::vector<Case> AllCases() {
  std::vector<Case> all;
  for (auto* cases : {KernelCases, ClientCases, ReclaimCases, BudgetCases, FailoverCases,
                      WorkerCases, MethodCases, AllocatorCases, ManagerCases}) {
    for (Case& one : cases()) all.push_back(std::move(one));
  }
  return all;
}

}  // namespace kvpool::bench
