// What the pool ledger promises, one promise a test. Random commands: pool_fuzz_test.cc; the
// journal: pool_rebuild_test.cc.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <time.h>

#include <cstdio>
#include <random>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/agent/pool_model.h"

namespace kvpool {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAreArray;

constexpr TenantId kAnna(1), kBert(2);
constexpr Bytes kSlabBytes = 64_KiB;
constexpr uint32_t kPagesPerSlab = 16;

class PoolTest : public ::testing::Test {
 protected:
  // Eight slabs, one of them in reserve; pages of 4 KiB, 16 a slab.
  static constexpr PoolConfig kConfig{.slabs = 8, .reserve_slabs = 1, .slab_bytes = kSlabBytes};
  const Layout layout_ = MakeTestLayout(2, 2, 16, kSlabBytes);

  PoolTest() { EXPECT_EQ(layout_.pages_per_slab(), kPagesPerSlab); }
  ~PoolTest() override { EXPECT_EQ(pool_.CheckInvariants(), absl::OkStatus()); }

  // A worker of a tenant with a lease and `slabs` slabs that it has mapped.
  WorkerId WorkerWithSlabs(TenantId tenant, uint32_t slabs) {
    EXPECT_TRUE(pool_.SetLease(tenant, 7).ok());
    const WorkerId worker = pool_.AddWorker(tenant, layout_).value();
    for (uint32_t i = 0; i < slabs; ++i) AddSlab(worker);
    return worker;
  }
  SlabIndex AddSlab(WorkerId worker) {
    const SlabIndex slab = pool_.AssignSlab(worker).value();
    EXPECT_TRUE(pool_.MarkOffered(worker, slab).ok());
    EXPECT_TRUE(pool_.MarkMapped(worker, slab).ok());
    return slab;
  }
  std::vector<PageId> Grant(WorkerId worker, size_t count) {
    std::vector<PageId> pages(count);
    pages.resize(pool_.Grant(worker, pages).value());
    return pages;
  }
  SessionId SessionWithPages(WorkerId worker, size_t pages) {
    const SessionId session = pool_.OpenSession(worker).value();
    EXPECT_TRUE(pool_.Adopt(session, Grant(worker, pages)).ok());
    return session;
  }
  SlabState State(SlabIndex slab) { return pool_.Slab(slab)->state; }

