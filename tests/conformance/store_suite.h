// What every store must do, whatever lies beneath: keep records, and let one manager lead. A
// store's test makes a rig and instantiates the suite with it:
//
//   INSTANTIATE_TEST_SUITE_P(Sqlite, StoreSuite, Values([] { return ...; }));
//
// Test code, one thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "manager/store.h"

namespace kvpool {

// Where a store's records lie: an empty place, kept until this is destroyed.
class StoreRig {
 public:
  virtual ~StoreRig() = default;
  // A manager's start. A store that only one manager can have open may refuse a second one here
  // (FailedPrecondition).
  virtual absl::StatusOr<std::unique_ptr<Store>> Open() = 0;
};

class StoreSuite : public ::testing::TestWithParam<std::function<std::unique_ptr<StoreRig>()>> {
 protected:
  // As a restarted manager does.
  Store::Contents Reopen() {
    store_.reset();
    auto store = rig_->Open();
    EXPECT_TRUE(store.ok()) << store.status();
    if (!store.ok()) return {};
    store_ = *std::move(store);
    return Lead(*store_);
  }
  // Campaigns, where nobody else leads, and begins.
  Store::Contents Lead(Store& store) {
    const auto standing = store.Campaign();
    EXPECT_TRUE(standing.ok()) << standing.status();
    if (!standing.ok()) return {};
    EXPECT_TRUE(standing->leads_until.has_value()) << standing->leader << " leads";
    auto contents = store.Begin();
    EXPECT_TRUE(contents.ok()) << contents.status();
    return contents.ok() ? *contents : Store::Contents();
  }

  std::unique_ptr<StoreRig> rig_ = GetParam()();
  std::unique_ptr<Store> store_;
};

TEST_P(StoreSuite, ANewStoreIsEmpty) {
  const Store::Contents contents = Reopen();
  EXPECT_GE(contents.epoch, 1u);
  EXPECT_TRUE(contents.records.empty());
}

TEST_P(StoreSuite, TheEpochRisesWithEachStart) {
  const uint64_t first = Reopen().epoch;
  const uint64_t second = Reopen().epoch;
  EXPECT_GT(second, first);
  EXPECT_GT(Reopen().epoch, second);
}

TEST_P(StoreSuite, WhatWasWrittenSurvives) {
  Reopen();
  std::string bytes;
  for (int c = 1; c < 128; ++c) bytes.push_back(static_cast<char>(c));
  ASSERT_TRUE(store_->Write({{"a/1", "one"}, {"a/2", ""}, {"b", bytes}}).ok());
  ASSERT_TRUE(store_->Write({{"a/1", "new"}, {"a/2", std::nullopt}, {"none", std::nullopt}}).ok());
  ASSERT_TRUE(store_->Write({}).ok());
  EXPECT_THAT(Reopen().records,
              ::testing::ElementsAre(::testing::Pair("a/1", "new"), ::testing::Pair("b", bytes)));
}

TEST_P(StoreSuite, ALeaderLeadsForAWhileAndLongerWhenItRenewsThat) {
  auto store = rig_->Open();
  ASSERT_TRUE(store.ok()) << store.status();
  const auto standing = (*store)->Campaign();
  ASSERT_TRUE(standing.ok()) << standing.status();
  ASSERT_TRUE(standing->leads_until.has_value());
  EXPECT_GT(*standing->leads_until, BootClock::now());
  const auto until = (*store)->Renew();
  ASSERT_TRUE(until.ok()) << until.status();
  EXPECT_GE(*until, *standing->leads_until);
}

TEST_P(StoreSuite, OneLeadsAtATimeAndItsSuccessorKnowsMore) {
  const uint64_t epoch = Reopen().epoch;
  ASSERT_TRUE(store_->Write({{"a", "1"}}).ok());
  auto second = rig_->Open();
  if (second.ok()) {
    const auto standing = (*second)->Campaign();
    ASSERT_TRUE(standing.ok()) << standing.status();
    EXPECT_FALSE(standing->leads_until.has_value());
    EXPECT_FALSE(standing->leader.empty());
  } else {
    EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition) << second.status();
  }
  ASSERT_TRUE(store_->Write({{"b", "2"}}).ok()) << "the campaign of another one has no effect";
  store_.reset();
  if (!second.ok()) second = rig_->Open();
  ASSERT_TRUE(second.ok()) << second.status();
  const Store::Contents contents = Lead(**second);
  EXPECT_GT(contents.epoch, epoch);
  EXPECT_THAT(contents.records,
              ::testing::ElementsAre(::testing::Pair("a", "1"), ::testing::Pair("b", "2")));
}

TEST_P(StoreSuite, WhoHasResignedMayLeadAgainInAHigherEpoch) {
  const uint64_t epoch = Reopen().epoch;
  ASSERT_TRUE(store_->Write({{"a", "1"}}).ok());
  store_->Resign();
  const Store::Contents contents = Lead(*store_);
  EXPECT_GT(contents.epoch, epoch);
  EXPECT_THAT(contents.records, ::testing::ElementsAre(::testing::Pair("a", "1")));
  EXPECT_TRUE(store_->Write({{"a", "2"}}).ok());
}

TEST_P(StoreSuite, AsManyRecordsAsThereCanBeAreWrittenAtOnce) {
  Reopen();
  Store::Changes changes;
  for (int i = 0; i < 600; ++i) changes["tenant/" + std::to_string(i)] = std::string(1000, 'x');
  ASSERT_TRUE(store_->Write(changes).ok());
  const Store::Contents contents = Reopen();
  ASSERT_EQ(contents.records.size(), changes.size());
  for (const auto& [key, value] : contents.records) EXPECT_EQ(value, changes.at(key)) << key;
}

}  // namespace kvpool
