// Runs kernels on the values of a job. See session_jobs.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/session_jobs.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/derived_scores.h"
#include "kernels/scoring.h"

namespace kvpool {

SessionView SessionRows::View() const {
  SessionView view = compacted;
  view.fresh_pages = fresh_pages.data();
  view.fresh_tokens = fresh_tokens;
  return view;
}

namespace {

float Scale(const Layout& layout) {
  return 1.0f / std::sqrt(static_cast<float>(layout.geometry().key_dim));
}

RowScores ScoresFor(const RowScore& score, const CompactionJob& job) {
  if (!score.derived()) return PlaneScores(score, job.planes);
  return DerivedScores(score, {.layout = job.layout,
                               .base = job.base,
                               .session = job.rows.View(),
                               .fresh_start = job.rows.fresh_start,
                               .planes = &job.planes,
                               .scale = Scale(*job.layout)});
}

}  // namespace

void DrainJob::Run() {
  const uint32_t last = rows.fresh_start + rows.fresh_tokens;
  for (uint32_t& position : positions) position = std::min(position, last == 0 ? 0 : last - 1);
  const auto count = static_cast<uint32_t>(positions.size());
  planes.BeginDrain(count, 1 + *std::max_element(positions.begin(), positions.end()));
  Score({.layout = layout,
         .base = base,
         .session = rows.View(),
         .fresh_start = rows.fresh_start,
         .queries = queries.data(),
         .query_positions = positions.data(),
         .lses = lses.empty() ? nullptr : lses.data(),
         .query_count = count,
         .scale = Scale(*layout)},
        &planes);
  planes.KeepQueries(positions, queries);
}

void CompactionJob::Run() {
  std::vector<KeepRows> keep;
  if (selection.has_value()) {
    keep = Select(*selection, layout->geometry(), planes, ScoresFor(selection->score, *this));
    float sum = 0;
    uint32_t measured = 0;
    for (float recovery : Recovery(keep, planes)) {
      if (recovery < 0) continue;
      recovery_min = measured == 0 ? recovery : std::min(recovery_min, recovery);
      sum += recovery;
      ++measured;
    }
    if (measured > 0) recovery_mean = sum / static_cast<float>(measured);
  }
  absl::StatusOr<CompactionPlan> made =
      PlanCompaction({.layout = layout,
                      .session = rows.View(),
                      .session_pages = session_pages,
                      .keep = selection.has_value() ? &keep : nullptr,
                      .evacuate = evacuate,
                      .replacements = replacements});
  if (!made.ok()) {
    status = made.status();
    return;
  }
  plan = *std::move(made);
  ExecuteCompaction(*layout, base, plan);
  if (!selection.has_value()) return;  // a move keeps every row, and the statistics with it
  for (uint32_t plane = 0; plane < planes.planes(); ++plane) {
    planes.Gather(plane, plan.sources[plane]);
  }
}

}  // namespace kvpool