  std::vector<std::byte> journal_ = std::vector<std::byte>(PoolLedger::JournalBytes(kConfig));
  PoolLedger pool_ = PoolLedger::Make(kConfig, journal_).value();
};

// --- Making --------------------------------------------------------------------------------------

TEST_F(PoolTest, RefusesImpossibleConfigurations) {
  const auto make = [](PoolConfig config) {
    std::vector<std::byte> journal(1 << 20);
    return PoolLedger::Make(config, journal).status();
  };
  EXPECT_THAT(make({.slabs = 0, .slab_bytes = kSlabBytes}).ToString(), HasSubstr("slabs = 0"));
  EXPECT_THAT(make({.slabs = 8, .slab_bytes = 1000_B}).ToString(), HasSubstr("slab_bytes = 1000"));
  EXPECT_THAT(make({.slabs = 2, .reserve_slabs = 2, .slab_bytes = kSlabBytes}).ToString(),
              HasSubstr("reserve_slabs = 2"));
  // 2^32 ids of 512 bytes: 2 TiB.
  EXPECT_THAT(make({.slabs = 1u << 20, .slab_bytes = 4_MiB}).ToString(), HasSubstr("524288"));
}

TEST_F(PoolTest, RefusesALayoutForOtherSlabs) {
  ASSERT_TRUE(pool_.SetLease(kAnna, 1).ok());
  const auto worker = pool_.AddWorker(kAnna, MakeTestLayout(2, 2, 16, kSlabBytes * 2));
  EXPECT_TRUE(absl::IsInvalidArgument(worker.status())) << worker.status();
}

// --- Tenants and workers -------------------------------------------------------------------------

TEST_F(PoolTest, ATenantExistsWhileItHasALeaseASlabOrAWorker) {
  EXPECT_TRUE(absl::IsInvalidArgument(pool_.AddWorker(TenantId(0), layout_).status()));
  const WorkerId worker = WorkerWithSlabs(kAnna, 1);
  ASSERT_TRUE(pool_.SetLease(kAnna, 0).ok());
  EXPECT_THAT(pool_.Tenants(), ElementsAre(kAnna));
  ASSERT_TRUE(pool_.RemoveWorker(worker).ok());
  EXPECT_THAT(pool_.Tenants(), ElementsAre(kAnna));
  ASSERT_TRUE(pool_.BeginEvacuate(SlabIndex(0)).ok());
  ASSERT_TRUE(pool_.BeginDrain(SlabIndex(0)).ok());
  ASSERT_TRUE(pool_.FreeSlab(SlabIndex(0)).ok());
  EXPECT_THAT(pool_.Tenants(), IsEmpty());
}

// Else a tenant could never say that it wants a lease.
TEST_F(PoolTest, ATenantWithoutALeaseMayHaveWorkersButNoSlabs) {
  const WorkerId worker = pool_.AddWorker(kAnna, layout_).value();
  EXPECT_THAT(pool_.Tenants(), ElementsAre(kAnna));
  EXPECT_TRUE(absl::IsResourceExhausted(pool_.AssignSlab(worker).status()));
  ASSERT_TRUE(pool_.SetLease(kAnna, 1).ok());
  EXPECT_TRUE(pool_.AssignSlab(worker).ok());
  EXPECT_TRUE(pool_.CheckInvariants().ok());
}

TEST_F(PoolTest, SlabsOfALayoutWithoutAWorkerAreAbandoned) {
  const WorkerId leaver = WorkerWithSlabs(kAnna, 2);
  const WorkerId other = pool_.AddWorker(kAnna, MakeTestLayout(1, 1, 16, kSlabBytes)).value();
  EXPECT_EQ(pool_.Usage(kAnna).abandoned_slabs, 0u);
  ASSERT_TRUE(pool_.RemoveWorker(leaver).ok());
  EXPECT_EQ(pool_.Usage(kAnna).abandoned_slabs, 2u);
  EXPECT_TRUE(pool_.Slab(SlabIndex(0))->abandoned);
  ASSERT_TRUE(pool_.SetLease(kAnna, 3).ok());
  const SlabIndex used = pool_.AssignSlab(other).value();
  EXPECT_FALSE(pool_.Slab(used)->abandoned);
}

TEST_F(PoolTest, ServesNoMoreTenantsWorkersAndSessionsThanItsLimits) {
  for (uint32_t i = 0; i < limits::kTenants; ++i) {
    ASSERT_TRUE(pool_.SetLease(TenantId(i + 1), 1).ok());
  }
  EXPECT_TRUE(absl::IsResourceExhausted(pool_.SetLease(TenantId(~0u), 1)));
  EXPECT_TRUE(absl::IsResourceExhausted(pool_.AddWorker(TenantId(~0u), layout_).status()));
  WorkerId worker;
  for (uint32_t i = 0; i < limits::kWorkers; ++i) worker = pool_.AddWorker(kAnna, layout_).value();
  EXPECT_TRUE(absl::IsResourceExhausted(pool_.AddWorker(kAnna, layout_).status()));
  for (uint32_t i = 0; i < limits::kSessionsPerWorker; ++i) {
    ASSERT_TRUE(pool_.OpenSession(worker).ok());
  }
  EXPECT_TRUE(absl::IsResourceExhausted(pool_.OpenSession(worker).status()));
}

TEST_F(PoolTest, IdsAreNeverUsedAgain) {
  const WorkerId first = WorkerWithSlabs(kAnna, 0);
  const SessionId session = pool_.OpenSession(first).value();
  ASSERT_TRUE(pool_.RemoveWorker(first).ok());
  const WorkerId second = pool_.AddWorker(kAnna, layout_).value();
  EXPECT_GT(second, first);
  EXPECT_GT(pool_.OpenSession(second).value(), session);
  EXPECT_TRUE(absl::IsNotFound(pool_.RemoveWorker(first)));
}

// --- Slabs ---------------------------------------------------------------------------------------

TEST_F(PoolTest, ATenantGetsSlabsUpToItsLease) {
  const WorkerId worker = WorkerWithSlabs(kAnna, 0);
  ASSERT_TRUE(pool_.SetLease(kAnna, 2).ok());
  AddSlab(worker);
  AddSlab(worker);
  EXPECT_THAT(pool_.AssignSlab(worker).status().ToString(), HasSubstr("lease of 2"));
  EXPECT_EQ(pool_.Usage(kAnna).held_slabs, 2u);
}

TEST_F(PoolTest, TheReserveIsForNobody) {
  const WorkerId anna = WorkerWithSlabs(kAnna, 4);
  const WorkerId bert = WorkerWithSlabs(kBert, 3);
  EXPECT_THAT(pool_.AssignSlab(anna).status().ToString(), HasSubstr("reserve"));
  EXPECT_TRUE(absl::IsResourceExhausted(pool_.AssignSlab(bert).status()));
  EXPECT_EQ(pool_.free_slabs(), 1u);
}

TEST_F(PoolTest, APageIsGrantedOnlyAfterItsWorkerHasMappedTheSlab) {
  const WorkerId worker = WorkerWithSlabs(kAnna, 0);
  const SlabIndex slab = pool_.AssignSlab(worker).value();
  EXPECT_THAT(pool_.SlabsToOffer(worker, 9), ElementsAre(slab));
  EXPECT_THAT(Grant(worker, 1), IsEmpty());
  EXPECT_TRUE(absl::IsFailedPrecondition(pool_.MarkMapped(worker, slab)));
  ASSERT_TRUE(pool_.MarkOffered(worker, slab).ok());
  EXPECT_THAT(pool_.SlabsToOffer(worker, 9), IsEmpty());
  EXPECT_THAT(Grant(worker, 1), IsEmpty());
  ASSERT_TRUE(pool_.MarkMapped(worker, slab).ok());
  EXPECT_THAT(Grant(worker, 1), ElementsAre(layout_.Page(slab, 0)));
}

TEST_F(PoolTest, ASlabIsOfferedToWorkersOfItsTenantAndLayoutOnly) {
  const WorkerId worker = WorkerWithSlabs(kAnna, 1);
  const WorkerId same = WorkerWithSlabs(kAnna, 0);
  const WorkerId other_tenant = WorkerWithSlabs(kBert, 0);
  const WorkerId other_layout =
      pool_.AddWorker(kAnna, MakeTestLayout(1, 1, 16, kSlabBytes)).value();
  EXPECT_TRUE(pool_.MarkOffered(same, SlabIndex(0)).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(pool_.MarkOffered(other_tenant, SlabIndex(0))));
  EXPECT_TRUE(absl::IsFailedPrecondition(pool_.MarkOffered(other_layout, SlabIndex(0))));
  EXPECT_THAT(pool_.WorkersOf(SlabIndex(0)), ElementsAre(worker, same));
}

TEST_F(PoolTest, ASlabComesBackEmptyUnmappedAndProven) {
  const WorkerId worker = WorkerWithSlabs(kAnna, 1);
  const SlabIndex slab(0);
  const std::vector<PageId> pages = Grant(worker, 3);
  EXPECT_TRUE(absl::IsFailedPrecondition(pool_.BeginDrain(slab)));  // not evacuating
  ASSERT_TRUE(pool_.BeginEvacuate(slab).ok());
  EXPECT_THAT(Grant(worker, 1), IsEmpty());
  EXPECT_THAT(pool_.BeginDrain(slab).ToString(), HasSubstr("3 pages in use"));
  EXPECT_EQ(pool_.Return(worker, pages).value(), 3u);
  ASSERT_TRUE(pool_.BeginDrain(slab).ok());
  EXPECT_THAT(pool_.FreeSlab(slab).ToString(), HasSubstr("mapped by 1 workers"));
  ASSERT_TRUE(pool_.MarkUnmapped(worker, slab).ok());
  EXPECT_EQ(pool_.Usage(kAnna).held_slabs, 1u);  // charged until the proof
  ASSERT_TRUE(pool_.FreeSlab(slab).ok());
  EXPECT_EQ(pool_.Usage(kAnna).held_slabs, 0u);
  EXPECT_EQ(pool_.free_slabs(), 8u);
}

TEST_F(PoolTest, ASlabThatWasOfferedMayBeMappedWhateverItsWorkerSays) {
  const WorkerId worker = WorkerWithSlabs(kAnna, 0);
  const SlabIndex slab = pool_.AssignSlab(worker).value();
  ASSERT_TRUE(pool_.MarkOffered(worker, slab).ok());
  ASSERT_TRUE(pool_.BeginEvacuate(slab).ok());
  ASSERT_TRUE(pool_.BeginDrain(slab).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(pool_.FreeSlab(slab)));
  ASSERT_TRUE(pool_.RemoveWorker(worker).ok());  // proof that its process is gone
  EXPECT_TRUE(pool_.FreeSlab(slab).ok());
}

TEST_F(PoolTest, AStuckSlabStaysChargedToItsOldTenant) {
  const WorkerId anna = WorkerWithSlabs(kAnna, 1);
  const SlabIndex slab(0);
  ASSERT_TRUE(pool_.SetLease(kAnna, 1).ok());
  ASSERT_TRUE(pool_.BeginEvacuate(slab).ok());
  ASSERT_TRUE(pool_.BeginDrain(slab).ok());
  ASSERT_TRUE(pool_.MarkUnmapped(anna, slab).ok());
  ASSERT_TRUE(pool_.MarkStuck(slab).ok());
  EXPECT_EQ(pool_.Usage(kAnna).stuck_slabs, 1u);
  EXPECT_EQ(pool_.stuck_slabs(), 1u);
  EXPECT_TRUE(absl::IsResourceExhausted(pool_.AssignSlab(anna).status()));
  EXPECT_EQ(pool_.free_slabs(), 7u);
  ASSERT_TRUE(pool_.FreeSlab(slab).ok());  // the device saw its memory come back after all
  EXPECT_TRUE(pool_.AssignSlab(anna).ok());
}

TEST_F(PoolTest, AnEvacuationCanBeCalledOff) {
  const WorkerId worker = WorkerWithSlabs(kAnna, 1);
  ASSERT_TRUE(pool_.BeginEvacuate(SlabIndex(0)).ok());
  EXPECT_EQ(pool_.Usage(kAnna).free_pages, 0u);
  ASSERT_TRUE(pool_.CancelEvacuate(SlabIndex(0)).ok());
  EXPECT_EQ(pool_.Usage(kAnna).free_pages, kPagesPerSlab);
  EXPECT_EQ(Grant(worker, 99).size(), kPagesPerSlab);
}

TEST_F(PoolTest, ListsTheEmptiestSlabsFirst) {
  const WorkerId worker = WorkerWithSlabs(kAnna, 3);
  Grant(worker, 3 * kPagesPerSlab);
  const auto give_back = [&](uint32_t slab, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) {
      ASSERT_EQ(pool_.Return(worker, std::vector{layout_.Page(SlabIndex(slab), i)}).value(), 1u);
    }
  };
  give_back(0, 2);
  give_back(1, 9);
  give_back(2, 5);
  std::vector<uint32_t> order;
  for (const SlabUsage& slab : pool_.EmptiestSlabs(kAnna, 2)) order.push_back(slab.slab.value());
  EXPECT_THAT(order, ElementsAre(1, 2));
}

