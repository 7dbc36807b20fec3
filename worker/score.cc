// Cutting and summing.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/score.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace kvpool {

std::vector<Request> MakeScoreRequests(std::span<const int32_t> text, int32_t bos,
                                       const ScoreOptions& options) {
  std::vector<Request> requests;
  while (!text.empty() && (options.windows == 0 || requests.size() < options.windows)) {
    const size_t count = std::min<size_t>(text.size(), options.context - 1);
    Request request{.id = requests.size(), .tenant = options.tenant, .kind = RequestKind::kScore};
    request.prompt.reserve(count + 1);
    request.prompt.push_back(bos);
    request.prompt.insert(request.prompt.end(), text.begin(), text.begin() + count);
    requests.push_back(std::move(request));
    text = text.subspan(count);
  }
  return requests;
}

void Score::Add(const Result& result) {
  if (result.reason != FinishReason::kScored) return;
  ++windows;
  tokens += result.scored_tokens;
  log_probability += result.log_probability;
}

double Score::MeanNll() const { return tokens == 0 ? 0 : -log_probability / tokens; }

double Score::Perplexity() const { return std::exp(MeanNll()); }

}  // namespace kvpool
