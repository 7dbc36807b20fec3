// The order in which parked pages of prefixes go: examples, and random histories against a model
// that looks through all pages each time.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/parked_order.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

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

// The rules of use of the interface, in a form that looks everything up.
struct Model {
  struct Page {
    std::optional<PrefixNode> parent;
    bool parked = false;
  };
  std::map<PrefixNode, Page> pages;

  bool IsLeaf(PrefixNode page) const {
    for (const auto& [other, entry] : pages) {
      if (entry.parent == page) return false;
    }
    return true;
  }
  size_t Parked() const {
    size_t count = 0;
    for (const auto& [page, entry] : pages) count += entry.parked ? 1 : 0;
    return count;
  }
  bool HasCandidate() const {
    for (const auto& [page, entry] : pages) {
      if (entry.parked && IsLeaf(page)) return true;
    }
    return false;
  }
};

// One random history; returns all that it was told to let go.
std::vector<PrefixNode> Play(uint64_t seed) {
  std::mt19937_64 random(seed);
  ParkedOrder order(16);
  Model model;
  std::vector<PrefixNode> gone;
  for (uint64_t now = 1; now <= 600; ++now) {
    const PrefixNode page(static_cast<uint32_t>(random() % 24));
    const auto it = model.pages.find(page);
    const uint64_t what = random() % 10;
    if (it == model.pages.end()) {
      std::optional<PrefixNode> parent;
      const PrefixNode other(static_cast<uint32_t>(random() % 24));
      if (what < 7 && model.pages.contains(other)) parent = other;
      order.Add(page, parent, PrefixKey(random() % 40), now);
      model.pages[page] = {.parent = parent};
    } else if (what < 3) {
      order.Use(page, now);
      it->second.parked = false;
    } else if (what < 8 && !it->second.parked) {
      order.Park(page);
      it->second.parked = true;
    } else if (const auto next = order.Next(); next.has_value()) {
      EXPECT_TRUE(model.pages.contains(*next) && model.pages.at(*next).parked &&
                  model.IsLeaf(*next))
          << "page " << next->value() << " may not go, seed " << seed;
      order.Remove(*next);
      model.pages.erase(*next);
      gone.push_back(*next);
    }
    EXPECT_EQ(order.parked(), model.Parked()) << "seed " << seed;
    EXPECT_EQ(order.Next().has_value(), model.HasCandidate()) << "seed " << seed;
    if (::testing::Test::HasFailure()) break;
  }
  return gone;
}

TEST(ParkedOrder, RandomHistoriesLetOnlyParkedLeavesGo) {
  for (uint64_t seed = 1; seed <= 60 && !::testing::Test::HasFailure(); ++seed) {
    EXPECT_FALSE(Play(seed).empty()) << "seed " << seed;
  }
}

TEST(ParkedOrder, TheSameHistoryLetsTheSamePagesGo) {
  for (uint64_t seed = 1; seed <= 5; ++seed) EXPECT_EQ(Play(seed), Play(seed));
}

}  // namespace
}  // namespace kvpool
