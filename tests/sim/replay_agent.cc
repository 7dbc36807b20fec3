// Admission, sessions and their pages. Slabs and what is reclaimed: replay_reclaim.cc.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/replay_agent.h"

#include <algorithm>
#include <utility>

#include "kernels/profile.h"

namespace kvpool::sim {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kStalled(50);

// Where what a policy keeps depends on what tokens say, a trace cannot tell. Both numbers are of
// docs/quality.md, at the policies' defaults: CORM keeps this part of all tokens, ...
constexpr double kCormKeeps = 0.875;
// ... and FastGen 83.2 % of them, which is this part of all heads in full and the others local.
constexpr double kFastGenFullHeads = 0.6;

std::vector<uint8_t> HeadClasses(const Geometry& geometry) {
  std::vector<uint8_t> classes(geometry.planes(), static_cast<uint8_t>(HeadClass::kLocal));
  const auto full = static_cast<size_t>(kFastGenFullHeads * geometry.planes());
  std::fill_n(classes.begin(), full, static_cast<uint8_t>(HeadClass::kFull));
  return classes;
}

Duration TimeFor(uint32_t tokens, uint32_t per_second) {
  return std::chrono::nanoseconds(int64_t{tokens} * 1'000'000'000 / per_second);
}

}  // namespace

ReplayAgent::ReplayAgent(Deps deps, uint32_t slabs, uint32_t floor_slabs)
    : deps_(std::move(deps)),
      floor_slabs_(floor_slabs),
      journal_(PoolLedger::JournalBytes({.slabs = slabs, .slab_bytes = kReplaySlab})),
      ledger_(PoolLedger::Make({.slabs = slabs, .slab_bytes = kReplaySlab}, journal_).value()) {
  const size_t room = size_t{slabs} * deps_.layout->pages_per_slab() / kBlockPages;
  for (uint32_t i = 1; i <= deps_.options->tenants; ++i) {
    Tenancy& tenancy = tenancies_.emplace_back(deps_.contender->parking, room);
    tenancy.id = TenantId(i);
    tenancy.worker = ledger_->AddWorker(tenancy.id, *deps_.layout).value();
    tenancy.pages = ledger_->OpenSession(tenancy.worker).value();
  }
  if (deps_.policy->Needs().profile.has_value()) {
    head_classes_ = HeadClasses(deps_.layout->geometry());
  }
}

// ---- The manager's side -------------------------------------------------------------------------

void ReplayAgent::Apply(uint64_t epoch, const std::vector<TenantOrder>& orders) {
  (void)book_.Apply(epoch, TenantBook::Coverage::kComplete, orders);
  for (Tenancy& tenancy : tenancies_) {
    const TenantState* state = book_.Find(tenancy.id);
    if (state == nullptr) continue;
    (void)ledger_->SetLease(tenancy.id, state->lease_slabs);
    deps_.holds_more(tenancy.id);
    Look(&tenancy);
    Admit(&tenancy);
  }
}

AgentReport ReplayAgent::Report() {
  AgentReport report{.seq = ++reports_, .free_slabs = ledger_->free_slabs()};
  for (Tenancy& tenancy : tenancies_) {
    const TenantState* state = book_.Find(tenancy.id);
    if (state == nullptr) continue;
    const TenantUsage usage = ledger_->Usage(tenancy.id);
    tenancy.reported_wanted = WantedSlabs(tenancy);
    tenancy.reported_held = usage.held_slabs;
    report.tenants.push_back({.lease = {.tenant = tenancy.id,
                                        .epoch = state->lease_epoch,
                                        .seq = state->lease_seq,
                                        .slabs = TenantBook::Promise(*state, usage.held_slabs)},
                              .held_slabs = usage.held_slabs,
                              .used = usage.owned_bytes,
                              .charged_slabs = Charges(tenancy, {}).Slabs(),
                              .wanted_slabs = tenancy.reported_wanted,
                              .sessions = static_cast<uint32_t>(tenancy.sessions.size()),
                              .workers = 1});
  }
  return report;
}

Bytes ReplayAgent::KeptBytes() const {
  uint64_t blocks = 0;
  for (const Tenancy& tenancy : tenancies_) blocks += tenancy.cache.parked();
  return deps_.layout->page_bytes() * static_cast<int64_t>(blocks * kBlockPages);
}

Bytes ReplayAgent::UsedBytes() const {
  Bytes used;
  for (const Tenancy& tenancy : tenancies_) used += ledger_->Usage(tenancy.id).owned_bytes;
  return used - KeptBytes();
}

// ---- Admission ----------------------------------------------------------------------------------

Charge ReplayAgent::ChargeOf(const Request& request) const {
  const SessionPlan plan{.prompt_tokens = request.prompt_tokens,
                         .max_tokens = request.prompt_tokens + request.answer_tokens,
                         .chunk = kReplayChunk};
  return PeakCharge(*deps_.layout, *deps_.policy, {}, plan);
}

TenantCharges ReplayAgent::Charges(const Tenancy& tenancy, const Charge& more) const {
  TenantCharges charges;
  charges.Add(*deps_.layout, tenancy.charge);
  charges.Add(*deps_.layout, more);
  return charges;
}

// As the real agent, with the one session that waits longest.
uint32_t ReplayAgent::WantedSlabs(const Tenancy& tenancy) const {
  const bool waits = !tenancy.waiting.empty();
  return Charges(tenancy, waits ? ChargeOf(*tenancy.waiting.front().request) : Charge())
      .WantedSlabs();
}

uint32_t ReplayAgent::UsableSlabs(const Tenancy& tenancy) const {
  const TenantState* state = book_.Find(tenancy.id);
  return state == nullptr ? 0 : Charges(tenancy, tenancy.coming).UsableSlabs(state->lease_slabs);
}

void ReplayAgent::Arrive(const Request& request) {
  Tenancy& tenancy = tenancies_[request.tenant];
  const TimePoint now = deps_.world->now();
  tenancy.waiting.push_back(
      {.request = &request, .since = now, .until = now + deps_.options->patience});
  deps_.world->At(tenancy.waiting.back().until, nullptr, [this, &tenancy] { Expire(&tenancy); });
  Admit(&tenancy);
}

void ReplayAgent::Expire(Tenancy* tenancy) {
  const TimePoint now = deps_.world->now();
  const size_t gone =
      std::erase_if(tenancy->waiting, [&](const Waiting& waiting) { return waiting.until <= now; });
  deps_.counts->result.impatient += gone;
  deps_.counts->open -= gone;
  Admit(tenancy);
}

void ReplayAgent::Admit(Tenancy* tenancy) {
  tenancy->coming = {};
  while (!tenancy->waiting.empty()) {
    const TenantState* state = book_.Find(tenancy->id);
    if (state == nullptr) return;
    const Waiting first = tenancy->waiting.front();
    const Charge charge = ChargeOf(*first.request);
    const uint32_t most = std::min(state->limit_slabs, ledger_->config().slabs);
    if (SlabsFor(*deps_.layout, charge) > most) {
      ++deps_.counts->result.too_large;
      --deps_.counts->open;
      tenancy->waiting.pop_front();
      continue;
    }
    if (!CanStart(tenancy, charge)) break;
    tenancy->waiting.pop_front();
    Start(tenancy, first, charge);
  }
  Changed(tenancy);
}

// Its peak fits the lease, and kept prefixes are not where its overhead must go.
bool ReplayAgent::CanStart(Tenancy* tenancy, const Charge& charge) {
  const TenantState& state = *book_.Find(tenancy->id);
  if (state.PastDeadline(deps_.world->now())) return false;
  const TenantCharges charges = Charges(*tenancy, charge);
  if (charges.Slabs() > state.lease_slabs) return false;
  const uint32_t usable = charges.UsableSlabs(state.lease_slabs);
  const uint64_t room = uint64_t{usable} * deps_.layout->pages_per_slab();
  while (Owned(*tenancy).size() > room && DropBlock(tenancy)) {
  }
  if (ledger_->Usage(tenancy->id).held_slabs <= usable) return true;
  tenancy->coming = charge;
  Look(tenancy);
  return false;
}

void ReplayAgent::Start(Tenancy* tenancy, const Waiting& waiting, const Charge& charge) {
  const Request& request = *waiting.request;
  const SessionId id(next_session_++);
  Session& session = tenancy->sessions[id];
  session.request = &request;
  session.since = waiting.since;
  session.charge = charge;
  session.state = {.geometry = &deps_.layout->geometry(),
                   .plan = {.prompt_tokens = request.prompt_tokens,
                            .max_tokens = request.prompt_tokens + request.answer_tokens,
                            .chunk = kReplayChunk},
                   .session = id.value()};
  session.compact_at = deps_.policy->NextCompactAt(session.state);
  session.shares = session.compact_at.value_or(request.prompt_tokens) >= request.prompt_tokens;
  tenancy->charge += charge;
  if (session.shares) {
    session.held = tenancy->cache.Find(request.blocks);
    tenancy->cache.Hold(std::span(request.blocks).first(session.held));
    session.state.step = session.state.length = static_cast<uint32_t>(session.held) * kBlockTokens;
  }
  ReplayResult& result = deps_.counts->result;
  result.prompt_tokens += request.prompt_tokens;
  result.found_tokens += session.state.step;
  deps_.counts->waits.push_back(deps_.world->now() - waiting.since);
  deps_.holds_more(tenancy->id);
  deps_.world->At(deps_.world->now(), nullptr,
                  [this, tenant = tenancy->id, id] { Step(tenant, id); });
}

// Demand or lease of the tenant may have changed.
void ReplayAgent::Changed(Tenancy* tenancy) {
  const TenantState* state = book_.Find(tenancy->id);
  const uint32_t lease = state == nullptr ? 0 : state->lease_slabs;
  const uint32_t wanted = WantedSlabs(*tenancy);
  const bool claims = std::min(wanted, floor_slabs_) > lease;
  if (claims && !tenancy->claims_since.has_value()) {
    tenancy->claims_since = deps_.world->now();
  } else if (!claims && tenancy->claims_since.has_value()) {
    deps_.counts->claims.push_back(deps_.world->now() - *tenancy->claims_since);
    tenancy->claims_since.reset();
  }
  const bool gave_back = ledger_->Usage(tenancy->id).held_slabs < tenancy->reported_held;
  if (gave_back || wanted != tenancy->reported_wanted) deps_.hurry();
}

// ---- Sessions -----------------------------------------------------------------------------------

void ReplayAgent::Step(TenantId tenant, SessionId id) {
  Tenancy& tenancy = Of(tenant);
  const auto found = tenancy.sessions.find(id);
  if (found == tenancy.sessions.end()) return;  // preempted
  Session& session = found->second;
  PolicyState& state = session.state;
  const SessionPlan& plan = state.plan;
  if (state.step >= plan.prompt_tokens) {
    Share(&tenancy, &session);
    state.head_classes = head_classes_;
  }
  const bool fresh = state.step > state.compacted_step;
  const bool due = session.compact_at.has_value() && state.length >= *session.compact_at;
  if (fresh && (due || session.asked)) Compact(&tenancy, &session);
  session.asked = false;
  if (state.step == plan.max_tokens) return End(&tenancy, id);

  const bool prompt = state.step < plan.prompt_tokens;
  const uint32_t tokens = prompt ? std::min(kReplayChunk, plan.prompt_tokens - state.step)
                                 : std::min(kPageTokens, plan.max_tokens - state.step);
  const uint64_t pages = PagesOf(session, state.length + tokens);
  const auto again = [this, tenant, id] { Step(tenant, id); };
  if (pages > session.pages && !Take(&tenancy, pages - session.pages)) {
    Look(&tenancy);
    return deps_.world->At(deps_.world->now() + kStalled, nullptr, again);
  }
  session.pages = std::max(session.pages, pages);
  state.length += tokens;
  state.step += tokens;
  state.observed = state.step;
  const ReplayOptions& options = *deps_.options;
  const Duration taken =
      TimeFor(tokens, prompt ? options.prompt_tokens_per_second : options.answer_tokens_per_second);
  deps_.world->At(deps_.world->now() + taken, nullptr, again);
}

// The whole prompt is there: from now on its blocks can be found.
void ReplayAgent::Share(Tenancy* tenancy, Session* session) {
  if (!session->shares || session->state.compacted_step > 0) return;
  const std::span<const PrefixKey> blocks = session->request->blocks;
  while (session->held < blocks.size() && tenancy->cache.Add(blocks.first(session->held + 1))) {
    ++session->held;
    session->pages -= kBlockPages;
  }
  session->shares = false;
}

// Pages of its own: a compacted part and the tokens after it may each end in a partly empty page.
uint64_t ReplayAgent::PagesOf(const Session& session, uint32_t length) const {
  const PolicyState& state = session.state;
  if (state.compacted_step == 0) {
    return CeilDiv(length, kPageTokens) - session.held * kBlockPages;
  }
  return CeilDiv(state.compacted_length, kPageTokens) +
         CeilDiv(length - state.compacted_length, kPageTokens);
}

std::optional<uint32_t> ReplayAgent::RowsKept(const PolicyState& state) const {
  const std::optional<Selection> selection = deps_.policy->Compact(state);
  if (!selection.has_value()) return std::nullopt;
  const uint32_t expected = deps_.contender->policy.name == "corm"
                                ? static_cast<uint32_t>(kCormKeeps * state.step)
                                : selection->expected;
  return std::min(expected, state.length);
}

uint64_t ReplayAgent::PagesFreed(const Session& session) const {
  if (session.state.step == session.state.compacted_step) return 0;
  const std::optional<uint32_t> kept = RowsKept(session.state);
  const uint64_t pages = kept.has_value() ? CeilDiv(*kept, kPageTokens) : session.pages;
  return session.pages > pages ? session.pages - pages : 0;
}

// Blocks that it shares stay as they are, so it keeps a copy of what it needs of them; pages that
// it lacks for that are taken with those for its next tokens.
void ReplayAgent::Compact(Tenancy* tenancy, Session* session) {
  PolicyState& state = session->state;
  if (const std::optional<uint32_t> kept = RowsKept(state)) {
    tenancy->cache.LetGo(std::span(session->request->blocks).first(session->held));
    session->held = 0;
    session->shares = false;
    const uint64_t pages = CeilDiv(*kept, kPageTokens);
    if (session->pages > pages) {
      Give(tenancy, session->pages - pages);
      session->pages = pages;
    }
    state.compacted_step = state.step;
    state.compacted_length = state.length = *kept;
    ++deps_.counts->result.compactions;
    Look(tenancy);
  }
  session->compact_at = deps_.policy->NextCompactAt(state);
}

void ReplayAgent::End(Tenancy* tenancy, SessionId id) {
  const Session& session = tenancy->sessions.at(id);
  ++deps_.counts->result.served;
  deps_.counts->result.served_tokens += session.state.plan.max_tokens;
  --deps_.counts->open;
  Give(tenancy, session.pages);
  tenancy->cache.LetGo(std::span(session.request->blocks).first(session.held));
  tenancy->charge -= session.charge;
  tenancy->sessions.erase(id);
  Look(tenancy);
  Admit(tenancy);
}

void ReplayAgent::Preempt(Tenancy* tenancy, SessionId id) {
  const Session& session = tenancy->sessions.at(id);
  ++deps_.counts->result.preempted;
  Give(tenancy, session.pages);
  tenancy->cache.LetGo(std::span(session.request->blocks).first(session.held));
  tenancy->charge -= session.charge;
  const TimePoint until = deps_.world->now() + deps_.options->patience;
  tenancy->waiting.push_front(
      {.request = session.request, .since = deps_.world->now(), .until = until});
  deps_.world->At(until, nullptr, [this, tenancy] { Expire(tenancy); });
  tenancy->sessions.erase(id);
}

}  // namespace kvpool::sim
