// Runs kernels on the values of a job. See session_jobs.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/session_jobs.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "kernels/scoring.h"

namespace kvpool {

SessionView SessionRows::View() const {
  SessionView view = compacted;
  view.fresh_pages = fresh_pages.data();
  view.fresh_tokens = fresh_tokens;
  return view;
}

void DrainJob::Run() {
  const uint32_t last = rows.fresh_start + rows.fresh_tokens;
  for (uint32_t& position : positions) position = std::min(position, last == 0 ? 0 : last - 1);
  const auto count = static_cast<uint32_t>(positions.size());
  planes.BeginDrain(count);
  Score({.layout = layout,
         .base = base,
         .session = rows.View(),
         .fresh_start = rows.fresh_start,
         .queries = queries.data(),
         .query_positions = positions.data(),
         .query_count = count,
         .scale = 1.0f / std::sqrt(static_cast<float>(layout->geometry().key_dim))},
        &planes);
}

void CompactionJob::Run() {
  std::vector<KeepRows> keep;
  if (selection.has_value()) {
    keep = Select(*selection, planes);
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
  ExecuteCompaction(*layout, base, *made);
  for (uint32_t plane = 0; plane < planes.planes(); ++plane) {
    if (selection.has_value()) {
      planes.Gather(plane, made->sources[plane]);
    } else {
      planes.Reorder(plane, made->sources[plane]);  // recovery still counts from the last selection
    }
  }
  result = made->result;
  pages_before_sealing = static_cast<uint32_t>(result.pages.size());
  if (seal.format != SealedFormat::kNone) Seal(*made);
}

void CompactionJob::Seal(const CompactionPlan& plan) {
  // What the compaction freed can be written to, unless its slab must become empty.
  std::vector<PageId> free = spare;
  std::copy_if(plan.freed.begin(), plan.freed.end(), std::back_inserter(free), [&](PageId page) {
    return std::find(evacuate.begin(), evacuate.end(), page) == evacuate.end();
  });
  for (;;) {
    absl::StatusOr<SealingPlan> part = PlanSealing({.layout = layout,
                                                    .segment = &result,
                                                    .format = seal.format,
                                                    .open_rows = seal.open_rows,
                                                    .spare = free});
    if (!part.ok()) {
      sealed = part.status();
      return;
    }
    if (part->moves.empty()) return;
    for (size_t slice = 0; slice <= part->slices.size(); ++slice) {
      ExecuteSealingSlice(*layout, base, *part, slice);
    }
    result = std::move(part->result);
    free.insert(free.end(), part->freed.begin(), part->freed.end());
    std::erase_if(free, [&](PageId page) {
      return std::find(result.pages.begin(), result.pages.end(), page) != result.pages.end();
    });
  }
}

}  // namespace kvpool
