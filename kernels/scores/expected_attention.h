// Expected Attention (arXiv 2510.00636, section 3): the attention that a row will get from queries
// that are still to come, told from the distribution of those that were.
//
// Queries before their rotation (RoPE) are taken as Gaussian with mean mu and covariance Sigma. The
// rotation of the next T positions is averaged, R; then the logit of key k has the expectation
//   z = (R mu) . k / sqrt(d) + k' (R Sigma R') k / (2 d),
// and a row scores (softmax(z) + epsilon) * ||v||, the softmax taken over the head's rows but for
// its sinks, and averaged over the query heads that read it. As in the authors' own library, ||v||
// stands for the norm of v's contribution to the output, ||W_o v||: weights never reach the agent.
//
// mu and Sigma are those of the kept queries (Planes::window). Each is rotated back by its own
// position and on by R, to u; then z = mean(u . k) / sqrt(d) + variance(u . k) / (2 d), which is
// the same number without a matrix of d * d for every query head.
//
// Pure function of its arguments; any thread, while the session holds still.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/derived_scores.h"

namespace kvpool {

// Over the last score.window kept queries at positions from score.future.sinks on; without any,
// every row expects the same attention. Rows below that position, which a policy keeps by name,
// score 0. Without values (value_dim 0) the factor ||v|| is left out. A row that is not finite
// scores NaN and is left out of the softmax.
//
// The rotation is that of Hugging Face's Llama: elements i and i + d / 2 are a pair, rotated by
// position * theta ** (-2 i / d). Of an odd d the last element is not rotated.
//
// Takes 8 bytes of scratch memory for each row of the longest head and each query head of a group.
RowScores ExpectedAttentionScores(const RowScore& score, const DerivedScoreArgs& args);

}  // namespace kvpool
