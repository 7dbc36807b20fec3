// One step: admit, prepare (the safe point), forward, accept.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/engine.h"

#include <algorithm>
#include <cassert>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/math.h"

namespace kvpool {
namespace {

using std::chrono::milliseconds;

constexpr Duration kFirstBackOff = milliseconds(10);
constexpr Duration kLastBackOff = milliseconds(500);
// How long to wait before asking a refused or busy session again.
constexpr Duration kAskAgain = milliseconds(5);

}  // namespace

const char* ToString(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kScored:
      return "scored";
    case FinishReason::kTooLarge:
      return "tooLarge";
    case FinishReason::kNoSpace:
      return "noSpace";
    case FinishReason::kFailed:
      return "failed";
  }
  return "unknown";
}

// One request on its way.
struct Engine::Sequence {
  explicit Sequence(Request r)
      : request(std::move(r)), tokens(request.prompt), sampler(request.sampling) {}

  // Tokens of the next step. A piece ends at the prompt's end, where policies act.
  uint32_t NextTokens(uint32_t chunk) const {
    const auto known = static_cast<uint32_t>(tokens.size());
    return std::min(chunk, (fed < prompt_tokens() ? prompt_tokens() : known) - fed);
  }
  uint32_t prompt_tokens() const { return static_cast<uint32_t>(request.prompt.size()); }
  uint32_t MaxTokens() const { return prompt_tokens() + request.max_new_tokens; }
  uint32_t generated() const { return static_cast<uint32_t>(tokens.size()) - prompt_tokens(); }

  Request request;
  uint64_t age = 0;             // order of submission
  std::vector<int32_t> tokens;  // prompt, then generated
  Sampler sampler;
  std::unique_ptr<KvSession> session;
  uint32_t fed = 0;  // tokens whose keys and values are stored: the logical position
  double log_probability = 0;
  std::optional<FinishReason> finished;
  std::string text;
  bool preempted = false;  // its session was ended by the owner of the memory
};

Engine::Engine(Llama* model, std::vector<KvCache*> caches, Waiter* waiter,
               const EngineOptions& options, std::function<void(Result)> on_finished)
    : model_(model),
      waiter_(waiter),
      options_(options),
      on_finished_(std::move(on_finished)),
      tenants_(caches.size()) {
  for (size_t i = 0; i < caches.size(); ++i) tenants_[i].cache = caches[i];
}

Engine::~Engine() = default;

void Engine::Submit(Request request) {
  assert(request.tenant < tenants_.size() && !request.prompt.empty());
  if (request.kind == RequestKind::kScore) request.max_new_tokens = 0;
  auto sequence = std::make_unique<Sequence>(std::move(request));
  sequence->age = submitted_++;
  if (sequence->MaxTokens() > model_->config().max_positions) {
    Finish(*sequence, FinishReason::kTooLarge,
           absl::StrCat("prompt and new tokens take ", sequence->MaxTokens(),
                        " positions, the model's context has ", model_->config().max_positions));
    return;
  }
  tenants_[sequence->request.tenant].queue.push_back(std::move(sequence));
}

bool Engine::Step() {
  Admit();
  const bool waiting = std::any_of(tenants_.begin(), tenants_.end(),
                                   [](const Tenant& t) { return !t.queue.empty(); });
  if (running_.empty() && !waiting) return false;
  PrepareBatch();
  RequeuePreempted();
  if (feeds_.empty()) {
    ReapFinished();
    RelieveBlocked();
    WaitForProgress();
    return true;
  }
  Forward();
  ReapFinished();
  RelieveBlocked();
  ++steps_;
  return true;
}

void Engine::Admit() {
  while (running_.size() < options_.batch) {
    Tenant* const tenant = NextToAdmit();
    if (tenant == nullptr) return;
    OpenFirst(*tenant);
  }
}

// The tenant with the fewest running sequences, so that one that is stuck cannot fill the batch.
Engine::Tenant* Engine::NextToAdmit() {
  const TimePoint now = waiter_->Now();
  Tenant* next = nullptr;
  for (Tenant& tenant : tenants_) {
    if (tenant.queue.empty() || tenant.hold || tenant.blocked_since || now < tenant.retry_at) {
      continue;
    }
    if (next == nullptr || tenant.running < next->running) next = &tenant;
  }
  return next;
}

