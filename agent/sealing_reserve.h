// The slabs that no lease counts: memory for the agent alone, through which sessions are sealed
// when their tenants have no page left. Whoever takes slabs has them until the hold goes, the rest
// wait in the order in which they asked. What lies in them is never read again after that, and no
// worker ever maps them.
//
// Makes no memory and knows no session. Lives on the RPC thread. Holds and promises may outlive it,
// as those of calls that end with the connection do.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kj/async.h>
#include <kj/memory.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "common/ids.h"
#include "kernels/layout.h"

namespace kvpool {

class SealingReserve {
  struct State;

 public:
  // The last `slabs` of a pool of `pool_slabs`.
  SealingReserve(uint32_t pool_slabs, uint32_t slabs);
  SealingReserve(const SealingReserve&) = delete;
  SealingReserve& operator=(const SealingReserve&) = delete;

  // Slabs taken, given back by the destructor.
  class Hold {
   public:
    Hold(std::shared_ptr<State> state, std::vector<SlabIndex> slabs);
    ~Hold();
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

    // The first `count` of their pages, or as many as there are.
    std::vector<PageId> Pages(const Layout& layout, uint32_t count) const;

   private:
    const std::shared_ptr<State> state_;
    const std::vector<SlabIndex> slabs_;
  };
  // Resolves when so many slabs are free and all who asked before have theirs. Requires
  // 1 <= slabs <= size().
  kj::Promise<kj::Own<Hold>> Take(uint32_t slabs);

  uint32_t size() const { return size_; }
  uint32_t in_use() const { return size_ - static_cast<uint32_t>(state_->free.size()); }
  uint64_t waits() const { return waits_; }  // takes so far that had to wait

 private:
  struct Waiting {
    uint32_t slabs;
    kj::Own<kj::PromiseFulfiller<kj::Own<Hold>>> fulfiller;
  };

  struct State {
    std::vector<SlabIndex> free;
    std::deque<Waiting> waiting;
  };

  static kj::Own<Hold> HoldNow(const std::shared_ptr<State>& state, uint32_t slabs);
  static void ServeWaiting(const std::shared_ptr<State>& state);

  const uint32_t size_;
  const std::shared_ptr<State> state_ = std::make_shared<State>();
  uint64_t waits_ = 0;
};

}  // namespace kvpool