// --- Pages ---------------------------------------------------------------------------------------

TEST_F(PoolTest, GrantsTheFullestSlabsFirst) {
  const WorkerId worker = WorkerWithSlabs(kAnna, 3);
  Grant(worker, 3 * kPagesPerSlab);
  const auto slab_page = [&](uint32_t slab, uint32_t index) {
    return layout_.Page(SlabIndex(slab), index);
  };
  // Two free pages in slab 0, one in slab 1, three in slab 2.
  const std::vector<PageId> back = {slab_page(0, 3), slab_page(0, 9), slab_page(1, 5),
                                    slab_page(2, 0), slab_page(2, 1), slab_page(2, 2)};
  ASSERT_EQ(pool_.Return(worker, back).value(), back.size());
  EXPECT_THAT(Grant(worker, 4),
              ElementsAre(slab_page(1, 5), slab_page(0, 3), slab_page(0, 9), slab_page(2, 0)));
}

TEST_F(PoolTest, NoPageIsGrantedTwice) {
  const WorkerId worker = WorkerWithSlabs(kAnna, 2);
  const std::vector<PageId> pages = Grant(worker, 99);
  EXPECT_EQ(std::set(pages.begin(), pages.end()).size(), 2 * kPagesPerSlab);
  EXPECT_EQ(pool_.GrantedPages(worker), 2 * kPagesPerSlab);
  EXPECT_THAT(Grant(worker, 1), IsEmpty());
}

