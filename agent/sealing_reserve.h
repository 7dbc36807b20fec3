// The slabs that no lease counts: memory for the agent alone, through which sessions are sealed
// when their tenants have no page left. Whoever takes slabs has them until the hold goes, the rest
// wait in the order in which they asked. What lies in them is never read again after that, and no
// worker ever maps them.
//
// Makes no memory and knows no session. Lives on the RPC thread; must outlive its holds and
// promises.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kj/async.h>
#include <kj/memory.h>

#include <cstdint>
#include <deque>
#include <vector>

#include "common/ids.h"
#include "kernels/layout.h"

namespace kvpool {

class SealingReserve {
 public:
  // The last `slabs` of a pool of `pool_slabs`.
  SealingReserve(uint32_t pool_slabs, uint32_t slabs);
  SealingReserve(const SealingReserve&) = delete;
  SealingReserve& operator=(const SealingReserve&) = delete;

  // Slabs taken, given back by the destructor.
  class Hold {
   public:
    Hold(SealingReserve& reserve, std::vector<SlabIndex> slabs);
    ~Hold();
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

    // The first `count` of their pages, or as many as there are.
    std::vector<PageId> Pages(const Layout& layout, uint32_t count) const;

   private:
    SealingReserve& reserve_;
    const std::vector<SlabIndex> slabs_;
  };
  // Resolves when so many slabs are free and all who asked before have theirs. Requires
  // 1 <= slabs <= size().
  kj::Promise<kj::Own<Hold>> Take(uint32_t slabs);

  uint32_t size() const { return size_; }
  uint32_t in_use() const { return size_ - static_cast<uint32_t>(free_.size()); }
  uint64_t waits() const { return waits_; }  // takes so far that had to wait

 private:
  struct Waiting {
    uint32_t slabs;
    kj::Own<kj::PromiseFulfiller<kj::Own<Hold>>> fulfiller;
  };

  kj::Own<Hold> HoldNow(uint32_t slabs);
  void ServeWaiting();

  const uint32_t size_;
  std::vector<SlabIndex> free_;
  std::deque<Waiting> waiting_;
  uint64_t waits_ = 0;
};

}  // namespace kvpool
