// Real arrivals, read from a file: when a request came, how long its prompt and its answer were,
// and, where the trace says so, what its prompt begins with. Two formats are known, by the first
// line:
//
//   Mooncake (FAST'25)   {"timestamp": ms, "input_length": tokens, "output_length": tokens,
//                        "hash_ids": [one number for each 512 tokens of the prompt]}
//   Azure 2023           TIMESTAMP,ContextTokens,GeneratedTokens
//                        2023-11-16 18:17:03.9799600,4808,10
//
// Also the shapes of models' caches, from a table in CSV. The files come from elsewhere, so nothing
// in them is believed: every error names file and line. Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "kernels/geometry.h"

namespace kvpool::sim {

// Tokens that one number of a trace stands for. Prompts with the same number at the same place are
// the same up to there.
inline constexpr uint32_t kBlockTokens = 512;

struct Arrival {
  Duration at{0};                // since the trace's first request; never before the one before
  uint32_t prompt_tokens = 1;    // at least 1
  uint32_t answer_tokens = 1;    // at least 1
  std::vector<uint64_t> blocks;  // of the prompt, the last one may be short; empty: not known
};

struct Arrivals {
  std::string format;  // "Mooncake", "Azure"
  std::vector<Arrival> requests;
};

// At most `most` requests from the start of the file, none that comes `longest` or more after the
// first. NotFound, or InvalidArgument with file and line.
absl::StatusOr<Arrivals> ReadArrivals(const std::string& path, size_t most, Duration longest);

// The cache of the model of this name, from a table whose columns model, layers, q_heads, kv_heads,
// head_dim, kv_dtype, local_layers and attention are read. NotFound names the models that there
// are; InvalidArgument has file and line. FailedPrecondition: one layer group cannot say it.
absl::StatusOr<Geometry> ReadGeometry(const std::string& path, const std::string& model);

}  // namespace kvpool::sim
