// A device whose memory is only counted: which object lies in which slot, for which tenant it was
// made, and which processes have it mapped in truth, whatever they say. It can be short of memory,
// refuse to give memory back, and have it touched by who should have let go.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "agent/device.h"
#include "common/ids.h"
#include "tests/sim/world.h"

namespace kvpool::sim {

// A descriptor of a slab's memory, as a worker gets it.
struct SlabMemory {
  SlabIndex slab;
  uint64_t object = 0;  // 0: the descriptor is none
};

class SimDevice {
 public:
  SimDevice(World& world, uint32_t slabs) : world_(world), slots_(slabs) {}

  // As agent/device.h.
  absl::Status CreateSlab(SlabIndex slab, TenantId owner);
  ReturnProof EmptySlab(SlabIndex slab);
  ReturnProof DestroySlab(SlabIndex slab);
  // Populate takes time: between these two.
  void BeginPopulate(SlabIndex slab);
  void EndPopulate(SlabIndex slab);

  // For a worker of this tenant. I2: another tenant's memory must never leave.
  SlabMemory Export(SlabIndex slab, TenantId tenant);
  enum class Holder : uint8_t { kHonest, kLiar };
  void Map(const SlabMemory& memory, const Process* process, Holder holder);
  void Unmap(SlabIndex slab, const Process* process);

  // Faults, until a moment.
  void RunShort(TimePoint until) { short_until_ = until; }
  void Stick(TimePoint until) { stuck_until_ = until; }

  uint32_t slabs() const { return static_cast<uint32_t>(slots_.size()); }
  // 0: the slot is empty.
  TenantId OwnerOf(SlabIndex slab) const;
  uint32_t objects() const;
  // Honest processes that still have the slab's present object mapped.
  uint32_t HonestHolders(SlabIndex slab) const;

 private:
  struct Mapping {
    uint64_t life = 0;
    Holder holder = Holder::kHonest;
  };
  struct Object {
    uint64_t id = 0;
    TenantId owner;
    uint32_t populating = 0;
    std::map<const Process*, Mapping> mapped;
  };

  World& world_;
  std::vector<std::optional<Object>> slots_;
  uint64_t last_object_ = 0;
  TimePoint short_until_, stuck_until_;
};

}  // namespace kvpool::sim
