// Keys, and the index against one as simple as can be.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/prefix_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "proto/limits.h"

namespace kvpool {
namespace {

constexpr PrefixSecret kSecret = {1, 2, 3};
constexpr TimePoint kStart = TimePoint(std::chrono::hours(1));

std::vector<uint32_t> Tokens(uint32_t first, uint32_t count) {
  std::vector<uint32_t> tokens(count);
  for (uint32_t i = 0; i < count; ++i) tokens[i] = first + i;
  return tokens;
}

std::vector<PageKey> Chain(const std::vector<uint32_t>& tokens) {
  return PageKeys(kSecret, RootKey(kSecret, "m"), tokens);
}

TEST(PrefixKeys, AreOfWholePagesAndOfAllTokensBeforeThem) {
  EXPECT_TRUE(Chain(Tokens(0, 15)).empty());
  const std::vector<PageKey> keys = Chain(Tokens(0, 47));
  ASSERT_EQ(keys.size(), 2u);
  EXPECT_EQ(Chain(Tokens(0, 32)), keys);
  // The same second page behind another first one.
  std::vector<uint32_t> other = Tokens(0, 32);
  other[3] = 77;
  EXPECT_NE(Chain(other)[1], keys[1]);
  // Continued from a page's key, as from the beginning.
  EXPECT_EQ(PageKeys(kSecret, keys[0], Tokens(16, 16))[0], keys[1]);
}

TEST(PrefixKeys, DependOnTheSecretAndTheModel) {
  const std::vector<uint32_t> tokens = Tokens(0, 16);
  const PrefixSecret other = DrawPrefixSecret().value();
  EXPECT_NE(other, DrawPrefixSecret().value());
  const PageKey key = Chain(tokens)[0];
  EXPECT_NE(PageKeys(other, RootKey(kSecret, "m"), tokens)[0], key);
  EXPECT_NE(RootKey(other, "m"), RootKey(kSecret, "m"));
  EXPECT_NE(PageKeys(kSecret, RootKey(kSecret, "n"), tokens)[0], key);
  // A root is no page: lengths come first, so no name of a model looks like one.
  std::string model;
  for (int i = 0; i < 84; ++i) model.push_back(static_cast<char>(i));
  EXPECT_NE(RootKey(kSecret, model), key);
}

TEST(PrefixKeys, AreHmacSha256) {
  // hmac.new(bytes([1, 2, 3] + [0] * 29), b"\x01\0\0\0m", "sha256").digest()[:16]
  const PageKey expected = {0x98, 0x69, 0x7a, 0x8e, 0x1c, 0x57, 0xcf, 0xfd,
                            0x52, 0x20, 0x4f, 0x3e, 0xc4, 0x98, 0x9b, 0x55};
  EXPECT_EQ(RootKey(kSecret, "m"), expected);
}

TEST(PrefixIndex, FindsTheLongestBeginning) {
  PrefixIndex index(kSecret, 100);
  const std::vector<PageKey> chain = Chain(Tokens(0, 64));
  for (uint32_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(index.Add(std::span(chain).first(i + 1), PageId(10 + i)));
  }
  EXPECT_EQ(index.Find(chain), (std::vector<PageId>{PageId(10), PageId(11), PageId(12)}));
  std::vector<uint32_t> other = Tokens(0, 64);
  other[20] = 99;
  EXPECT_EQ(index.Find(Chain(other)), std::vector<PageId>{PageId(10)});
  EXPECT_FALSE(index.Add(std::span(chain).first(2), PageId(40))) << "known already";
  EXPECT_EQ(index.held(), 3u);
  index.LetGo(std::span(chain).first(3), kStart);
  EXPECT_EQ(index.parked(), 3u);
  EXPECT_EQ(index.Find(chain).size(), 3u) << "parked pages are found";
}

TEST(PrefixIndex, IsNeverLargerThanItMayBe) {
  PrefixIndex index(kSecret, limits::kPrefixPages);
  PageKey key{};
  for (uint32_t i = 0; i < limits::kPrefixPages; ++i) {
    std::memcpy(key.data(), &i, sizeof(i));
    ASSERT_TRUE(index.Add({&key, 1}, PageId(i)));
  }
  EXPECT_TRUE(index.full());
  key.fill(0xff);
  EXPECT_FALSE(index.Add({&key, 1}, PageId(1)));
  PageKey first{};
  index.LetGo({&first, 1}, kStart);
  EXPECT_EQ(index.Drop(1), std::vector<PageId>{PageId(0)});
  EXPECT_TRUE(index.Add({&key, 1}, PageId(1)));
}

TEST(PrefixIndex, DropsLeavesFirstAndNothingThatIsHeld) {
  PrefixIndex index(kSecret, 100);
  const std::vector<PageKey> chain = Chain(Tokens(0, 64));
  for (uint32_t i = 0; i < 4; ++i) index.Add(std::span(chain).first(i + 1), PageId(i));
  index.Hold(std::span(chain).first(2));
  index.LetGo(chain, kStart);
  EXPECT_EQ(index.parked(), 2u);
  EXPECT_EQ(index.Drop(1), std::vector<PageId>{PageId(3)});
  EXPECT_EQ(index.Drop(9), std::vector<PageId>{PageId(2)});
  EXPECT_EQ(index.Find(chain).size(), 2u);
}

TEST(PrefixIndex, ForgetsWhatHasBeenParkedForLong) {
  PrefixIndex index(kSecret, 100);
  const std::vector<PageKey> a = Chain(Tokens(0, 32)), b = Chain(Tokens(500, 16));
  index.Add(std::span(a).first(1), PageId(0));
  index.Add(a, PageId(1));
  index.Add(b, PageId(2));
  index.LetGo(a, kStart);
  index.LetGo(b, kStart + std::chrono::seconds(5));
  EXPECT_TRUE(index.DropParkedBefore(kStart).empty());
  EXPECT_EQ(index.DropParkedBefore(kStart + std::chrono::seconds(1)),
            (std::vector<PageId>{PageId(1), PageId(0)}));
  EXPECT_EQ(index.Find(b).size(), 1u);
}

TEST(PrefixIndex, TakesOutWhatItsOnlyHolderWantsAndWhatHangsOnIt) {
  PrefixIndex index(kSecret, 100);
  const std::vector<PageKey> chain = Chain(Tokens(0, 64));
  std::vector<uint32_t> branch_tokens = Tokens(0, 48);
  branch_tokens[40] = 99;  // behind the second page
  const std::vector<PageKey> branch = Chain(branch_tokens);
  for (uint32_t i = 0; i < 4; ++i) index.Add(std::span(chain).first(i + 1), PageId(i));
  index.Hold(std::span(branch).first(2));
  index.Add(branch, PageId(9));
  index.LetGo(branch, kStart);
  std::vector<PageId> out = index.TakeOut(chain, 1);
  std::sort(out.begin(), out.end());
  EXPECT_EQ(out, (std::vector<PageId>{PageId(1), PageId(2), PageId(3), PageId(9)}));
  EXPECT_EQ(index.Find(chain).size(), 1u);
  EXPECT_EQ(index.held(), 1u);
}

// Random sessions over few tokens, so that prompts share beginnings, against sets.
class IndexModel {
 public:
  explicit IndexModel(uint64_t seed) : random_(seed) {}

