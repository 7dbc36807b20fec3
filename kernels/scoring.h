// Scoring: drains queries of a session's window into its planes, each query exactly once, against
// the keys present. With the log-sum-exp of the worker's own attention it is one pass over the
// keys, and probabilities are the worker's even if keys have gone since. Without it they are
// recomputed: the same as long as nothing was evicted between the query and its drain, which the
// agent ensures. The host twin needs 128 bytes of scratch memory for each row of the longest head,
// whatever the number of queries.
//
// Pure function of its arguments but for the planes it updates; any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/layout.h"
#include "kernels/planes.h"
#include "kernels/session_view.h"

namespace kvpool {

struct ScoreArgs {
  const Layout* layout = nullptr;
  const std::byte* base = nullptr;
  SessionView session;             // fresh_tokens: rows present, at most the committed ones
  uint32_t fresh_start = 0;        // logical position of fresh row 0
  const float* queries = nullptr;  // [query_count][model_layers][query_heads][key_dim], post-RoPE
  // [query_count] logical position p of each query: it saw the rows at positions <= p, and those
  // below p in the layers of geometry.self_masked. That of compacted rows is looked up in the
  // planes when some query is older than the fresh rows.
  const uint32_t* query_positions = nullptr;
  // [query_count][model_layers][query_heads] log-sum-exp of the scaled logits over the keys that
  // each query saw; or nullptr. Unless all are finite, none is used. Any value is safe: a
  // probability that would be above 1 counts as 1.
  const float* lses = nullptr;
  uint32_t query_count = 0;  // 1..32
  float scale = 1.0f;
};

// Fills the planes that are declared. Per (layer, head) and row, with alpha of the group's query
// heads (and of every model layer that shares the cached layer):
//   mass, sum      += the sum of alpha over queries and heads
//   square_sum     += the sum of alpha squared
//   low count      += 1 for each query for which alpha is below the threshold for ALL those heads
//   last hit        = the step t = p + 1 of the newest query for which it is not
// With grouped queries a key is important if any query head says so (Scissorhands, arXiv
// 2305.17118, Alg. 2; CORM, arXiv 2404.15949). Rows that a query could not see get nothing from it.
// A NaN probability counts as low and adds nothing.
// Requires planes->rows() >= session.Length() for every (layer, head), with those rows' positions.
void Score(const ScoreArgs& args, Planes* planes);

}  // namespace kvpool