TEST_F(PoolTest, ReturnTakesOnlyWhatWasGrantedToThisWorker) {
  const WorkerId worker = WorkerWithSlabs(kAnna, 1);
  const WorkerId other = WorkerWithSlabs(kBert, 1);
  const std::vector<PageId> pages = Grant(worker, 3);
  const PageId owned = pages[0], good = pages[1];
  const PageId foreign = Grant(other, 1)[0];
  ASSERT_TRUE(pool_.Adopt(pool_.OpenSession(worker).value(), std::vector{owned}).ok());
  const PageId free = layout_.Page(SlabIndex(0), 9);
  const PageId inside = PageId(good.value() + 1), unused_slab = layout_.Page(SlabIndex(6), 0);
  const PageId outside = layout_.Page(SlabIndex(8), 0), rubbish(~0u);
  EXPECT_EQ(pool_
                .Return(worker, std::vector{owned, foreign, free, inside, unused_slab, outside,
                                            rubbish, good, good})
                .value(),
            1u);
  EXPECT_EQ(pool_.Return(worker, std::vector{good}).value(), 0u);
  EXPECT_EQ(pool_.GrantedPages(worker), 1u);
  EXPECT_EQ(pool_.GrantedPages(other), 1u);
}

TEST_F(PoolTest, ABadPageListChangesNothing) {
  const WorkerId worker = WorkerWithSlabs(kAnna, 1);
  const SessionId session = pool_.OpenSession(worker).value();
  const SessionId other = SessionWithPages(worker, 1);
  const PageId foreign = (*pool_.PagesOf(other))[0];
  const std::vector<PageId> good = Grant(worker, 3);
  for (const PageId bad : {foreign, good[1], layout_.Page(SlabIndex(0), 9), PageId(~0u)}) {
    std::vector<PageId> list = good;
    list.push_back(bad);
    EXPECT_TRUE(absl::IsInvalidArgument(pool_.Adopt(session, list))) << bad.value();
    EXPECT_THAT(*pool_.PagesOf(session), IsEmpty());
    EXPECT_EQ(pool_.CheckInvariants(), absl::OkStatus());
  }
  EXPECT_TRUE(pool_.Adopt(session, good).ok());
  EXPECT_THAT(*pool_.PagesOf(session), UnorderedElementsAreArray(good));
}

