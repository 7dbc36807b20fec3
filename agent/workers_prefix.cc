// Opening a session with its prompt's tokens: they are hashed on the kernel pool, slabs that hold a
// known beginning are mapped by the worker, then the session opens with it; and parked pages. See
// workers.h.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/agent_metrics.h"
#include "agent/workers.h"
#include "common/kj_asio.h"
#include "proto/limits.h"

namespace kvpool {

kj::Promise<absl::StatusOr<AgentSession*>> Workers::Open(WorkerId id, SessionRequest request) {
  Worker* worker = Find(id);
  const TenantState* tenant =
      worker == nullptr ? nullptr : deps_.book->Find(worker->attachment->setup().tenant);
  const std::shared_ptr<PrefixIndex> index =
      tenant == nullptr ? nullptr : worker->attachment->setup().prefixes;
  if (request.prompt.size() < kPageTokens || index == nullptr) return OpenNow(id, request, {});
  return Offload(*deps_.pool,
                 [secret = index->secret(), model = request.model,
                  prompt = std::exchange(request.prompt, {})] {
                   return PageKeys(secret, RootKey(secret, model), prompt);
                 })
      .then([this, id, request](std::vector<PageKey> keys) {
        return MapPrefix(id, keys).then(
            [this, id, request, keys] { return OpenNow(id, request, keys); });
      });
}

kj::Promise<void> Workers::MapPrefix(WorkerId id, const std::vector<PageKey>& keys) {
  const Turn turn(deps_.metrics);
  Worker* worker = Find(id);
  if (worker == nullptr) return kj::READY_NOW;
  const AttachmentSetup& setup = worker->attachment->setup();
  // What sessions have written by now can be shared already.
  for (auto& [other, known] : workers_) {
    if (known.attachment->setup().prefixes == setup.prefixes && !known.detached) {
      known.attachment->FreezeAll();
    }
  }
  std::vector<SlabIndex> slabs = worker->attachment->SlabsOfPrefix(keys);
  if (slabs.empty() || worker->growing) return kj::READY_NOW;
  if (slabs.size() > limits::kSlabsPerCall) slabs.resize(limits::kSlabsPerCall);
  worker->growing = true;
  return Offer(id, std::move(slabs)).then([this, id, keys](bool mapped) -> kj::Promise<void> {
    if (mapped) return MapPrefix(id, keys);
    return kj::READY_NOW;
  });
}

kj::Promise<absl::StatusOr<AgentSession*>> Workers::Fork(WorkerId id, uint32_t slot,
                                                         uint32_t max_tokens) {
  return MakeRoom(id, {.needed = 1, .wanted = 1}).then([this, id, slot, max_tokens] {
    return ForkNow(id, slot, max_tokens);
  });
}

absl::StatusOr<AgentSession*> Workers::ForkNow(WorkerId id, uint32_t slot, uint32_t max_tokens) {
  const Turn turn(deps_.metrics);
  Worker* worker = Find(id);
  if (worker == nullptr) return absl::FailedPreconditionError("the worker has detached");
  Attachment& attachment = *worker->attachment;
  const AttachmentSetup& setup = attachment.setup();
  const TenantState* tenant = deps_.book->Find(setup.tenant);
  const absl::StatusOr<const AgentSession*> checked = attachment.CheckFork(slot);
  if (!checked.ok()) return checked.status();
  const AgentSession& parent = **checked;
  const SessionPlan plan{.prompt_tokens = parent.plan.prompt_tokens,
                         .max_tokens = max_tokens,
                         .chunk = setup.chunk_tokens};
  if (absl::Status status = CheckOpen(setup, *tenant, plan); !status.ok()) return status;
  if (parent.ladder.ladder != tenant->ladder) {
    return absl::FailedPreconditionError(
        absl::StrCat("the policy of tenant ", tenant->name, " has changed since session slot ",
                     slot, " was opened: open a session and feed it the tokens instead of a fork"));
  }
  if (max_tokens < parent.committed) {
    return absl::InvalidArgumentError(
        absl::StrCat("maxTokens is ", max_tokens, ", the session has ", parent.committed));
  }
  // What both hold is charged once, to the tenant, and to a policy that compacts once more.
  const uint64_t full = parent.committed / kPageTokens;
  SessionTerms terms = TermsOf(setup, *tenant, plan);
  if (tenant->ladder == nullptr) {
    terms.charge = PeakCharge(setup.layout, *parent.policy, parent.seal, plan);
    terms.copies = parent.copies;
  }
  uint64_t held = 0;
  if (terms.copies) {
    held = full - parent.frozen.size();
  } else {
    terms.charge.pages -= full;
  }
  const Charge growth = terms.ladder.Growth(terms.charge);
  TenantCharges charges = ChargesAndRoom(setup.tenant);
  charges.Add(setup.layout, terms.charge);
  charges.AddHeadroom(setup.layout, growth);
  charges.Add(setup.layout, {.pages = held});
  const uint32_t needed = charges.Slabs();
  const PoolConfig& pool = deps_.ledger->config();
  const uint32_t most = std::min(tenant->limit_slabs, pool.slabs - pool.reserve_slabs);
  if (needed > tenant->lease_slabs || tenant->PastDeadline(BootClock::now())) {
    return RefuseSession(worker, terms.charge, growth, needed, most);
  }
  worker->waiting = worker->waiting_growth = {};
  return attachment.Fork(slot, *tenant, plan, std::move(terms));
}

kj::Promise<void> Workers::MakeRoom(WorkerId id, Attachment::Copies copies) {
  if (Find(id) == nullptr || deps_.ledger->FreePagesFor(id) >= copies.wanted) return kj::READY_NOW;
  return Grow(id, copies.wanted).then([this, id, copies](bool grown) -> kj::Promise<void> {
    Worker* worker = Find(id);
    if (worker == nullptr) return kj::READY_NOW;
    if (grown) return MakeRoom(id, copies);
    if (deps_.ledger->FreePagesFor(id) >= copies.needed) return kj::READY_NOW;
    if (DropParked(id, copies.needed)) return MakeRoom(id, copies);
    return ReturnMagazines(worker->attachment->setup().tenant);
  });
}

bool Workers::DropParked(WorkerId id, uint64_t pages) {
  const AttachmentSetup& setup = Find(id)->attachment->setup();
  const uint64_t dropped = deps_.prefixes->Drop(setup.tenant, setup.layout, pages);
  if (dropped == 0) return false;
  RecordParked(setup.tenant, ReclaimReason::kNoPages,
               setup.layout.page_bytes() * static_cast<int64_t>(dropped));
  return true;
}

void Workers::DropParked(TenantId tenant, const std::vector<SlabIndex>& slabs,
                         const std::map<uint32_t, uint64_t>& pages) {
  if (slabs.empty() && pages.empty()) return;
  const Bytes dropped = deps_.prefixes->DropFor(tenant, slabs, pages);
  if (dropped > 0_B) RecordParked(tenant, ReclaimReason::kLeaseShrink, dropped);
}

void Workers::DropParkedBefore(TimePoint then) {
  for (const auto& [tenant, bytes] : deps_.prefixes->DropParkedBefore(then)) {
    RecordParked(tenant, ReclaimReason::kScheduled, bytes);
    Changed(tenant);
  }
}

void Workers::RecordParked(TenantId tenant, ReclaimReason reason, Bytes bytes) {
  const TenantState* state = deps_.book->Find(tenant);
  deps_.book->Record({.tenant = tenant,
                      .time = BootClock::now(),
                      .step = ReclaimStep::kParked,
                      .reason = reason,
                      .policy = state == nullptr ? "" : ToString(state->spec),
                      .sessions = 0,
                      .bytes = static_cast<uint64_t>(bytes.value()),
                      .bytes_before = static_cast<uint64_t>(bytes.value())});
}

}  // namespace kvpool
