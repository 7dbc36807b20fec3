// The simulator itself: one seed is one history, and every invariant is seen when it is broken.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/simulation.h"

#include <gtest/gtest.h>

#include <vector>

namespace kvpool::sim {
namespace {

constexpr uint64_t kSeeds = 24;

// The invariants that broke in runs with this saboteur, a few seeds each: not every cluster has
// what it takes in the middle of its faults.
std::string FirstBroken(const std::function<void(Simulation&)>& saboteur) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const Result result = Simulate(seed, {.saboteur = saboteur});
    if (result.violation.has_value()) return result.violation->invariant;
  }
  return "none";
}

// A tenant of an agent that holds slabs.
TenantId Holder(const SimAgent& agent) {
  for (const TenantId tenant : agent.ledger().Tenants()) {
    if (agent.ledger().Usage(tenant).held_slabs > 0) return tenant;
  }
  return TenantId();
}

template <typename F>
std::function<void(Simulation&)> AtEachAgent(F sabotage) {
  return [sabotage](Simulation& simulation) {
    for (SimAgent& agent : simulation.agents()) {
      if (agent.running()) sabotage(simulation, agent);
    }
  };
}

TEST(Simulation, OneSeedIsOneHistory) {
  const Result once = Simulate(7, {}), again = Simulate(7, {}), other = Simulate(8, {});
  EXPECT_EQ(once.hash, again.hash);
  EXPECT_EQ(once.events, again.events);
  EXPECT_NE(once.hash, other.hash);
}

TEST(Simulation, RecordingChangesNoHistory) {
  const Result silent = Simulate(7, {});
  const Result recorded = Simulate(7, {.recording = World::Recording::kLastEvents});
  EXPECT_EQ(silent.hash, recorded.hash);
  EXPECT_FALSE(recorded.last_events.empty());
}

TEST(Simulation, SeesALedgerThatItsJournalDoesNotMake) {
  EXPECT_EQ(FirstBroken(AtEachAgent([](Simulation&, SimAgent& agent) {
              agent.CorruptJournal();
              agent.Crash(Network::Loss::kProcess);
            })),
            "I1");
}

TEST(Simulation, SeesMemoryThatIsSentToAnotherTenant) {
  EXPECT_EQ(FirstBroken(AtEachAgent([](Simulation&, SimAgent& agent) {
              for (uint32_t i = 0; i < agent.device().slabs(); ++i) {
                (void)agent.device().Export(SlabIndex(i), TenantId(999));
              }
            })),
            "I2");
}

TEST(Simulation, SeesASlabThatIsFreeWithMemoryInIt) {
  EXPECT_EQ(FirstBroken(AtEachAgent([](Simulation&, SimAgent& agent) {
              const auto slabs = agent.device().slabs();
              for (uint32_t i = 0; i < slabs; ++i) {
                if (agent.ledger().Slab(SlabIndex(i))->state != SlabState::kFree) continue;
                (void)agent.device().CreateSlab(SlabIndex(i), TenantId(1));
              }
            })),
            "I3");
}

// As an order would do that no manager has room for.
TEST(Simulation, SeesALeaseAboveTheLimit) {
  EXPECT_EQ(FirstBroken(AtEachAgent([](Simulation&, SimAgent& agent) {
              const TenantId tenant = Holder(agent);
              if (tenant == TenantId()) return;
              const TenantState before = *agent.book().Find(tenant);
              (void)agent.mutable_book().Apply(agent.book().highest_epoch(),
                                               TenantBook::Coverage::kPartial,
                                               {{.tenant = tenant,
                                                 .name = before.name,
                                                 .seq = before.lease_seq + 1000,
                                                 .lease_slabs = 1000,
                                                 .limit_slabs = 1000}});
            })),
            "I4");
}

TEST(Simulation, SeesATenantThatGrowsAboveItsLease) {
  EXPECT_EQ(FirstBroken(AtEachAgent([](Simulation&, SimAgent& agent) {
              for (const auto& [id, worker] : agent.workers().all()) {
                const uint32_t held = agent.ledger().Usage(worker.tenant).held_slabs;
                (void)agent.mutable_ledger().SetLease(worker.tenant, 1000);
                for (uint32_t i = held; i <= agent.book().Find(worker.tenant)->lease_slabs; ++i) {
                  const auto slab = agent.mutable_ledger().AssignSlab(id);
                  if (slab.ok()) (void)agent.device().CreateSlab(*slab, worker.tenant);
                }
              }
            })),
            "I5");
}

TEST(Simulation, SeesAnEpochThatGoesBack) {
  EXPECT_EQ(FirstBroken(AtEachAgent([](Simulation&, SimAgent& agent) {
              agent.mutable_book() = TenantBook();
              (void)agent.mutable_book().Apply(0, TenantBook::Coverage::kPartial, {});
            })),
            "I6");
}

TEST(Simulation, SeesAJobThatNeverEnds) {
  EXPECT_EQ(FirstBroken(AtEachAgent(
                [](Simulation&, SimAgent& agent) { agent.workers().CountAJobThatIsLost(); })),
            "I7");
}

TEST(Simulation, SeesAGuaranteeThatIsNotServed) {
  EXPECT_EQ(FirstBroken([](Simulation& simulation) { simulation.FillDisk(); }), "I9");
}

TEST(Simulation, SeesAConnectionThatNobodyCloses) {
  EXPECT_EQ(FirstBroken([](Simulation& simulation) {
              Process* stray = simulation.world().NewProcess("stray");
              stray->Start();
              (void)simulation.network().Connect(stray, nullptr, stray, nullptr, {});
            }),
            "I10");
}

}  // namespace
}  // namespace kvpool::sim
