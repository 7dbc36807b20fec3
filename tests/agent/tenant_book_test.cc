// Orders in any order, tokens, and records that are merged but never miscounted.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/tenant_book.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "proto/limits.h"

namespace kvpool {
namespace {

using Coverage = TenantBook::Coverage;
using std::chrono::milliseconds;

constexpr TenantId kA{1}, kB{2};

TenantOrder Order(TenantId tenant, uint64_t seq, uint32_t lease) {
  return {.tenant = tenant,
          .name = "t" + std::to_string(tenant.value()),
          .seq = seq,
          .lease_slabs = lease,
          .limit_slabs = 100,
          .token_hashes = {Sha256("token" + std::to_string(tenant.value()))}};
}

ReclaimRecord Refusal(TenantId tenant, milliseconds at, uint64_t bytes = 10) {
  return {.tenant = tenant,
          .time = TimePoint(at),
          .step = ReclaimStep::kRefusal,
          .reason = ReclaimReason::kNoPages,
          .policy = "full",
          .sessions = 1,
          .bytes = bytes};
}

class TenantBookTest : public testing::Test {
 protected:
  absl::Status Apply(uint64_t epoch, const std::vector<TenantOrder>& orders,
                     Coverage coverage = Coverage::kPartial) {
    return book_.Apply(epoch, coverage, orders);
  }
  uint32_t Lease(TenantId tenant) { return book_.Find(tenant)->lease_slabs; }

