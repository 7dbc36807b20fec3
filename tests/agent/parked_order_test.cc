// The order in which parked pages of prefixes go: examples, and random histories against a model
// that looks through all pages each time.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/parked_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <tuple>
#include <vector>

namespace kvpool {
namespace {

PrefixNode Node(uint32_t n) { return PrefixNode(n); }

// Adds a chain of pages numbered from `first`, in use.
void AddChain(ParkedOrder* order, uint32_t first, uint32_t pages, uint64_t now) {
  for (uint32_t i = 0; i < pages; ++i) {
    const auto parent = i == 0 ? std::nullopt : std::optional(Node(first + i - 1));
    order->Add(Node(first + i), parent, PrefixKey(first + i), now);
  }
}

void ParkAll(ParkedOrder* order, uint32_t first, uint32_t pages) {
  for (uint32_t i = 0; i < pages; ++i) order->Park(Node(first + i));
}

TEST(ParkedOrder, NothingGoesThatIsInUse) {
  ParkedOrder order(8);
  EXPECT_EQ(order.Next(), std::nullopt);
  AddChain(&order, 0, 3, 1);
  EXPECT_EQ(order.Next(), std::nullopt);
  ParkAll(&order, 0, 3);
  EXPECT_EQ(order.parked(), 3u);
  order.Use(Node(2), 2);
  EXPECT_EQ(order.Next(), std::nullopt) << "what is before a page in use has a page behind it";
  order.Park(Node(2));
  EXPECT_EQ(order.Next(), Node(2));
}

TEST(ParkedOrder, AChainGoesFromItsEnd) {
  ParkedOrder order(8);
  AddChain(&order, 0, 4, 1);
  ParkAll(&order, 0, 4);
  for (uint32_t page = 4; page-- > 0;) {
    ASSERT_EQ(order.Next(), Node(page));
    order.Remove(Node(page));
  }
  EXPECT_EQ(order.Next(), std::nullopt);
  EXPECT_EQ(order.parked(), 0u);
}

TEST(ParkedOrder, OfPagesUsedOnceTheOldestGoes) {
  ParkedOrder order(8);
  AddChain(&order, 0, 2, 1);
  AddChain(&order, 2, 2, 2);
  ParkAll(&order, 2, 2);
  ParkAll(&order, 0, 2);
  EXPECT_EQ(order.Next(), Node(1));
}

TEST(ParkedOrder, ANumberCanBeUsedAgain) {
  ParkedOrder order(8);
  AddChain(&order, 0, 2, 1);
  ParkAll(&order, 0, 2);
  order.Remove(Node(1));
  order.Remove(Node(0));
  order.Add(Node(1), std::nullopt, PrefixKey(9), 2);
  order.Park(Node(1));
  EXPECT_EQ(order.Next(), Node(1));
  EXPECT_EQ(order.children(Node(1)), 0u);
}

TEST(ParkedOrder, WhatCameBackBeforeIsKeptForAsLongAsItTook) {
  ParkedOrder order(8);
  AddChain(&order, 0, 1, 10);
  ParkAll(&order, 0, 1);
  order.Use(Node(0), 110);  // 100 later
  order.Park(Node(0));
  AddChain(&order, 1, 1, 209);
  ParkAll(&order, 1, 1);
  EXPECT_EQ(order.Next(), Node(1));
  order.Remove(Node(1));
  AddChain(&order, 2, 1, 211);
  ParkAll(&order, 2, 1);
  EXPECT_EQ(order.Next(), Node(0)) << "it should have come back by now";
}

TEST(ParkedOrder, UsesAreRememberedWhenAPageHasGone) {
  ParkedOrder order(1);
  AddChain(&order, 0, 1, 10);
  order.Remove(Node(0));
  order.Add(Node(0), std::nullopt, PrefixKey(0), 110);
  AddChain(&order, 1, 1, 120);
  ParkAll(&order, 0, 2);
  EXPECT_EQ(order.Next(), Node(1));
}

TEST(ParkedOrder, NoMorePagesAreRememberedThanItWasTold) {
  ParkedOrder order(1);
  AddChain(&order, 0, 1, 10);
  AddChain(&order, 1, 1, 10);
  order.Remove(Node(0));
  order.Remove(Node(1));
  order.Add(Node(0), std::nullopt, PrefixKey(0), 110);
  AddChain(&order, 2, 1, 120);
  order.Park(Node(0));
  order.Park(Node(2));
  EXPECT_EQ(order.Next(), Node(0)) << "its first use is forgotten";
}

// The rule as the header says it, from the whole history and with nothing kept in order.
class Model {
 public:
  struct Page {
    std::optional<PrefixNode> parent;
    PrefixKey key;
    bool parked = false;
    uint64_t rank = 0, order = 0;
  };
  std::map<PrefixNode, Page> pages;

