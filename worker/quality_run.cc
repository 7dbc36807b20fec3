// See quality_run.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/quality_run.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvpool {
namespace {

constexpr Duration kAskAgain = std::chrono::milliseconds(5);

class Forcing {
 public:
  Forcing(Llama& model, KvCache& cache, Waiter& waiter, std::span<const QualityWindow> windows,
          const ForcingOptions& options)
      : model_(model), cache_(cache), waiter_(waiter), windows_(windows), options_(options) {}

  absl::Status Open() {
    for (const QualityWindow& window : windows_) {
      const OpenRequest request{.prompt_tokens = window.prompt_tokens,
                                .max_tokens = static_cast<uint32_t>(window.tokens.size())};
      const TimePoint deadline = waiter_.Now() + options_.give_up_after;
      OpenResult opened = cache_.Open(request);
      while (opened.outcome == OpenOutcome::kNoSpace && waiter_.Now() < deadline) {
        waiter_.Wait(kAskAgain);
        opened = cache_.Open(request);
      }
      if (opened.outcome == OpenOutcome::kNoSpace) {
        return absl::ResourceExhaustedError(absl::StrCat(
            "the tenant has no room for ", windows_.size(), " windows of ", window.tokens.size(),
            " tokens at once (", opened.text, "); raise its limit or take fewer windows"));
      }
      if (opened.outcome != OpenOutcome::kOpened) return absl::InternalError(opened.text);
      sessions_.push_back(std::move(opened.session));
    }
    return absl::OkStatus();
  }

  // Everything up to the end of the windows; what the observer does is not in seconds().
  absl::Status Feed(ForcingObserver& observer) {
    const uint32_t end = static_cast<uint32_t>(windows_.front().tokens.size());
    const uint32_t prompt = windows_.front().prompt_tokens;
    for (uint32_t first = 0; first < end;) {
      uint32_t next = std::min(first + options_.chunk, end);
      if (first < prompt) next = std::min(next, prompt);
      if (absl::Status status = Step(first, next, observer); !status.ok()) return status;
      first = next;
    }
    return absl::OkStatus();
  }

  double seconds() const { return std::chrono::duration<double>(spent_).count(); }

 private:
  absl::Status Step(uint32_t first, uint32_t end, ForcingObserver& observer) {
    TimePoint start = waiter_.Now();
    if (absl::Status status = Prepare(first, end); !status.ok()) return status;
    spent_ += waiter_.Now() - start;

    std::vector<SessionView> views;
    for (const auto& session : sessions_) views.push_back(session->View());
    if (absl::Status status = observer.Prepared(first, end, views); !status.ok()) return status;

    start = waiter_.Now();
    const bool watched = end >= windows_.front().prompt_tokens;
    std::vector<kvpool::Feed> feeds;
    for (size_t i = 0; i < windows_.size(); ++i) {
      feeds.push_back({.session = sessions_[i].get(),
                       .position = first,
                       .tokens = Tokens(i, first, end),
                       .logits = watched ? LogitRows::kAll : LogitRows::kNone});
    }
    const std::span<const float> logits = model_.Forward(feeds);
    for (const auto& session : sessions_) session->Commit();
    spent_ += waiter_.Now() - start;
    if (watched) Show(first, end, logits, observer);
    return absl::OkStatus();
  }

  std::span<const int32_t> Tokens(size_t window, uint32_t first, uint32_t end) const {
    return std::span(windows_[window].tokens).subspan(first, end - first);
  }

  void Show(uint32_t first, uint32_t end, std::span<const float> logits,
            ForcingObserver& observer) {
    const size_t vocab = model_.config().vocab;
    for (size_t i = 0; i < windows_.size(); ++i) {
      for (uint32_t row = first; row < end; ++row, logits = logits.subspan(vocab)) {
        if (row + 1 >= windows_[i].prompt_tokens) observer.Row(i, row, logits.first(vocab));
      }
    }
  }

  // Until every session is ready. All are named each time: those that are not would rest.
  absl::Status Prepare(uint32_t first, uint32_t end) {
    const TimePoint deadline = waiter_.Now() + options_.give_up_after;
    std::vector<KvStep> steps;
    for (size_t i = 0; i < sessions_.size(); ++i) {
      steps.push_back(
          {.session = sessions_[i].get(), .tokens = end - first, .ids = Tokens(i, first, end)});
    }
    for (;;) {
      cache_.Prepare(steps);
      for (const KvStep& step : steps) {
        if (step.readiness == Readiness::kFailed) return absl::InternalError(step.text);
        // What was measured so far belongs to a cache that is gone.
        if (step.readiness == Readiness::kPreempted) return absl::UnavailableError(step.text);
      }
      if (std::all_of(steps.begin(), steps.end(),
                      [](const KvStep& step) { return step.readiness == Readiness::kReady; })) {
        return absl::OkStatus();
      }
      if (waiter_.Now() >= deadline) {
        return absl::ResourceExhaustedError(
            "the tenant had no room for the next tokens; raise its limit or take fewer windows");
      }
      waiter_.Wait(kAskAgain);
    }
  }

  Llama& model_;
  KvCache& cache_;
  Waiter& waiter_;
  const std::span<const QualityWindow> windows_;
  const ForcingOptions options_;
  std::vector<std::unique_ptr<KvSession>> sessions_;
  Duration spent_{};
};

}  // namespace

absl::StatusOr<double> ForceWindows(Llama& model, KvCache& cache, Waiter& waiter,
                                    std::span<const QualityWindow> windows,
                                    const ForcingOptions& options, ForcingObserver& observer) {
  Forcing forcing(model, cache, waiter, windows, options);
  if (absl::Status status = forcing.Open(); !status.ok()) return status;
  if (absl::Status status = forcing.Feed(observer); !status.ok()) return status;
  return forcing.seconds();
}

}  // namespace kvpool