  TenantBook book_;
};

TEST_F(TenantBookTest, TheNewestLeaseStands) {
  ASSERT_TRUE(Apply(1, {Order(kA, 5, 10)}).ok());
  ASSERT_TRUE(Apply(1, {Order(kA, 4, 20)}).ok());
  EXPECT_EQ(Lease(kA), 10u);
  ASSERT_TRUE(Apply(1, {Order(kA, 5, 20)}).ok());
  EXPECT_EQ(Lease(kA), 10u) << "a doubled message is the same message";
  ASSERT_TRUE(Apply(1, {Order(kA, 6, 7)}).ok());
  EXPECT_EQ(Lease(kA), 7u);
  ASSERT_TRUE(Apply(2, {Order(kA, 1, 3)}).ok());
  EXPECT_EQ(Lease(kA), 3u) << "a new leader counts from its own beginning";
}

TEST_F(TenantBookTest, AnOlderLeaderChangesNothing) {
  ASSERT_TRUE(Apply(3, {Order(kA, 1, 10)}).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(
      Apply(2, {Order(kA, 9, 99), Order(kB, 9, 99)}, Coverage::kComplete)));
  EXPECT_EQ(Lease(kA), 10u);
  EXPECT_EQ(book_.Find(kB), nullptr);
  EXPECT_EQ(book_.highest_epoch(), 3u);
}

TEST_F(TenantBookTest, LeasesEndAtTheNewestWhateverTheOrderOfMessages) {
  std::mt19937 random(4);
  for (int round = 0; round < 500; ++round) {
    std::vector<std::pair<uint64_t, TenantOrder>> messages;
    for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
      for (uint64_t seq = 1; seq <= 5; ++seq) {
        messages.emplace_back(epoch, Order(kA, seq, static_cast<uint32_t>(epoch * 10 + seq)));
        messages.push_back(messages.back());
      }
    }
    std::shuffle(messages.begin(), messages.end(), random);
    TenantBook book;
    uint32_t highest = 0;
    for (const auto& [epoch, order] : messages) {
      highest = std::max(highest, order.lease_slabs);
      (void)book.Apply(epoch, Coverage::kPartial, {order});
      ASSERT_EQ(book.Find(kA)->lease_slabs, highest);
    }
    ASSERT_EQ(highest, 35u);
  }
}

TEST_F(TenantBookTest, AnOlderMessageBringsNoOldPolicyBack) {
  TenantOrder now = Order(kA, 5, 10), before = Order(kA, 4, 10);
  before.policy = *MakePolicySpec("scissorhands", {});
  ASSERT_TRUE(Apply(1, {now}).ok());
  ASSERT_TRUE(Apply(1, {before}).ok());
  EXPECT_EQ(book_.Find(kA)->spec.name, "full");
}

// Else tenants that come and go fill an agent's reports until the manager refuses them.
TEST_F(TenantBookTest, TenantsThatAreGoneAreForgottenWhenNothingOfThemIsLeft) {
  ASSERT_TRUE(Apply(1, {Order(kA, 1, 10), Order(kB, 1, 20)}, Coverage::kComplete).ok());
  book_.ForgetGone({});
  EXPECT_EQ(book_.tenants().size(), 2u);
  ASSERT_TRUE(Apply(1, {Order(kA, 1, 10)}, Coverage::kComplete).ok());
  book_.ForgetGone({kB});
  EXPECT_EQ(book_.tenants().size(), 2u) << "it still holds something";
  book_.ForgetGone({});
  EXPECT_EQ(book_.Find(kB), nullptr);
  EXPECT_NE(book_.Find(kA), nullptr);
}

TEST_F(TenantBookTest, ATenantThatIsNamedAgainIsNotGone) {
  ASSERT_TRUE(Apply(1, {Order(kA, 1, 10)}, Coverage::kComplete).ok());
  ASSERT_TRUE(Apply(1, {}, Coverage::kComplete).ok());
  ASSERT_TRUE(Apply(1, {Order(kA, 2, 10)}, Coverage::kComplete).ok());
  book_.ForgetGone({});
  EXPECT_EQ(Lease(kA), 10u);
}

TEST_F(TenantBookTest, OnlyACompleteMessageTakesFromThoseItDoesNotName) {
  ASSERT_TRUE(Apply(1, {Order(kA, 1, 10), Order(kB, 1, 20)}).ok());
  ASSERT_TRUE(Apply(1, {Order(kA, 2, 11)}, Coverage::kPartial).ok());
  EXPECT_EQ(Lease(kB), 20u);
  EXPECT_NE(book_.FindByToken(Sha256("token2")), nullptr);
  ASSERT_TRUE(Apply(1, {Order(kA, 3, 12)}, Coverage::kComplete).ok());
  EXPECT_EQ(Lease(kA), 12u);
  EXPECT_EQ(Lease(kB), 0u);
  EXPECT_EQ(book_.FindByToken(Sha256("token2")), nullptr);
  ASSERT_NE(book_.Find(kB), nullptr) << "its sessions still need its policy";
  EXPECT_NE(book_.Find(kB)->policy, nullptr);
}

TEST_F(TenantBookTest, TokensAreThoseOfTheLastOrder) {
  TenantOrder order = Order(kA, 1, 10);
  order.token_hashes = {Sha256("old"), Sha256("both")};
  ASSERT_TRUE(Apply(1, {order}).ok());
  EXPECT_EQ(book_.FindByToken(Sha256("old"))->id, kA);
  order.token_hashes = {Sha256("both"), Sha256("new")};
  ASSERT_TRUE(Apply(1, {order, Order(kB, 1, 1)}).ok());
  EXPECT_EQ(book_.FindByToken(Sha256("old")), nullptr);
  EXPECT_EQ(book_.FindByToken(Sha256("both"))->id, kA);
  EXPECT_EQ(book_.FindByToken(Sha256("new"))->id, kA);
  EXPECT_EQ(book_.FindByToken(Sha256("token2"))->id, kB);
  EXPECT_EQ(book_.FindByToken(Sha256("")), nullptr);
  EXPECT_EQ(book_.FindByToken({}), nullptr);
}

TEST_F(TenantBookTest, APolicyIsMadeAnewOnlyWhenItChanges) {
  TenantOrder order = Order(kA, 1, 10);
  ASSERT_TRUE(Apply(1, {order}).ok());
  const auto before = book_.Find(kA)->policy;
  order.seq = 2;
  ASSERT_TRUE(Apply(1, {order}).ok());
  EXPECT_EQ(book_.Find(kA)->policy, before);
  order.policy = *MakePolicySpec("streaming", {});
  ASSERT_TRUE(Apply(1, {order}).ok());
  EXPECT_NE(book_.Find(kA)->policy, before);
  EXPECT_FALSE(before->NextCompactAt({}).has_value()) << "sessions that have the old one keep it";
}

TEST_F(TenantBookTest, WhatIsSealedFollowsThePolicy) {
  TenantOrder order = Order(kA, 1, 10);
  ASSERT_TRUE(Apply(1, {order}).ok());
  EXPECT_EQ(book_.Find(kA)->seal, SealRule());
  order.seq = 2;
  order.policy = *MakePolicySpec("streaming", {{"format", "fp8"}, {"open", 7}});
  ASSERT_TRUE(Apply(1, {order}).ok());
  EXPECT_EQ(book_.Find(kA)->seal, (SealRule{.format = SealedFormat::kFp8, .open_rows = 7}));
}

TEST_F(TenantBookTest, PromisesWhatIsHeldUntilItHasComeBack) {
  ASSERT_TRUE(Apply(1, {Order(kA, 1, 4)}).ok());
  EXPECT_EQ(TenantBook::Promise(*book_.Find(kA), 9), 9u);
  EXPECT_EQ(TenantBook::Promise(*book_.Find(kA), 4), 4u);
  EXPECT_EQ(TenantBook::Promise(*book_.Find(kA), 0), 4u);
}

TEST_F(TenantBookTest, AShrinkIsPromisedOnceARestartCouldNotUndoIt) {
  TenantOrder order = Order(kA, 1, 6);
  order.floor_slabs = 4;
  ASSERT_TRUE(Apply(3, {order}).ok());
  const auto promise = [&] { return TenantBook::Promise(*book_.Find(kA), 0); };
  const KeptOrders first = book_.ToKeep();
  EXPECT_EQ(first.epoch, 3u);
  ASSERT_EQ(first.tenants.size(), 1u);
  EXPECT_EQ(first.tenants[0].lease_slabs, 4u) << "of the lease the floor";
  book_.BeginKeeping(first);
  order.seq = 2;
  order.lease_slabs = 1;
  ASSERT_TRUE(Apply(3, {order}).ok());
  EXPECT_EQ(promise(), 4u) << "it may be on disk already";
  book_.Kept(first);
  EXPECT_EQ(promise(), 4u);
  const KeptOrders second = book_.ToKeep();
  EXPECT_EQ(second.tenants[0].lease_slabs, 1u) << "of the floor what is leased";
  book_.BeginKeeping(second);
  EXPECT_EQ(promise(), 4u) << "a write that fails leaves the first";
  book_.Kept(second);
  EXPECT_EQ(promise(), 1u);
  // Its end, too, is not promised before the disk knows.
  ASSERT_TRUE(Apply(3, {}, Coverage::kComplete).ok());
  book_.ForgetGone({});
  ASSERT_NE(book_.Find(kA), nullptr);
  EXPECT_EQ(promise(), 1u);
  const KeptOrders none = book_.ToKeep();
  EXPECT_TRUE(none.tenants.empty());
  book_.BeginKeeping(none);
  book_.Kept(none);
  book_.ForgetGone({});
  EXPECT_EQ(book_.Find(kA), nullptr);
}

TEST_F(TenantBookTest, ARestartBeginsWithWhatWasKept) {
  TenantOrder a = Order(kA, 5, 6), b = Order(kB, 6, 8);
  a.floor_slabs = 4;
  b.floor_slabs = 3;
  ASSERT_TRUE(Apply(3, {a, b}).ok());
  TenantBook next;
  next.Restore(book_.ToKeep(), 5);
  EXPECT_EQ(next.highest_epoch(), 3u);
  EXPECT_EQ(next.Find(kA)->lease_slabs, 4u);
  EXPECT_EQ(next.Find(kB)->lease_slabs, 1u) << "the pool has become smaller";
  EXPECT_EQ(TenantBook::Promise(*next.Find(kB), 0), 1u);
  EXPECT_EQ(next.ToKeep().tenants[1].lease_slabs, 1u);
  EXPECT_EQ(next.FindByToken(Sha256("token1")), next.Find(kA));
  EXPECT_EQ(next.Find(kA)->lease_epoch, 0u) << "it follows no order of the manager's";
  EXPECT_EQ(next.Find(kA)->lease_seq, 0u);
  EXPECT_TRUE(absl::IsFailedPrecondition(next.Apply(2, Coverage::kComplete, {})));
  // A manager of the same epoch may order anything, however its numbers go on.
  ASSERT_TRUE(next.Apply(3, Coverage::kComplete, {Order(kA, 1, 2)}).ok());
  EXPECT_EQ(next.Find(kA)->lease_slabs, 2u);
  EXPECT_EQ(next.Find(kB)->lease_slabs, 0u);
}

TEST_F(TenantBookTest, ATenantAboveItsLeaseIsPastItsDeadlineWhenItsGraceHasPassed) {
  const TimePoint start{std::chrono::seconds(50)};
  TenantOrder order = Order(kA, 1, 4);
  order.grace = {.cold = milliseconds(100), .running = milliseconds(300)};
  order.over_deadline = OverDeadline::kPreempt;
  ASSERT_TRUE(Apply(1, {order}).ok());
  const TenantState& tenant = *book_.Find(kA);
  book_.SeeHeld(kA, 4, start);
  book_.SeeHeld(kB, 4, start);  // nobody's
  EXPECT_FALSE(tenant.PastDeadline(start + milliseconds(1000)));
  order.seq = 2;
  order.lease_slabs = 3;
  ASSERT_TRUE(Apply(1, {order}).ok());
  book_.SeeHeld(kA, 4, start + milliseconds(1000));
  EXPECT_EQ(tenant.MayPreempt(start + milliseconds(1099)), Preemption::kNone);
  EXPECT_EQ(tenant.MayPreempt(start + milliseconds(1100)), Preemption::kIdle);
  EXPECT_FALSE(tenant.PastDeadline(start + milliseconds(1299)));
  EXPECT_TRUE(tenant.PastDeadline(start + milliseconds(1300)));
  EXPECT_EQ(tenant.MayPreempt(start + milliseconds(1300)), Preemption::kAll);
  EXPECT_THAT(PastDeadlineText(tenant, start + milliseconds(1300), "page"),
              testing::HasSubstr("tenant t1 has held more than its lease of 3 slabs at this agent "
                                 "for 1 s, longer than its grace: no new page until it fits"));
  // What the operator says counts from the next message on.
  order.over_deadline = OverDeadline::kHold;
  ASSERT_TRUE(Apply(1, {order}).ok());
  EXPECT_EQ(tenant.MayPreempt(start + milliseconds(1300)), Preemption::kNone);
  EXPECT_TRUE(tenant.PastDeadline(start + milliseconds(1300)));
  order.grace.running = std::chrono::seconds(9);
  ASSERT_TRUE(Apply(1, {order}).ok());
  EXPECT_FALSE(tenant.PastDeadline(start + milliseconds(1300)));
  book_.SeeHeld(kA, 3, start + milliseconds(2000));
  EXPECT_FALSE(tenant.PastDeadline(start + std::chrono::hours(1)));
}

// ---- Refusals -----------------------------------------------------------------------------------

class WhyRefusedTest : public TenantBookTest {
 protected:
  WhyRefusedTest() {
    EXPECT_TRUE(Apply(1, {Order(kA, 1, 4)}).ok());
    book_.ManagerHeard(TimePoint(kStart));
  }

