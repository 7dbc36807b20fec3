// Runs kernels on the values of a job. See session_jobs.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/session_jobs.h"

#include <string.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "agent/recovery.h"
#include "agent/shared_regions.h"
#include "kernels/derived_scores.h"
#include "kernels/profile.h"
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
                               .selected_step = job.selected_step,
                               .planes = &job.planes,
                               .scale = Scale(*job.layout)});
}

// Has the sums begin with what the prompt's queries gave each key.
void TakeFrequencies(const ProfileSource& profile, Planes* planes) {
  for (uint32_t plane = 0; plane < planes->planes(); ++plane) {
    const auto head_class = static_cast<HeadClass>(profile.classes[plane]);
    if (head_class != HeadClass::kFrequent && head_class != HeadClass::kLocal) continue;
    planes->SetSums(plane,
                    profile.regions->ReadProfileFrequency(profile.slot, plane, profile.tokens));
  }
  profile.regions->DropProfile(profile.slot);
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

void CopyPage(const Layout& layout, std::byte* base, PageId from, PageId to) {
  const Geometry& geometry = layout.geometry();
  const auto at = [&](PageId page, uint32_t layer, uint32_t head) {
    return base + uint64_t{layout.Block(page, layer, head).value()} * kGranuleBytes;
  };
  for (uint32_t layer = 0; layer < geometry.layers; ++layer) {
    for (uint32_t head = 0; head < geometry.kv_heads; ++head) {
      memcpy(at(to, layer, head), at(from, layer, head), layout.block_bytes());
    }
  }
}

// What stays by the selection, unless the floor holds it.
std::vector<KeepRows> CompactionJob::Choose() {
  std::vector<KeepRows> keep =
      Select(*selection, layout->geometry(), planes, ScoresFor(selection->score, *this));
  recovery = Recovery(keep, planes);
  if (floor.min_recovery <= 0) return keep;
  std::vector<float> product = floor.product;
  MultiplyRecovery(recovery, &product);
  const RecoveryStats then = StatsOf(product);
  if (StatsOf(recovery).measured() && then.mean >= floor.min_recovery) return keep;
  verdict = evacuate.empty() && reserve.empty() ? Verdict::kUntouched : Verdict::kHeld;
  selection.reset();
  recovery.clear();
  return {};
}

void CompactionJob::Run() {
  for (size_t i = 0; i < copies.size(); ++i) CopyPage(*layout, base, shared[i], copies[i]);
  if (profile.regions != nullptr) TakeFrequencies(profile, &planes);
  std::vector<KeepRows> keep;
  if (selection.has_value()) keep = Choose();
  if (verdict == Verdict::kUntouched) return;
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
  std::vector<PageId> free;
  std::copy_if(plan.freed.begin(), plan.freed.end(), std::back_inserter(free), [&](PageId page) {
    return std::find(evacuate.begin(), evacuate.end(), page) == evacuate.end();
  });
  for (;;) {
    absl::StatusOr<SealingPlan> part = PlanSealing({.layout = layout,
                                                    .segment = &result,
                                                    .format = seal.format,
                                                    .open_rows = seal.open_rows,
                                                    .spare = free,
                                                    .reserve = reserve});
    if (!part.ok()) {
      sealed = part.status();
      return;
    }
    if (part->moves.empty()) return;
    for (size_t step = 0; step < part->steps(); ++step) {
      ExecuteSealingStep(*layout, base, *part, step);
    }
    result = std::move(part->result);
    free.insert(free.end(), part->freed.begin(), part->freed.end());
    std::erase_if(free, [&](PageId page) {
      return std::find(result.pages.begin(), result.pages.end(), page) != result.pages.end();
    });
  }
}

}  // namespace kvpool
