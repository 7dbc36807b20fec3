// Attaching, opening, closing, detaching. See workers.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/workers.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

absl::Status CheckRange(const char* what, uint64_t value, uint64_t max) {
  if (value >= 1 && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " is ", value, ", allowed is 1..", max));
}

absl::Status CheckRequest(const AttachRequest& request) {
  for (const absl::Status& status :
       {CheckRange("maxSessions", request.max_sessions, limits::kSessionsPerWorker),
        CheckRange("maxRunning", request.max_running, limits::kRunningPerWorker),
        CheckRange("maxSessionTokens", request.max_session_tokens, limits::kSessionTokens),
        CheckRange("chunkTokens", request.chunk_tokens, request.max_session_tokens)}) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

shm::ShmSizes SizesOf(const AttachRequest& request) {
  const Geometry& geometry = request.layout.geometry();
  return {.sessions = request.max_sessions,
          .windows = request.max_running,
          .session_tokens = request.max_session_tokens,
          .planes = geometry.planes(),
          .query_floats = geometry.model_layers() * geometry.query_heads * geometry.key_dim,
          .query_lses = geometry.model_layers() * geometry.query_heads};
}

// What every policy that the session may come under lets it share.
uint32_t ShareableTokens(const Layout& layout, const TenantState& tenant, const SessionPlan& plan) {
  if (tenant.ladder == nullptr) return ShareableTokens(layout, *tenant.policy, plan);
  uint32_t tokens = plan.prompt_tokens;
  for (const Rung& rung : tenant.ladder->rungs) {
    tokens = std::min(tokens, ShareableTokens(layout, *rung.policy, plan));
  }
  return tokens;
}

}  // namespace

Workers::Workers(const Deps& deps) : deps_(deps), log_("workers"), tasks_(*this) {}

void Workers::taskFailed(kj::Exception&& error) {
  log_.Warn("a worker did not answer", {{"error", error.getDescription().cStr()}});
}

absl::StatusOr<WorkerId> Workers::Attach(const AttachRequest& request,
                                         rpc::WorkerEvents::Client events) {
  if (absl::Status status = CheckRequest(request); !status.ok()) return status;
  const shm::ShmSizes sizes = SizesOf(request);
  if (const uint64_t bytes = shm::ControlBytes(sizes) + shm::TablesBytes(sizes);
      bytes > limits::kSharedBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "this geometry with maxSessions, maxRunning and maxSessionTokens takes ", bytes,
        " bytes of address space, allowed are ", limits::kSharedBytes, ": ask for less"));
  }
  if (deps_.book->Find(request.tenant) == nullptr) {
    return absl::FailedPreconditionError("the tenant has been deleted");
  }
  absl::StatusOr<WorkerId> id = deps_.ledger->AddWorker(request.tenant, request.layout);
  if (!id.ok()) return id.status();
  absl::StatusOr<std::unique_ptr<Attachment>> attachment =
      Attachment::Make({.id = *id,
                        .tenant = request.tenant,
                        .layout = request.layout,
                        .sizes = sizes,
                        .chunk_tokens = request.chunk_tokens,
                        .queries = request.queries,
                        .base = deps_.device->base(),
                        .prefixes = deps_.prefixes->For(request.tenant, request.layout)},
                       deps_.ledger);
  if (!attachment.ok()) {
    (void)deps_.ledger->RemoveWorker(*id);
    return attachment.status();
  }
  workers_.emplace(*id, Worker{.attachment = *std::move(attachment), .events = kj::mv(events)});
  WatchDoorbell(*id);
  log_.Info("worker attached", {{"worker", id->value()},
                                {"name", request.worker},
                                {"tenant", request.tenant.value()},
                                {"page_bytes", request.layout.page_bytes().value()}});
  Changed(request.tenant);
  return *id;
}

Worker* Workers::Find(WorkerId worker) {
  const auto found = workers_.find(worker);
  return found == workers_.end() || found->second.detached ? nullptr : &found->second;
}

