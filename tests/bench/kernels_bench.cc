// Prints the medians of the kernel benchmarks on one and two threads: for tuning.
// kernels_bench [name]
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "tests/bench/kernel_benches.h"

using kvpool::bench::KernelBench;
using kvpool::bench::Measured;

namespace {

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void Print(const char* name, uint32_t threads, KernelBench& bench) {
  std::vector<double> values, yardsticks, ratios;
  bench.Round();  // warms up
  for (int round = 0; round < 7; ++round) {
    const Measured m = bench.Round();
    values.push_back(m.value);
    yardsticks.push_back(m.yardstick);
    ratios.push_back(m.value / m.yardstick);
  }
  std::printf("%-16s %u threads  value %8.2f  yardstick %8.2f  ratio %.2f (%.2f..%.2f)\n", name,
              threads, Median(values), Median(yardsticks), Median(ratios),
              *std::min_element(ratios.begin(), ratios.end()),
              *std::max_element(ratios.begin(), ratios.end()));
}

}  // namespace

int main(int argc, char** argv) {
  const std::string only = argc > 1 ? argv[1] : "";
  for (uint32_t threads : {1u, 2u}) {
    if (only.empty() || only == "attention_host") {
      Print("attention_host", threads, *kvpool::bench::MakeAttentionBench(threads));
    }
    if (only.empty() || only == "compaction_host") {
      Print("compaction_host", threads, *kvpool::bench::MakeCompactionBench(threads));
    }
    if (only.empty() || only == "scoring_host") {
      Print("scoring_host", threads, *kvpool::bench::MakeScoringBench(threads));
    }
  }
}
