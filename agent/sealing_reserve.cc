// See sealing_reserve.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/sealing_reserve.h"

#include <kj/debug.h>

#include <utility>

namespace kvpool {

SealingReserve::SealingReserve(uint32_t pool_slabs, uint32_t slabs) : size_(slabs) {
  for (uint32_t i = 0; i < slabs; ++i) free_.emplace_back(pool_slabs - slabs + i);
}

SealingReserve::Hold::Hold(SealingReserve& reserve, std::vector<SlabIndex> slabs)
    : reserve_(reserve), slabs_(std::move(slabs)) {}

SealingReserve::Hold::~Hold() {
  reserve_.free_.insert(reserve_.free_.end(), slabs_.begin(), slabs_.end());
  reserve_.ServeWaiting();
}

std::vector<PageId> SealingReserve::Hold::Pages(const Layout& layout, uint32_t count) const {
  std::vector<PageId> pages;
  for (SlabIndex slab : slabs_) {
    for (uint32_t i = 0; i < layout.pages_per_slab() && pages.size() < count; ++i) {
      pages.push_back(layout.Page(slab, i));
    }
  }
  return pages;
}

kj::Own<SealingReserve::Hold> SealingReserve::HoldNow(uint32_t slabs) {
  std::vector<SlabIndex> taken(free_.end() - slabs, free_.end());
  free_.resize(free_.size() - slabs);
  return kj::heap<Hold>(*this, std::move(taken));
}

kj::Promise<kj::Own<SealingReserve::Hold>> SealingReserve::Take(uint32_t slabs) {
  KJ_REQUIRE(slabs > 0 && slabs <= size_, slabs, size_);
  if (waiting_.empty() && slabs <= free_.size()) return HoldNow(slabs);
  ++waits_;
  auto pair = kj::newPromiseAndFulfiller<kj::Own<Hold>>();
  waiting_.push_back({.slabs = slabs, .fulfiller = kj::mv(pair.fulfiller)});
  return kj::mv(pair.promise);
}

void SealingReserve::ServeWaiting() {
  while (!waiting_.empty() && waiting_.front().slabs <= free_.size()) {
    Waiting next = std::move(waiting_.front());
    waiting_.pop_front();
    // Whoever waited may be gone: then the hold would go at once, and serve the next from here.
    if (next.fulfiller->isWaiting()) next.fulfiller->fulfill(HoldNow(next.slabs));
  }
}

}  // namespace kvpool