void Engine::OpenFirst(Tenant& tenant) {
  std::unique_ptr<Sequence>& first = tenant.queue.front();
  OpenRequest request{.prompt_tokens = first->prompt_tokens(), .max_tokens = first->MaxTokens()};
  // A score wants the logits of every token.
  if (first->request.kind == RequestKind::kGenerate) request.prompt = first->request.prompt;
  OpenResult opened = tenant.cache->Open(request);
  if (opened.outcome == OpenOutcome::kNoSpace) {
    ++tenant.stats.refused_opens;
    tenant.back_off = std::clamp(2 * tenant.back_off, kFirstBackOff, kLastBackOff);
    tenant.retry_at = waiter_->Now() + tenant.back_off;
    return;
  }
  std::unique_ptr<Sequence> sequence = std::move(first);
  tenant.queue.pop_front();
  if (opened.outcome != OpenOutcome::kOpened) {
    const bool too_large = opened.outcome == OpenOutcome::kTooLarge;
    Finish(*sequence, too_large ? FinishReason::kTooLarge : FinishReason::kFailed, opened.text);
    return;
  }
  tenant.back_off = {};
  ++tenant.running;
  sequence->session = std::move(opened.session);
  sequence->fed = sequence->session->shared_tokens();
  tenant.stats.shared_tokens += sequence->fed;
  const auto place = std::lower_bound(running_.begin(), running_.end(), sequence,
                                      [](const auto& a, const auto& b) { return a->age < b->age; });
  running_.insert(place, std::move(sequence));
}

// Asks for every running sequence's next piece, oldest first, so that what is there goes to the
// oldest.
void Engine::PrepareBatch() {
  feeds_.clear();
  fed_.clear();
  for (Tenant& tenant : tenants_) {
    tenant.steps.clear();
    tenant.stepping.clear();
  }
  for (const auto& sequence : running_) {
    Tenant& tenant = tenants_[sequence->request.tenant];
    const uint32_t tokens = sequence->NextTokens(options_.chunk);
    tenant.steps.push_back({.session = sequence->session.get(),
                            .tokens = tokens,
                            .ids = std::span(sequence->tokens).subspan(sequence->fed, tokens)});
    tenant.stepping.push_back(sequence.get());
  }
  for (Tenant& tenant : tenants_) {
    if (tenant.steps.empty()) continue;
    tenant.cache->Prepare(tenant.steps);
    TakeReady(tenant);
  }
}

void Engine::TakeReady(Tenant& tenant) {
  if (tenant.steps.front().readiness != Readiness::kNoSpace) {
    tenant.blocked_since.reset();
  } else if (!tenant.blocked_since) {
    tenant.blocked_since = waiter_->Now();
  }
  for (size_t i = 0; i < tenant.steps.size(); ++i) {
    KvStep& step = tenant.steps[i];
    Sequence* const sequence = tenant.stepping[i];
    if (step.readiness == Readiness::kNoSpace) ++tenant.stats.paused_steps;
    if (step.readiness == Readiness::kPreempted) sequence->preempted = true;
    if (step.readiness == Readiness::kFailed) {
      sequence->finished = FinishReason::kFailed;
      sequence->text = std::move(step.text);
    }
    if (step.readiness != Readiness::kReady) continue;
    const bool last = sequence->fed + step.tokens == sequence->tokens.size();
    const LogitRows logits = sequence->request.kind == RequestKind::kScore ? LogitRows::kAll
                             : last                                        ? LogitRows::kLast
                                                                           : LogitRows::kNone;
    feeds_.push_back({.session = step.session,
                      .position = sequence->fed,
                      .tokens = step.ids,
                      .logits = logits,
                      .prompt = options_.prompt});
    fed_.push_back(sequence);
  }
}

void Engine::Forward() {
  std::span<const float> logits = model_->Forward(feeds_);
  const size_t vocab = model_->config().vocab;
  for (size_t f = 0; f < feeds_.size(); ++f) {
    const Feed& feed = feeds_[f];
    const uint32_t count = static_cast<uint32_t>(feed.tokens.size());
    feed.session->Commit();
    fed_[f]->fed += count;
    fed_tokens_ += count;
    const size_t rows = feed.logits == LogitRows::kNone   ? 0
                        : feed.logits == LogitRows::kLast ? 1
                                                          : count;
    if (rows > 0) Accept(*fed_[f], logits.first(rows * vocab));
    logits = logits.subspan(rows * vocab);
  }
}

// Takes the logits after the sequence's newest tokens: all of a chunk's, or the last row's.
void Engine::Accept(Sequence& sequence, std::span<const float> logits) {
  const size_t vocab = model_->config().vocab;
  if (sequence.request.kind == RequestKind::kScore) {
    const size_t first = sequence.fed - logits.size() / vocab;
    for (size_t i = first; i < sequence.fed && i + 1 < sequence.tokens.size(); ++i) {
      const float* row = logits.data() + (i - first) * vocab;
      sequence.log_probability += row[sequence.tokens[i + 1]] - LogSumExp(row, vocab);
    }
    if (sequence.fed == sequence.tokens.size()) sequence.finished = FinishReason::kScored;
    return;
  }
  const int32_t token = sequence.sampler.Pick(logits);
  ++tenants_[sequence.request.tenant].stats.generated_tokens;
  const std::vector<int32_t>& eos = model_->config().eos;
  if (std::find(eos.begin(), eos.end(), token) != eos.end()) {
    sequence.finished = FinishReason::kStop;
    return;
  }
  sequence.tokens.push_back(token);
  if (sequence.generated() == sequence.request.max_new_tokens) {
    sequence.finished = FinishReason::kLength;
  }
}

