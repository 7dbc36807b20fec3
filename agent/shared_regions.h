// The agent's side of one attachment's shared memory: makes the two memfds and the doorbell, lays
// them out by proto/shared_memory.h, and reads the worker's words once, clamped.
//
// Control is hostile: nothing read from it is trusted, and each word is read once. Tables is sealed
// against write mappings by others. RPC thread, but for CopyQueries and the profile's, which a
// kernel thread may call.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "kernels/compaction.h"
#include "kernels/layout.h"
#include "kernels/planes.h"
#include "kernels/session_view.h"
#include "proto/shared_memory.h"

namespace kvpool {

// What a worker wrote about one session, read once.
struct SlotWords {
  uint64_t committed = 0;
  uint32_t profiled = 0;            // prompt tokens that its profile covers
  std::vector<PageId> fresh_pages;  // at most sizes.pages(); ids unchecked
};

// Queries as a worker wrote them: any bits.
struct WindowQueries {
  std::vector<uint32_t> positions;  // [count]
  std::vector<float> vectors;       // [count][query_floats]
  std::vector<float> lses;          // [count][query_lses]
};

class SharedRegions {
 public:
  static absl::StatusOr<std::unique_ptr<SharedRegions>> Make(const shm::ShmSizes& sizes);
  ~SharedRegions();
  SharedRegions(const SharedRegions&) = delete;
  SharedRegions& operator=(const SharedRegions&) = delete;

  const shm::ShmSizes& sizes() const { return sizes_; }
  // Descriptors to export; owned here.
  int control_fd() const { return control_fd_; }
  int tables_fd() const { return tables_fd_; }  // read-only, write mappings sealed off
  int doorbell_fd() const { return doorbell_fd_; }

  shm::ControlHeader& header() { return *At<shm::ControlHeader>(control_, 0); }
  shm::PageRing& grants() { return *At<shm::PageRing>(control_, shm::GrantRingOffset()); }
  shm::PageRing& returns() { return *At<shm::PageRing>(control_, shm::ReturnRingOffset()); }
  shm::SessionSlot& slot(uint32_t index) {
    return *At<shm::SessionSlot>(control_, shm::SlotOffset(sizes_, index));
  }
  shm::TableHeader& table(uint32_t index) {
    return *At<shm::TableHeader>(tables_, shm::TableOffset(sizes_, index));
  }

  // Makes a slot ready for a new session in state RUNNING: empty list, nothing committed, epoch 0,
  // never due.
  void ResetSlot(uint32_t index);
  SlotWords ReadSlot(uint32_t index);
  // Begins the page list of a slot that was just reset, and publishes that so many tokens are in
  // it. Requires pages.size() <= sizes.pages().
  void BeginList(uint32_t index, std::span<const PageId> pages, uint32_t committed);
  void SetState(uint32_t index, shm::State state);
  // IDLE -> BUSY; false when the worker was quicker.
  bool TakeIdle(uint32_t index);

  // Copies queries first .. first + count - 1 of a window. Requires window < sizes.windows and
  // count <= W.
  WindowQueries CopyQueries(uint32_t window, uint64_t first, uint32_t count) const;

  // Flags of tokens first .. first + count - 1 of a session, cut down to those there are. Requires
  // first + count <= sizes.session_tokens.
  std::vector<uint8_t> ReadTokenFlags(uint32_t index, uint32_t first, uint32_t count) const;
  // A profile as its worker published it: classes [planes], unchecked, and the frequencies of a
  // head's first `tokens` tokens, of which what is no finite number >= 0 becomes 0. Requires tokens
  // <= sizes.session_tokens. Any thread.
  std::vector<uint8_t> ReadProfileClasses(uint32_t index) const;
  std::vector<float> ReadProfileFrequency(uint32_t index, uint32_t plane, uint32_t tokens) const;
  // Gives the memory of a slot's profile back to the system. Any thread.
  void DropProfile(uint32_t index);

  // The compacted segment of an epoch as kernels read it; epoch 0 has none.
  SessionView View(uint32_t index, uint64_t epoch) const;
  // Writes the next epoch's lists and then publishes them; the page list is emptied.
  void Publish(uint32_t index, uint64_t epoch, uint64_t fresh_start,
               const CompactedSegment& segment, const Planes& planes);

 private:
  SharedRegions() = default;
  template <typename T>
  static T* At(std::byte* region, uint64_t offset) {
    return reinterpret_cast<T*>(region + offset);
  }

  shm::ShmSizes sizes_;
  std::byte* control_ = nullptr;
  std::byte* tables_ = nullptr;
  int control_fd_ = -1;
  int tables_fd_ = -1;
  int doorbell_fd_ = -1;
};

}  // namespace kvpool
