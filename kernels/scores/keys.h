// Scores of rows from their keys alone. The host twin reads them in tiles, KeyDiff's twice.
//
// Pure functions of their arguments; any thread, while the session holds still.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/derived_scores.h"

namespace kvpool {

// KNorm (arXiv 2406.11430): the negative Euclidean norm of the key, because keys of low norm get
// most attention. A key that is not a number scores NaN.
RowScores KeyNormScores(const DerivedScoreArgs& args);

// KeyDiff (arXiv 2504.15364, section 3): -cos(key, anchor), the anchor being the mean of the head's
// keys, each scaled to norm 1: distinctive keys stay. A key of zeros counts as 0 in the anchor and
// scores 0. A key that is not finite scores NaN and is left out of the anchor.
RowScores KeyDiffScores(const DerivedScoreArgs& args);

}  // namespace kvpool