TEST_F(PoolTest, APageListMayRepeatWhatTheSessionOwns) {
  const WorkerId worker = WorkerWithSlabs(kAnna, 1);
  const SessionId session = pool_.OpenSession(worker).value();
  std::vector<PageId> list = Grant(worker, 2);
  ASSERT_TRUE(pool_.Adopt(session, list).ok());
  list.push_back(Grant(worker, 1)[0]);
  ASSERT_TRUE(pool_.Adopt(session, list).ok());
  EXPECT_THAT(*pool_.PagesOf(session), UnorderedElementsAreArray(list));
  EXPECT_EQ(pool_.Usage(kAnna).owned_bytes, layout_.page_bytes() * 3);
  EXPECT_EQ(pool_.Usage(kAnna).granted_pages, 0u);
}

TEST_F(PoolTest, ReleasedPagesAreFree) {
  const WorkerId worker = WorkerWithSlabs(kAnna, 1);
  const SessionId session = SessionWithPages(worker, 5);
  const auto owned = *pool_.PagesOf(session);
  const std::vector<PageId> released = {owned[1], owned[3]};
  ASSERT_TRUE(pool_.Release(session, released).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(pool_.Release(session, released)));
  EXPECT_EQ(pool_.PagesOf(session)->size(), 3u);
  EXPECT_EQ(pool_.Usage(kAnna).free_pages, kPagesPerSlab - 3);
}

