// See pool_kv.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/pool_kv.h"

#include <utility>

namespace kvpool {

OpenResult PoolKv::Open(const OpenRequest& request) {
  absl::StatusOr<std::unique_ptr<Session>> session =
      tenant_->Open({.prompt_tokens = request.prompt_tokens, .max_tokens = request.max_tokens});
  if (session.ok()) {
    return {.outcome = OpenOutcome::kOpened,
            .session = std::make_unique<PoolKvSession>(tenant_.get(), *std::move(session))};
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

void PoolKv::SafePoint(std::span<KvSession* const> sessions) {
  for (KvSession* base : sessions) {
    auto* session = static_cast<PoolKvSession*>(base);
    if (session->rest_ == PoolKvSession::Rest::kRested && session->error_.ok()) {
      session->session_->Park();
      session->rest_ = PoolKvSession::Rest::kParked;
    } else if (session->rest_ == PoolKvSession::Rest::kStepped) {
      session->rest_ = PoolKvSession::Rest::kRested;
    }
  }
}

size_t PoolKvSession::query_floats() const {
  const Geometry& geometry = layout().geometry();
  return size_t{geometry.model_layers()} * geometry.query_heads * geometry.key_dim;
}

Readiness PoolKvSession::Prepare(uint32_t tokens) {
  if (!error_.ok()) return Readiness::kFailed;
  rest_ = Rest::kStepped;
  Step step{.session = session_.get(), .tokens = tokens};
  if (absl::Status status = tenant_->SafePoint({&step, 1}); !status.ok()) step.outcome = status;
  if (step.outcome.code() == absl::StatusCode::kResourceExhausted) return Readiness::kNoSpace;
  if (!step.outcome.ok()) {
    error_ = step.outcome;
    return Readiness::kFailed;
  }
  prepared_ = tokens;
  wants_queries_ = session_->WantsQueries(tokens);
  if (wants_queries_) queries_.resize(tokens * query_floats());
  return Readiness::kReady;
}

float* PoolKvSession::QuerySlot(uint32_t index) {
  return wants_queries_ ? queries_.data() + index * query_floats() : nullptr;
}

void PoolKvSession::Commit(uint32_t tokens) {
  error_ = session_->Commit(tokens, wants_queries_ ? queries_.data() : nullptr);
  prepared_ = 0;
}

}  // namespace kvpool
