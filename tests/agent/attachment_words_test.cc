// What an attachment believes of its worker's words, one lie at a time. The fuzz beside it tells
// many lies at once and asks only that nothing breaks.
//
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <atomic>
#include <vector>

#include "tests/client/loopback.h"

namespace kvpool {
namespace {

class AttachmentWords : public testing::Test {
 protected:
  AttachmentWords() { session_ = *loop_.tenant().Open({.prompt_tokens = 10, .max_tokens = 200}); }

  Attachment& attachment() { return loop_.attachment(); }
  SharedRegions& regions() { return attachment().regions(); }
  AgentSession& agent_session() { return *attachment().Find(0); }
  TenantUsage Usage() { return loop_.ledger().Usage(Loopback::kTenant); }

  // Takes `count` pages from the grant ring.
  std::vector<PageId> Take(uint32_t count) {
    EXPECT_GE(attachment().Fill(count), count);
    std::vector<PageId> pages(count);
    EXPECT_TRUE(loop_.magazine().Take(pages));
    return pages;
  }
  void List(const std::vector<PageId>& pages, uint64_t committed) {
    auto* list = reinterpret_cast<std::atomic<uint32_t>*>(&regions().slot(0) + 1);
    for (size_t i = 0; i < pages.size(); ++i) list[i].store(pages[i].value());
    regions().slot(0).page_count.store(static_cast<uint32_t>(pages.size()));
    regions().slot(0).committed.store(committed);
  }
  void ExpectFailed() {
    attachment().SnapshotAll();
    EXPECT_TRUE(agent_session().failed);
    EXPECT_EQ(regions().slot(0).state.load(), static_cast<uint32_t>(shm::State::kFailed));
    EXPECT_EQ(regions().table(0).failed.load(), 9u) << "badPageList";
    EXPECT_EQ(attachment().bad_page_lists(), 1u);
    EXPECT_EQ(attachment().BeginDrain(0, 0, 0, 1).status().code(),
              absl::StatusCode::kFailedPrecondition);
    EXPECT_TRUE(loop_.ledger().CheckInvariants().ok());
  }

