// What every store must do, whatever lies beneath. A store's test makes a rig and instantiates the
// suite with it:
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
  // A manager's start; the store of the one before is gone.
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
    auto contents = store_->Begin();
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
