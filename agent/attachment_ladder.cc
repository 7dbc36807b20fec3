// What a policy `auto` adds to a session's life: climbing while it is open, its charge, and what
// the floor of recovery holds. See attachment.h and ladder.h.
//
// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "agent/attachment.h"

namespace kvpool {

SessionTerms TermsFor(const Layout& layout, const TenantState& tenant, const SessionPlan& plan,
                      const std::function<bool(SealedFormat)>& can_have) {
  SessionTerms terms;
  if (tenant.ladder == nullptr) {
    terms.charge = PeakCharge(layout, *tenant.policy, tenant.seal, plan);
    terms.copies = Compacts(layout, *tenant.policy, tenant.seal, plan);
    return terms;
  }
  terms.ladder = LadderFor(layout, tenant.ladder, plan, can_have);
  terms.charge = terms.ladder.rungs[tenant.rung].charge;
  terms.copies = true;  // also on a rung that keeps all: it may climb
  return terms;
}

void Attachment::SetCharge(AgentSession* session, const Charge& charge) {
  charge_ -= session->charge;
  charge_ += charge;
  session->charge = charge;
}

bool Attachment::DueByPolicy(const AgentSession& session) {
  return session.policy_at.has_value() &&
         session.cache_tokens() + session.plan.chunk > *session.policy_at;
}

// Without a query since its last compaction nothing can be measured.
bool Attachment::MayCompact(const AgentSession& session) {
  if (!session.ladder) return true;
  if (session.whole || session.held) return false;
  return session.ladder.ladder->said.min_recovery <= 0 ||
         session.planes.observed() > session.selected_observed;
}

// From a length that its policy waits for it does not grow without being compacted first, or
// charged as a whole. Its pages are counted too, because heads may differ in length.
void Attachment::SettleCharge(AgentSession* session) {
  if (!session->ladder || session->whole) return;
  const Charge& charge = session->ladder.rungs[session->rung].charge;
  const uint64_t pages = session->compacted_pages.size() + session->fresh_pages.size();
  const bool within =
      !session->policy_at.has_value() || session->cache_tokens() <= *session->policy_at;
  if (within && pages <= charge.pages) SetCharge(session, charge);
}

void Attachment::ClimbNow(AgentSession* session) {
  if (session->wanted_rung <= session->rung || session->whole || session->failed) return;
  // What it has written since the agent last looked decides whether it fits its new charge.
  if (!Snapshot(session).ok()) return;
  session->rung = session->wanted_rung;
  const Rung& rung = session->ladder.ladder->rungs[session->rung];
  session->policy = rung.policy;
  session->policy_text = ToString(rung.spec);
  session->seal = session->ladder.rungs[session->rung].seal;
  session->failed_sealings = 0;
  session->held = false;
  session->policy_asked = true;
  SetCompactAt(session);
  SettleCharge(session);
}

std::vector<SessionId> Attachment::Climb(const Ladder* ladder, uint32_t rung) {
  std::vector<SessionId> due;
  for (auto& [slot, session] : sessions_) {
    if (session.ladder.ladder.get() != ladder || session.wanted_rung >= rung || session.failed ||
        session.closed) {
      continue;
    }
    session.wanted_rung = rung;
    if (session.job != AgentSession::Job::kNone) continue;
    ClimbNow(&session);
    if (!session.failed && IsIdle(slot) && DueByPolicy(session)) due.push_back(session.id);
  }
  return due;
}

void Attachment::TakeHeld(AgentSession* session, shm::State resting, CompactionOutcome* outcome) {
  outcome->floor = session->held && session->held_at == session->committed
                       ? CompactionOutcome::Floor::kHeldAgain
                       : CompactionOutcome::Floor::kHeld;
  outcome->held_pages = PagesFreedByCompaction(*session);
  session->held = true;
  session->held_at = session->committed;
  if (resting == shm::State::kRunning && !session->closed && DueByPolicy(*session)) {
    outcome->room = CompactionOutcome::Room::kAwaited;
    session->job = AgentSession::Job::kWaiting;
    return;
  }
  SetCompactAt(session);
  regions_->SetState(session->slot, resting);
  if (session->closed) return Free(session);
  ClimbNow(session);
}

bool Attachment::GoOn(uint32_t slot, shm::State resting, Going going) {
  AgentSession* const session = Find(slot);
  session->job = AgentSession::Job::kNone;
  if (session->closed) {
    Free(session);
    return false;
  }
  if (going == Going::kWhole) {
    session->whole = true;
    SetCharge(session, session->ladder.whole);
  }
  SetCompactAt(session);
  regions_->SetState(slot, resting);
  return true;
}

void Attachment::CountRungs(const Ladder* ladder, std::vector<RungCounters>* rungs) const {
  for (const auto& [slot, session] : sessions_) {
    if (session.ladder.ladder.get() == ladder && !session.closed) {
      ++(*rungs)[session.rung].sessions;
    }
  }
}

}  // namespace kvpool
