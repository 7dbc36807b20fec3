// Attention of one model layer over one session's segments in order: ragged compacted rows of each
// head, then the fresh rows. One query (decode) or a chunk of queries (prefill, causal).
//
// Pure function of its arguments; any thread; several sessions may run on several threads at once.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/layout.h"
#include "kernels/session_view.h"

namespace kvpool {

struct AttentionArgs {
  const Layout* layout = nullptr;
  const std::byte* base = nullptr;  // the pool's range in this process
  uint32_t layer = 0;               // cached layer
  SessionView session;              // fresh_tokens counts the chunk's own tokens
  const float* queries = nullptr;   // [query_count][query_heads][key_dim], post-RoPE
  uint32_t query_count = 1;
  float scale = 1.0f;    // multiplies q.k, usually 1 / sqrt(key_dim)
  float* out = nullptr;  // [query_count][query_heads][value_dim]
  float* lse = nullptr;  // [query_count][query_heads] log-sum-exp of the scaled logits, or nullptr
};

// Query i attends every compacted row and the first fresh_tokens - query_count + 1 + i fresh rows.
// Query head q reads KV head q / group_size. A query with no row to attend gives zeros and
// lse = -infinity. Keys full of NaN give NaN out for their own session only and never trap.
// Requires query_count <= fresh_tokens or query_count == 1.
// Works in f32 with an online softmax; the order of summation depends only on the row order, so
// equal rows in equal order give bit-equal results whatever their blocks.
void Attention(const AttentionArgs& args);

}  // namespace kvpool
