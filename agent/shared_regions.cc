// memfds with seals, and the words in them. See shared_regions.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/shared_regions.h"

#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <new>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/token_flags.h"
#include "proto/limits.h"

namespace kvpool {

static_assert(shm::kRingSlots == limits::kMagazinePages);
static_assert(shm::kWindowQueries == limits::kWindowQueries);

namespace {

struct Region {
  int fd = -1;
  std::byte* data = nullptr;
};

absl::Status SystemError(const char* what) {
  return absl::ResourceExhaustedError(absl::StrCat(what, ": ", strerror(errno)));
}

// A memfd of fixed size, mapped here, zero. The size seal comes before anyone else can see it, so
// no peer can shrink it under us.
absl::StatusOr<Region> MakeRegion(const char* name, uint64_t bytes) {
  Region region{.fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  if (region.fd < 0) return SystemError("memfd_create");
  if (ftruncate(region.fd, static_cast<off_t>(bytes)) != 0 ||
      fcntl(region.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    close(region.fd);
    return SystemError("sizing shared memory");
  }
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, region.fd, 0);
  if (data == MAP_FAILED) {
    close(region.fd);
    return SystemError("mapping shared memory");
  }
  region.data = static_cast<std::byte*>(data);
  return region;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SharedRegions>> SharedRegions::Make(const shm::ShmSizes& sizes) {
  std::unique_ptr<SharedRegions> regions(new SharedRegions);
  regions->sizes_ = sizes;
  absl::StatusOr<Region> control = MakeRegion("kvpool-control", shm::ControlBytes(sizes));
  if (!control.ok()) return control.status();
  regions->control_ = control->data;
  regions->control_fd_ = control->fd;
  absl::StatusOr<Region> tables = MakeRegion("kvpool-tables", shm::TablesBytes(sizes));
  if (!tables.ok()) return tables.status();
  regions->tables_ = tables->data;
  regions->tables_fd_ = tables->fd;
  // Our own mapping stays writable; no later one can be.
  if (fcntl(tables->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) != 0 ||
      fcntl(control->fd, F_ADD_SEALS, F_SEAL_SEAL) != 0) {
    return SystemError("sealing shared memory");
  }
  regions->doorbell_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (regions->doorbell_fd_ < 0) return SystemError("eventfd");
  shm::ControlHeader* header = new (regions->control_) shm::ControlHeader{};
  header->magic = shm::kMagic;
  header->version = shm::kVersion;
  return regions;
}

SharedRegions::~SharedRegions() {
  if (control_ != nullptr) munmap(control_, shm::ControlBytes(sizes_));
  if (tables_ != nullptr) munmap(tables_, shm::TablesBytes(sizes_));
  for (int fd : {control_fd_, tables_fd_, doorbell_fd_}) {
    if (fd >= 0) close(fd);
  }
}

void SharedRegions::ResetSlot(uint32_t index) {
  shm::TableHeader& header = table(index);
  header.fresh_start.store(0, std::memory_order_relaxed);
  header.compact_at.store(0, std::memory_order_relaxed);
  header.hand_over.store(0, std::memory_order_relaxed);
  header.cache_tokens.store(0, std::memory_order_relaxed);
  header.failed.store(0, std::memory_order_relaxed);
  header.epoch.store(0, std::memory_order_release);
  shm::SessionSlot& words = slot(index);
  words.page_count.store(0, std::memory_order_relaxed);
  words.committed.store(0, std::memory_order_relaxed);
  words.profiled.store(0, std::memory_order_relaxed);
  SetState(index, shm::State::kRunning);
}

void SharedRegions::BeginList(uint32_t index, std::span<const PageId> pages, uint32_t committed) {
  shm::SessionSlot& words = slot(index);
  auto* list = reinterpret_cast<std::atomic<uint32_t>*>(reinterpret_cast<std::byte*>(&words) +
                                                        sizeof(shm::SessionSlot));
  for (const PageId page : pages) (list++)->store(page.value(), std::memory_order_relaxed);
  words.page_count.store(static_cast<uint32_t>(pages.size()), std::memory_order_release);
  words.committed.store(committed, std::memory_order_release);
}

SlotWords SharedRegions::ReadSlot(uint32_t index) {
  shm::SessionSlot& words = slot(index);
  SlotWords read;
  read.committed = words.committed.load(std::memory_order_acquire);
  read.profiled = words.profiled.load(std::memory_order_acquire);
  const uint32_t count = std::min(words.page_count.load(std::memory_order_acquire), sizes_.pages());
  const auto* list = reinterpret_cast<const std::atomic<uint32_t>*>(
      reinterpret_cast<const std::byte*>(&words) + sizeof(shm::SessionSlot));
  read.fresh_pages.reserve(count);
  for (uint32_t i = 0; i < count; ++i) {
    read.fresh_pages.push_back(PageId(list[i].load(std::memory_order_relaxed)));
  }
  return read;
}

void SharedRegions::SetState(uint32_t index, shm::State state) {
  slot(index).state.store(static_cast<uint32_t>(state), std::memory_order_release);
}

bool SharedRegions::TakeIdle(uint32_t index) {
  auto idle = static_cast<uint32_t>(shm::State::kIdle);
  return slot(index).state.compare_exchange_strong(idle, static_cast<uint32_t>(shm::State::kBusy),
                                                   std::memory_order_acq_rel);
}

WindowQueries SharedRegions::CopyQueries(uint32_t window, uint64_t first, uint32_t count) const {
  const std::byte* base = control_ + shm::WindowOffset(sizes_, window);
  WindowQueries queries{.positions = std::vector<uint32_t>(count),
                        .vectors = std::vector<float>(size_t{count} * sizes_.query_floats),
                        .lses = std::vector<float>(size_t{count} * sizes_.query_lses)};
  const auto copy = [&](auto& to, uint64_t offset, size_t each, uint32_t i) {
    const uint64_t entry = (first + i) % shm::kWindowQueries, bytes = each * sizeof(to[0]);
    memcpy(to.data() + i * each, base + offset + entry * bytes, bytes);
  };
  for (uint32_t i = 0; i < count; ++i) {
    copy(queries.positions, 0, 1, i);
    copy(queries.vectors, shm::WindowVectorsOffset(), sizes_.query_floats, i);
    copy(queries.lses, shm::WindowLsesOffset(sizes_), sizes_.query_lses, i);
  }
  return queries;
}

std::vector<uint8_t> SharedRegions::ReadTokenFlags(uint32_t index, uint32_t first,
                                                   uint32_t count) const {
  std::vector<uint8_t> flags(count);
  const std::byte* const from = control_ + shm::TokenFlagsOffset(sizes_, index) + first;
  std::transform(from, from + count, flags.begin(), [](std::byte flag) { return uint8_t(flag); });
  for (uint8_t& flag : flags) flag &= kTokenFlags;
  return flags;
}

std::vector<uint8_t> SharedRegions::ReadProfileClasses(uint32_t index) const {
  std::vector<uint8_t> classes(sizes_.planes);
  memcpy(classes.data(), control_ + shm::ProfileOffset(sizes_, index), classes.size());
  return classes;
}

std::vector<float> SharedRegions::ReadProfileFrequency(uint32_t index, uint32_t plane,
                                                       uint32_t tokens) const {
  std::vector<float> frequency(tokens);
  if (tokens == 0) return frequency;  // memcpy takes no null pointer
  memcpy(frequency.data(),
         control_ + shm::ProfileOffset(sizes_, index) + shm::ProfileFrequencyOffset(sizes_, plane),
         tokens * sizeof(float));
  for (float& mass : frequency) {
    if (!(mass >= 0 && mass <= std::numeric_limits<float>::max())) mass = 0;
  }
  return frequency;
}

void SharedRegions::DropProfile(uint32_t index) {
  // Best effort: what stays is charged to the tenant anyway.
  (void)madvise(control_ + shm::ProfileOffset(sizes_, index), shm::ProfileStride(sizes_),
                MADV_REMOVE);
}

SessionView SharedRegions::View(uint32_t index, uint64_t epoch) const {
  if (epoch == 0) return {};
  const std::byte* buffer = tables_ + shm::TableBufferOffset(sizes_, index, epoch);
  const auto* sealed = reinterpret_cast<const uint32_t*>(buffer + shm::LengthsBytes(sizes_));
  return {
      .compacted_lengths = reinterpret_cast<const uint32_t*>(buffer),
      .compacted_blocks = reinterpret_cast<const BlockId*>(buffer + shm::TableBlocksOffset(sizes_)),
      .compacted_stride = sizes_.pages(),
      .sealed_lengths = sealed + 1,
      .sealed_format = static_cast<SealedFormat>(sealed[0])};
}

void SharedRegions::Publish(uint32_t index, uint64_t epoch, uint64_t fresh_start,
                            const CompactedSegment& segment, const Planes& planes) {
  std::byte* buffer = tables_ + shm::TableBufferOffset(sizes_, index, epoch);
  auto* lengths = reinterpret_cast<uint32_t*>(buffer);
  auto* sealed = reinterpret_cast<uint32_t*>(buffer + shm::LengthsBytes(sizes_));
  auto* blocks = reinterpret_cast<BlockId*>(buffer + shm::TableBlocksOffset(sizes_));
  auto* positions = reinterpret_cast<uint32_t*>(buffer + shm::TablePositionsOffset(sizes_));
  const size_t stride = sizes_.pages();
  *sealed++ = static_cast<uint32_t>(segment.format);
  uint32_t longest = 0;
  for (uint32_t plane = 0; plane < sizes_.planes; ++plane) {
    lengths[plane] = segment.lengths[plane];
    sealed[plane] = segment.sealed_lengths[plane];
    longest = std::max(longest, segment.lengths[plane]);
    std::copy(segment.blocks[plane].begin(), segment.blocks[plane].end(), blocks + plane * stride);
    const std::vector<uint32_t>& rows = planes.positions(plane);
    std::copy(rows.begin(), rows.end(), positions + plane * stride * kPageTokens);
  }
  slot(index).page_count.store(0, std::memory_order_relaxed);
  shm::TableHeader& header = table(index);
  header.fresh_start.store(fresh_start, std::memory_order_relaxed);
  header.cache_tokens.store(longest, std::memory_order_relaxed);
  header.epoch.store(epoch, std::memory_order_release);
}

}  // namespace kvpool
