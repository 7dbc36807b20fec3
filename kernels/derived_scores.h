// Scores of rows that are not kept in a plane but made when a compaction needs them: from the
// session's keys, from the queries that its planes keep, or from nothing but positions.
//
// Pure functions of their arguments; any thread, while the session holds still.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/layout.h"
#include "kernels/planes.h"
#include "kernels/selection.h"
#include "kernels/session_view.h"

namespace kvpool {

struct DerivedScoreArgs {
  const Layout* layout = nullptr;
  const std::byte* base = nullptr;
  SessionView session;             // as long as the planes
  uint32_t fresh_start = 0;        // logical position of fresh row 0
  uint32_t selected_step = 0;      // tokens fed when rows were last dropped
  const Planes* planes = nullptr;  // their window holds what kWindow* scores read
  float scale = 1.0f;
};

// Requires score.derived().
//
// kWindowSum, kWindowSquareSum: over the last score.window kept queries and the group's query
// heads, of those queries that came after rows were last dropped: the older ones saw other keys.
// The others are in kernels/scores.
RowScores DerivedScores(const RowScore& score, const DerivedScoreArgs& args);

}  // namespace kvpool