TEST_F(PoolTest, ClosingASessionFreesItsPages) {
  const WorkerId worker = WorkerWithSlabs(kAnna, 1);
  const SessionId session = SessionWithPages(worker, 5);
  Grant(worker, 2);
  ASSERT_TRUE(pool_.CloseSession(session).ok());
  EXPECT_EQ(pool_.Usage(kAnna).free_pages, kPagesPerSlab - 2);
  EXPECT_TRUE(absl::IsNotFound(pool_.CloseSession(session)));
  EXPECT_TRUE(absl::IsNotFound(pool_.PagesOf(session).status()));
}

TEST_F(PoolTest, PinnedPagesOutliveCloseAndTheirWorkersDeath) {
  const WorkerId worker = WorkerWithSlabs(kAnna, 1);
  const SessionId closed = SessionWithPages(worker, 5);
  const SessionId orphan = SessionWithPages(worker, 3);
  const SessionId unpinned = SessionWithPages(worker, 2);
  ASSERT_TRUE(pool_.Pin(closed).ok());
  ASSERT_TRUE(pool_.Pin(orphan).ok());
  ASSERT_TRUE(pool_.Pin(orphan).ok());
  ASSERT_TRUE(pool_.CloseSession(closed).ok());
  EXPECT_TRUE(absl::IsNotFound(pool_.Adopt(closed, Grant(worker, 1))));
  ASSERT_TRUE(pool_.RemoveWorker(worker).ok());
  EXPECT_TRUE(absl::IsNotFound(pool_.PagesOf(unpinned).status()));
  EXPECT_EQ(pool_.Usage(kAnna).owned_pages, 8u);
  ASSERT_TRUE(pool_.BeginEvacuate(SlabIndex(0)).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(pool_.BeginDrain(SlabIndex(0))));
  ASSERT_TRUE(pool_.Unpin(closed).ok());
  ASSERT_TRUE(pool_.Unpin(orphan).ok());
  EXPECT_EQ(pool_.Usage(kAnna).owned_pages, 3u);
  ASSERT_TRUE(pool_.Unpin(orphan).ok());
  EXPECT_TRUE(pool_.BeginDrain(SlabIndex(0)).ok());
}

