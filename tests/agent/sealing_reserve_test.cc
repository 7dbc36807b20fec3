// The reserve: who asks first has it first, who is gone has nothing, and all of it comes back.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/sealing_reserve.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <kj/async.h>

#include <memory>

namespace kvpool {
namespace {

using Hold = kj::Own<SealingReserve::Hold>;

class SealingReserveTest : public testing::Test {
 public:
  ~SealingReserveTest() noexcept override {}  // a WaitScope's may throw

 protected:
  kj::EventLoop loop_;
  kj::WaitScope wait_{loop_};
};

TEST_F(SealingReserveTest, ThoseWhoWaitAreServedInTheirOrder) {
  SealingReserve reserve(10, 3);
  Hold first = reserve.Take(2).wait(wait_);
  EXPECT_EQ(reserve.in_use(), 2u);
  EXPECT_EQ(reserve.waits(), 0u);
  auto large = reserve.Take(3), small = reserve.Take(1);
  EXPECT_FALSE(small.poll(wait_)) << "one slab is free, but another one came before";
  EXPECT_EQ(reserve.waits(), 2u);
  first = nullptr;
  Hold all = large.wait(wait_);
  EXPECT_EQ(reserve.in_use(), 3u);
  EXPECT_FALSE(small.poll(wait_));
  all = nullptr;
  Hold last = small.wait(wait_);
  EXPECT_EQ(reserve.in_use(), 1u);
  last = nullptr;
  EXPECT_EQ(reserve.in_use(), 0u);
}

TEST_F(SealingReserveTest, WhoeverIsGoneHoldsNothingUp) {
  SealingReserve reserve(4, 1);
  Hold first = reserve.Take(1).wait(wait_);
  kj::Maybe<kj::Promise<Hold>> gone = reserve.Take(1);
  auto next = reserve.Take(1);
  gone = nullptr;
  first = nullptr;
  Hold hold = next.wait(wait_);
  hold = nullptr;
  {
    const auto unread = reserve.Take(1);
    EXPECT_EQ(reserve.in_use(), 1u);
  }
  EXPECT_EQ(reserve.in_use(), 0u);
}

TEST_F(SealingReserveTest, HoldsAndPromisesMayOutliveIt) {
  auto reserve = std::make_unique<SealingReserve>(4, 1);
  Hold first = reserve->Take(1).wait(wait_);
  auto next = reserve->Take(1);
  reserve.reset();
  first = nullptr;
  Hold second = next.wait(wait_);
  EXPECT_NE(second.get(), nullptr);
}

TEST_F(SealingReserveTest, PagesLieInTheLastSlabsOfThePool) {
  const Layout layout = *Layout::Make({.layers = 1,
                                       .query_heads = 1,
                                       .kv_heads = 1,
                                       .key_dim = 512,
                                       .value_dim = 512,
                                       .dtype = Dtype::kBf16,
                                       .kv_of_layer = {0}},
                                      64_KiB);  // two pages of 32 KiB
  SealingReserve reserve(8, 2);
  const Hold hold = reserve.Take(2).wait(wait_);
  std::vector<PageId> pages = hold->Pages(layout, 3);
  ASSERT_EQ(pages.size(), 3u);
  for (PageId page : pages) {
    EXPECT_TRUE(layout.IsPage(page));
    EXPECT_GE(layout.SlabOf(page), SlabIndex(6));
    EXPECT_LT(layout.SlabOf(page), SlabIndex(8));
  }
  EXPECT_NE(layout.SlabOf(pages[0]), layout.SlabOf(pages[2]));
  EXPECT_EQ(hold->Pages(layout, 9).size(), 4u) << "as many as there are";
}

}  // namespace
}  // namespace kvpool
