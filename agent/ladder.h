// A tenant's policies from mild to strong, made ready for its sessions: what sessions keep and push
// so that they can change policy while they run, and what they are charged on each rung. Pure, any
// thread.
//
// A session is opened for the whole ladder: its planes and its queries are the union over the
// rungs, so that a policy finds its history whenever it takes over, and there is nothing to warm
// up. (A ladder's policies that sample queries get them as often as the one that samples most.)
// Live sessions only climb: on a rung a session is charged the most that it can come to on it and
// on those above, which never grows, so what was admitted stays admitted.
//
// But for the floor: a compaction that would bring a session below the tenant's min_recovery is not
// carried out, and a session that cannot be shrunk may come to its full length. Of one session at a
// time the difference is always kept free (Headroom in TenantCharges). A session that is due, and
// that the floor holds, rests BUSY until its full charge fits, the oldest first, and then runs to
// its end with every row. So whoever is first can always finish, and with it everybody after it.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "agent/admission.h"
#include "common/policy_ladder.h"
#include "kernels/policy/policy.h"

namespace kvpool {

struct Rung {
  PolicySpec spec;
  std::shared_ptr<const Policy> policy;
  SealRule seal;
};

struct Ladder {
  PolicyLadder said;  // what it was made of
  std::vector<Rung> rungs;
  PolicyNeeds needs;  // of its sessions
};

// Requires that CheckLadder found `said` good.
std::shared_ptr<const Ladder> MakeLadder(PolicyLadder said);

// What a session keeps and pushes that any of these policies may take over. Requires that none
// profiles the prompt, and that those that count important keys do so by one threshold.
PolicyNeeds UnionOf(std::span<const PolicyNeeds> needs);

// One rung as a session has it.
struct SessionRung {
  SealRule seal;  // of the last rung so far whose format can be had here
  Charge charge;  // the most that it can come to on this rung and on those above
};

// A ladder as one session has it; without one the session's policy is fixed.
struct SessionLadder {
  std::shared_ptr<const Ladder> ladder;
  std::vector<SessionRung> rungs;
  Charge whole;  // the most that it can come to when nothing of it may go

  explicit operator bool() const { return ladder != nullptr; }
  // What more a session that is charged so may come to, because the floor may hold it at any
  // length.
  Charge Growth(const Charge& charge) const {
    Charge growth;
    if (ladder == nullptr || ladder->said.min_recovery <= 0) return growth;
    growth = whole;
    growth -= charge;
    return growth;
  }
  // Requires a ladder. What must be there for it on some rung: without a floor the charge of the
  // last one, with one the whole.
  const Charge& Least() const {
    return ladder->said.min_recovery > 0 ? whole : rungs.back().charge;
  }
};

// `can_have` says which formats can be had for this layout here.
SessionLadder LadderFor(const Layout& layout, std::shared_ptr<const Ladder> ladder,
                        const SessionPlan& plan, const std::function<bool(SealedFormat)>& can_have);

}  // namespace kvpool
