// The set against std::set.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/index_set.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace kvpool {
namespace {

TEST(IndexSetTest, BehavesLikeASet) {
  for (unsigned seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const size_t size = 1 + random() % 200;
    IndexSet a(size), b(size);
    std::set<size_t> in_a, in_b;
    for (size_t i = 0; i < size; ++i) {
      const size_t index = random() % size;
      a.Insert(index);
      in_a.insert(index);
      b.Insert(random() % 2 == 0 ? index : index / 2);
      b.Erase(index);
    }
    EXPECT_EQ(a.Empty(), in_a.empty());
    for (size_t i = b.Next(0); i != IndexSet::kNone; i = b.Next(i + 1)) in_b.insert(i);
    for (size_t i = 0, next = 0; i < size; ++i) {
      if (in_a.contains(i)) {
        EXPECT_EQ(a.Next(next), i);
        next = i + 1;
      }
      const bool common = IndexSet::NextInBoth(a, b, i) == i;
      EXPECT_EQ(common, in_a.contains(i) && in_b.contains(i));
    }
    IndexSet both = a;
    both.Insert(b);
    a.Erase(b);
    for (size_t i = 0; i < size; ++i) {
      EXPECT_EQ(a.Next(i) == i, in_a.contains(i) && !in_b.contains(i));
      EXPECT_EQ(both.Next(i) == i, in_a.contains(i) || in_b.contains(i));
    }
    EXPECT_EQ(a.Next(size), IndexSet::kNone);
  }
}

}  // namespace
}  // namespace kvpool
