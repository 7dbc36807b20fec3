// See sealing_reserve.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/sealing_reserve.h"

#include <kj/debug.h>

#include <utility>

namespace kvpool {

SealingReserve::SealingReserve(uint32_t pool_slabs, uint32_t slabs) : size_(slabs) {
  for (uint32_t i = 0; i < slabs; ++i) state_->free.emplace_back(pool_slabs - slabs + i);
}

SealingReserve::Hold::Hold(std::shared_ptr<State> state, std::vector<SlabIndex> slabs)
    : state_(std::move(state)), slabs_(std::move(slabs)) {}

SealingReserve::Hold::~Hold() {
  state_->free.insert(state_->free.end(), slabs_.begin(), slabs_.end());
  ServeWaiting(state_);
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

kj::Own<SealingReserve::Hold> SealingReserve::HoldNow(const std::shared_ptr<State>& state,
                                                      uint32_t slabs) {
  std::vector<SlabIndex>& free = state->free;
  std::vector<SlabIndex> taken(free.end() - slabs, free.end());
  free.resize(free.size() - slabs);
  return kj::heap<Hold>(state, std::move(taken));
}

kj::Promise<kj::Own<SealingReserve::Hold>> SealingReserve::Take(uint32_t slabs) {
  KJ_REQUIRE(slabs > 0 && slabs <= size_, slabs, size_);
  if (state_->waiting.empty() && slabs <= state_->free.size()) return HoldNow(state_, slabs);
  ++waits_;
  auto pair = kj::newPromiseAndFulfiller<kj::Own<Hold>>();
  state_->waiting.push_back({.slabs = slabs, .fulfiller = kj::mv(pair.fulfiller)});
  return kj::mv(pair.promise);
}

void SealingReserve::ServeWaiting(const std::shared_ptr<State>& state) {
  while (!state->waiting.empty() && state->waiting.front().slabs <= state->free.size()) {
    Waiting next = std::move(state->waiting.front());
    state->waiting.pop_front();
    // Whoever waited may be gone: then the hold would go at once, and serve the next from here.
    if (next.fulfiller->isWaiting()) next.fulfiller->fulfill(HoldNow(state, next.slabs));
  }
}

}  // namespace kvpool
