// An agent of a replay: the real ledger, book, planner, admission and parked order, with sessions
// that are numbers. See replay.h.
//
// All pages of a tenant belong to one session of the ledger: which of its sessions has which page
// makes no difference to slabs here, because moves take no time.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "agent/admission.h"
#include "agent/pool.h"
#include "agent/reclaim_planner.h"
#include "agent/tenant_book.h"
#include "kernels/layout.h"
#include "kernels/policy/policy.h"
#include "manager/cluster.h"
#include "tests/sim/replay.h"
#include "tests/sim/world.h"

namespace kvpool::sim {

inline constexpr uint32_t kBlockPages = kBlockTokens / kPageTokens;

// What a replay counts, over all agents.
struct ReplayCounts {
  ReplayResult result;
  std::vector<Duration> waits, claims;
  uint64_t open = 0;  // requests that have come and are neither served nor refused
};

class ReplayAgent {
 public:
  struct Deps {
    World* world = nullptr;
    const ReplayOptions* options = nullptr;
    const Contender* contender = nullptr;
    const Layout* layout = nullptr;
    std::shared_ptr<const Policy> policy;
    ReplayCounts* counts = nullptr;
    std::function<void()> hurry;               // what a report would say has changed
    std::function<void(TenantId)> holds_more;  // or may soon
  };
  ReplayAgent(Deps deps, uint32_t slabs, uint32_t floor_slabs);

  void Arrive(const Request& request);
  void Apply(uint64_t epoch, const std::vector<TenantOrder>& orders);
  AgentReport Report();

  // Slabs that the tenant holds, and slabs that it is charged for overhead.
  int64_t HeldSlabs(TenantId tenant) const { return ledger_->Usage(tenant).held_slabs; }
  int64_t ChargedOverhead(TenantId tenant) const {
    return OverheadSlabs(*deps_.layout, Of(tenant).charge);
  }
  // Bytes of pages in use by sessions, and of prefixes that nobody uses.
  Bytes UsedBytes() const;
  Bytes KeptBytes() const;

 private:
  struct Waiting {
    const Request* request = nullptr;
    TimePoint since;
    TimePoint until;
  };
  struct Session {
    const Request* request = nullptr;
    TimePoint since;  // when it came
    Charge charge;
    PolicyState state;
    std::optional<uint32_t> compact_at;
    uint64_t pages = 0;   // of its own
    size_t held = 0;      // blocks of its prompt that it has in the cache
    bool shares = false;  // its policy leaves the prompt as it is until its end
    bool asked = false;   // to be compacted at its next step
  };
  struct Tenancy {
    Tenancy(ParkingRule rule, size_t room) : cache(rule, room) {}
    TenantId id;
    WorkerId worker;
    SessionId pages;
    PrefixCache cache;
    std::deque<Waiting> waiting;
    std::map<SessionId, Session> sessions;
    Charge charge;
    Charge coming;  // of the session that waits for kept prefixes to make room
    bool passing = false;
    std::optional<TimePoint> claims_since;
    uint32_t reported_wanted = 0, reported_held = 0;
  };

  Tenancy& Of(TenantId tenant) { return tenancies_[tenant.value() - 1]; }
  const Tenancy& Of(TenantId tenant) const { return tenancies_[tenant.value() - 1]; }
  std::span<const PageId> Owned(const Tenancy& tenancy) const;

  // Admission.
  Charge ChargeOf(const Request& request) const;
  TenantCharges Charges(const Tenancy& tenancy, const Charge& more) const;
  uint32_t WantedSlabs(const Tenancy& tenancy) const;
  uint32_t UsableSlabs(const Tenancy& tenancy) const;
  void Admit(Tenancy* tenancy);
  bool CanStart(Tenancy* tenancy, const Charge& charge);
  void Start(Tenancy* tenancy, const Waiting& waiting, const Charge& charge);
  void Expire(Tenancy* tenancy);
  void Changed(Tenancy* tenancy);

  // Sessions.
  void Step(TenantId tenant, SessionId id);
  void Share(Tenancy* tenancy, Session* session);
  void Compact(Tenancy* tenancy, Session* session);
  std::optional<uint32_t> RowsKept(const PolicyState& state) const;
  uint64_t PagesOf(const Session& session, uint32_t length) const;
  uint64_t PagesFreed(const Session& session) const;
  void End(Tenancy* tenancy, SessionId id);
  void Preempt(Tenancy* tenancy, SessionId id);

  // Pages and slabs.
  bool Take(Tenancy* tenancy, uint64_t pages);
  void Give(Tenancy* tenancy, uint64_t pages);
  bool DropBlock(Tenancy* tenancy);
  bool AddSlab(Tenancy* tenancy);

  // Reclaim.
  void Look(Tenancy* tenancy);
  void Pass(Tenancy* tenancy);
  ReclaimInput Input(const Tenancy& tenancy) const;
  void MoveOut(Tenancy* tenancy);
  void DrainEmpty(Tenancy* tenancy);

  const Deps deps_;
  const uint32_t floor_slabs_;
  std::vector<std::byte> journal_;
  std::optional<PoolLedger> ledger_;
  TenantBook book_;
  std::vector<Tenancy> tenancies_;
  std::vector<uint8_t> head_classes_;  // of every session, once its prompt is complete
  uint64_t next_session_ = 1;
  uint64_t reports_ = 0;
};

}  // namespace kvpool::sim
