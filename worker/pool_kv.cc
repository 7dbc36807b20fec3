// See pool_kv.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/pool_kv.h"

#include <utility>

namespace kvpool {

OpenResult PoolKv::Open(const OpenRequest& request) {
  OpenOptions options{.prompt_tokens = request.prompt_tokens, .max_tokens = request.max_tokens};
  if (!model_.empty()) {
    options.prompt = request.prompt;
    options.model = model_;
  }
  absl::StatusOr<std::unique_ptr<Session>> session = tenant_->Open(options);
  if (session.ok()) {
    return {.outcome = OpenOutcome::kOpened,
            .session = std::make_unique<PoolKvSession>(this, *std::move(session))};
  }
  OpenResult result{.text = std::string(session.status().message())};
  switch (session.status().code()) {
    case absl::StatusCode::kResourceExhausted:
      result.outcome = OpenOutcome::kNoSpace;
      break;
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kInvalidArgument:
      result.outcome = OpenOutcome::kTooLarge;
      break;
    default:
      result.outcome = OpenOutcome::kFailed;
  }
  return result;
}

void PoolKv::Prepare(std::span<KvStep> steps) {
  for (KvStep& step : steps) {
    static_cast<PoolKvSession*>(step.session)->rest_ = PoolKvSession::Rest::kStepping;
  }
  for (PoolKvSession* session : sessions_) {
    if (session->rest_ == PoolKvSession::Rest::kResting) {
      session->session_->Park();
      session->rest_ = PoolKvSession::Rest::kParked;
    }
  }
  steps_.clear();
  for (KvStep& step : steps) {
    auto* session = static_cast<PoolKvSession*>(step.session);
    session->flags_.clear();
    if (!token_flags_.empty()) {
      for (const int32_t id : step.ids) session->flags_.push_back(token_flags_[id]);
    }
    steps_.push_back(
        {.session = session->session_.get(), .tokens = step.tokens, .flags = session->flags_});
  }
  const absl::Status status = tenant_->SafePoint(steps_);
  for (size_t i = 0; i < steps.size(); ++i) {
    auto* session = static_cast<PoolKvSession*>(steps[i].session);
    // Whoever is not named next time rests from here on.
    session->rest_ = PoolKvSession::Rest::kResting;
    const absl::Status& failed = !session->error_.ok() ? session->error_
                                 : !status.ok()        ? status
                                                       : steps_[i].outcome;
    if (failed.ok()) {
      steps[i].readiness = Readiness::kReady;
      session->prepared_ = steps[i].tokens;
      session->wants_queries_ = session->session_->WantsQueries(steps[i].tokens);
      if (session->wants_queries_) {
        session->lses_.resize(steps[i].tokens * session->query_heads());
        session->queries_.resize(session->lses_.size() * session->layout().geometry().key_dim);
      }
    } else if (failed.code() == absl::StatusCode::kResourceExhausted) {
      steps[i].readiness = Readiness::kNoSpace;
    } else if (failed.code() == absl::StatusCode::kAborted) {
      steps[i].readiness = Readiness::kBusy;
    } else {
      steps[i].readiness = failed.code() == absl::StatusCode::kCancelled ? Readiness::kPreempted
                                                                         : Readiness::kFailed;
      steps[i].text = std::string(failed.message());
    }
  }
}

PoolKvSession::PoolKvSession(PoolKv* cache, std::unique_ptr<Session> session)
    : cache_(cache), session_(std::move(session)) {
  cache_->sessions_.insert(this);
}

PoolKvSession::~PoolKvSession() { cache_->sessions_.erase(this); }

size_t PoolKvSession::query_heads() const {
  const Geometry& geometry = layout().geometry();
  return size_t{geometry.model_layers()} * geometry.query_heads;
}

QuerySlot PoolKvSession::SlotOf(uint32_t index) {
  if (!wants_queries_) return {};
  const size_t first = index * query_heads();
  return {.queries = &queries_[first * layout().geometry().key_dim], .lses = &lses_[first]};
}

void PoolKvSession::Commit() {
  error_ = session_->Commit(prepared_, wants_queries_ ? queries_.data() : nullptr,
                            wants_queries_ ? lses_.data() : nullptr);
  prepared_ = 0;
}

}  // namespace kvpool
