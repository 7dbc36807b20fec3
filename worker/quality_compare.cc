// Keeping, comparing, summing.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/quality_compare.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "worker/math.h"

namespace kvpool {
namespace {

ptrdiff_t Likeliest(std::span<const float> logits) {
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

}  // namespace

double QualityFigures::Perplexity() const { return std::exp(nll / positions); }
double QualityFigures::PerplexityFull() const { return std::exp(nll_full / positions); }
double QualityFigures::PerplexityDelta() const { return std::expm1((nll - nll_full) / positions); }

double QualityFigures::PerplexityError() const {
  const double count = static_cast<double>(window_nll_delta.size());
  if (count < 2) return 0;
  double sum = 0, squares = 0;
  for (const double delta : window_nll_delta) sum += delta;
  for (const double delta : window_nll_delta) squares += std::pow(delta - sum / count, 2);
  return std::sqrt(squares / (count - 1) / count) * (1 + PerplexityDelta());
}

FullRun::FullRun(std::span<const QualityWindow> windows)
    : windows_(windows), logits_(windows.size()) {}

absl::Status FullRun::Prepared(uint32_t, uint32_t, std::span<const SessionView>) {
  return absl::OkStatus();
}

void FullRun::Row(size_t window, uint32_t, std::span<const float> logits) {
  vocab_ = logits.size();
  std::vector<float>& kept = logits_[window];
  if (kept.empty()) {
    kept.reserve((windows_[window].tokens.size() - windows_[window].prompt_tokens + 1) * vocab_);
  }
  kept.insert(kept.end(), logits.begin(), logits.end());
}

std::span<const float> FullRun::Logits(size_t window, uint32_t row) const {
  const size_t index = row + 1 - windows_[window].prompt_tokens;
  return std::span(logits_[window]).subspan(index * vocab_, vocab_);
}

ComparedRun::ComparedRun(std::span<const QualityWindow> windows, const FullRun& full,
                         const Layout& layout, UsedBytes used_bytes)
    : windows_(windows),
      full_(full),
      layout_(layout),
      used_bytes_(std::move(used_bytes)),
      digits_(windows.size()) {
  figures_.window_nll_delta.resize(windows.size());
}

absl::Status ComparedRun::Prepared(uint32_t first, uint32_t end,
                                   std::span<const SessionView> views) {
  const uint32_t planes = layout_.geometry().planes();
  uint64_t heads_rows = 0;
  for (const SessionView& view : views) {
    for (uint32_t plane = 0; plane < planes; ++plane) heads_rows += view.Length(plane);
  }
  const double rows = static_cast<double>(heads_rows) / planes;
  const auto sessions = static_cast<double>(views.size());
  figures_.peak_rows = std::max(figures_.peak_rows, rows);
  figures_.peak_full_rows = std::max(figures_.peak_full_rows, sessions * end);
  const QualityWindow& shape = windows_.front();
  if (first < shape.prompt_tokens || first >= shape.prose.end()) return absl::OkStatus();
  figures_.rows += rows;
  figures_.full_rows += sessions * end;
  figures_.samples += views.size();
  const int64_t full_bytes = CeilDiv(end, kPageTokens) * layout_.page_bytes().value();
  figures_.full_bytes += sessions * static_cast<double>(full_bytes);
  const absl::StatusOr<uint64_t> used = used_bytes_();
  if (!used.ok()) return used.status();
  figures_.bytes += static_cast<double>(*used);
  return absl::OkStatus();
}

void ComparedRun::Row(size_t window, uint32_t row, std::span<const float> logits) {
  const QualityWindow& from = windows_[window];
  const uint32_t index = row + 1;  // of the token that these logits predict
  const std::span<const float> full = full_.Logits(window, row);
  if (index >= from.prose.first && index < from.prose.end()) {
    Prose(window, from.tokens[index], full, logits);
  }
  for (const TokenRange& answer : from.answers) {
    if (index < answer.first || index >= answer.end()) continue;
    Answer(window, index, answer, full, logits);
  }
}

void ComparedRun::Prose(size_t window, int32_t token, std::span<const float> full,
                        std::span<const float> logits) {
  const double sum_full = LogSumExp(full.data(), full.size());
  const double sum = LogSumExp(logits.data(), logits.size());
  double kl = 0;
  for (size_t i = 0; i < full.size(); ++i) {
    const double log_full = full[i] - sum_full;
    kl += std::exp(log_full) * (log_full - (logits[i] - sum));
  }
  const double nll_full = sum_full - full[token], nll = sum - logits[token];
  ++figures_.positions;
  figures_.kl += kl;
  figures_.nll_full += nll_full;
  figures_.nll += nll;
  figures_.agreed += Likeliest(full) == Likeliest(logits) ? 1 : 0;
  figures_.window_nll_delta[window] += (nll - nll_full) / windows_[window].prose.count;
}

// The end of a step may cut an answer, and other windows' rows come before the rest of it.
void ComparedRun::Answer(size_t window, uint32_t index, const TokenRange& answer,
                         std::span<const float> full, std::span<const float> logits) {
  const int32_t token = windows_[window].tokens[index];
  Digits& digits = digits_[window];
  if (index == answer.first) digits = {};
  digits.right = digits.right && Likeliest(logits) == token;
  digits.right_full = digits.right_full && Likeliest(full) == token;
  if (index + 1 < answer.end()) return;
  ++figures_.asked;
  figures_.recalled += digits.right ? 1 : 0;
  figures_.recalled_full += digits.right_full ? 1 : 0;
}

}  // namespace kvpool
