// memfd, mmap, fallocate. See host_device.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/host_device.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvpool {
namespace {

absl::Status SystemError(const char* call, SlabIndex slab, int error) {
  const std::string what =
      absl::StrCat(call, " for slab ", slab.value(), ": ", std::strerror(error));
  switch (error) {
    case EMFILE:
      return absl::ResourceExhaustedError(
          absl::StrCat(what,
                       "; this is no lack of memory: raise the open files limit "
                       "(LimitNOFILE=, ulimit -n), a slab takes one"));
    case ENFILE:
      return absl::ResourceExhaustedError(absl::StrCat(what, "; raise fs.file-max"));
    case ENOMEM:
    case ENOSPC:
      return absl::ResourceExhaustedError(
          absl::StrCat(what,
                       "; make the pool smaller, or raise the memory limit or "
                       "vm.max_map_count"));
    default:
      return absl::InternalError(what);
  }
}

// Address space that can be mapped over, but not used.
void* ReserveRange(void* at, size_t bytes, int flags) {
  return mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
}

}  // namespace

absl::StatusOr<std::unique_ptr<HostDevice>> HostDevice::Make(Bytes slab_bytes, uint32_t slabs) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t addressable = (int64_t{1} << 32) * kGranuleBytes;
  if (slab_bytes.value() <= 0 || slab_bytes.value() % page != 0) {
    return absl::InvalidArgumentError(absl::StrCat("slab_bytes = ", slab_bytes.value(),
                                                   " must be a positive multiple of ", page));
  }
  if (slabs == 0 || slabs > addressable / slab_bytes.value()) {
    return absl::InvalidArgumentError(absl::StrCat("slabs = ", slabs, " must be between 1 and ",
                                                   addressable / slab_bytes.value(),
                                                   " for slabs of this size"));
  }
  const size_t bytes = static_cast<size_t>(slab_bytes.value()) * slabs;
  void* base = ReserveRange(nullptr, bytes, 0);
  if (base == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot reserve ", bytes, " bytes of address space: ", std::strerror(errno)));
  }
  DeviceInfo info{.name = "host",
                  .slab_bytes = slab_bytes,
                  .slabs = slabs,
                  .formats = {std::begin(kSealedFormats), std::end(kSealedFormats)}};
  return std::unique_ptr<HostDevice>(
      new HostDevice(std::move(info), static_cast<std::byte*>(base)));
}

HostDevice::HostDevice(DeviceInfo info, std::byte* base)
    : info_(std::move(info)), base_(base), fds_(info_.slabs, -1) {}

HostDevice::~HostDevice() {
  munmap(base_, static_cast<size_t>(info_.slab_bytes.value()) * info_.slabs);
  for (const int fd : fds_) {
    if (fd >= 0) close(fd);
  }
}

std::byte* HostDevice::Address(SlabIndex slab) const {
  return base_ + static_cast<size_t>(info_.slab_bytes.value()) * slab.value();
}

int HostDevice::SlabFd(SlabIndex slab) const {
  return slab.value() < info_.slabs ? fds_[slab.value()] : -1;
}

absl::Status HostDevice::CreateSlab(SlabIndex slab) {
  if (slab.value() >= info_.slabs) {
    return absl::NotFoundError(
        absl::StrCat("no slab ", slab.value(), ": the device has ", info_.slabs));
  }
  if (fds_[slab.value()] >= 0) {
    return absl::FailedPreconditionError(absl::StrCat("slab ", slab.value(), " exists"));
  }
  const std::string name = absl::StrCat("kvpool-slab-", slab.value());
  const int fd = memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return SystemError("memfd_create", slab, errno);
  const size_t bytes = static_cast<size_t>(info_.slab_bytes.value());
  const char* failed = nullptr;
  if (ftruncate(fd, info_.slab_bytes.value()) != 0) {
    failed = "ftruncate";
  } else if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    failed = "sealing";
  } else if (mmap(Address(slab), bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) ==
             MAP_FAILED) {
    failed = "mmap";
  }
  if (failed != nullptr) {
    const int error = errno;
    close(fd);
    return SystemError(failed, slab, error);
  }
  fds_[slab.value()] = fd;
  return absl::OkStatus();
}

absl::Status HostDevice::Populate(SlabIndex slab) {
  const int fd = SlabFd(slab);
  if (fd < 0) return absl::NotFoundError(absl::StrCat("slab ", slab.value(), " does not exist"));
  int result;
  do {
    result = fallocate(fd, 0, 0, info_.slab_bytes.value());
  } while (result != 0 && errno == EINTR);
  return result == 0 ? absl::OkStatus() : SystemError("fallocate", slab, errno);
}

ReturnProof HostDevice::PunchHole(SlabIndex slab) {
  const int result = fallocate(fds_[slab.value()], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                               info_.slab_bytes.value());
  return result == 0 ? ReturnProof::kReturned : ReturnProof::kStuck;
}

ReturnProof HostDevice::EmptySlab(SlabIndex slab) {
  const size_t bytes = static_cast<size_t>(info_.slab_bytes.value());
  if (ReserveRange(Address(slab), bytes, MAP_FIXED) == MAP_FAILED) return ReturnProof::kStuck;
  return PunchHole(slab);
}

ReturnProof HostDevice::DestroySlab(SlabIndex slab) {
  int& fd = fds_[slab.value()];
  struct stat state;
  if (fstat(fd, &state) != 0 || state.st_blocks != 0) {
    (void)PunchHole(slab);  // what was touched in between; the proof stays owed
    return ReturnProof::kStuck;
  }
  close(fd);
  fd = -1;
  return ReturnProof::kReturned;
}

absl::Status RaiseFileLimit(uint64_t files) {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
    return absl::InternalError(absl::StrCat("getrlimit: ", std::strerror(errno)));
  }
  if (limit.rlim_cur >= files) return absl::OkStatus();
  if (limit.rlim_max < files) {
    return absl::ResourceExhaustedError(
        absl::StrCat("needs ", files, " open files and may have ", limit.rlim_max,
                     ": raise the hard limit (LimitNOFILE=, ulimit -Hn)"));
  }
  limit.rlim_cur = files;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    return absl::InternalError(absl::StrCat("setrlimit: ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

}  // namespace kvpool
