// What every Device must do, as a typed suite. A device is tested by a struct like this:
//
//   struct MyDeviceUnderTest {
//     static std::unique_ptr<Device> Make(Bytes slab_bytes, uint32_t slabs);
//     static Bytes SlabBytes();                             // a size that it likes
//     static std::byte* Map(int fd, Bytes bytes);           // as a worker maps an exported slab
//     static void Unmap(std::byte* memory, Bytes bytes);
//   };
//   INSTANTIATE_TYPED_TEST_SUITE_P(MyDevice, DeviceSuite, MyDeviceUnderTest);
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "agent/device.h"

namespace kvpool {

template <typename UnderTest>
class DeviceSuite : public ::testing::Test {
 protected:
  static constexpr uint32_t kSlabs = 4;

  std::byte* At(uint32_t slab) {
    return device_->base() + static_cast<size_t>(bytes_.value()) * slab;
  }
  bool AllZero(const std::byte* memory) {
    return std::all_of(memory, memory + bytes_.value(),
                       [](std::byte byte) { return byte == std::byte{0}; });
  }
  void Fill(std::byte* memory, int value) { std::memset(memory, value, bytes_.value()); }
  absl::Status Create(uint32_t slab) { return device_->CreateSlab(SlabIndex(slab)); }
  ReturnProof Destroy(uint32_t slab) {
    EXPECT_EQ(device_->EmptySlab(SlabIndex(slab)), ReturnProof::kReturned);
    std::this_thread::sleep_for(kReturnWatch);
    return device_->DestroySlab(SlabIndex(slab));
  }
  std::byte* Map(uint32_t slab) { return UnderTest::Map(device_->SlabFd(SlabIndex(slab)), bytes_); }

  // A process that maps a slab and writes all over it until it is killed.
  pid_t StartWriter(uint32_t slab) {
    int started[2];
    EXPECT_EQ(pipe(started), 0);
    const pid_t pid = fork();
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      volatile std::byte* memory = Map(slab);
      for (bool first = true;; first = false) {
        for (int64_t i = 0; i < bytes_.value(); i += 4096) memory[i] = std::byte{1};
        if (first && write(started[1], "x", 1) != 1) _exit(1);
      }
    }
    char byte;
    EXPECT_EQ(read(started[0], &byte, 1), 1);
    close(started[0]);
    close(started[1]);
    return pid;
  }
  void StopWriter(pid_t pid) {
    kill(pid, SIGKILL);
    EXPECT_EQ(waitpid(pid, nullptr, 0), pid);
  }

  const Bytes bytes_ = UnderTest::SlabBytes();
  std::unique_ptr<Device> device_ = UnderTest::Make(bytes_, kSlabs);
};

TYPED_TEST_SUITE_P(DeviceSuite);

TYPED_TEST_P(DeviceSuite, SaysWhatItIs) {
  EXPECT_FALSE(this->device_->info().name.empty());
  EXPECT_EQ(this->device_->info().slab_bytes, this->bytes_);
  EXPECT_EQ(this->device_->info().slabs, this->kSlabs);
}

TYPED_TEST_P(DeviceSuite, ANewSlabIsZeroAndLiesInItsSlot) {
  for (const uint32_t slab : {2u, 0u, 3u}) {
    ASSERT_TRUE(this->Create(slab).ok());
    EXPECT_TRUE(this->AllZero(this->At(slab)));
    this->Fill(this->At(slab), static_cast<int>(slab + 1));
  }
  for (const uint32_t slab : {2u, 0u, 3u}) {
    EXPECT_EQ(*this->At(slab), std::byte(slab + 1));
    EXPECT_EQ(this->At(slab)[this->bytes_.value() - 1], std::byte(slab + 1));
  }
}

TYPED_TEST_P(DeviceSuite, RefusesSlotsThatAreTakenOrNone) {
  ASSERT_TRUE(this->Create(1).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(this->Create(1)));
  EXPECT_TRUE(absl::IsNotFound(this->Create(this->kSlabs)));
  EXPECT_TRUE(absl::IsNotFound(this->device_->Populate(SlabIndex(0))));
  EXPECT_EQ(this->device_->SlabFd(SlabIndex(0)), -1);
  EXPECT_EQ(this->device_->SlabFd(SlabIndex(~0u)), -1);
}

