// The worker's side of a magazine: takes pages from the grant ring and returns unused ones, a few
// nanoseconds each and no call. The agent's side is agent/magazine.h.
//
// Pages are taken all or none. The decode loop takes and returns; the RPC thread returns everything
// left when the agent asks for it, so a spin lock guards the worker's two indices. It is held for a
// few instructions and no thread ever sleeps with it.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "common/ids.h"
#include "proto/shared_memory.h"

namespace kvpool {

class Magazine {
 public:
  // `control` is the mapped Control memory; `doorbell` an eventfd. Neither is owned.
  Magazine(std::byte* control, int doorbell)
      : header_(*reinterpret_cast<shm::ControlHeader*>(control)),
        grants_(*reinterpret_cast<shm::PageRing*>(control + shm::GrantRingOffset())),
        returns_(*reinterpret_cast<shm::PageRing*>(control + shm::ReturnRingOffset())),
        doorbell_(doorbell) {}
  Magazine(const Magazine&) = delete;
  Magazine& operator=(const Magazine&) = delete;

  // Pages that Take could give now.
  uint32_t available() const {
    return static_cast<uint32_t>(grants_.produced.load(std::memory_order_acquire) -
                                 grants_.consumed.load(std::memory_order_relaxed));
  }

  // Fills `out` with pages, or takes nothing and returns false.
  [[nodiscard]] bool Take(std::span<PageId> out) {
    Lock();
    const uint64_t consumed = grants_.consumed.load(std::memory_order_relaxed);
    const uint64_t produced = grants_.produced.load(std::memory_order_acquire);
    const bool enough = produced - consumed >= out.size();
    if (enough) {
      for (size_t i = 0; i < out.size(); ++i) out[i] = Slot(grants_, consumed + i);
      grants_.consumed.store(consumed + out.size(), std::memory_order_release);
    }
    Unlock();
    const uint64_t left = produced - consumed - (enough ? out.size() : 0);
    if (left <= header_.low_watermark.load(std::memory_order_relaxed)) RingDoorbell();
    return enough;
  }

  // Gives back pages that no session lists. False when the return ring is full: ring the agent and
  // try again.
  [[nodiscard]] bool Return(std::span<const PageId> pages) {
    Lock();
    const bool fits = PushReturns(pages);
    Unlock();
    return fits;
  }

  // Moves every page left in the grant ring to the return ring. RPC thread.
  void ReturnAll() {
    Lock();
    uint64_t consumed = grants_.consumed.load(std::memory_order_relaxed);
    const uint64_t produced = grants_.produced.load(std::memory_order_acquire);
    while (consumed != produced) {
      const PageId page = Slot(grants_, consumed);
      if (!PushReturns({&page, 1})) break;
      ++consumed;
    }
    grants_.consumed.store(consumed, std::memory_order_release);
    Unlock();
  }

 private:
  static PageId Slot(shm::PageRing& ring, uint64_t index) {
    return PageId(ring.slots[index % shm::kRingSlots].load(std::memory_order_relaxed));
  }

  bool PushReturns(std::span<const PageId> pages) {
    const uint64_t produced = returns_.produced.load(std::memory_order_relaxed);
    const uint64_t waiting = produced - returns_.consumed.load(std::memory_order_acquire);
    const bool fits = waiting + pages.size() <= shm::kRingSlots;
    for (size_t i = 0; fits && i < pages.size(); ++i) {
      returns_.slots[(produced + i) % shm::kRingSlots].store(pages[i].value(),
                                                             std::memory_order_relaxed);
    }
    if (fits) returns_.produced.store(produced + pages.size(), std::memory_order_release);
    if (waiting + pages.size() > header_.low_watermark.load(std::memory_order_relaxed)) {
      RingDoorbell();
    }
    return fits;
  }

  void RingDoorbell() {
    if (header_.agent_sleeping.load(std::memory_order_relaxed) == 0) return;
    if (header_.agent_sleeping.exchange(0, std::memory_order_seq_cst) == 0) return;
    const uint64_t one = 1;
    // An eventfd write fails only when its counter is full: then the agent has been woken already.
    if (write(doorbell_, &one, sizeof(one)) < 0) return;
  }

  void Lock() {
    while (lock_.test_and_set(std::memory_order_acquire)) {
      while (lock_.test(std::memory_order_relaxed)) {
      }
    }
  }
  void Unlock() { lock_.clear(std::memory_order_release); }

  shm::ControlHeader& header_;
  shm::PageRing& grants_;
  shm::PageRing& returns_;
  const int doorbell_;
  std::atomic_flag lock_;
};

}  // namespace kvpool