  void Step() {
    switch (random_() % 6) {
      case 0:
      case 1:
        return Open();
      case 2:
        return Close();
      case 3:
        return Check(index_.Drop(random_() % 4));
      case 4:
        return Check(index_.DropIf([](PageId page) { return page.value() % 7 == 3; }));
      default:
        return TakeOut();
    }
  }

  void Compare() const {
    std::set<PageKey> held;
    for (const auto& chain : sessions_) held.insert(chain.begin(), chain.end());
    EXPECT_EQ(index_.held(), held.size());
    EXPECT_EQ(index_.pages(), pages_.size());
    for (const auto& chain : sessions_) ASSERT_EQ(index_.Find(chain).size(), chain.size());
  }

 private:
  std::vector<PageKey> RandomChain() {
    std::vector<uint32_t> tokens;
    const size_t pages = 1 + random_() % 5;
    for (size_t i = 0; i < pages; ++i) {
      const std::vector<uint32_t> page = Tokens(static_cast<uint32_t>(random_() % 3), 16);
      tokens.insert(tokens.end(), page.begin(), page.end());
    }
    return Chain(tokens);
  }

  void Open() {
    const std::vector<PageKey> chain = RandomChain();
    const std::vector<PageId> found = index_.Find(chain);
    for (size_t i = 0; i < found.size(); ++i) EXPECT_EQ(pages_.at(found[i]), chain[i]);
    index_.Hold(std::span(chain).first(found.size()));
    std::vector<PageKey> holds(chain.begin(), chain.begin() + found.size());
    for (size_t i = found.size(); i < chain.size(); ++i) {
      holds.push_back(chain[i]);
      if (!index_.Add(holds, PageId(next_))) {
        EXPECT_EQ(pages_.size(), kMost);
        holds.pop_back();
        break;
      }
      pages_[PageId(next_++)] = chain[i];
    }
    if (!holds.empty()) sessions_.push_back(holds);
  }

  void Close() {
    if (sessions_.empty()) return;
    const size_t which = random_() % sessions_.size();
    index_.LetGo(sessions_[which], kStart);
    sessions_.erase(sessions_.begin() + static_cast<std::ptrdiff_t>(which));
  }

  // Nothing that a session holds.
  void Check(const std::vector<PageId>& dropped) {
    for (const PageId page : dropped) {
      const PageKey key = pages_.at(page);
      for (const auto& chain : sessions_) {
        EXPECT_EQ(std::count(chain.begin(), chain.end(), key), 0);
      }
      pages_.erase(page);
    }
  }

  void TakeOut() {
    if (sessions_.empty()) return;
    std::vector<PageKey>& chain = sessions_[random_() % sessions_.size()];
    const auto alone = std::find_if(chain.begin(), chain.end(), [&](const PageKey& key) {
      return std::count_if(sessions_.begin(), sessions_.end(), [&](const auto& other) {
               return std::count(other.begin(), other.end(), key) > 0;
             }) == 1;
    });
    if (alone == chain.end()) return;
    const auto first = static_cast<size_t>(alone - chain.begin());
    const std::vector<PageId> out = index_.TakeOut(chain, first);
    chain.resize(first);
    Check(out);
    if (chain.empty()) std::erase(sessions_, std::vector<PageKey>());
  }

  static constexpr size_t kMost = 60;
  std::mt19937_64 random_;
  PrefixIndex index_{kSecret, kMost};
  std::map<PageId, PageKey> pages_;
  std::vector<std::vector<PageKey>> sessions_;
  uint32_t next_ = 0;
};

TEST(PrefixIndex, IsWhatASimpleOneIs) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    IndexModel model(seed);
    for (int step = 0; step < 500; ++step) {
      model.Step();
      model.Compare();
      ASSERT_FALSE(::testing::Test::HasFailure()) << "step " << step << " of seed " << seed;
    }
  }
}

}  // namespace
}  // namespace kvpool