TYPED_TEST_P(DeviceSuite, AnExportedSlabIsTheSameMemory) {
  ASSERT_TRUE(this->Create(1).ok());
  std::byte* worker = this->Map(1);
  this->Fill(worker, 7);
  EXPECT_EQ(this->At(1)[this->bytes_.value() - 1], std::byte{7});
  this->Fill(this->At(1), 8);
  EXPECT_EQ(worker[0], std::byte{8});
  TypeParam::Unmap(worker, this->bytes_);
}

TYPED_TEST_P(DeviceSuite, PopulatingChangesNoByte) {
  ASSERT_TRUE(this->Create(1).ok());
  ASSERT_TRUE(this->device_->Populate(SlabIndex(1)).ok());
  EXPECT_TRUE(this->AllZero(this->At(1)));
  this->At(1)[5] = std::byte{5};
  ASSERT_TRUE(this->device_->Populate(SlabIndex(1)).ok());
  EXPECT_EQ(this->At(1)[5], std::byte{5});
}

TYPED_TEST_P(DeviceSuite, ADestroyedSlabIsGone) {
  ASSERT_TRUE(this->Create(1).ok());
  this->Fill(this->At(1), 1);
  EXPECT_EQ(this->Destroy(1), ReturnProof::kReturned);
  EXPECT_EQ(this->device_->SlabFd(SlabIndex(1)), -1);
  ASSERT_TRUE(this->Create(1).ok());
  EXPECT_TRUE(this->AllZero(this->At(1)));
}

TYPED_TEST_P(DeviceSuite, AMappingThatWasKeptShowsNothingOfTheNextSlab) {
  ASSERT_TRUE(this->Create(1).ok());
  std::byte* liar = this->Map(1);
  this->Fill(liar, 1);
  ASSERT_EQ(this->Destroy(1), ReturnProof::kReturned);
  ASSERT_TRUE(this->Create(1).ok());
  this->Fill(this->At(1), 2);
  EXPECT_TRUE(this->AllZero(liar));
  this->Fill(liar, 3);
  EXPECT_EQ(*this->At(1), std::byte{2});
  TypeParam::Unmap(liar, this->bytes_);
}

TYPED_TEST_P(DeviceSuite, ASlabThatSomebodyStillWritesIsStuckUntilTheyStop) {
  // The writer must get to run while the memory is watched; a busy machine may need more attempts.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  ReturnProof proof = ReturnProof::kReturned;
  pid_t writer = 0;
  while (proof == ReturnProof::kReturned && std::chrono::steady_clock::now() < deadline) {
    if (writer != 0) this->StopWriter(writer);
    ASSERT_TRUE(this->Create(1).ok());
    writer = this->StartWriter(1);
    proof = this->Destroy(1);
  }
  EXPECT_EQ(proof, ReturnProof::kStuck);
  EXPECT_TRUE(absl::IsFailedPrecondition(this->Create(1)));
  this->StopWriter(writer);
  EXPECT_EQ(this->Destroy(1), ReturnProof::kReturned);
  EXPECT_TRUE(this->Create(1).ok());
}

TYPED_TEST_P(DeviceSuite, SlabsAreIndependent) {
  std::vector<std::thread> threads;
  for (uint32_t slab = 0; slab < this->kSlabs; ++slab) {
    threads.emplace_back([this, slab] {
      for (int round = 0; round < 10; ++round) {
        EXPECT_TRUE(this->Create(slab).ok());
        EXPECT_TRUE(this->device_->Populate(SlabIndex(slab)).ok());
        EXPECT_TRUE(this->AllZero(this->At(slab)));
        this->Fill(this->At(slab), static_cast<int>(slab + 1));
        EXPECT_EQ(this->At(slab)[round], std::byte(slab + 1));
        EXPECT_EQ(this->Destroy(slab), ReturnProof::kReturned);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

REGISTER_TYPED_TEST_SUITE_P(DeviceSuite, SaysWhatItIs, ANewSlabIsZeroAndLiesInItsSlot,
                            RefusesSlotsThatAreTakenOrNone, AnExportedSlabIsTheSameMemory,
                            PopulatingChangesNoByte, ADestroyedSlabIsGone,
                            AMappingThatWasKeptShowsNothingOfTheNextSlab,
                            ASlabThatSomebodyStillWritesIsStuckUntilTheyStop, SlabsAreIndependent);

}  // namespace kvpool