  void Use(Page* page, uint64_t now) {
    std::vector<uint64_t>& uses = uses_[page->key];
    if (!uses.empty()) {
      sum_ += now - uses.back();
      if (++count_ == 4096) {
        sum_ /= 2;
        count_ /= 2;
      }
    }
    const uint64_t before = std::min<uint64_t>(uses.size(), ParkedOrder::kUsesThatCount);
    page->rank = now + (count_ == 0 ? 0 : sum_ / count_) * before;
    page->parked = false;
    uses.push_back(now);
  }
  void Park(Page* page) {
    page->parked = true;
    page->order = ++parks_;
  }
  void Remove(PrefixNode page, size_t remembered) {
    gone_.push_back(pages.at(page).key);
    pages.erase(page);
    if (gone_.size() <= remembered) return;
    const PrefixKey oldest = gone_.front();
    gone_.erase(gone_.begin());
    bool known = std::find(gone_.begin(), gone_.end(), oldest) != gone_.end();
    for (const auto& [node, entry] : pages) known |= entry.key == oldest;
    if (!known) uses_.erase(oldest);
  }
  size_t Parked() const {
    size_t count = 0;
    for (const auto& [page, entry] : pages) count += entry.parked ? 1 : 0;
    return count;
  }
  std::optional<PrefixNode> Next() const {
    std::optional<PrefixNode> next;
    for (const auto& [page, entry] : pages) {
      if (!entry.parked || !IsLeaf(page)) continue;
      if (!next.has_value() || std::tie(entry.rank, entry.order) <
                                   std::tie(pages.at(*next).rank, pages.at(*next).order)) {
        next = page;
      }
    }
    return next;
  }

 private:
  bool IsLeaf(PrefixNode page) const {
    for (const auto& [other, entry] : pages) {
      if (entry.parent == page) return false;
    }
    return true;
  }

  std::map<PrefixKey, std::vector<uint64_t>> uses_;
  std::vector<PrefixKey> gone_;  // newest last
  uint64_t sum_ = 0, count_ = 0, parks_ = 0;
};

constexpr size_t kRemembered = 12;

// One random history; returns all that it was told to let go.
std::vector<PrefixNode> Play(uint64_t seed, uint64_t steps) {
  std::mt19937_64 random(seed);
  ParkedOrder order(kRemembered);
  Model model;
  std::set<uint64_t> keys;  // of pages that are there: no two hold the same
  std::vector<PrefixNode> gone;
  uint64_t now = 1;
  for (uint64_t step = 0; step < steps && !::testing::Test::HasFailure(); ++step) {
    now += random() % 3;
    const PrefixNode page(static_cast<uint32_t>(random() % 24));
    const auto it = model.pages.find(page);
    const uint64_t what = random() % 10;
    const uint64_t key = random() % 60;
    if (it == model.pages.end()) {
      if (keys.contains(key)) continue;
      std::optional<PrefixNode> parent;
      const PrefixNode other(static_cast<uint32_t>(random() % 24));
      if (what < 7 && model.pages.contains(other)) parent = other;
      order.Add(page, parent, PrefixKey(key), now);
      model.Use(&(model.pages[page] = {.parent = parent, .key = PrefixKey(key)}), now);
      keys.insert(key);
    } else if (what < 3) {
      order.Use(page, now);
      model.Use(&it->second, now);
    } else if (what < 8 && !it->second.parked) {
      order.Park(page);
      model.Park(&it->second);
    } else if (const auto next = order.Next(); next.has_value()) {
      gone.push_back(*next);
      keys.erase(model.pages.at(*next).key.value());
      order.Remove(*next);
      model.Remove(*next, kRemembered);
    }
    EXPECT_EQ(order.parked(), model.Parked()) << "seed " << seed << " step " << step;
    EXPECT_EQ(order.Next(), model.Next()) << "seed " << seed << " step " << step;
  }
  return gone;
}

TEST(ParkedOrder, RandomHistoriesGoAsTheModelSays) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    EXPECT_GT(Play(seed, 600).size(), 50u) << "seed " << seed;
    if (HasFailure()) break;
  }
}

TEST(ParkedOrder, ALongHistoryToo) { EXPECT_GT(Play(1000, 40'000).size(), 4'000u); }

TEST(ParkedOrder, TheSameHistoryLetsTheSamePagesGo) {
  for (uint64_t seed = 1; seed <= 5; ++seed) EXPECT_EQ(Play(seed, 600), Play(seed, 600));
}

}  // namespace
}  // namespace kvpool
