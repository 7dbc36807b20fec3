// Compares a run under a policy with one under a full cache, position by position: perplexity,
// divergence, agreement, recall of the planted facts, and what was kept meanwhile.
//
// Two observers of teacher-forced runs over the same windows: the first keeps the full cache's
// logits (4 bytes for each of the vocabulary and scored position), the second compares with them.
// Engine's thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/quality_plan.h"
#include "worker/quality_run.h"

namespace kvpool {

// Sums over all windows. Prose counts every scored token; natural logarithms.
struct QualityFigures {
  uint64_t positions = 0;
  double nll = 0, nll_full = 0;          // negative log-probability of the text
  double kl = 0;                         // KL(full || policy) of the next token's distribution
  uint64_t agreed = 0;                   // positions with the same likeliest token
  std::vector<double> window_nll_delta;  // mean over a window's positions, of each window
  uint64_t asked = 0, recalled = 0, recalled_full = 0;  // facts; right in every digit
  double rows = 0, full_rows = 0;    // of an average head, over the steps with scored tokens
  double bytes = 0, full_bytes = 0;  // of the pool's pages, over the same steps
  uint64_t samples = 0;              // summed in the four above: one a window and step
  // The same rows at the step, prompt and answers included, that had most of them.
  double peak_rows = 0, peak_full_rows = 0;

  double Perplexity() const;
  double PerplexityFull() const;
  double PerplexityDelta() const;  // relative: 0.01 is 1 % worse
  // Standard error of PerplexityDelta, from the spread between windows; 0 for a single window.
  double PerplexityError() const;
};

// The full cache's logits at every watched row.
class FullRun final : public ForcingObserver {
 public:
  explicit FullRun(std::span<const QualityWindow> windows);

  absl::Status Prepared(uint32_t first, uint32_t end, std::span<const SessionView> views) override;
  void Row(size_t window, uint32_t row, std::span<const float> logits) override;

  // Requires that the run has shown the row.
  std::span<const float> Logits(size_t window, uint32_t row) const;

 private:
  const std::span<const QualityWindow> windows_;
  size_t vocab_ = 0;
  std::vector<std::vector<float>> logits_;  // [window][rows from the prompt's last on][vocab]
};

class ComparedRun final : public ForcingObserver {
 public:
  // Bytes that the windows' sessions hold now.
  using UsedBytes = std::function<absl::StatusOr<uint64_t>()>;

  // `windows` and `full` outlive the run.
  ComparedRun(std::span<const QualityWindow> windows, const FullRun& full, const Layout& layout,
              UsedBytes used_bytes);

  absl::Status Prepared(uint32_t first, uint32_t end, std::span<const SessionView> views) override;
  void Row(size_t window, uint32_t row, std::span<const float> logits) override;

  // When the run has ended.
  const QualityFigures& figures() const { return figures_; }

 private:
  void Prose(size_t window, int32_t token, std::span<const float> full,
             std::span<const float> logits);
  void Answer(size_t window, uint32_t index, const TokenRange& answer, std::span<const float> full,
              std::span<const float> logits);

  // Whether every token so far of the answer under way was the likeliest one.
  struct Digits {
    bool right = true, right_full = true;
  };

  const std::span<const QualityWindow> windows_;
  const FullRun& full_;
  const Layout layout_;
  const UsedBytes used_bytes_;
  QualityFigures figures_;
  std::vector<Digits> digits_;  // of each window
};

}  // namespace kvpool