void Workers::Detach(WorkerId worker, kj::Promise<void> gone) {
  Worker* found = Find(worker);
  if (found == nullptr) return;
  found->detached = true;
  std::vector<uint32_t> slots;
  for (const auto& [slot, session] : found->attachment->sessions()) slots.push_back(slot);
  for (uint32_t slot : slots) found->attachment->Close(slot);
  tasks_.add(gone.then([this, worker] {
    workers_.at(worker).gone = true;
    RemoveIfDone(worker);
  }));
}

void Workers::RemoveIfDone(WorkerId worker) {
  const auto found = workers_.find(worker);
  if (found == workers_.end() || !found->second.gone) return;
  // A session that is still there is closed and has a job that reads this attachment's memory.
  if (!found->second.attachment->sessions().empty() || found->second.growing) return;
  const TenantId tenant = found->second.attachment->setup().tenant;
  Count(*found->second.attachment, &past_);
  (void)deps_.ledger->RemoveWorker(worker);
  workers_.erase(found);
  log_.Info("worker gone, its memory is back", {{"worker", worker.value()}});
  Changed(tenant);
}

// ---- Admission ----------------------------------------------------------------------------------

TenantCharges Workers::Charges(TenantId tenant) const {
  TenantCharges charges;
  for (const auto& [id, worker] : workers_) {
    const Attachment& attachment = *worker.attachment;
    if (attachment.setup().tenant == tenant) charges.Add(attachment.layout(), attachment.charge());
  }
  deps_.prefixes->AddCharges(tenant, &charges);
  return charges;
}

TenantCharges Workers::ChargesAndRoom(TenantId tenant) const {
  TenantCharges charges = Charges(tenant);
  for (const auto& [id, worker] : workers_) {
    const Attachment& attachment = *worker.attachment;
    if (attachment.setup().tenant != tenant) continue;
    for (const auto& [slot, session] : attachment.sessions()) {
      charges.AddHeadroom(attachment.layout(), session.Growth());
    }
  }
  return charges;
}

uint32_t Workers::ChargedSlabs(TenantId tenant) const { return Charges(tenant).Slabs(); }

uint32_t Workers::WantedSlabs(TenantId tenant, TimePoint now) const {
  TenantCharges charges = ChargesAndRoom(tenant);
  const auto found = awaiting_room_.find(tenant);
  for (const auto& [id, worker] : workers_) {
    const Attachment& attachment = *worker.attachment;
    if (attachment.setup().tenant != tenant) continue;
    if (now - worker.waiting_since < kWaitingCounts) {
      charges.Add(attachment.layout(), worker.waiting);
      charges.AddHeadroom(attachment.layout(), worker.waiting_growth);
    }
    if (found == awaiting_room_.end()) continue;
    for (const auto& [slot, session] : attachment.sessions()) {
      const auto asked = found->second.find(session.id);
      if (asked != found->second.end() && now - asked->second < kWaitingCounts) {
        charges.Add(attachment.layout(), session.Growth());
      }
    }
  }
  return charges.WantedSlabs();
}

void Workers::Count(const Attachment& attachment, Hostilities* sum) {
  sum->bad_page_lists += attachment.bad_page_lists();
  sum->bad_profiles += attachment.bad_profiles();
  sum->missing_profiles += attachment.missing_profiles();
  sum->bad_returns += attachment.bad_returns();
  sum->unscored += attachment.unscored();
}

Hostilities Workers::hostilities() const {
  Hostilities sum = past_;
  for (const auto& [id, worker] : workers_) Count(*worker.attachment, &sum);
  return sum;
}

WorkerCounts Workers::Count(TenantId tenant) const {
  WorkerCounts counts;
  for (const auto& [id, worker] : workers_) {
    if (worker.attachment->setup().tenant != tenant) continue;
    ++counts.workers;
    counts.sessions += static_cast<uint32_t>(worker.attachment->sessions().size());
  }
  return counts;
}

std::vector<RungCounters> Workers::CountRungs(const TenantState& tenant) const {
  std::vector<RungCounters> rungs = tenant.rungs;
  if (tenant.ladder == nullptr) return rungs;
  for (const auto& [id, worker] : workers_) {
    if (worker.attachment->setup().tenant == tenant.id) {
      worker.attachment->CountRungs(tenant.ladder.get(), &rungs);
    }
  }
  return rungs;
}

