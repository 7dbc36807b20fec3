// The safe point: take back, hand over, take windows, take pages, drain. See tenant.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "client/tenant.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/limits.h"

namespace kvpool {

TenantImpl::TenantImpl(TenantSetup setup)
    : setup_(std::move(setup)), window_owners_(setup_.sizes.windows) {}

TenantImpl::~TenantImpl() = default;

absl::StatusOr<std::unique_ptr<Session>> TenantImpl::Open(const OpenOptions& options) {
  absl::StatusOr<OpenedSession> opened = setup_.calls->Open(options);
  if (!opened.ok()) return opened.status();
  if (absl::Status status = CheckOpened(*opened); !status.ok()) return status;
  if (opened->shared_tokens >= options.prompt_tokens || opened->shared_tokens % kPageTokens != 0) {
    return absl::InternalError(absl::StrCat("the agent shares ", opened->shared_tokens,
                                            " tokens of a prompt of ", options.prompt_tokens));
  }
  return std::make_unique<SessionImpl>(*this, *opened, options.prompt_tokens);
}

absl::Status TenantImpl::CheckOpened(const OpenedSession& opened) const {
  if (opened.slot < setup_.sizes.sessions) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("the agent named session slot ", opened.slot, " of ", setup_.sizes.sessions));
}

absl::StatusOr<std::unique_ptr<Session>> TenantImpl::Fork(Session& session, uint32_t max_tokens) {
  auto& from = static_cast<SessionImpl&>(session);
  if (from.away_) return absl::AbortedError("the agent has the session");
  // The fork's statistics are the session's, with every query.
  if (absl::Status status = DrainAll({&from}); !status.ok()) return status;
  absl::StatusOr<OpenedSession> opened = setup_.calls->Fork(from.opened_.slot, max_tokens);
  if (!opened.ok()) return opened.status();
  if (absl::Status status = CheckOpened(*opened); !status.ok()) return status;
  if (opened->shared_tokens != from.committed_) {
    return absl::InternalError(absl::StrCat("the agent forked ", opened->shared_tokens, " of ",
                                            from.committed_, " tokens"));
  }
  return std::make_unique<SessionImpl>(*this, *opened, from.prompt_tokens_);
}

void TenantImpl::StartDrains(const std::vector<SessionImpl*>& sessions) {
  std::vector<DrainRequest> requests;
  std::vector<std::pair<std::shared_ptr<SessionProgress>, uint64_t>> waiting;
  const auto send = [&] {
    if (requests.empty()) return;
    setup_.calls->Drain(requests,
                        [signal = signal_, waiting = std::exchange(waiting, {})](const auto&) {
                          // A refused drain scored nothing, and the agent counted it: its entries
                          // are free all the same.
                          std::lock_guard<std::mutex> lock(signal->mutex);
                          for (const auto& [progress, drained] : waiting) {
                            progress->drained.store(drained);
                            progress->draining.store(false);
                          }
                          signal->changed.notify_all();
                        });
    requests.clear();
  };
  for (SessionImpl* session : sessions) {
    if (session->pending() == 0 || session->progress_->draining.load()) continue;
    if (requests.size() == limits::kBatchItems) send();
    requests.push_back({.slot = session->opened_.slot,
                        .window = session->window_,
                        .first = session->submitted_,
                        .count = static_cast<uint32_t>(session->pending())});
    session->submitted_ = session->pushed_;
    session->progress_->draining.store(true);
    waiting.emplace_back(session->progress_, session->pushed_);
  }
  send();
}

absl::Status TenantImpl::DrainAll(const std::vector<SessionImpl*>& sessions) {
  const auto idle = [&sessions] {
    return std::none_of(sessions.begin(), sessions.end(),
                        [](const SessionImpl* s) { return s->progress_->draining.load(); });
  };
  if (absl::Status status = WaitForDrains(idle); !status.ok()) return status;
  StartDrains(sessions);
  return WaitForDrains(idle);
}

