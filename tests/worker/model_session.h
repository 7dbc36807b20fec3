// A session of the trained model under a policy, all in one process: its rows and queries are the
// model's, and what the policy drops is gone for the model too. Beside it the per-step oracle. And
// the text that it reads: a window as scripts/quality feeds it, with facts planted and asked.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "client/prompt_profiler.h"
#include "tests/kernels/policy/step_oracle.h"
#include "tests/worker/support.h"
#include "worker/checkpoint.h"
#include "worker/quality_plan.h"
#include "worker/token_classes.h"
#include "worker/tokenizer.h"

namespace kvpool {

// The committed model, loaded once a program, and a window of the project's own text.
struct TrainedModel {
  explicit TrainedModel(const QualityPlan& plan) {
    model = Llama::Load(kModelDirectory, &threads).value();
    std::string error;
    const auto tokenizer = Tokenizer::Load(kModelDirectory + "/tokenizer.model", &error);
    const std::string text = ReadTextFile(SourcePath("worker/demo/text.txt")).value();
    window = PlanQualityWindows(
                 {text}, [&](const std::string& part) { return tokenizer->EncodeMore(part); },
                 model->config().bos, plan)
                 .value()
                 .front();
    const std::vector<uint8_t> classes = TokenClasses(*tokenizer, model->config().vocab);
    for (int32_t id : window.tokens) flags.push_back(classes[id]);
  }

  Geometry geometry() const { return model->config().CacheGeometry(Dtype::kF32); }

  ThreadPool threads{2};
  std::unique_ptr<Llama> model;
  QualityWindow window;
  std::vector<uint8_t> flags;  // of the window's tokens
};

class ModelSession final : public KvSession {
 public:
  ModelSession(TrainedModel& trained, const Policy& policy, const SessionPlan& plan)
      : trained_(trained),
        plan_(plan),
        rule_(policy.Needs().profile),
        session_(std::make_unique<PolicySession>(trained.geometry(), policy, plan, 1)) {
    if (rule_.has_value()) {
      profiler_ = std::make_unique<PromptProfiler>(session_->layout(), session_->base(), *rule_,
                                                   plan.prompt_tokens);
    }
  }

  const PolicySession& session() const { return *session_; }
  const PromptProfiler& profiler() const { return *profiler_; }

  // One append of the window's next tokens, as PolicySession::Feed.
  std::vector<float> Feed(uint32_t tokens) {
    const Geometry& g = session_->geometry();
    const uint32_t position = session_->committed();
    session_->BeginStep(tokens);
    lses_.assign(size_t{tokens} * g.model_layers() * g.query_heads, 0);
    queries_.assign(lses_.size() * g.key_dim, 0);
    const kvpool::Feed feed{.session = this,
                            .position = position,
                            .tokens = std::span(trained_.window.tokens).subspan(position, tokens),
                            .logits = LogitRows::kNone};
    trained_.model->Forward({&feed, 1});
    session_->EndStep(tokens, queries_);
    if (profiler_ != nullptr) EndProfiledStep(position, tokens);
    return queries_;
  }

  void HandOver() { session_->HandOver(); }

  // The whole window: see step_oracle.h for `check`.
  template <typename Check>
  void Live(Check check) {
    LiveBeside(
        session_.get(), plan_, plan_.max_tokens, [this](uint32_t tokens) { return Feed(tokens); },
        check);
  }

  const Layout& layout() const override { return session_->layout(); }
  std::byte* base() const override { return session_->base(); }
  SessionView View() const override { return session_->View(); }
  QuerySlot SlotOf(uint32_t index) override {
    const Geometry& g = session_->geometry();
    return {.queries = &queries_[size_t{index} * g.model_layers() * g.query_heads * g.key_dim],
            .lses = &lses_[size_t{index} * g.model_layers() * g.query_heads]};
  }
  bool WantsProfile() const override {
    return profiler_ != nullptr && profiler_->Wants(session_->committed());
  }
  void Profile(const AttendedChunk& chunk) override { profiler_->Add(chunk, View()); }
  void Commit() override {}

 private:
  void EndProfiledStep(uint32_t position, uint32_t tokens) {
    session_->SetNewestFlags(std::span(trained_.flags).subspan(position, tokens));
    if (!profiler_->Wants(position)) return;
    profiler_->EndStep(position, tokens);
    if (!profiler_->complete()) return;
    session_->Drain();
    std::vector<std::vector<float>> frequency;
    for (uint32_t plane = 0; plane < session_->geometry().planes(); ++plane) {
      frequency.push_back(profiler_->Frequency(plane));
    }
    session_->SetProfile(profiler_->Classes(std::span(trained_.flags).first(plan_.prompt_tokens)),
                         frequency);
  }

  TrainedModel& trained_;
  const SessionPlan plan_;
  const std::optional<ProfileRule> rule_;
  const std::unique_ptr<PolicySession> session_;
  std::unique_ptr<PromptProfiler> profiler_;
  std::vector<float> queries_, lses_;  // of the step under way
};

}  // namespace kvpool
