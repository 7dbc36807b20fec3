// Benchmarks of the host kernels as values: a round measures the kernel and its yardstick one after
// the other, so that noise hits both. The harness decides how many rounds and prints.
//
// Each object owns its memory and threads; use from one thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace kvpool::bench {

// One round: the kernel's figure and the yardstick's, in the same unit; more is better.
struct Measured {
  double value = 0;
  double yardstick = 0;
};

class KernelBench {
 public:
  virtual ~KernelBench() = default;
  virtual Measured Round() = 0;
};

// Decode attention, bf16, 8 KV heads of 128 with 2 query heads each, 16 sessions of 4096 keys (256
// MiB), half of the keys in scattered compacted blocks, half fresh. GB/s of keys and values read.
// Yardstick: a vectorised sum over the same bytes on as many threads.
std::unique_ptr<KernelBench> MakeAttentionBench(uint32_t threads);

// Compaction of 4 sessions of 16384 keys, 8 KV heads of 128 in bf16 (256-byte rows, 256 MiB), a
// random half of each head kept: execution of the plan. GB/s of keys and values kept. Yardstick: a
// gather of the kept rows from known addresses into a dense buffer, prefetched and with
// non-temporal stores, on as many threads.
std::unique_ptr<KernelBench> MakeCompactionBench(uint32_t threads);

// Scoring of full windows (32 queries) over the attention benchmark's sessions. Share of the time
// that decode attention of 32 tokens takes over the same sessions: value is sessions scored per
// second, yardstick sessions decoded 32 times per second.
std::unique_ptr<KernelBench> MakeScoringBench(uint32_t threads);

}  // namespace kvpool::bench
