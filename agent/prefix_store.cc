// See prefix_store.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/prefix_store.h"

#include <algorithm>

#include "proto/limits.h"

namespace kvpool {

std::shared_ptr<PrefixIndex> PrefixStore::For(TenantId tenant, const Layout& layout) {
  std::erase_if(all_, [](const auto& known) {
    return known->index.use_count() == 1 && known->index->pages() == 0;
  });
  for (const auto& known : all_) {
    if (known->tenant == tenant && known->layout == layout) return known->index;
  }
  const absl::StatusOr<PrefixSecret> secret = DrawPrefixSecret();
  if (!secret.ok()) return nullptr;
  const uint64_t pool = uint64_t{ledger_->config().slabs} * layout.pages_per_slab();
  auto index = std::make_shared<PrefixIndex>(
      *secret, static_cast<size_t>(std::min<uint64_t>(pool, limits::kPrefixPages)));
  all_.push_back(std::make_unique<Prefixes>(Prefixes{tenant, layout, index}));
  return index;
}

void PrefixStore::AddCharges(TenantId tenant, TenantCharges* charges) const {
  for (const auto& known : all_) {
    if (known->tenant != tenant) continue;
    const uint64_t held = ledger_->HeldPages(tenant, known->layout);
    if (held > 0) charges->Add(known->layout, {.pages = held});
  }
}

uint64_t PrefixStore::Free(const std::vector<PageId>& pages) {
  (void)ledger_->StopKeeping(pages);  // the ledger keeps what is in an index
  return pages.size();
}

uint64_t PrefixStore::Drop(TenantId tenant, const Layout& layout, uint64_t pages) {
  for (const auto& known : all_) {
    if (known->tenant != tenant || known->layout != layout) continue;
    return Free(known->index->Drop(pages));
  }
  return 0;
}

Bytes PrefixStore::DropFor(TenantId tenant, std::span<const SlabIndex> slabs,
                           const std::map<uint32_t, uint64_t>& pages) {
  Bytes dropped;
  for (const auto& known : all_) {
    if (known->tenant != tenant || known->index->parked() == 0) continue;
    const auto lies_there = [&](PageId page) {
      const SlabIndex slab = known->layout.SlabOf(page);
      return std::find(slabs.begin(), slabs.end(), slab) != slabs.end();
    };
    uint64_t freed = slabs.empty() ? 0 : Free(known->index->DropIf(lies_there));
    const std::optional<uint32_t> group = ledger_->GroupOf(tenant, known->layout);
    const auto wanted = group.has_value() ? pages.find(*group) : pages.end();
    if (wanted != pages.end()) freed += Free(known->index->Drop(wanted->second));
    dropped += known->layout.page_bytes() * static_cast<int64_t>(freed);
  }
  return dropped;
}

std::map<TenantId, Bytes> PrefixStore::DropParkedBefore(TimePoint then) {
  std::map<TenantId, Bytes> dropped;
  for (const auto& known : all_) {
    const uint64_t freed = Free(known->index->DropParkedBefore(then));
    if (freed == 0) continue;
    dropped[known->tenant] += known->layout.page_bytes() * static_cast<int64_t>(freed);
  }
  return dropped;
}

void PrefixStore::CountPrompt(TenantId tenant, uint32_t shared_tokens) {
  PrefixCounters& counters = counters_[tenant];
  ++counters.prompts;
  counters.hits += shared_tokens > 0;
  counters.shared_tokens += shared_tokens;
}

PrefixCounters PrefixStore::counters(TenantId tenant) const {
  const auto found = counters_.find(tenant);
  return found == counters_.end() ? PrefixCounters() : found->second;
}

}  // namespace kvpool