  Loopback loop_{{}};
  std::unique_ptr<Session> session_;
};

// ---- Rings --------------------------------------------------------------------------------------

TEST_F(AttachmentWords, TheMagazineIsFilledUpToWhatWasAskedForAndNoFurther) {
  EXPECT_EQ(attachment().Fill(5), 5u);
  EXPECT_EQ(attachment().Fill(3), 5u);
  EXPECT_EQ(Usage().granted_pages, 5u);
  const uint32_t all = 8 * loop_.tenant().layout().pages_per_slab();
  EXPECT_EQ(attachment().Fill(~0u), std::min(all, shm::kRingSlots));
  EXPECT_EQ(attachment().waiting(), std::min(all, shm::kRingSlots));
}

TEST_F(AttachmentWords, ATargetStaysBetweenTwoPagesAndTheRing) {
  attachment().SetTarget(0);
  EXPECT_EQ(attachment().target(), 2u);
  attachment().SetTarget(~0u);
  EXPECT_EQ(attachment().target(), shm::kRingSlots);
}

TEST_F(AttachmentWords, APageReturnedTwiceComesBackOnce) {
  const std::vector<PageId> pages = Take(2);
  ASSERT_TRUE(loop_.magazine().Return(pages));
  ASSERT_TRUE(loop_.magazine().Return(pages));
  attachment().Collect();
  EXPECT_EQ(Usage().granted_pages, 0u);
  EXPECT_EQ(attachment().bad_returns(), 2u);
  EXPECT_TRUE(loop_.ledger().CheckInvariants().ok());
}

TEST_F(AttachmentWords, PagesOfSessionsAndOfNobodyAreNotTakenBack) {
  const std::vector<PageId> pages = Take(1);
  List(pages, 10);
  attachment().SnapshotAll();
  ASSERT_EQ(Usage().owned_pages, 1u);
  ASSERT_TRUE(loop_.magazine().Return(std::vector{pages[0], PageId(~0u), PageId(1)}));
  attachment().Collect();
  EXPECT_EQ(Usage().owned_pages, 1u);
  EXPECT_EQ(attachment().bad_returns(), 3u);
}

TEST_F(AttachmentWords, ATornReturnIndexIsNotBelievedUntilItIsWhole) {
  const std::vector<PageId> pages = Take(1);
  ASSERT_TRUE(loop_.magazine().Return(pages));
  shm::PageRing& ring = regions().returns();
  for (uint64_t torn : {uint64_t{1} + shm::kRingSlots, ~uint64_t{0}, uint64_t{1} << 32}) {
    ring.produced.store(torn);
    attachment().Collect();
    EXPECT_EQ(Usage().granted_pages, 1u);
  }
  EXPECT_EQ(attachment().bad_returns(), 3u);
  ring.produced.store(1);
  attachment().Collect();
  EXPECT_EQ(Usage().granted_pages, 0u);
}

TEST_F(AttachmentWords, AGrantIndexThatRunsAheadOrBackChangesNothing) {
  EXPECT_EQ(attachment().Fill(4), 4u);
  shm::PageRing& ring = regions().grants();
  ring.consumed.store(2);
  EXPECT_EQ(attachment().waiting(), 2u);
  for (uint64_t wrong : {uint64_t{5}, uint64_t{1}, ~uint64_t{0}}) {
    ring.consumed.store(wrong);
    EXPECT_EQ(attachment().waiting(), 2u);
  }
  EXPECT_EQ(attachment().bad_returns(), 3u);
}

// ---- Session words ------------------------------------------------------------------------------

TEST_F(AttachmentWords, AnHonestListIsAdopted) {
  List(Take(2), 20);
  attachment().SnapshotAll();
  EXPECT_EQ(agent_session().committed, 20u);
  EXPECT_EQ(agent_session().fresh_pages.size(), 2u);
  EXPECT_EQ(Usage().owned_pages, 2u);
  EXPECT_EQ(agent_session().planes.rows(0), 20u);
}

// It is BUSY and nothing runs: whoever asks for it meanwhile must find it taken.
TEST_F(AttachmentWords, ASessionThatWaitsForTheReserveIsNobodyElses) {
  List(Take(1), 10);
  EXPECT_FALSE(attachment().BeginWait(0).ok()) << "not BUSY";
  regions().SetState(0, shm::State::kBusy);
  ASSERT_TRUE(attachment().BeginWait(0).ok());
  EXPECT_FALSE(attachment().BeginWait(0).ok());
  EXPECT_FALSE(attachment().BeginDrain(0, 0, 0, 1).ok());
  EXPECT_FALSE(attachment().BeginCompaction(0, shm::State::kRunning, {}).ok());
  EXPECT_TRUE(attachment().EndWait(0));
  EXPECT_TRUE(attachment().BeginCompaction(0, shm::State::kRunning, {}).ok());

  regions().SetState(0, shm::State::kBusy);
  ASSERT_TRUE(attachment().BeginWait(0).ok());
  attachment().Close(0);
  ASSERT_NE(attachment().Find(0), nullptr) << "its slot is not free before it stops waiting";
  EXPECT_FALSE(attachment().EndWait(0));
  EXPECT_EQ(attachment().Find(0), nullptr);
  EXPECT_TRUE(loop_.ledger().CheckInvariants().ok());
}

TEST_F(AttachmentWords, CommittedMustNotGoBack) {
  const std::vector<PageId> pages = Take(2);
  List(pages, 20);
  attachment().SnapshotAll();
  List(pages, 19);
  ExpectFailed();
}

TEST_F(AttachmentWords, CommittedMustNotExceedItsPages) {
  List(Take(2), 33);
  ExpectFailed();
}

TEST_F(AttachmentWords, CommittedMustNotExceedWhatWasAdmitted) {
  List(Take(13), 201);
  ExpectFailed();
}

TEST_F(AttachmentWords, CommittedIsComparedInSixtyFourBits) {
  List(Take(1), (uint64_t{1} << 32) + 5);
  ExpectFailed();
}

TEST_F(AttachmentWords, APageListedTwiceFails) {
  const std::vector<PageId> pages = Take(1);
  List({pages[0], pages[0]}, 20);
  ExpectFailed();
  EXPECT_EQ(Usage().owned_pages, 0u) << "half of a list is not taken";
}

TEST_F(AttachmentWords, APageThatWasNotGrantedFails) {
  const std::vector<PageId> pages = Take(1);
  List({pages[0], PageId(pages[0].value() + 1)}, 20);
  ExpectFailed();
}

TEST_F(AttachmentWords, AFailedSessionsPagesComeBackWhenItsWorkerIsGone) {
  const std::vector<PageId> pages = Take(3);
  List(pages, 40);
  attachment().SnapshotAll();
  List(pages, 39);
  ExpectFailed();
  EXPECT_EQ(Usage().owned_pages, 3u);
  session_.reset();
  EXPECT_EQ(Usage().owned_pages, 0u);
  EXPECT_EQ(attachment().charge(), Charge());
}

// ---- Calls --------------------------------------------------------------------------------------

TEST_F(AttachmentWords, QueriesAreTakenOnceAndOnlyOfCommittedTokens) {
  List(Take(2), 20);
  EXPECT_TRUE(absl::IsInvalidArgument(attachment().BeginDrain(0, 0, 17, 4).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(attachment().BeginDrain(0, 0, ~uint64_t{0}, 2).status()));
  auto job = attachment().BeginDrain(0, 0, 3, 4);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(attachment().unscored(), 3u) << "numbers 0 to 2 were skipped";
  EXPECT_TRUE(absl::IsFailedPrecondition(attachment().BeginDrain(0, 0, 7, 1).status()))
      << "one job at a time";
  job->Run();
  attachment().EndDrain(0, *std::move(job));
  EXPECT_TRUE(absl::IsInvalidArgument(attachment().BeginDrain(0, 0, 6, 1).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(attachment().BeginDrain(0, 8, 7, 1).status()));
  EXPECT_EQ(agent_session().drained, 7u);
}

TEST_F(AttachmentWords, ASessionClosedUnderAJobIsFreedWithTheJob) {
  List(Take(2), 20);
  auto job = attachment().BeginDrain(0, 0, 0, 4);
  ASSERT_TRUE(job.ok());
  session_.reset();
  EXPECT_EQ(Usage().owned_pages, 2u) << "pinned";
  job->Run();
  attachment().EndDrain(0, *std::move(job));
  EXPECT_EQ(Usage().owned_pages, 0u);
  EXPECT_EQ(attachment().Find(0), nullptr);
}

}  // namespace
}  // namespace kvpool