void Workers::ClimbSessions() {
  for (const auto& [tenant_id, tenant] : deps_.book->tenants()) {
    if (tenant.ladder == nullptr) continue;
    std::vector<SessionId> due;
    for (auto& [id, worker] : workers_) {
      if (worker.attachment->setup().tenant != tenant_id || worker.detached) continue;
      const std::vector<SessionId> idle =
          worker.attachment->Climb(tenant.ladder.get(), tenant.rung);
      due.insert(due.end(), idle.begin(), idle.end());
    }
    if (!due.empty()) tasks_.add(CompactIdle(tenant_id, due).ignoreResult());
  }
}

void Workers::Snapshot(TenantId tenant) {
  for (auto& [id, worker] : workers_) {
    if (worker.attachment->setup().tenant == tenant && !worker.detached) {
      worker.attachment->SnapshotAll();
    }
  }
}

Bytes Workers::UsedBytes(TenantId tenant) const {
  const TenantUsage usage = deps_.ledger->Usage(tenant);
  Bytes used = usage.owned_bytes + usage.granted_bytes + usage.frozen_bytes - usage.parked_bytes;
  for (const auto& [id, worker] : workers_) {
    if (worker.attachment->setup().tenant != tenant) continue;
    // A worker that says it has taken nothing hides no more than what it was granted.
    const uint64_t waiting =
        std::min<uint64_t>(worker.attachment->waiting(), deps_.ledger->GrantedPages(id));
    used -= worker.attachment->layout().page_bytes() * static_cast<int64_t>(waiting);
  }
  return std::max(used, 0_B);
}

uint32_t Workers::UsableSlabs(const TenantState& tenant) const {
  return Charges(tenant.id).UsableSlabs(tenant.lease_slabs);
}

absl::Status Workers::CheckFormatHere(const Layout& layout, SealedFormat format) const {
  if (absl::Status status = CheckFormat(layout, deps_.device->info().formats, format);
      !status.ok()) {
    return status;
  }
  return CheckReserve(layout, format, deps_.ledger->config().reserve_slabs);
}

absl::Status Workers::CheckPolicy(const AttachmentSetup& setup, const TenantState& tenant) const {
  if (tenant.ladder == nullptr) {
    if (absl::Status status = CheckQueries(tenant.spec, *tenant.policy, setup.queries);
        !status.ok()) {
      return status;
    }
    absl::Status format = CheckFormatHere(setup.layout, tenant.seal.format);
    if (format.ok()) return format;
    return absl::FailedPreconditionError(
        absl::StrCat("tenant ", tenant.name, ": ", std::string(format.message())));
  }
  // A format that cannot be had is left out of a ladder: it says what may be done, not what must.
  for (const Rung& rung : tenant.ladder->rungs) {
    if (absl::Status status = CheckQueries(rung.spec, *rung.policy, setup.queries); !status.ok()) {
      return status;
    }
  }
  return CheckMeasurable(tenant.ladder->said.min_recovery, setup.queries);
}

absl::Status Workers::CheckOpen(const AttachmentSetup& setup, const TenantState& tenant,
                                const SessionPlan& plan) const {
  if (plan.prompt_tokens == 0 || plan.prompt_tokens > plan.max_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "promptTokens is ", plan.prompt_tokens, ", allowed is 1..maxTokens = ", plan.max_tokens));
  }
  if (plan.max_tokens > setup.sizes.session_tokens) {
    return absl::OutOfRangeError(absl::StrCat("maxTokens is ", plan.max_tokens,
                                              ", the attachment was made for at most ",
                                              setup.sizes.session_tokens));
  }
  return CheckPolicy(setup, tenant);
}

SessionTerms Workers::TermsOf(const AttachmentSetup& setup, const TenantState& tenant,
                              const SessionPlan& plan) const {
  return TermsFor(setup.layout, tenant, plan,
                  [&](SealedFormat format) { return CheckFormatHere(setup.layout, format).ok(); });
}

