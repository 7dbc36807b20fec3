// The ledger that its journal makes: after random commands, at random points, torn and corrupted.
//
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "agent/pool.h"
#include "tests/agent/pool_model.h"

namespace kvpool {
namespace {

using Memory = std::vector<std::byte>;

absl::StatusOr<PoolLedger> RebuildFrom(Memory* memory) {
  return PoolLedger::Rebuild(PoolModel::kConfig, *memory);
}

// A journal that is just large enough, so that checkpoints come often.
struct RandomPool {
  explicit RandomPool(uint64_t seed) : model(seed) {}
  void Step() { model.Step(&ledger); }

  Memory memory = Memory(Journal::BytesFor(8'000));
  PoolLedger ledger = PoolLedger::Make(PoolModel::kConfig, memory).value();
  PoolModel model;
};

// The word whose store makes the other half current.
uint64_t Generation(const Memory& memory) {
  uint64_t generation;
  std::memcpy(&generation, memory.data() + 32, sizeof(generation));
  return generation;
}

TEST(PoolRebuild, EqualsTheLiveLedgerAtRandomPoints) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    RandomPool pool(seed);
    std::mt19937 random(seed);
    for (int step = 0; step < 20'000; ++step) {
      pool.Step();
      if (random() % 100 != 0) continue;
      Memory copy = pool.memory;
      const auto rebuilt = RebuildFrom(&copy);
      ASSERT_TRUE(rebuilt.ok()) << rebuilt.status() << " at step " << step;
      ASSERT_TRUE(*rebuilt == pool.ledger) << "at step " << step;
    }
  }
}

TEST(PoolRebuild, TheRebuiltLedgerGoesOnAsTheOldOne) {
  RandomPool pool(7);
  for (int step = 0; step < 30'000; ++step) {
    pool.Step();
    if (step % 500 != 0) continue;
    // The old agent is gone; the model does not notice.
    pool.ledger = RebuildFrom(&pool.memory).value();
    pool.model.Compare(pool.ledger);
  }
  EXPECT_TRUE(pool.ledger.CheckInvariants().ok());
}

TEST(PoolRebuild, ATornLastRecordGivesTheStateBeforeOrAfterIt) {
  RandomPool pool(11);
  for (int step = 0; step < 2'000; ++step) pool.Step();
  for (int torn = 0; torn < 25;) {
    Memory before = pool.memory;
    pool.Step();
    Memory after = pool.memory;
    const size_t differs =
        std::mismatch(before.begin(), before.end(), after.begin()).first - before.begin();
    if (differs == before.size()) continue;
    const size_t first = differs - (differs - 64) % sizeof(Record);
    const size_t last = first + sizeof(Record);
    // Commands of one record only.
    if (!std::equal(before.begin() + last, before.end(), after.begin() + last)) continue;
    ++torn;
    const PoolLedger old_state = RebuildFrom(&before).value();
    const PoolLedger new_state = RebuildFrom(&after).value();
    for (const std::byte rubbish : {std::byte{0}, std::byte{0xa5}}) {
      Memory copy = before;
      std::fill(copy.begin() + first, copy.begin() + last, rubbish);
      for (size_t cut = first; cut <= last; ++cut) {
        std::copy(after.begin() + first, after.begin() + cut, copy.begin() + first);
        const auto rebuilt = RebuildFrom(&copy);
        ASSERT_TRUE(rebuilt.ok()) << rebuilt.status();
        ASSERT_TRUE(*rebuilt == new_state || (cut < last && *rebuilt == old_state));
      }
    }
  }
}

TEST(PoolRebuild, ACheckpointThatWasNotFinishedCountsForNothing) {
  std::vector<int> switches;  // the steps with a checkpoint
  RandomPool pool(13);
  for (int step = 0; switches.size() < 4; ++step) {
    const uint64_t generation = Generation(pool.memory);
    pool.Step();
    if (Generation(pool.memory) != generation) switches.push_back(step);
  }
  RandomPool again(13);
  std::mt19937 random(13);
  for (int step = 0; step <= switches.back(); ++step) {
    if (std::count(switches.begin(), switches.end(), step) == 0) {
      again.Step();
      continue;
    }
    Memory copy = again.memory;
    const PoolLedger old_state = RebuildFrom(&copy).value();
    again.Step();
    const size_t half = (copy.size() - 64) / 2;
    const size_t begin = 64 + Generation(again.memory) % 2 * half;
    for (int i = 0; i < 20; ++i) {
      const size_t cut = begin + random() % half;
      std::copy(again.memory.begin() + begin, again.memory.begin() + cut, copy.begin() + begin);
      const auto rebuilt = RebuildFrom(&copy);
      ASSERT_TRUE(rebuilt.ok()) << rebuilt.status();
      EXPECT_TRUE(*rebuilt == old_state);
    }
    EXPECT_TRUE(RebuildFrom(&again.memory).value() == again.ledger);
  }
}

TEST(PoolRebuild, CorruptionIsAnErrorOrTheLastRecord) {
  RandomPool pool(17);
  for (int step = 0; step < 5'000; ++step) pool.Step();
  std::mt19937 random(17);
  int errors = 0;
  for (int i = 0; i < 1'000; ++i) {
    Memory copy = pool.memory;
    copy[random() % copy.size()] ^= std::byte{static_cast<uint8_t>(1 << random() % 8)};
    const auto rebuilt = RebuildFrom(&copy);
    if (rebuilt.ok()) {
      // An unused byte of the header or of the other half, or the end.
      EXPECT_TRUE(*rebuilt == pool.ledger);
    } else {
      EXPECT_TRUE(absl::IsDataLoss(rebuilt.status()) ||
                  absl::IsFailedPrecondition(rebuilt.status()))
          << rebuilt.status();
      ++errors;
    }
  }
  EXPECT_GT(errors, 50);
}

TEST(PoolRebuild, ImpossibleRecordsAreRefused) {
  RandomPool pool(19);
  for (int step = 0; step < 3'000; ++step) pool.Step();
  std::mt19937_64 random(19);
  const auto small = [&](uint64_t n) { return random() % 4 == 0 ? random() : random() % n; };
  int refused = 0;
  for (int i = 0; i < 1'500; ++i) {
    Memory copy = pool.memory;
    Journal journal = Journal::Open(copy).value();
    for (int n = 0; n < 3; ++n) {
      journal.Append({.type = static_cast<Record::Type>(1 + random() % 17),
                      .slot = static_cast<uint8_t>(small(8)),
                      .word = static_cast<uint16_t>(small(8)),
                      .slab = static_cast<uint32_t>(small(26)),
                      .id = small(100),
                      .mask = small(100),
                      .count = static_cast<uint32_t>(small(8))});
    }
    const auto rebuilt = RebuildFrom(&copy);
    refused += !rebuilt.ok();
    if (rebuilt.ok()) {
      EXPECT_TRUE(rebuilt->CheckInvariants().ok());
    }
  }
  EXPECT_GT(refused, 500);
}

TEST(PoolRebuild, RefusesOtherVersionsConfigurationsAndMemory) {
  RandomPool pool(23);
  pool.Step();
  {
    Memory newer = pool.memory;
    newer[8] = std::byte{Journal::kVersion + 1};
    EXPECT_TRUE(absl::IsFailedPrecondition(RebuildFrom(&newer).status()));
  }
  PoolConfig other = PoolModel::kConfig;
  ++other.slabs;
  EXPECT_TRUE(absl::IsFailedPrecondition(PoolLedger::Rebuild(other, pool.memory).status()));
  Memory cut(pool.memory.begin(), pool.memory.end() - 64);
  EXPECT_TRUE(absl::IsDataLoss(RebuildFrom(&cut).status()));
  Memory zeros(4096);
  EXPECT_TRUE(absl::IsDataLoss(RebuildFrom(&zeros).status()));
  // A journal is never formatted away.
  EXPECT_TRUE(
      absl::IsFailedPrecondition(PoolLedger::Make(PoolModel::kConfig, pool.memory).status()));
}

}  // namespace
}  // namespace kvpool
