// A million hostile calls against the pool ledger, compared with a simple model of it.
//
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <vector>

#include "agent/pool.h"
#include "tests/agent/pool_model.h"

namespace kvpool {
namespace {

void Play(uint64_t seed, int steps, int steps_between_checks) {
  std::vector<std::byte> journal(PoolLedger::JournalBytes(PoolModel::kConfig));
  PoolLedger ledger = PoolLedger::Make(PoolModel::kConfig, journal).value();
  PoolModel model(seed);
  for (int step = 0; step < steps; ++step) {
    model.Step(&ledger);
    if (step % steps_between_checks == 0) {
      const absl::Status invariants = ledger.CheckInvariants();
      ASSERT_TRUE(invariants.ok()) << invariants << " after step " << step << " of seed " << seed;
      model.Compare(ledger);
    }
    ASSERT_FALSE(::testing::Test::HasFailure()) << "step " << step << " of seed " << seed;
  }
  EXPECT_GT(model.done(), steps / 4u);
  EXPECT_GT(model.refused(), steps / 10u);
}

TEST(PoolFuzz, InvariantsHoldAfterEveryCall) {
  for (uint64_t seed = 1; seed <= 10; ++seed) Play(seed, 2'000, 1);
}

TEST(PoolFuzz, AMillionCalls) {
  for (uint64_t seed = 100; seed < 110; ++seed) Play(seed, 100'000, 1'000);
}

}  // namespace
}  // namespace kvpool
