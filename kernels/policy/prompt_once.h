// The schedule of policies that shrink the prompt once, when it is complete, and keep every key
// that comes after: due at the prompt's length, if that is above the budget, and never again. And
// the scores they share: what the prompt's last queries paid attention to.
//
// Values; any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "kernels/policy/policy.h"

namespace kvpool {

struct PromptOnce {
  uint32_t budget = 0;  // keys of the prompt that stay, as the mean over heads

  uint32_t PeakTokens(const SessionPlan& plan) const {
    if (plan.prompt_tokens <= budget) return plan.max_tokens;
    return std::max(plan.prompt_tokens, budget + plan.max_tokens - plan.prompt_tokens);
  }
  std::optional<uint32_t> NextCompactAt(const PolicyState& state) const {
    if (state.compacted_step > 0 || state.plan.prompt_tokens <= budget) return std::nullopt;
    return state.plan.prompt_tokens;
  }
  // Whether the prompt is complete, not shrunk yet and above the budget.
  bool Due(const PolicyState& state) const {
    return state.compacted_step == 0 && state.step >= state.plan.prompt_tokens &&
           state.length > budget;
  }
};

// The attention of the prompt's last `window` queries, smoothed along positions.
struct ObservationWindow {
  uint32_t window = 0;
  RowScore::Pooling pooling = RowScore::Pooling::kNone;
  uint32_t kernel = 1;

  PolicyNeeds Needs() const {
    return {.planes = {.window_queries = window},
            .queries = QueryNeed::kPrompt,
            .sample_every = kRecoverySampleEvery,
            .prompt_rows = window};
  }
  RowScore Score(RowScore::Kind kind) const {
    return {.kind = kind, .window = window, .pooling = pooling, .kernel = kernel};
  }
};

// Reads the parameters `window`, `pooling` and `kernel`.
ObservationWindow MakeObservationWindow(const PolicySpec& spec);

}  // namespace kvpool
