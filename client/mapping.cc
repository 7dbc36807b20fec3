// mmap and its errors, said in words.
//
// SPDX-License-Identifier: Apache-2.0
#include "client/mapping.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace kvpool {
namespace {

absl::Status CheckSize(int fd, int64_t size) {
  struct stat info;
  if (fstat(fd, &info) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot stat shared memory: ", strerror(errno)));
  }
  if (info.st_size < size) {
    return absl::FailedPreconditionError(
        absl::StrCat("shared memory is ", info.st_size, " bytes, expected at least ", size));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Mapping> Mapping::Map(int fd, Bytes size, Access access) {
  if (absl::Status status = CheckSize(fd, size.value()); !status.ok()) return status;
  const int protection = access == Access::kRead ? PROT_READ : PROT_READ | PROT_WRITE;
  void* data = mmap(nullptr, static_cast<size_t>(size.value()), protection, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot map ", size.value(), " bytes of shared memory: ", strerror(errno)));
  }
  return Mapping(static_cast<std::byte*>(data), static_cast<size_t>(size.value()));
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Mapping::~Mapping() {
  if (data_ != nullptr) munmap(data_, size_);
}

absl::StatusOr<PoolRange> PoolRange::Reserve(Bytes slab_bytes, uint32_t slots) {
  const size_t size = static_cast<size_t>(slab_bytes.value()) * slots;
  void* base = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "cannot reserve ", size, " bytes of address space for the pool: ", strerror(errno)));
  }
  return PoolRange(static_cast<std::byte*>(base), slab_bytes.value(), slots);
}

PoolRange::PoolRange(PoolRange&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)),
      slab_bytes_(other.slab_bytes_),
      slots_(other.slots_) {}

PoolRange& PoolRange::operator=(PoolRange&& other) noexcept {
  std::swap(base_, other.base_);
  std::swap(slab_bytes_, other.slab_bytes_);
  std::swap(slots_, other.slots_);
  return *this;
}

PoolRange::~PoolRange() {
  if (base_ != nullptr) munmap(base_, static_cast<size_t>(slab_bytes_) * slots_);
}

absl::Status PoolRange::Map(SlabIndex slab, int fd) {
  if (slab.value() >= slots_) {
    return absl::FailedPreconditionError(
        absl::StrCat("slab ", slab.value(), " is outside the pool's ", slots_, " slots"));
  }
  if (absl::Status status = CheckSize(fd, slab_bytes_); !status.ok()) return status;
  void* slot = base_ + slab.value() * slab_bytes_;
  if (mmap(slot, static_cast<size_t>(slab_bytes_), PROT_READ | PROT_WRITE,
           MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0) == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot map slab ", slab.value(), ": ", strerror(errno)));
  }
  return absl::OkStatus();
}

absl::Status PoolRange::Unmap(SlabIndex slab) {
  if (slab.value() >= slots_) {
    return absl::FailedPreconditionError(
        absl::StrCat("slab ", slab.value(), " is outside the pool's ", slots_, " slots"));
  }
  void* slot = base_ + slab.value() * slab_bytes_;
  if (mmap(slot, static_cast<size_t>(slab_bytes_), PROT_NONE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED) {
    return absl::InternalError(
        absl::StrCat("cannot unmap slab ", slab.value(), ": ", strerror(errno)));
  }
  return absl::OkStatus();
}

}  // namespace kvpool