TEST_F(PoolTest, ADeadWorkersPagesComeBackAndItsNeighboursStay) {
  const WorkerId dead = WorkerWithSlabs(kAnna, 1);
  const WorkerId alive = WorkerWithSlabs(kAnna, 0);
  ASSERT_TRUE(pool_.MarkOffered(alive, SlabIndex(0)).ok());
  ASSERT_TRUE(pool_.MarkMapped(alive, SlabIndex(0)).ok());
  SessionWithPages(dead, 3);
  Grant(dead, 2);
  const SessionId kept = SessionWithPages(alive, 4);
  Grant(alive, 1);
  ASSERT_TRUE(pool_.RemoveWorker(dead).ok());
  EXPECT_EQ(pool_.Usage(kAnna).owned_pages, 4u);
  EXPECT_EQ(pool_.Usage(kAnna).granted_pages, 1u);
  EXPECT_EQ(pool_.PagesOf(kept)->size(), 4u);
  EXPECT_THAT(pool_.WorkersOf(SlabIndex(0)), ElementsAre(alive));
  EXPECT_EQ(State(SlabIndex(0)), SlabState::kLeased);
}

TEST_F(PoolTest, RefusesSlabsThatTheJournalCouldNotDescribe) {
  // 128 pages a slab, and room for a few hundred records.
  std::vector<std::byte> journal(Journal::BytesFor(800));
  PoolLedger pool = PoolLedger::Make(kConfig, journal).value();
  ASSERT_TRUE(pool.SetLease(kAnna, 7).ok());
  const WorkerId worker = pool.AddWorker(kAnna, MakeTestLayout(1, 1, 8, kSlabBytes)).value();
  EXPECT_TRUE(pool.AssignSlab(worker).ok());
  EXPECT_TRUE(pool.AssignSlab(worker).ok());
  const absl::Status refused = pool.AssignSlab(worker).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_THAT(refused.ToString(), HasSubstr("journal"));
}

double CpuNanos() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return 1e9 * time.tv_sec + time.tv_nsec;
}

TEST_F(PoolTest, AFrozenPageIsChargedOnceAndOutlivesTheSessionThatWroteIt) {
  const WorkerId writer = WorkerWithSlabs(TenantId(1), 1);
  const WorkerId reader = pool_.AddWorker(TenantId(1), layout_).value();
  const SessionId first = SessionWithPages(writer, 4);
  const std::vector<PageId> pages(pool_.PagesOf(first)->begin(), pool_.PagesOf(first)->begin() + 3);
  ASSERT_TRUE(pool_.Freeze(first, pages, Keep::kForReuse).ok());
  const SessionId second = pool_.OpenSession(reader).value();
  EXPECT_TRUE(absl::IsInvalidArgument(pool_.Share(second, pages))) << "not mapped by its worker";
  const SlabIndex slab = layout_.SlabOf(pages[0]);
  ASSERT_TRUE(pool_.MarkOffered(reader, slab).ok());
  ASSERT_TRUE(pool_.MarkMapped(reader, slab).ok());
  ASSERT_TRUE(pool_.Share(second, pages).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(pool_.Share(second, pages))) << "twice";
  TenantUsage usage = pool_.Usage(TenantId(1));
  EXPECT_EQ(usage.owned_pages, 1u);
  EXPECT_EQ(usage.frozen_pages, 3u);
  EXPECT_EQ(usage.parked_pages, 0u);
  EXPECT_EQ(pool_.Slab(slab)->shared_pages, 3u);
  EXPECT_TRUE(absl::IsInvalidArgument(pool_.Thaw(first, pages))) << "two hold it";

  ASSERT_TRUE(pool_.RemoveWorker(writer).ok());
  EXPECT_EQ(pool_.Usage(TenantId(1)).frozen_pages, 3u);
  EXPECT_EQ(pool_.HoldersOf(pages[0]), 1u);
  ASSERT_TRUE(pool_.CloseSession(second).ok());
  usage = pool_.Usage(TenantId(1));
  EXPECT_EQ(usage.frozen_pages, 3u);
  EXPECT_EQ(usage.parked_pages, 3u);
  EXPECT_EQ(usage.parked_bytes, usage.frozen_bytes);
  ASSERT_TRUE(pool_.BeginEvacuate(slab).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(pool_.BeginDrain(slab))) << "parked pages are in use";
  ASSERT_TRUE(pool_.StopKeeping(pages).ok());
  EXPECT_EQ(pool_.Usage(TenantId(1)).frozen_pages, 0u);
  EXPECT_TRUE(pool_.BeginDrain(slab).ok());
}