void TenantImpl::StartHandOvers(const std::vector<SessionImpl*>& sessions) {
  for (SessionImpl* session : sessions) {
    session->words_->state.store(static_cast<uint32_t>(shm::State::kBusy),
                                 std::memory_order_release);
    session->progress_->handed_over.store(true);
    session->away_ = true;
    // A call each: a call is answered when all of it is done, and the first session that comes back
    // can step while the agent has the others.
    setup_.calls->HandOver({session->opened_.slot},
                           [signal = signal_, progress = session->progress_](
                               const std::vector<absl::Status>& outcomes) {
                             std::lock_guard<std::mutex> lock(signal->mutex);
                             progress->outcome = outcomes.front();
                             progress->handed_over.store(false);
                             signal->changed.notify_all();
                           });
  }
}

void TenantImpl::LoseAborted(std::span<Step> steps) {
  for (Step& step : steps) {
    if (!absl::IsAborted(step.outcome)) continue;
    step.outcome = absl::UnavailableError("the agent has not given the session back in time");
  }
}

bool TenantImpl::AwaitAny(const std::vector<SessionImpl*>& sessions,
                          std::chrono::steady_clock::time_point deadline) {
  // A session that the agent took while it was parked comes back without an answer to us: look.
  constexpr std::chrono::microseconds kNap(50);
  const bool look = std::any_of(sessions.begin(), sessions.end(),
                                [](const SessionImpl* session) { return session->WasTaken(); });
  const auto any = [&sessions] {
    return std::any_of(sessions.begin(), sessions.end(),
                       [](const SessionImpl* session) { return session->MayGoOn(); });
  };
  std::unique_lock<std::mutex> lock(signal_->mutex);
  for (;;) {
    const auto now = std::chrono::steady_clock::now();
    if (signal_->changed.wait_until(lock, look ? now + kNap : deadline, any)) return true;
    if (now > deadline) return false;
  }
}

void TenantImpl::HandOverDue(std::span<Step> steps) {
  const auto deadline = std::chrono::steady_clock::now() + setup_.timeout;
  enum class Turn : uint8_t { kOpen, kTakenBack, kFailed };
  std::vector<Turn> turns(steps.size());
  for (;;) {
    std::vector<SessionImpl*> away, drain, hand_over;
    bool one_steps = false;
    for (size_t i = 0; i < steps.size(); ++i) {
      if (turns[i] == Turn::kFailed) continue;
      auto* session = static_cast<SessionImpl*>(steps[i].session);
      const bool was_away = session->away_;
      steps[i].outcome = session->TakeBack();
      if (was_away && !session->away_) turns[i] = Turn::kTakenBack;
      if (steps[i].outcome.ok()) {
        // What was due and has been handed over is not due twice.
        if (turns[i] == Turn::kTakenBack || !session->Due(steps[i].tokens)) {
          one_steps = true;
          continue;
        }
        steps[i].outcome = absl::AbortedError("the session is due and waits for the agent");
        // A compaction must see every query.
        if (!session->progress_->draining.load()) {
          (session->pending() > 0 ? drain : hand_over).push_back(session);
        }
      } else if (!absl::IsAborted(steps[i].outcome)) {
        turns[i] = Turn::kFailed;
        continue;
      }
      away.push_back(session);
    }
    for (SessionImpl* session : drain) StartDrains({session});  // a call each, as hand-overs
    StartHandOvers(hand_over);
    if (!drain.empty() || !hand_over.empty()) continue;  // an answer may be there at once
    if (one_steps || away.empty()) return;
    if (!AwaitAny(away, deadline)) return LoseAborted(steps);
  }
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
  HandOverDue(steps);
  if (absl::Status status = TakeWindows(steps); !status.ok()) return status;
  std::vector<SessionImpl*> filling;
  for (const Step& step : steps) {
    auto* session = static_cast<SessionImpl*>(step.session);
    if (session->pending() >= shm::kWindowQueries / 2) filling.push_back(session);
  }
  // Pages first: the agent may have a slab to make for them, and would make it behind the drains.
  TakePages(steps);
  StartDrains(filling);
  for (const Step& step : steps) {
    if (!step.outcome.ok()) continue;
    static_cast<SessionImpl*>(step.session)->WriteFlags(step.tokens, step.flags);
  }
  return absl::OkStatus();
}

}  // namespace kvpool
