// The memory of one device: slabs that can be made, exported to workers, mapped for the agent's own
// kernels, and shown to be gone. The whole virtual range is reserved once; slab i lies at
// base() + i * slab_bytes while it exists.
//
// It knows no tenants and decides nothing (pool.h does). Kernels are run by their callers on the
// agent's pool of threads, on values (block ids and plans) relative to base().
//
// Calls for one slab must not overlap; calls for different slabs may run on different threads.
// Populate and EmptySlab may take milliseconds: not for the RPC thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/ids.h"
#include "common/units.h"
#include "kernels/format.h"

namespace kvpool {

struct DeviceInfo {
  std::string name;  // "host", or the accelerator's name; for people
  Bytes slab_bytes;
  uint32_t slabs = 0;                 // slots in the virtual range
  std::vector<SealedFormat> formats;  // sealed ones that its kernels write and read
};

// What a device can say about the memory of a slab that it destroyed.
enum class ReturnProof : uint8_t {
  kReturned,  // seen to be back
  kStuck,     // not seen: somebody may still use it
};

// How long emptied memory is watched: a worker that decodes touches its slabs far more often.
inline constexpr std::chrono::milliseconds kReturnWatch(2);

class Device {
 public:
  virtual ~Device() = default;

  virtual const DeviceInfo& info() const = 0;
  // Where the virtual range begins in this process.
  virtual std::byte* base() const = 0;

  // Makes a new object for the slot and maps it: all zero, never seen by anybody before.
  // NotFound: no such slot. FailedPrecondition: the slot is taken. ResourceExhausted: descriptors,
  // mappings or memory, and which setting to raise.
  virtual absl::Status CreateSlab(SlabIndex slab) = 0;

  // Gives the slab all its memory now, so that nobody waits for it, or fails, at first touch.
  // Changes no byte. ResourceExhausted: there is not enough.
  virtual absl::Status Populate(SlabIndex slab) = 0;

  // The slab's descriptor, for export: duplicate it to keep it. -1 when the slab does not exist.
  virtual int SlabFd(SlabIndex slab) const = 0;

  // Unmaps the slab and takes its memory away, also from those who kept a mapping of it. Stuck: it
  // could not; call again later. Requires that no kernel uses the slab and that it exists.
  virtual ReturnProof EmptySlab(SlabIndex slab) = 0;

  // Whether the memory has stayed away; to be asked kReturnWatch after EmptySlab. Returned: the
  // slot is empty. Stuck: the slot stays taken; empty it again later.
  virtual ReturnProof DestroySlab(SlabIndex slab) = 0;
};

}  // namespace kvpool