void Engine::ReapFinished() {
  const auto gone = std::stable_partition(running_.begin(), running_.end(),
                                          [](const auto& s) { return !s->finished; });
  for (auto it = gone; it != running_.end(); ++it) {
    Tenant& tenant = tenants_[(*it)->request.tenant];
    --tenant.running;
    tenant.hold = false;
    tenant.retry_at = {};
    Finish(**it, *(*it)->finished, (*it)->text);
  }
  running_.erase(gone, running_.end());
}

// Acts on tenants whose oldest sequence has been refused for too long.
void Engine::RelieveBlocked() {
  const TimePoint now = waiter_->Now();
  for (Tenant& tenant : tenants_) {
    if (tenant.running == 0) tenant.blocked_since.reset();
    if (!tenant.blocked_since) continue;
    const Duration blocked = now - *tenant.blocked_since;
    if (tenant.running > 1 && blocked >= options_.preempt_after) {
      PreemptYoungest(tenant);
      tenant.blocked_since = now;
    } else if (tenant.running == 1 && blocked >= options_.give_up_after) {
      const auto only = std::find_if(running_.begin(), running_.end(), [&](const auto& s) {
        return &tenants_[s->request.tenant] == &tenant;
      });
      (*only)->finished = FinishReason::kNoSpace;
      (*only)->text =
          "its tenant's memory holds nothing else and still has no room for the next "
          "tokens; raise the tenant's limit";
    }
  }
  ReapFinished();
}

void Engine::PreemptYoungest(Tenant& tenant) {
  const auto youngest = std::find_if(running_.rbegin(), running_.rend(), [&](const auto& s) {
    return &tenants_[s->request.tenant] == &tenant;
  });
  std::unique_ptr<Sequence> sequence = std::move(*youngest);
  running_.erase(std::next(youngest).base());
  tenant.hold = true;
  Requeue(std::move(sequence));
}

void Engine::RequeuePreempted() {
  const auto gone = std::stable_partition(running_.begin(), running_.end(),
                                          [](const auto& s) { return !s->preempted; });
  std::vector<std::unique_ptr<Sequence>> preempted(std::make_move_iterator(gone),
                                                   std::make_move_iterator(running_.end()));
  running_.erase(gone, running_.end());
  while (!preempted.empty()) {  // the youngest first, so that the oldest comes to the front
    Requeue(std::move(preempted.back()));
    preempted.pop_back();
  }
}

void Engine::Requeue(std::unique_ptr<Sequence> sequence) {
  Tenant& tenant = tenants_[sequence->request.tenant];
  sequence->session.reset();
  sequence->fed = 0;
  sequence->log_probability = 0;
  sequence->preempted = false;
  if (--tenant.running == 0) tenant.hold = false;  // there is nobody left to wait for
  ++tenant.stats.preemptions;
  tenant.queue.push_front(std::move(sequence));
}

// Nothing could advance: waits until a refused open is due again, or a moment for refused and busy
// sessions.
void Engine::WaitForProgress() {
  const TimePoint now = waiter_->Now();
  Duration wait = running_.empty() ? kLastBackOff : kAskAgain;
  for (const Tenant& tenant : tenants_) {
    if (!tenant.queue.empty() && !tenant.hold && !tenant.blocked_since) {
      wait = std::min(wait, std::max(tenant.retry_at - now, Duration{}));
    }
  }
  if (wait > Duration{}) waiter_->Wait(wait);
}

void Engine::Finish(Sequence& sequence, FinishReason reason, const std::string& text) {
  TenantStats& stats = tenants_[sequence.request.tenant].stats;
  const bool good = reason == FinishReason::kStop || reason == FinishReason::kLength ||
                    reason == FinishReason::kScored;
  ++(good ? stats.finished : stats.failed);
  if (good) {
    stats.prompt_tokens += sequence.request.prompt.size();
    const Layout& layout = sequence.session->layout();
    stats.full_cache_bytes +=
        CeilDiv(sequence.fed, kPageTokens) * static_cast<uint64_t>(layout.page_bytes().value());
  }
  Result result{.id = sequence.request.id,
                .tenant = sequence.request.tenant,
                .reason = reason,
                .text = text,
                .prompt_tokens = static_cast<uint32_t>(sequence.request.prompt.size()),
                .log_probability = sequence.log_probability};
  if (sequence.request.kind == RequestKind::kScore) {
    result.scored_tokens = reason == FinishReason::kScored ? result.prompt_tokens - 1 : 0;
  }
  result.generated.assign(sequence.tokens.begin() + result.prompt_tokens, sequence.tokens.end());
  sequence.session.reset();
  on_finished_(std::move(result));
}

}  // namespace kvpool
