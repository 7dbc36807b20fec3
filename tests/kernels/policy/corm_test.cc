// CORM against its algorithm written down literally, a message of one bit for each of the last w
// queries and each key, over random probabilities.
//
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <deque>
#include <random>
#include <set>

#include "kernels/policy/policy.h"
#include "tests/kernels/test_session.h"

namespace kvpool {
namespace {

const Geometry kGeometry = TestGeometry(1, 1, 1, 8, 8, Dtype::kF32);

std::unique_ptr<const Policy> Corm(uint32_t window, uint32_t recent, uint32_t slack = 16) {
  return MakePolicy(
      *MakePolicySpec("corm", {{"window", window}, {"recent", recent}, {"slack", slack}}));
}

// The paper's listing: keys and the message M, a ring of the last w rows, one column a key.
class PaperHead {
 public:
  PaperHead(uint32_t window, uint32_t recent) : window_(window), recent_(recent) {}

  const std::vector<uint32_t>& keys() const { return keys_; }
  const std::deque<std::vector<bool>>& message() const { return message_; }
  void Append(uint32_t key) {
    keys_.push_back(key);
    for (std::vector<bool>& row : message_) row.push_back(false);
  }
  void Push(std::vector<bool> row) {
    message_.push_back(std::move(row));
    if (message_.size() > window_) message_.pop_front();
  }
  void Evict() {
    if (message_.size() < window_) return;
    const std::vector<uint32_t> keys = std::move(keys_);
    std::deque<std::vector<bool>> message(message_.size());
    keys_.clear();
    for (size_t i = 0; i < keys.size(); ++i) {
      bool keep = i + recent_ >= keys.size();
      for (const std::vector<bool>& row : message_) keep = keep || row[i];
      if (!keep) continue;
      keys_.push_back(keys[i]);
      for (size_t q = 0; q < message.size(); ++q) message[q].push_back(message_[q][i]);
    }
    message_ = std::move(message);
  }

 private:
  const uint32_t window_, recent_;
  std::vector<uint32_t> keys_;
  std::deque<std::vector<bool>> message_;
};

// A head under the policy: drains, planes and selections, its marks made beforehand.
class PlaneHead {
 public:
  explicit PlaneHead(const Policy& policy)
      : policy_(policy), planes_(kGeometry, policy.Needs().planes) {}

  const std::vector<uint32_t>& keys() const { return planes_.positions(0); }
  PolicyState State() const {
    return {.geometry = &kGeometry,
            .step = step_,
            .length = planes_.rows(0),
            .compacted_step = compacted_step_,
            .compacted_length = compacted_length_,
            .observed = planes_.observed()};
  }
  bool due() const { return planes_.rows(0) >= *policy_.NextCompactAt(State()); }
  void Append() { planes_.Append(step_++, 1); }
  void Push(const std::vector<bool>& row) {
    pending_.push_back(row);
    if (pending_.size() == kDrainQueries) Drain();
  }
  void Drain() {
    if (pending_.empty()) return;
    planes_.BeginDrain(static_cast<uint32_t>(pending_.size()), step_);
    const uint32_t first = step_ - static_cast<uint32_t>(pending_.size()) + 1;  // a query's step
    for (size_t q = 0; q < pending_.size(); ++q) {
      for (size_t row = 0; row < pending_[q].size(); ++row) {
        if (!pending_[q][row]) continue;
        planes_.last_hits(0)[row] = static_cast<uint16_t>(first + q - planes_.hit_base());
      }
    }
    pending_.clear();
  }
  // Whether something was selected.
  bool Compact() {
    const std::optional<Selection> selection = policy_.Compact(State());
    if (!selection.has_value()) return false;
    planes_.Gather(0, Select(*selection, kGeometry, planes_, {{}}).front());
    compacted_step_ = step_;
    compacted_length_ = planes_.rows(0);
    return true;
  }

