// Memory of this process that a client maps: one shared memory region, and the pool's virtual range
// with slabs in fixed slots. Thread: stated at each class.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/ids.h"
#include "common/units.h"

namespace kvpool {

// One mapping of a file descriptor, unmapped on destruction. Immutable after construction.
class Mapping {
 public:
  enum class Access { kRead, kReadWrite };
  // Maps `size` bytes from the start of `fd`, which is not kept. FailedPrecondition when the file
  // is smaller than that, so that no later access can fault.
  static absl::StatusOr<Mapping> Map(int fd, Bytes size, Access access);
  Mapping() = default;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  std::byte* data() const { return data_; }

 private:
  Mapping(std::byte* data, size_t size) : data_(data), size_(size) {}
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// The pool's whole virtual range, reserved once, with slab i at base() + i * slab_bytes. Map and
// Unmap are called by one thread (RPC); base() by any.
class PoolRange {
 public:
  static absl::StatusOr<PoolRange> Reserve(Bytes slab_bytes, uint32_t slots);
  PoolRange() = default;
  PoolRange(PoolRange&& other) noexcept;
  PoolRange& operator=(PoolRange&& other) noexcept;
  ~PoolRange();

  std::byte* base() const { return base_; }
  // Maps a slab read-write into its slot and faults it in, so that decoding never does.
  // FailedPrecondition when the slot is out of range or the file is not a slab's size.
  absl::Status Map(SlabIndex slab, int fd);
  // Puts unreadable address space back into the slot. Unmapping an empty slot is harmless.
  absl::Status Unmap(SlabIndex slab);

 private:
  PoolRange(std::byte* base, int64_t slab_bytes, uint32_t slots)
      : base_(base), slab_bytes_(slab_bytes), slots_(slots) {}
  std::byte* base_ = nullptr;
  int64_t slab_bytes_ = 0;
  uint32_t slots_ = 0;
};

}  // namespace kvpool
