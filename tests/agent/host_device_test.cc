// The host device: the conformance suite, and what is true of memfds only.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/host_device.h"

#include <errno.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/conformance/device_suite.h"

namespace kvpool {
namespace {

using ::testing::HasSubstr;

struct HostDeviceUnderTest {
  static std::unique_ptr<Device> Make(Bytes slab_bytes, uint32_t slabs) {
    return HostDevice::Make(slab_bytes, slabs).value();
  }
  static Bytes SlabBytes() { return 256_KiB; }
  static std::byte* Map(int fd, Bytes bytes) {
    void* memory = mmap(nullptr, bytes.value(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    EXPECT_NE(memory, MAP_FAILED);
    return static_cast<std::byte*>(memory);
  }
  static void Unmap(std::byte* memory, Bytes bytes) { munmap(memory, bytes.value()); }
};

INSTANTIATE_TYPED_TEST_SUITE_P(HostDevice, DeviceSuite, HostDeviceUnderTest);

class HostDeviceTest : public ::testing::Test {
 protected:
  // Bytes of host memory behind a slab.
  int64_t Resident(SlabIndex slab) {
    struct stat state;
    EXPECT_EQ(fstat(device_->SlabFd(slab), &state), 0);
    return int64_t{state.st_blocks} * 512;
  }

  std::unique_ptr<HostDevice> device_ = HostDevice::Make(64_KiB, 4).value();
};

TEST_F(HostDeviceTest, AWorkerCannotResizeOrSealASlab) {
  ASSERT_TRUE(device_->CreateSlab(SlabIndex(0)).ok());
  const int fd = device_->SlabFd(SlabIndex(0));
  EXPECT_EQ(ftruncate(fd, 0), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(ftruncate(fd, 1 << 20), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_NE(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(HostDeviceTest, MemoryComesWithPopulateAndGoesWithDestroy) {
  ASSERT_TRUE(device_->CreateSlab(SlabIndex(0)).ok());
  EXPECT_EQ(Resident(SlabIndex(0)), 0);
  ASSERT_TRUE(device_->Populate(SlabIndex(0)).ok());
  EXPECT_EQ(Resident(SlabIndex(0)), 64 << 10);
  // Whoever kept the descriptor keeps no memory.
  const int kept = dup(device_->SlabFd(SlabIndex(0)));
  ASSERT_EQ(device_->EmptySlab(SlabIndex(0)), ReturnProof::kReturned);
  ASSERT_EQ(device_->DestroySlab(SlabIndex(0)), ReturnProof::kReturned);
  struct stat state;
  ASSERT_EQ(fstat(kept, &state), 0);
  EXPECT_EQ(state.st_blocks, 0);
  close(kept);
}

TEST_F(HostDeviceTest, TooManyOpenFilesIsNotCalledALackOfMemory) {
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none{.rlim_cur = 3, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const absl::Status refused = device_->CreateSlab(SlabIndex(0));
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_THAT(refused.ToString(), HasSubstr("LimitNOFILE"));
  EXPECT_TRUE(device_->CreateSlab(SlabIndex(0)).ok());
}

TEST_F(HostDeviceTest, RaisesTheFileLimitAsFarAsItMay) {
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit low{.rlim_cur = 64, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  EXPECT_TRUE(RaiseFileLimit(100).ok());
  rlimit after;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &after), 0);
  EXPECT_EQ(after.rlim_cur, 100u);
  EXPECT_TRUE(RaiseFileLimit(10).ok());  // never lowers it
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &after), 0);
  EXPECT_EQ(after.rlim_cur, 100u);
  if (before.rlim_max != RLIM_INFINITY) {
    EXPECT_TRUE(absl::IsResourceExhausted(RaiseFileLimit(before.rlim_max + 1)));
  }
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
}

TEST_F(HostDeviceTest, RefusesImpossibleSizes) {
  EXPECT_THAT(HostDevice::Make(1000_B, 1).status().ToString(), HasSubstr("slab_bytes = 1000"));
  EXPECT_TRUE(absl::IsInvalidArgument(HostDevice::Make(64_KiB, 0).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(HostDevice::Make(2_MiB, ~0u).status()));
}

}  // namespace
}  // namespace kvpool