absl::StatusOr<AgentSession*> Workers::OpenNow(WorkerId id, const SessionRequest& request,
                                               const std::vector<PageKey>& keys) {
  Worker* worker = Find(id);
  if (worker == nullptr) return absl::FailedPreconditionError("the worker has detached");
  Attachment& attachment = *worker->attachment;
  const AttachmentSetup& setup = attachment.setup();
  const TenantState* tenant = deps_.book->Find(setup.tenant);
  const SessionPlan plan{.prompt_tokens = request.prompt_tokens,
                         .max_tokens = request.max_tokens,
                         .chunk = setup.chunk_tokens};
  if (absl::Status status = CheckOpen(setup, *tenant, plan); !status.ok()) return status;
  SessionTerms terms = TermsOf(setup, *tenant, plan);
  const PoolConfig& pool = deps_.ledger->config();
  const uint32_t alone = SlabsFor(setup.layout, terms.ladder ? terms.ladder.Least() : terms.charge);
  const uint32_t most = std::min(tenant->limit_slabs, pool.slabs - pool.reserve_slabs);
  if (alone > most) {
    return absl::OutOfRangeError(
        absl::StrCat("a session of ", plan.max_tokens, " tokens needs ", alone, " slabs under ",
                     terms.ladder ? kAutoPolicy : ToString(tenant->spec), "; tenant ", tenant->name,
                     " can have at most ", most, " here"));
  }
  const uint32_t shareable = ShareableTokens(setup.layout, *tenant, plan);
  const std::vector<PageId> shared = attachment.FindPrefix(keys, shareable);
  const auto parked = std::count_if(shared.begin(), shared.end(), [this](PageId page) {
    return deps_.ledger->HoldersOf(page) == 0;
  });
  if (!terms.copies) terms.charge.pages -= shared.size();
  TenantCharges charges = ChargesAndRoom(setup.tenant);
  charges.Add(setup.layout, terms.charge);
  charges.AddHeadroom(setup.layout, terms.ladder.Growth(terms.charge));
  charges.Add(setup.layout, {.pages = static_cast<uint64_t>(parked)});
  const uint32_t needed = charges.Slabs();
  if (needed > tenant->lease_slabs || tenant->PastDeadline(BootClock::now())) {
    return RefuseSession(worker, terms.charge, terms.ladder.Growth(terms.charge), needed, most);
  }
  worker->waiting = worker->waiting_growth = {};
  absl::StatusOr<AgentSession*> session = attachment.Open(*tenant, plan, std::move(terms));
  if (session.ok() && !keys.empty()) {
    attachment.TakePrefix(*session, keys, shareable);
    deps_.prefixes->CountPrompt(setup.tenant, (*session)->committed);
  }
  return session;
}

absl::Status Workers::RefuseSession(Worker* worker, const Charge& charge, const Charge& growth,
                                    uint32_t needed, uint32_t most) {
  const AttachmentSetup& setup = worker->attachment->setup();
  const TenantState& tenant = *deps_.book->Find(setup.tenant);
  const TimePoint now = BootClock::now();
  const bool past_deadline = tenant.PastDeadline(now);
  worker->waiting = charge;
  worker->waiting_growth = growth;
  worker->waiting_since = now;
  const ReclaimReason reason = past_deadline ? ReclaimReason::kLeaseShrink
                                             : deps_.book->WhyRefused(tenant, needed, most, now);
  deps_.book->Record({.tenant = tenant.id,
                      .time = now,
                      .step = ReclaimStep::kRefusal,
                      .reason = reason,
                      .policy = ToString(tenant.spec),
                      .sessions = 1,
                      .bytes = charge.pages * setup.layout.page_bytes().value()});
  Changed(setup.tenant);
  if (past_deadline) {
    return absl::ResourceExhaustedError(PastDeadlineText(tenant, now, "session"));
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("tenant ", tenant.name, " would need ", needed, " slabs with this session, ",
                   tenant.lease_slabs, " are leased to it here",
                   reason == ReclaimReason::kLeaseGrowing ? " so far: ask again" : ""));
}

void Workers::Close(WorkerId id, uint32_t slot, SessionId session) {
  Worker* worker = Find(id);
  if (worker == nullptr) return;
  AgentSession* found = worker->attachment->Find(slot);
  if (found == nullptr || found->id != session) return;
  worker->attachment->Close(slot);
  TopUp(id);
  Changed(worker->attachment->setup().tenant);
}

}  // namespace kvpool
