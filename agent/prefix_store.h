// The prefix indexes of all tenants and layouts, and what becomes of parked pages: dropped when
// their place is needed, when their slab must go, or when nobody asked for them for long. Counts
// what sharing did.
//
// RPC thread. Knows the ledger; no workers, no clock.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "agent/admission.h"
#include "agent/pool.h"
#include "agent/prefix_index.h"
#include "common/clock.h"
#include "common/ids.h"
#include "kernels/layout.h"

namespace kvpool {

struct PrefixCounters {
  uint64_t prompts = 0;  // opened with their tokens told
  uint64_t hits = 0;     // of those, that began with pages of others
  uint64_t shared_tokens = 0;
};

class PrefixStore {
 public:
  explicit PrefixStore(PoolLedger* ledger) : ledger_(ledger) {}

  // nullptr when no secret could be drawn. The store forgets it when nobody else has it any more
  // and nothing is in it.
  std::shared_ptr<PrefixIndex> For(TenantId tenant, const Layout& layout);

  // Pages that sessions share are charged to their tenant once, here, and to no session.
  void AddCharges(TenantId tenant, TenantCharges* charges) const;

  // Each returns how many parked pages are FREE now.
  uint64_t Drop(TenantId tenant, const Layout& layout, uint64_t pages);
  // `slabs`: all that is parked in them. `pages`: by group (SlabUsage::group), those worth least.
  // Returns bytes.
  Bytes DropFor(TenantId tenant, std::span<const SlabIndex> slabs,
                const std::map<uint32_t, uint64_t>& pages);
  // Of every tenant, what has been parked since before `then`. Returns bytes by tenant.
  std::map<TenantId, Bytes> DropParkedBefore(TimePoint then);

  void CountPrompt(TenantId tenant, uint32_t shared_tokens);
  // Of a tenant's prompts since the agent started.
  PrefixCounters counters(TenantId tenant) const;

 private:
  struct Prefixes {
    TenantId tenant;
    Layout layout;
    std::shared_ptr<PrefixIndex> index;
  };

  uint64_t Free(const std::vector<PageId>& pages);

  PoolLedger* const ledger_;
  std::vector<std::unique_ptr<Prefixes>> all_;
  std::map<TenantId, PrefixCounters> counters_;
};

}  // namespace kvpool
