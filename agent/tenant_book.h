// What the agent knows of each tenant: lease, policy, tokens, demand, counters and the last
// reclaims. Pure: takes values and time, no I/O; pages and slabs are the PoolLedger's.
//
// A lease is (epoch, seq, slabs), absolute; an older one is ignored. A shrink is applied to grants
// at once, but promised to the manager only as far as slabs have really come back: Promise().
//
// Lives on the RPC thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "agent/overage.h"
#include "agent/recovery.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/policy_spec.h"
#include "common/secret.h"
#include "common/tenants_file.h"
#include "kernels/policy/policy.h"
#include "kernels/sealing.h"

namespace kvpool {

using TokenHash = Sha256Hash;  // of a worker token

// Steps of the reclaim order that exist so far, by their numbers in it.
enum class ReclaimStep : uint8_t {
  kCompaction = 2,
  kRequantisation = 3,
  kRefusal = 5,
  kPreemption = 6
};
enum class ReclaimReason : uint8_t {
  kScheduled,
  kLeaseShrink,
  kNoPages,
  kAdmission,
  kLeaseGrowing
};

std::string ToString(ReclaimStep step);      // "compaction"
std::string ToString(ReclaimReason reason);  // "lease_shrink"

// One thing done to a tenant, kept to be asked for later.
struct ReclaimRecord {
  TenantId tenant;
  TimePoint time;
  ReclaimStep step = ReclaimStep::kCompaction;
  ReclaimReason reason = ReclaimReason::kScheduled;
  std::string policy;
  uint32_t count = 1;  // how many equal ones were merged into it
  uint32_t sessions = 0;
  uint64_t bytes = 0;         // freed; for a refusal, refused
  uint64_t bytes_before = 0;  // of those sessions' pages; 0 for a refusal
  RecoveryStats recovery;     // over sessions and heads; `count` of sessions
  RecoveryStats cumulative;   // of those sessions since they were opened
};

// One tenant as the manager ordered it.
struct TenantOrder {
  TenantId tenant;
  std::string name;
  uint64_t seq = 0;
  uint32_t lease_slabs = 0;
  uint32_t limit_slabs = 0;
  PolicySpec policy = DefaultPolicySpec();
  std::vector<TokenHash> token_hashes;
  Grace grace;
  OverDeadline over_deadline = OverDeadline::kHold;
  uint32_t floor_slabs = 0;  // of the lease, what a restart without a manager leaves

  bool operator==(const TenantOrder&) const = default;
};

// What a restarted agent begins with.
struct KeptOrders {
  uint64_t epoch = 0;
  std::vector<TenantOrder> tenants;  // seq 0, lease_slabs: what is kept

  bool operator==(const KeptOrders&) const = default;
};

struct TenantCounters {
  uint64_t refusals = 0;  // without those while the lease grows
  uint64_t compactions = 0;
  double recovery_sum = 0;
  uint64_t recovery_count = 0;
  double recovery_min = 1;
};

// The largest demand of a tenant that the manager knows of. Kept for a while when demand falls, so
// that one session that ends does not make the next refusal look like news.
struct KnownDemand {
  uint32_t slabs = 0;
  TimePoint since;  // when the manager first heard of this much
  TimePoint asked;  // when it last did
};

struct TenantState {
  TenantId id;
  std::string name;
  uint64_t lease_epoch = 0;
  uint64_t lease_seq = 0;
  uint32_t lease_slabs = 0;  // grants stay below this
  uint32_t limit_slabs = 0;
  uint32_t floor_slabs = 0;
  uint32_t kept_slabs = 0;  // the lease that a restart may begin with, by what may be on disk now
  bool gone = false;        // the manager knows it no more
  PolicySpec spec = DefaultPolicySpec();
  std::shared_ptr<const Policy> policy;
  SealRule seal;  // of sessions opened from now on
  std::vector<TokenHash> token_hashes;
  TenantCounters counters;
  KnownDemand known_demand;
  Grace grace;
  OverDeadline over_deadline = OverDeadline::kHold;
  Overage overage;