TEST_F(PoolTest, TheLastHolderOfAFrozenPageCanHaveItBack) {
  const WorkerId worker = WorkerWithSlabs(TenantId(1), 1);
  const SessionId session = SessionWithPages(worker, 2);
  const std::vector<PageId> pages(pool_.PagesOf(session)->begin(), pool_.PagesOf(session)->end());
  ASSERT_TRUE(pool_.Freeze(session, pages, Keep::kForReuse).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(pool_.Adopt(session, pages))) << "frozen, not granted";
  EXPECT_TRUE(absl::IsInvalidArgument(pool_.Thaw(session, pages))) << "kept";
  ASSERT_TRUE(pool_.StopKeeping(pages).ok());
  ASSERT_TRUE(pool_.Thaw(session, pages).ok());
  EXPECT_EQ(pool_.PagesOf(session)->size(), 2u);
  EXPECT_TRUE(pool_.FrozenOf(session)->empty());
  EXPECT_EQ(pool_.Usage(TenantId(1)).owned_pages, 2u);
  ASSERT_TRUE(pool_.Freeze(session, pages, Keep::kNo).ok());
  ASSERT_TRUE(pool_.CloseSession(session).ok());
  EXPECT_EQ(pool_.Usage(TenantId(1)).free_pages, kPagesPerSlab) << "nobody is left, nothing kept";
}

// Printed, not asserted: a page through Grant and Return, in batches as the magazine does it.
TEST(PoolSpeed, GrantAndReturn) {
  constexpr PoolConfig kBig{.slabs = 1024, .slab_bytes = 2_MiB};
  std::vector<std::byte> journal(PoolLedger::JournalBytes(kBig));
  PoolLedger pool = PoolLedger::Make(kBig, journal).value();
  ASSERT_TRUE(pool.SetLease(kAnna, kBig.slabs).ok());
  const WorkerId worker = pool.AddWorker(kAnna, MakeTestLayout(4, 4, 64, 2_MiB)).value();
  for (int i = 0; i < 512; ++i) {
    const SlabIndex slab = pool.AssignSlab(worker).value();
    ASSERT_TRUE(pool.MarkOffered(worker, slab).ok());
    ASSERT_TRUE(pool.MarkMapped(worker, slab).ok());
  }
  std::mt19937 random(1);
  std::vector<PageId> held(8192), batch(256);
  held.resize(pool.Grant(worker, held).value());
  for (const bool shuffled : {false, true}) {
    if (shuffled) std::shuffle(held.begin(), held.end(), random);
    double returning = 0, granting = 0;
    constexpr int kRounds = 4'000;
    for (int round = 0; round < kRounds; ++round) {
      const size_t first = round * batch.size() % held.size();
      const double begin = CpuNanos();
      ASSERT_EQ(*pool.Return(worker, std::span(held).subspan(first, batch.size())), batch.size());
      const double middle = CpuNanos();
      ASSERT_EQ(*pool.Grant(worker, batch), batch.size());
      granting += CpuNanos() - middle;
      returning += middle - begin;
      std::copy(batch.begin(), batch.end(), held.begin() + first);
    }
    const double pages = kRounds * 256.0;
    std::printf("%s order: grant %.1f ns, return %.1f ns a page\n", shuffled ? "random" : "granted",
                granting / pages, returning / pages);
  }
  EXPECT_EQ(pool.CheckInvariants(), absl::OkStatus());
}

}  // namespace
}  // namespace kvpool