 private:
  const Policy& policy_;
  Planes planes_;
  uint32_t step_ = 0, compacted_step_ = 0, compacted_length_ = 0;
  std::vector<std::vector<bool>> pending_;
};

// Some keys are marked often, most hardly ever.
std::vector<bool> Marks(const std::vector<uint32_t>& keys, std::mt19937& random) {
  std::vector<bool> marks;
  for (uint32_t key : keys) marks.push_back(random() % 1000 < (key % 7 == 0 ? 30u : 4u));
  return marks;
}

// P1 to P4 and P6, at every step of sessions longer than two bytes of steps can count.
TEST(Corm, LastHitsEqualTheMessageBitForBit) {
  const struct {
    uint32_t window, recent, slack, steps;
  } cases[] = {{1, 1, 16, 300},     {8, 4, 16, 500},      {33, 16, 40, 1000},
               {256, 64, 64, 2000}, {300, 200, 16, 1500}, {40, 10, 500, 140000}};
  for (const auto& c : cases) {
    std::mt19937 random(c.window + c.recent);
    const auto policy = Corm(c.window, c.recent, c.slack);
    PaperHead paper(c.window, c.recent);
    PlaneHead head(*policy);
    uint32_t compactions = 0, dropped = 0;
    for (uint32_t step = 0; step < c.steps; ++step) {
      if (head.due()) {
        head.Drain();
        const std::vector<uint32_t> before = paper.keys();
        const std::deque<std::vector<bool>> message = paper.message();
        paper.Evict();
        compactions += head.Compact() ? 1 : 0;
        ASSERT_EQ(head.keys(), paper.keys()) << "w " << c.window << " step " << step;
        const std::set<uint32_t> kept(head.keys().begin(), head.keys().end());
        for (size_t i = 0; i < before.size(); ++i) {
          bool important = false;
          for (const std::vector<bool>& row : message) important = important || row[i];
          if (important || i + c.recent >= before.size() || step < c.window) {
            ASSERT_TRUE(kept.contains(before[i]));  // P1, P2, P6
          } else {
            ASSERT_FALSE(kept.contains(before[i]));  // P3
            ++dropped;
          }
        }
      }
      head.Append();
      paper.Append(step);
      const std::vector<bool> marks = Marks(paper.keys(), random);
      head.Push(marks);
      paper.Push(marks);
    }
    EXPECT_GT(compactions, 3u) << "w " << c.window;
    EXPECT_GT(dropped, 10u) << "w " << c.window;
  }
}

// P5: on the same probabilities a longer window keeps all that a shorter one keeps; one that is as
// long as the session loses nothing that was ever marked.
TEST(Corm, LongerWindowsKeepMore) {
  constexpr uint32_t kSteps = 400;
  std::mt19937 random(7);
  std::vector<uint32_t> keys;
  std::vector<std::vector<bool>> marks;
  std::set<uint32_t> marked;
  for (uint32_t step = 0; step < kSteps; ++step) {
    keys.push_back(step);
    marks.push_back(Marks(keys, random));
    for (uint32_t key : keys) {
      if (marks.back()[key]) marked.insert(key);
    }
  }
  std::set<uint32_t> before;
  for (uint32_t window : {1u, 5u, 32u, 100u, 399u, kSteps}) {
    const auto policy = Corm(window, 8);
    PlaneHead head(*policy);
    for (uint32_t step = 0; step < kSteps; ++step) {
      head.Append();
      head.Push(marks[step]);
    }
    head.Drain();
    ASSERT_TRUE(head.Compact());
    const std::set<uint32_t> kept(head.keys().begin(), head.keys().end());
    EXPECT_TRUE(std::includes(kept.begin(), kept.end(), before.begin(), before.end())) << window;
    EXPECT_LT(kept.size(), keys.size());
    before = kept;
  }
  EXPECT_TRUE(std::includes(before.begin(), before.end(), marked.begin(), marked.end()));
}

// P6, and when it is due: with w queries scored, and then every `slack` tokens.
TEST(Corm, NothingGoesBeforeItHasSeenEnough) {
  const auto policy = Corm(64, 16, 32);
  PolicyState state{.geometry = &kGeometry, .step = 63, .length = 63, .observed = 63};
  EXPECT_FALSE(policy->Compact(state).has_value());
  EXPECT_EQ(policy->NextCompactAt({.geometry = &kGeometry}), 64u);
  EXPECT_EQ(policy->NextCompactAt(state), 64u);
  state = {.geometry = &kGeometry, .step = 64, .length = 64, .observed = 64};
  ASSERT_TRUE(policy->Compact(state).has_value());
  EXPECT_EQ(policy->Compact(state)->heads[0].hit_since, 1u);
  state.compacted_step = 64;
  state.length = state.compacted_length = 40;
  EXPECT_EQ(policy->NextCompactAt(state), 72u);
  state.step = 100;
  EXPECT_EQ(policy->Compact(state)->heads[0].hit_since, 37u);
  EXPECT_EQ(policy->Compact(state)->heads[0].recent, 16u);
  EXPECT_EQ(policy->PeakTokens({.max_tokens = 5000, .chunk = 64}), 5000u) << "there is no budget";
}

TEST(Corm, ItsNeeds) {
  const PolicyNeeds needs = Corm(256, 256)->Needs();
  EXPECT_EQ(needs.planes, (PlaneSet{.last_hit = true}));
  EXPECT_EQ(needs.queries, QueryNeed::kExact);
  EXPECT_EQ(needs.prompt_rows, 256u);
  const auto cached = MakePolicy(*MakePolicySpec("corm", {{"threshold", "inv_cached"}}));
  EXPECT_EQ(cached->Needs().planes.threshold, Threshold::kInverseCached);
}

}  // namespace
}  // namespace kvpool
