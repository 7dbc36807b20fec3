// Slabs in host memory: one sealed memfd each. The fallback in production, the device of CI, and
// the reference for others.
//
// A slab is sealed against resizing before anybody else sees it: a worker that could shrink it
// would kill the agent with SIGBUS. Destroying it punches a hole over its whole length, so that a
// worker that kept a mapping keeps zeros, and the blocks that are counted afterwards show whether
// it still touches them. A worker that only touches it later than that costs its slab's bytes of
// host memory; it never sees anybody else's.
//
// Threads as in device.h.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "agent/device.h"

namespace kvpool {

class HostDevice final : public Device {
 public:
  // Reserves slabs * slab_bytes of address space. InvalidArgument: slab_bytes is not a positive
  // multiple of the machine's page size, or the range does not fit 32-bit block ids.
  static absl::StatusOr<std::unique_ptr<HostDevice>> Make(Bytes slab_bytes, uint32_t slabs);
  ~HostDevice() override;
  HostDevice(const HostDevice&) = delete;
  HostDevice& operator=(const HostDevice&) = delete;

  const DeviceInfo& info() const override { return info_; }
  std::byte* base() const override { return base_; }
  absl::Status CreateSlab(SlabIndex slab) override;
  absl::Status Populate(SlabIndex slab) override;
  int SlabFd(SlabIndex slab) const override;
  ReturnProof EmptySlab(SlabIndex slab) override;
  ReturnProof DestroySlab(SlabIndex slab) override;

 private:
  HostDevice(DeviceInfo info, std::byte* base);

  std::byte* Address(SlabIndex slab) const;
  ReturnProof PunchHole(SlabIndex slab);

  DeviceInfo info_;
  std::byte* base_;
  std::vector<int> fds_;  // by slab; -1: none
};

// Lets this process have at least `files` open files, as far as its hard limit goes.
// ResourceExhausted names both numbers.
absl::Status RaiseFileLimit(uint64_t files);

}  // namespace kvpool
