// Brings tenants back to their leases: looks at one when something changed, asks the planner what
// to do next, and does it: magazines, evacuation, compaction, revocation of slabs, the end of
// sessions where the operator allows it. Drops parked pages that nobody asks for. Tells the tenant
// book what it holds. What a plan
// cannot do now (a session still runs, a worker has not answered) is looked at again at the next
// change and, while a tenant is over its lease, at a steady beat.
//
// RPC thread; slabs are destroyed on the kernel pool.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kj/async-io.h>

#include <functional>
#include <map>

#include "agent/device.h"
#include "agent/pool.h"
#include "agent/reclaim_planner.h"
#include "agent/tenant_book.h"
#include "agent/workers.h"
#include "common/log.h"

namespace kvpool {

class Reclaimer final : private kj::TaskSet::ErrorHandler {
 public:
  struct Deps {
    Device* device = nullptr;
    PoolLedger* ledger = nullptr;
    TenantBook* book = nullptr;
    Workers* workers = nullptr;
    boost::asio::thread_pool* pool = nullptr;
    kj::Timer* timer = nullptr;
    Duration parked_ttl = std::chrono::hours(1);
  };
  explicit Reclaimer(const Deps& deps);

  // Something about the tenant changed. Cheap when it is within its lease.
  void Look(TenantId tenant);
  // A worker lacks slabs within its tenant's lease: takes as many back from the tenant's other
  // layouts, where nothing is in use in them. No slab serves two layouts, so without this one that
  // was busy once would keep the lease from another for ever.
  void TakeFromOtherLayouts(WorkerId worker, uint32_t slabs);
  // Called when a slab has come back.
  void OnProgress(std::function<void()> callback) { on_progress_ = std::move(callback); }

 private:
  kj::Promise<void> Pass(TenantId tenant);
  // Drops what nobody has asked for during parked_ttl, for ever.
  kj::Promise<void> DropUnused();
  ReclaimInput Input(TenantId tenant) const;
  kj::Promise<void> Drain(SlabIndex slab);
  kj::Promise<void> Destroy(SlabIndex slab);
  // Frees the slab when its memory was taken away and has stayed away, or tries again later.
  kj::Promise<void> Settle(SlabIndex slab, ReturnProof emptied);
  void DrainEmpty(TenantId tenant);
  void taskFailed(kj::Exception&& error) override;

  const Deps deps_;
  const Logger log_;
  std::function<void()> on_progress_;
  enum class Pending : uint8_t { kNone, kRunning };
  std::map<TenantId, Pending> pending_;
  kj::TaskSet tasks_;
};

}  // namespace kvpool
