// Teacher forcing of windows through one cache, all in step, as decoding does it: a safe point, a
// forward pass, a commit. What is seen on the way goes to an observer; the time that the model and
// the cache take is counted without the observer's.
//
// Engine's thread, as KvCache. Not the engine: nothing is generated, admitted later or preempted,
// so that every window meets its policy at the same lengths in every run.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/kv_cache.h"
#include "worker/llama.h"
#include "worker/quality_plan.h"
#include "worker/waiter.h"

namespace kvpool {

class ForcingObserver {
 public:
  virtual ~ForcingObserver() = default;
  // All windows are prepared for tokens [first, end); the views hold for this call. An error ends
  // the run.
  virtual absl::Status Prepared(uint32_t first, uint32_t end,
                                std::span<const SessionView> views) = 0;
  // The logits after `row` of a window: of the token at row + 1. For rows from the prompt's last
  // one on, in ascending order within a window.
  virtual void Row(size_t window, uint32_t row, std::span<const float> logits) = 0;
};

struct ForcingOptions {
  uint32_t chunk = 16;                                // tokens of a window between two safe points
  Duration give_up_after = std::chrono::seconds(30);  // without room or with the agent busy
};

// Seconds that the sessions' steps took, safe points and commits included. Requires windows of one
// length and one prompt length, within the model's context. A step ends with the prompt, whatever
// `chunk` is. ResourceExhausted: no room in time; others are the cache's.
absl::StatusOr<double> ForceWindows(Llama& model, KvCache& cache, Waiter& waiter,
                                    std::span<const QualityWindow> windows,
                                    const ForcingOptions& options, ForcingObserver& observer);

}  // namespace kvpool
