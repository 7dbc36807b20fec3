// What a worker can do to the two shared memories, and what it cannot.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/shared_regions.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <random>
#include <string>

namespace kvpool {
namespace {

using ::testing::ElementsAre;

constexpr shm::ShmSizes kSizes{.sessions = 3,
                               .windows = 2,
                               .session_tokens = 100,
                               .planes = 4,
                               .query_floats = 24,
                               .query_lses = 6};

std::unique_ptr<SharedRegions> Regions(const shm::ShmSizes& sizes = kSizes) {
  auto regions = SharedRegions::Make(sizes);
  EXPECT_TRUE(regions.ok()) << regions.status();
  return *std::move(regions);
}

off_t SizeOf(int fd) {
  struct stat status;
  return fstat(fd, &status) == 0 ? status.st_size : -1;
}

// The descriptor as another process would hold it, with all it could get by opening it again.
int Reopened(int fd, int flags) {
  return open(("/proc/self/fd/" + std::to_string(fd)).c_str(), flags | O_CLOEXEC);
}

TEST(SharedRegions, NeitherMemoryCanBeResized) {
  const auto regions = Regions();
  EXPECT_EQ(SizeOf(regions->control_fd()), static_cast<off_t>(shm::ControlBytes(kSizes)));
  EXPECT_EQ(SizeOf(regions->tables_fd()), static_cast<off_t>(shm::TablesBytes(kSizes)));
  for (int fd : {regions->control_fd(), regions->tables_fd()}) {
    const off_t size = SizeOf(fd);
    EXPECT_NE(ftruncate(fd, 0), 0);
    EXPECT_NE(ftruncate(fd, size - 1), 0);
    EXPECT_NE(ftruncate(fd, size + 1), 0);
    EXPECT_NE(fallocate(fd, 0, size, 4096), 0);
    EXPECT_EQ(SizeOf(fd), size);
    // No further seal: one on Control against writing would stop its rings.
    EXPECT_NE(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
  }
}

TEST(SharedRegions, NobodyElseWritesTables) {
  const auto regions = Regions();
  const size_t bytes = shm::TablesBytes(kSizes);
  regions->table(1).compact_at.store(77);
  int fds[] = {regions->tables_fd(), Reopened(regions->tables_fd(), O_RDWR)};
  for (int fd : fds) {
    if (fd < 0) continue;  // not even opened for writing
    EXPECT_EQ(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    const uint64_t word = 1;
    EXPECT_LT(pwrite(fd, &word, sizeof(word), 0), 0);
    EXPECT_NE(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, bytes), 0);
  }
  if (fds[1] >= 0) close(fds[1]);
  void* mapped = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, regions->tables_fd(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  EXPECT_NE(mprotect(mapped, bytes, PROT_READ | PROT_WRITE), 0);
  const auto* header = reinterpret_cast<const shm::TableHeader*>(static_cast<std::byte*>(mapped) +
                                                                 shm::TableOffset(kSizes, 1));
  EXPECT_EQ(header->compact_at.load(), 77u);
  regions->table(1).compact_at.store(78);
  EXPECT_EQ(header->compact_at.load(), 78u) << "the agent itself still writes";
  munmap(mapped, bytes);
}

TEST(SharedRegions, PartsDoNotOverlap) {
  std::mt19937 random(5);
  const auto draw = [&](uint32_t most) { return 1 + static_cast<uint32_t>(random() % most); };
  for (int round = 0; round < 300; ++round) {
    const shm::ShmSizes s{.sessions = draw(20),
                          .windows = draw(20),
                          .session_tokens = draw(3000),
                          .planes = draw(100),
                          .query_floats = draw(5000),
                          .query_lses = draw(200)};
    using Part = std::pair<uint64_t, uint64_t>;  // first byte, bytes
    std::vector<Part> control = {{0, sizeof(shm::ControlHeader)},
                                 {shm::GrantRingOffset(), sizeof(shm::PageRing)},
                                 {shm::ReturnRingOffset(), sizeof(shm::PageRing)}};
    std::vector<Part> tables;
    for (uint32_t i = 0; i < s.sessions; ++i) {
      control.emplace_back(shm::SlotOffset(s, i), sizeof(shm::SessionSlot) + 4 * s.pages());
      tables.emplace_back(shm::TableOffset(s, i), sizeof(shm::TableHeader));
      for (uint64_t epoch : {0, 1}) {
        const uint64_t lists = 4 * uint64_t{s.planes} * (1 + s.pages() + 16 * s.pages());
        tables.emplace_back(shm::TableBufferOffset(s, i, epoch), lists);
      }
    }
    for (uint32_t i = 0; i < s.windows; ++i) {
      const uint64_t start = shm::WindowOffset(s, i);
      control.emplace_back(start, 4 * shm::kWindowQueries);
      control.emplace_back(start + shm::WindowVectorsOffset(),
                           4 * uint64_t{shm::kWindowQueries} * s.query_floats);
      control.emplace_back(start + shm::WindowLsesOffset(s),
                           4 * uint64_t{shm::kWindowQueries} * s.query_lses);
    }
    control.emplace_back(shm::ControlBytes(s), 0);
    tables.emplace_back(shm::TablesBytes(s), 0);
    for (auto* parts : {&control, &tables}) {
      std::sort(parts->begin(), parts->end());
      for (size_t i = 1; i < parts->size(); ++i) {
        ASSERT_GE((*parts)[i].first, (*parts)[i - 1].first + (*parts)[i - 1].second);
        ASSERT_EQ((*parts)[i].first % 64, 0u);
      }
    }
  }
}

TEST(SharedRegions, AListIsReadWithinItsBounds) {
  const auto regions = Regions();
  regions->table(1).compact_at.store(33);
  regions->ResetSlot(1);
  EXPECT_EQ(regions->table(1).compact_at.load(), 0u);
  EXPECT_EQ(regions->slot(1).state.load(), static_cast<uint32_t>(shm::State::kRunning));
  auto* list = reinterpret_cast<std::atomic<uint32_t>*>(&regions->slot(1) + 1);
  list[0].store(10);
  list[1].store(11);
  regions->slot(1).committed.store(20);
  regions->slot(1).page_count.store(2);
  SlotWords words = regions->ReadSlot(1);
  EXPECT_EQ(words.committed, 20u);
  EXPECT_THAT(words.fresh_pages, ElementsAre(PageId(10), PageId(11)));
  regions->slot(1).page_count.store(~0u);
  EXPECT_EQ(regions->ReadSlot(1).fresh_pages.size(), kSizes.pages());
  EXPECT_TRUE(regions->ReadSlot(0).fresh_pages.empty());
  EXPECT_TRUE(regions->ReadSlot(2).fresh_pages.empty());
}

TEST(SharedRegions, OnlyAnIdleSessionIsTaken) {
  const auto regions = Regions();
  for (uint32_t state : {0u, 2u, 3u, 4u, 99u}) {
    regions->slot(0).state.store(state);
    EXPECT_FALSE(regions->TakeIdle(0));
    EXPECT_EQ(regions->slot(0).state.load(), state);
  }
  regions->SetState(0, shm::State::kIdle);
  EXPECT_TRUE(regions->TakeIdle(0));
  EXPECT_FALSE(regions->TakeIdle(0));
  EXPECT_EQ(regions->slot(0).state.load(), static_cast<uint32_t>(shm::State::kBusy));
}

TEST(SharedRegions, QueriesAreCopiedAroundTheEndOfTheirWindow) {
  const auto regions = Regions();
  auto* window = reinterpret_cast<std::byte*>(&regions->header()) + shm::WindowOffset(kSizes, 1);
  auto* positions = reinterpret_cast<uint32_t*>(window);
  auto* vectors = reinterpret_cast<float*>(window + shm::WindowVectorsOffset());
  auto* lses = reinterpret_cast<float*>(window + shm::WindowLsesOffset(kSizes));
  for (uint32_t i = 0; i < shm::kWindowQueries; ++i) {
    positions[i] = 100 + i;
    std::fill_n(vectors + i * kSizes.query_floats, kSizes.query_floats, static_cast<float>(i));
    std::fill_n(lses + i * kSizes.query_lses, kSizes.query_lses, static_cast<float>(i) / 2);
  }
  // The highest numbers that there are: entries 30, 31, 0, 1.
  const uint64_t first = ~uint64_t{0} - 33;
  const WindowQueries copied = regions->CopyQueries(1, first, 4);
  EXPECT_THAT(copied.positions, ElementsAre(130, 131, 100, 101));
  ASSERT_EQ(copied.vectors.size(), 4u * kSizes.query_floats);
  EXPECT_EQ(copied.vectors.front(), 30.0f);
  EXPECT_EQ(copied.vectors.back(), 1.0f);
  ASSERT_EQ(copied.lses.size(), 4u * kSizes.query_lses);
  EXPECT_EQ(copied.lses.front(), 15.0f);
  EXPECT_EQ(copied.lses.back(), 0.5f);
}

TEST(SharedRegions, APublishedEpochIsReadBackAndTheOneBeforeStays) {
  const auto regions = Regions();
  EXPECT_EQ(regions->View(2, 0).compacted_lengths, nullptr);
  const Geometry geometry{.layers = 2,
                          .query_heads = 2,
                          .kv_heads = 2,
                          .key_dim = 8,
                          .value_dim = 8,
                          .kv_of_layer = {0, 1}};
  Planes planes(geometry, {});
  planes.Append(0, 20);
  const auto segment = [](uint32_t first_block) {
    CompactedSegment made{.lengths = {20, 20, 20, 20},
                          .format = first_block == 100 ? SealedFormat::kInt4 : SealedFormat::kFp8,
                          .sealed_lengths = {0, 1, 2, first_block}};
    for (uint32_t plane = 0; plane < 4; ++plane) {
      made.blocks.push_back({BlockId(first_block + plane), BlockId(first_block + 8 + plane)});
    }
    return made;
  };
  regions->slot(2).page_count.store(2);
  regions->Publish(2, 1, 20, segment(100), planes);
  EXPECT_EQ(regions->slot(2).page_count.load(), 0u);
  regions->Publish(2, 2, 40, segment(200), planes);
  EXPECT_EQ(regions->table(2).epoch.load(), 2u);
  EXPECT_EQ(regions->table(2).fresh_start.load(), 40u);
  EXPECT_EQ(regions->table(2).cache_tokens.load(), 20u);
  const SessionView old = regions->View(2, 1), now = regions->View(2, 2);
  EXPECT_EQ(old.CompactedLength(3), 20u);
  EXPECT_EQ(old.sealed_format, SealedFormat::kInt4);
  EXPECT_EQ(old.SealedLength(3), 100u);
  EXPECT_EQ(now.sealed_format, SealedFormat::kFp8);
  EXPECT_EQ(now.SealedLength(1), 1u);
  EXPECT_EQ(now.SealedLength(3), 200u);
  EXPECT_EQ(old.compacted_blocks[3 * old.compacted_stride + 1], BlockId(111));
  EXPECT_EQ(now.compacted_blocks[3 * now.compacted_stride + 1], BlockId(211));
}

TEST(SharedRegions, WhatDoesNotFitTheAddressSpaceIsAnError) {
  const auto regions = SharedRegions::Make({.sessions = 1024,
                                            .windows = 256,
                                            .session_tokens = 1 << 20,
                                            .planes = 65536,
                                            .query_floats = 1 << 26});
  EXPECT_TRUE(absl::IsResourceExhausted(regions.status())) << regions.status();
}

}  // namespace
}  // namespace kvpool
