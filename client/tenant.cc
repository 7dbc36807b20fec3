// The safe point: resume, hand over, take windows, drain, take pages. See tenant.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "client/tenant.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvpool {

TenantImpl::TenantImpl(TenantSetup setup)
    : setup_(std::move(setup)), window_owners_(setup_.sizes.windows) {}

TenantImpl::~TenantImpl() = default;

absl::StatusOr<std::unique_ptr<Session>> TenantImpl::Open(const OpenOptions& options) {
  absl::StatusOr<OpenedSession> opened = setup_.calls->Open(options);
  if (!opened.ok()) return opened.status();
  if (opened->slot >= setup_.sizes.sessions) {
    return absl::InternalError(
        absl::StrCat("the agent named session slot ", opened->slot, " of ", setup_.sizes.sessions));
  }
  return std::make_unique<SessionImpl>(*this, *opened, options.prompt_tokens);
}

void TenantImpl::StartDrains(const std::vector<SessionImpl*>& sessions) {
  std::vector<DrainRequest> requests;
  std::vector<std::pair<std::shared_ptr<DrainProgress>, uint64_t>> waiting;
  for (SessionImpl* session : sessions) {
    if (session->pending() == 0 || session->progress_->in_flight.load()) continue;
    requests.push_back({.slot = session->opened_.slot,
                        .window = session->window_,
                        .first = session->submitted_,
                        .count = static_cast<uint32_t>(session->pending())});
    session->submitted_ = session->pushed_;
    session->progress_->in_flight.store(true);
    waiting.emplace_back(session->progress_, session->pushed_);
  }
  if (requests.empty()) return;
  setup_.calls->Drain(
      requests, [signal = signal_, waiting = std::move(waiting)](const std::vector<absl::Status>&) {
        // A refused drain scored nothing, and the agent counted it: its entries are free all the
        // same.
        std::lock_guard<std::mutex> lock(signal->mutex);
        for (const auto& [progress, drained] : waiting) {
          progress->drained.store(drained);
          progress->in_flight.store(false);
        }
        signal->changed.notify_all();
      });
}

absl::Status TenantImpl::DrainAll(const std::vector<SessionImpl*>& sessions) {
  const auto idle = [&sessions] {
    return std::none_of(sessions.begin(), sessions.end(),
                        [](const SessionImpl* s) { return s->progress_->in_flight.load(); });
  };
  if (absl::Status status = WaitForDrains(idle); !status.ok()) return status;
  StartDrains(sessions);
  return WaitForDrains(idle);
}

absl::Status TenantImpl::HandOverDue(std::span<Step> steps) {
  std::vector<SessionImpl*> due;
  std::vector<size_t> indices;
  for (size_t i = 0; i < steps.size(); ++i) {
    auto* session = static_cast<SessionImpl*>(steps[i].session);
    if (!steps[i].outcome.ok() || !session->Due(steps[i].tokens)) continue;
    due.push_back(session);
    indices.push_back(i);
  }
  if (due.empty()) return absl::OkStatus();

  // A compaction must see every query.
  if (absl::Status status = DrainAll(due); !status.ok()) return status;

  std::vector<uint32_t> slots;
  for (SessionImpl* session : due) {
    session->words_->state.store(static_cast<uint32_t>(shm::State::kBusy),
                                 std::memory_order_release);
    slots.push_back(session->opened_.slot);
  }
  absl::StatusOr<std::vector<absl::Status>> outcomes = setup_.calls->HandOver(slots);
  if (!outcomes.ok()) return outcomes.status();
  for (size_t k = 0; k < due.size(); ++k) {
    steps[indices[k]].outcome = (*outcomes)[k];
    due[k]->RefreshTable();
  }
  return absl::OkStatus();
}

absl::Status TenantImpl::TakeWindows(std::span<Step> steps) {
  const auto stands_by = [&steps](const SessionImpl* owner) {
    return std::none_of(steps.begin(), steps.end(), [owner](const Step& step) {
      return step.session == owner && step.outcome.ok();
    });
  };
  for (Step& step : steps) {
    auto* session = static_cast<SessionImpl*>(step.session);
    if (!step.outcome.ok() || !session->LacksWindow()) continue;
    auto window = std::find(window_owners_.begin(), window_owners_.end(), nullptr);
    if (window == window_owners_.end()) {
      window = std::find_if(window_owners_.begin(), window_owners_.end(), stands_by);
      if (window == window_owners_.end()) {
        step.outcome = absl::FailedPreconditionError(
            absl::StrCat("more sessions step at once than max_running at attach, which is ",
                         window_owners_.size()));
        continue;
      }
      if (absl::Status status = DrainAll({*window}); !status.ok()) return status;
      (*window)->window_ = SessionImpl::kNoWindow;
    }
    *window = session;
    session->window_ = static_cast<uint32_t>(window - window_owners_.begin());
  }
  return absl::OkStatus();
}

void TenantImpl::TakePages(std::span<Step> steps) {
  uint32_t total = 0;
  for (const Step& step : steps) {
    if (step.outcome.ok()) {
      total += static_cast<SessionImpl*>(step.session)->PagesMissing(step.tokens);
    }
  }
  if (total == 0) return;
  // One call for the whole step; when it is refused, the steps try one by one in their order.
  if (setup_.magazine->available() < total) (void)setup_.calls->Reserve(total);
  absl::Status refused;
  for (Step& step : steps) {
    auto* session = static_cast<SessionImpl*>(step.session);
    const uint32_t missing = step.outcome.ok() ? session->PagesMissing(step.tokens) : 0;
    if (missing == 0) continue;
    scratch_pages_.resize(missing);
    bool taken = setup_.magazine->Take(scratch_pages_);
    if (!taken && refused.ok()) {
      refused = setup_.calls->Reserve(missing);
      taken = setup_.magazine->Take(scratch_pages_);
    }
    if (taken) {
      session->AddPages(scratch_pages_);
    } else {
      step.outcome =
          refused.ok()
              ? absl::ResourceExhaustedError(absl::StrCat("no ", missing, " pages in the magazine"))
              : refused;
    }
  }
}

absl::Status TenantImpl::SafePoint(std::span<Step> steps) {
  for (Step& step : steps) {
    step.outcome = static_cast<SessionImpl*>(step.session)->Resume();
  }
  if (absl::Status status = HandOverDue(steps); !status.ok()) return status;
  if (absl::Status status = TakeWindows(steps); !status.ok()) return status;
  std::vector<SessionImpl*> filling;
  for (const Step& step : steps) {
    auto* session = static_cast<SessionImpl*>(step.session);
    if (session->pending() >= shm::kWindowQueries / 2) filling.push_back(session);
  }
  StartDrains(filling);
  TakePages(steps);
  for (const Step& step : steps) {
    if (!step.outcome.ok()) continue;
    static_cast<SessionImpl*>(step.session)->WriteFlags(step.tokens, step.flags);
  }
  return absl::OkStatus();
}

}  // namespace kvpool