  void Heard(uint32_t slabs, milliseconds at) {
    book_.ManagerHeard(TimePoint(kStart + at));
    book_.DemandHeard(kA, slabs, TimePoint(kStart + at));
  }
  ReclaimReason Why(uint32_t needed, milliseconds at) {
    return book_.WhyRefused(*book_.Find(kA), needed, kMost, TimePoint(kStart + at));
  }

  static constexpr milliseconds kStart{1'000'000};
  static constexpr uint32_t kMost = 20;
};

TEST_F(WhyRefusedTest, DemandThatTheManagerHasNotHeardOfMayStillBeMet) {
  EXPECT_EQ(Why(6, milliseconds(0)), ReclaimReason::kLeaseGrowing);
  Heard(6, milliseconds(20));
  EXPECT_EQ(Why(6, milliseconds(20)), ReclaimReason::kLeaseGrowing) << "others may give way first";
  EXPECT_EQ(Why(6, milliseconds(519)), ReclaimReason::kLeaseGrowing);
  EXPECT_EQ(Why(6, milliseconds(520)), ReclaimReason::kAdmission);
  Heard(6, milliseconds(530));
  EXPECT_EQ(Why(6, milliseconds(531)), ReclaimReason::kAdmission) << "the same again is no news";
  EXPECT_EQ(Why(7, milliseconds(531)), ReclaimReason::kLeaseGrowing);
}

TEST_F(WhyRefusedTest, NoLeaseGrowsWhileThereIsNoManager) {
  Heard(6, milliseconds(0));
  EXPECT_EQ(Why(7, milliseconds(500)), ReclaimReason::kLeaseGrowing);
  EXPECT_EQ(Why(7, milliseconds(501)), ReclaimReason::kAdmission);
  EXPECT_EQ(Why(7, milliseconds(100'000)), ReclaimReason::kAdmission);
  Heard(6, milliseconds(100'001));
  EXPECT_EQ(Why(7, milliseconds(100'001)), ReclaimReason::kLeaseGrowing);
}

TEST_F(WhyRefusedTest, WhatLimitOrPoolForbidIsNoGrowingLease) {
  EXPECT_EQ(Why(kMost, milliseconds(0)), ReclaimReason::kLeaseGrowing);
  EXPECT_EQ(Why(kMost + 1, milliseconds(0)), ReclaimReason::kAdmission);
}

TEST_F(WhyRefusedTest, DemandThatFallsForAMomentIsNotForgotten) {
  Heard(10, milliseconds(0));
  Heard(8, milliseconds(1000));
  EXPECT_EQ(Why(10, milliseconds(1001)), ReclaimReason::kAdmission);
  Heard(8, milliseconds(3001));
  EXPECT_EQ(Why(10, milliseconds(3002)), ReclaimReason::kLeaseGrowing);
  EXPECT_EQ(Why(8, milliseconds(3002)), ReclaimReason::kAdmission);
}

TEST_F(WhyRefusedTest, OnlyAShortageIsCountedAsARefusal) {
  ReclaimRecord record = Refusal(kA, milliseconds(0));
  record.reason = ReclaimReason::kLeaseGrowing;
  book_.Record(record);
  EXPECT_EQ(book_.Find(kA)->counters.refusals, 0u);
  record.reason = ReclaimReason::kAdmission;
  book_.Record(record);
  EXPECT_EQ(book_.Find(kA)->counters.refusals, 1u);
  EXPECT_EQ(book_.TakeRecords().size(), 2u);
}

// ---- Records ------------------------------------------------------------------------------------

TEST_F(TenantBookTest, RefusalsWithinASecondAreOneRecordAndCountOneByOne) {
  ASSERT_TRUE(Apply(1, {Order(kA, 1, 4), Order(kB, 1, 4)}).ok());
  int observed = 0;
  book_.OnRecord([&](const TenantState&, const ReclaimRecord&) { ++observed; });
  for (int i = 0; i < 100; ++i) book_.Record(Refusal(kA, milliseconds(i * 9)));
  book_.Record(Refusal(kB, milliseconds(5)));
  ReclaimRecord other_reason = Refusal(kA, milliseconds(6));
  other_reason.reason = ReclaimReason::kAdmission;
  book_.Record(other_reason);
  book_.Record(Refusal(kA, milliseconds(1000)));
  const std::vector<ReclaimRecord> records = book_.TakeRecords();
  ASSERT_EQ(records.size(), 4u);
  EXPECT_EQ(records[0].count, 100u);
  EXPECT_EQ(records[0].sessions, 100u);
  EXPECT_EQ(records[0].bytes, 1000u);
  EXPECT_EQ(records[1].tenant, kB);
  EXPECT_EQ(records[2].reason, ReclaimReason::kAdmission);
  EXPECT_EQ(records[3].bytes, 10u) << "a second later it is news";
  EXPECT_EQ(book_.Find(kA)->counters.refusals, 102u);
  EXPECT_EQ(book_.Find(kB)->counters.refusals, 1u);
  EXPECT_EQ(observed, 103);
  EXPECT_TRUE(book_.TakeRecords().empty());
  book_.Record(Refusal(kA, milliseconds(1001)));
  EXPECT_EQ(book_.TakeRecords().size(), 1u) << "what has been reported takes no more";
}

TEST_F(TenantBookTest, CompactionsWithinASecondAreOneRecordAsIfTheyHadBeenOneBatch) {
  ASSERT_TRUE(Apply(1, {Order(kA, 1, 4)}).ok());
  ReclaimRecord record{.tenant = kA,
                       .policy = "h2o",
                       .sessions = 2,
                       .bytes = 100,
                       .bytes_before = 1000,
                       .recovery = {.mean = 0.9f, .min = 0.6f, .count = 2},
                       .cumulative = {.mean = 0.6f, .min = 0.3f, .count = 2}};
  book_.Record(record);
  record = {.tenant = kA,
            .time = TimePoint(milliseconds(400)),
            .policy = "h2o",
            .sessions = 1,
            .bytes = 10,
            .bytes_before = 20};  // nothing was measured
  book_.Record(record);
  record.time = TimePoint(milliseconds(999));
  record.recovery = {.mean = 0.6f, .min = 0.5f, .count = 1};
  record.cumulative = {.mean = 0.3f, .min = 0.2f, .count = 1};
  book_.Record(record);
  const std::vector<ReclaimRecord> records = book_.TakeRecords();
  ASSERT_EQ(records.size(), 1u);
  EXPECT_EQ(records[0].time, TimePoint()) << "of the first";
  EXPECT_EQ(records[0].count, 3u);
  EXPECT_EQ(records[0].sessions, 4u);
  EXPECT_EQ(records[0].bytes, 120u);
  EXPECT_EQ(records[0].bytes_before, 1040u);
  EXPECT_FLOAT_EQ(records[0].recovery.mean, 0.8f);
  EXPECT_FLOAT_EQ(records[0].recovery.min, 0.5f);
  EXPECT_EQ(records[0].recovery.count, 3u) << "sessions that were measured";
  EXPECT_FLOAT_EQ(records[0].cumulative.mean, 0.5f);
  EXPECT_FLOAT_EQ(records[0].cumulative.min, 0.2f);
  EXPECT_EQ(records[0].cumulative.count, 3u);
}

TEST_F(TenantBookTest, ReclaimsThatDifferOrComeASecondLaterAreRecordsOfTheirOwn) {
  ASSERT_TRUE(Apply(1, {Order(kA, 1, 4), Order(kB, 1, 4)}).ok());
  const ReclaimRecord first{.tenant = kA, .policy = "h2o", .sessions = 1};
  std::vector<ReclaimRecord> others(5, first);
  others[0].tenant = kB;
  others[1].step = ReclaimStep::kRequantisation;
  others[2].reason = ReclaimReason::kLeaseShrink;
  others[3].policy = "corm";
  others[4].time = TimePoint(milliseconds(1000));
  book_.Record(first);
  for (const ReclaimRecord& other : others) {
    book_.Record(other);
    book_.Record(other);
  }
  const std::vector<ReclaimRecord> records = book_.TakeRecords();
  ASSERT_EQ(records.size(), 6u);
  EXPECT_EQ(records[0].sessions, 1u);
  for (size_t i = 1; i < records.size(); ++i) EXPECT_EQ(records[i].sessions, 2u) << i;
}

TEST_F(TenantBookTest, ABatchHandedOverOneByOneDoesNotFillTheLog) {
  ASSERT_TRUE(Apply(1, {Order(kA, 1, 4)}).ok());
  constexpr int kRecords = 5000;
  for (int i = 0; i < kRecords; ++i) {
    book_.Record({.tenant = kA, .time = TimePoint(milliseconds(i)), .sessions = 1});
  }
  const std::vector<ReclaimRecord> records = book_.TakeRecords();
  ASSERT_EQ(records.size(), 5u) << "one a second";
  for (const ReclaimRecord& record : records) EXPECT_EQ(record.sessions, 1000u);
  EXPECT_EQ(book_.Find(kA)->counters.compactions, uint64_t{kRecords});
}

TEST_F(TenantBookTest, CompactionsAreCountedAndTheirRecoveryIsSummed) {
  ASSERT_TRUE(Apply(1, {Order(kA, 1, 4)}).ok());
  int observed = 0;
  book_.OnRecord([&](const TenantState&, const ReclaimRecord&) { ++observed; });
  ReclaimRecord record{
      .tenant = kA, .sessions = 2, .recovery = {.mean = 0.9f, .min = 0.5f, .count = 2}};
  book_.Record(record);
  record.recovery = {.mean = 0.7f, .min = 0.6f, .count = 1};
  book_.Record(record);
  record.recovery = {};  // nothing was measured
  book_.Record(record);
  EXPECT_EQ(observed, 3) << "before merging";
  const TenantCounters& counters = book_.Find(kA)->counters;
  EXPECT_EQ(counters.compactions, 6u);
  EXPECT_EQ(counters.refusals, 0u);
  EXPECT_EQ(counters.recovery_count, 3u) << "sessions, not records";
  EXPECT_NEAR(counters.recovery_sum, 2.5, 1e-6);
  EXPECT_NEAR(counters.recovery_min, 0.5, 1e-6);
}

TEST_F(TenantBookTest, TheLogIsBoundedAndTheCountersAreNot) {
  ASSERT_TRUE(Apply(1, {Order(kA, 1, 4)}).ok());
  constexpr int kRecords = 5000;
  for (int i = 0; i < kRecords; ++i) book_.Record(Refusal(kA, std::chrono::seconds(2 * i), i));
  std::vector<ReclaimRecord> all;
  for (;;) {
    const std::vector<ReclaimRecord> some = book_.TakeRecords();
    if (some.empty()) break;
    EXPECT_LE(some.size(), limits::kReclaimsPerReport);
    all.insert(all.end(), some.begin(), some.end());
  }
  ASSERT_EQ(all.size(), 1024u);
  EXPECT_EQ(all.back().bytes, kRecords - 1u);
  for (size_t i = 1; i < all.size(); ++i) EXPECT_EQ(all[i].bytes, all[i - 1].bytes + 1);
  EXPECT_EQ(book_.Find(kA)->counters.refusals, uint64_t{kRecords});
}

TEST_F(TenantBookTest, CountersOutliveOrders) {
  ASSERT_TRUE(Apply(1, {Order(kA, 1, 4)}).ok());
  book_.Record(Refusal(kA, milliseconds(0)));
  ASSERT_TRUE(Apply(2, {}, Coverage::kComplete).ok());
  ASSERT_TRUE(Apply(3, {Order(kA, 1, 6)}, Coverage::kComplete).ok());
  EXPECT_EQ(book_.Find(kA)->counters.refusals, 1u);
  EXPECT_EQ(Lease(kA), 6u);
}

}  // namespace
}  // namespace kvpool
