// R-KV (arXiv 2505.24133; its importance scoring, redundancy estimation and joint selection): rows
// that matter and are not said already. Row i of a head scores
//   Z_i = lambda * I_i - (1 - lambda) * R_i.
//
// I: attention of the last w queries. For each query the logits of the query heads that read the
// head become their largest, then a softmax over the rows but for the newest w; the mean over the
// queries is smoothed by a maximum over `kernel` neighbours in the order of positions.
//
// R: with S_ij the cosine of keys i and j, and S_ii = 0: each i forgives the newest key j that is
// like it, S_ij > threshold: that S_ij becomes 0, so that of keys that say the same the newest
// stays. R = softmax over j of the mean over i of S_ij, over all rows of the head.
//
// S takes rows * rows * key_dim multiplications. A head with more than score.redundancy.compared
// rows is cut along positions into as few equal runs as that allows, and each key is compared with
// its own run only. S itself is never held: the host twin needs 4 * key_dim + 8 * w + 50 bytes a
// row of the longest head, and 4 * key_dim + 64 a row of a run.
//
// Pure function of its arguments; any thread, while the session holds still.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/derived_scores.h"

namespace kvpool {

// w = score.window. The newest w rows, which a policy keeps by name, have no I. Queries see rows up
// to their own position; without a query, or a query head that reads the head, I is 0. A key that
// is not finite scores NaN and is left out of everything else; one of zeros is like nothing.
RowScores RedundancyScores(const RowScore& score, const DerivedScoreArgs& args);

}  // namespace kvpool