  // Whether it gets nothing new until it holds no more than its lease.
  bool PastDeadline(TimePoint now) const {
    return overage.Phase(grace, now) == OveragePhase::kPastDeadline;
  }
  Preemption MayPreempt(TimePoint now) const {
    return AllowedPreemption(overage.Phase(grace, now), over_deadline);
  }
};

// Why a tenant that is past its deadline gets no `what` ("page"), for people.
std::string PastDeadlineText(const TenantState& tenant, TimePoint now, const std::string& what);

class TenantBook {
 public:
  // Applies one message of the manager. FailedPrecondition when `epoch` is lower than one seen
  // before: nothing changes. With `complete`, tenants that are not named lose their lease and
  // tokens; without it they keep what they have.
  enum class Coverage : uint8_t { kPartial, kComplete };
  absl::Status Apply(uint64_t epoch, Coverage coverage, const std::vector<TenantOrder>& orders);

  // Forgets the tenants that are gone, but for those that still have something here.
  void ForgetGone(const std::vector<TenantId>& in_use);

  uint64_t highest_epoch() const { return highest_epoch_; }
  const std::map<TenantId, TenantState>& tenants() const { return tenants_; }
  // nullptr when unknown.
  const TenantState* Find(TenantId tenant) const;
  // The tenant that has this token, compared in constant time; nullptr when there is none.
  const TenantState* FindByToken(const TokenHash& hash) const;

  // What the manager may count on: the lease, or what is still held or kept where that is more.
  static uint32_t Promise(const TenantState& tenant, uint32_t held_slabs) {
    return std::max({tenant.lease_slabs, held_slabs, tenant.kept_slabs});
  }

  // Leases over a restart: of each the floor, as far as it is leased. Writing takes time, and may
  // fail halfway: so ToKeep, then BeginKeeping before the write and Kept after one that succeeded.
  // A write that failed leaves both the old and the new possible.
  KeptOrders ToKeep() const;
  void BeginKeeping(const KeptOrders& orders);
  void Kept(const KeptOrders& orders);
  // What was kept last, in a book that is empty; leases at most `slabs` in all, those of earlier
  // tenants first. What is kept must be what it says then: write ToKeep before anybody relies on
  // it.
  void Restore(const KeptOrders& orders, uint32_t slabs);

  // What the tenant holds now, without STUCK slabs. To be told when that or its lease has changed.
  void SeeHeld(TenantId tenant, uint32_t slabs, TimePoint now);

  // The manager has answered a report.
  void ManagerHeard(TimePoint now) { manager_heard_ = now; }
  // The manager has answered a report in which the tenant wanted `slabs`.
  void DemandHeard(TenantId tenant, uint32_t slabs, TimePoint now);
  // Why a session is refused for which the tenant would need `needed` slabs of at most `most`:
  // kLeaseGrowing while the manager has had no time to grow the lease, else kAdmission; also while
  // there is no manager, because nobody grows it then.
  ReclaimReason WhyRefused(const TenantState& tenant, uint32_t needed, uint32_t most,
                           TimePoint now) const;

  // Called with each record, before merging.
  using Observer = std::function<void(const TenantState&, const ReclaimRecord&)>;
  void OnRecord(Observer observer) { observer_ = std::move(observer); }
  // Keeps the record for the next report and counts it. Those of one tenant, step, reason and
  // policy less than a second after the first are merged into it, so that a batch whose sessions
  // are handed over one by one is one record, and a worker that asks in a loop does not push
  // everything else out of the log.
  void Record(const ReclaimRecord& record);
  // Records since the last call, oldest first, at most limits::kReclaimsPerReport.
  std::vector<ReclaimRecord> TakeRecords();

 private:
  std::map<TenantId, TenantState> tenants_;
  Observer observer_;
  std::deque<ReclaimRecord> unreported_;
  uint64_t highest_epoch_ = 0;
  TimePoint manager_heard_;
};

}  // namespace kvpool
