// Objects and who has them mapped.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/sim_device.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace kvpool::sim {

absl::Status SimDevice::CreateSlab(SlabIndex slab, TenantId owner) {
  std::optional<Object>& slot = slots_.at(slab.value());
  if (slot.has_value()) {
    world_.Violate("I3",
                   absl::StrCat("slab ", slab.value(), " was given out with memory of tenant ",
                                slot->owner.value(), " in it"));
  }
  if (world_.now() < short_until_) return absl::ResourceExhaustedError("no memory");
  slot = Object{.id = ++last_object_, .owner = owner};
  return absl::OkStatus();
}

void SimDevice::BeginPopulate(SlabIndex slab) {
  if (auto& slot = slots_.at(slab.value()); slot.has_value()) ++slot->populating;
}

void SimDevice::EndPopulate(SlabIndex slab) {
  auto& slot = slots_.at(slab.value());
  if (slot.has_value() && slot->populating > 0) --slot->populating;
}

ReturnProof SimDevice::EmptySlab(SlabIndex slab) {
  const std::optional<Object>& slot = slots_.at(slab.value());
  if (slot.has_value() && slot->populating > 0) {
    world_.Violate("I3", absl::StrCat("slab ", slab.value(), " is emptied while it is populated"));
  }
  return world_.now() < stuck_until_ ? ReturnProof::kStuck : ReturnProof::kReturned;
}

ReturnProof SimDevice::DestroySlab(SlabIndex slab) {
  std::optional<Object>& slot = slots_.at(slab.value());
  if (world_.now() < stuck_until_) return ReturnProof::kStuck;
  for (const auto& [process, mapping] : slot->mapped) {
    if (!process->alive() || process->life() != mapping.life) continue;
    if (mapping.holder == Holder::kHonest) {
      world_.Violate("I3", absl::StrCat("slab ", slab.value(), " was taken from ", process->name(),
                                        ", which has it mapped and did not say otherwise"));
    } else if (!process->stopped() && world_.Chance(50)) {
      return ReturnProof::kStuck;  // it wrote in the meantime
    }
  }
  slot.reset();
  return ReturnProof::kReturned;
}

SlabMemory SimDevice::Export(SlabIndex slab, TenantId tenant) {
  const std::optional<Object>& slot = slots_.at(slab.value());
  if (!slot.has_value()) return {.slab = slab};
  if (slot->owner != tenant) {
    world_.Violate("I2", absl::StrCat("memory of tenant ", slot->owner.value(), " in slab ",
                                      slab.value(), " was sent to tenant ", tenant.value()));
  }
  return {.slab = slab, .object = slot->id};
}

void SimDevice::Map(const SlabMemory& memory, const Process* process, Holder holder) {
  std::optional<Object>& slot = slots_.at(memory.slab.value());
  // Another object than the one that is there now cannot harm anybody.
  if (!slot.has_value() || slot->id != memory.object) return;
  slot->mapped[process] = {.life = process->life(), .holder = holder};
}

void SimDevice::Unmap(SlabIndex slab, const Process* process) {
  if (auto& slot = slots_.at(slab.value()); slot.has_value()) slot->mapped.erase(process);
}

TenantId SimDevice::OwnerOf(SlabIndex slab) const {
  const std::optional<Object>& slot = slots_.at(slab.value());
  return slot.has_value() ? slot->owner : TenantId();
}

uint32_t SimDevice::objects() const {
  return static_cast<uint32_t>(std::count_if(slots_.begin(), slots_.end(),
                                             [](const auto& slot) { return slot.has_value(); }));
}

uint32_t SimDevice::HonestHolders(SlabIndex slab) const {
  const std::optional<Object>& slot = slots_.at(slab.value());
  if (!slot.has_value()) return 0;
  return static_cast<uint32_t>(
      std::count_if(slot->mapped.begin(), slot->mapped.end(), [](const auto& entry) {
        const auto& [process, mapping] = entry;
        return mapping.holder == Holder::kHonest && process->alive() &&
               process->life() == mapping.life;
      }));
}

}  // namespace kvpool::sim
