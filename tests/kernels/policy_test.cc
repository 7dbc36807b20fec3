// Policies: what they need, when they are due, what they leave; Scissorhands against the paper's
// algorithm written down literally.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/kernels/test_session.h"

namespace kvpool {
namespace {

std::unique_ptr<const Policy> Make(const std::string& name, const PolicyValues& parameters) {
  return MakePolicy(*MakePolicySpec(name, parameters));
}

const Geometry kGeometry = TestGeometry(1, 1, 1, 8, 8, Dtype::kF32);

std::optional<Selection> CompactAt(const Policy& policy, uint32_t length) {
  return policy.Compact({.geometry = &kGeometry, .step = length, .length = length});
}

std::vector<KeepRows> SelectNow(const Policy& policy, const Planes& planes) {
  const Selection selection = *CompactAt(policy, planes.rows(0));
  return Select(selection, kGeometry, planes, PlaneScores(selection.score, planes));
}

TEST(Policy, FullNeverCompacts) {
  const auto policy = Make("full", {});
  EXPECT_EQ(policy->NextCompactAt({}), std::nullopt);
  EXPECT_FALSE(CompactAt(*policy, 1 << 20).has_value());
  EXPECT_EQ(policy->PeakTokens({.max_tokens = 5000, .chunk = 256}), 5000u);
  const PolicyNeeds needs = policy->Needs();
  EXPECT_EQ(needs.queries, QueryNeed::kSampled);
  EXPECT_EQ(needs.sample_every, 16u);
  EXPECT_EQ(needs.prompt_rows, 0u);
  EXPECT_EQ(needs.planes, PlaneSet{});
  EXPECT_EQ(Make("full", {{"recovery_every", 4}})->Needs().sample_every, 4u);
  EXPECT_EQ(Make("full", {{"recovery_every", 0}})->Needs().queries, QueryNeed::kNone);
}

// The last rows that stay native are by default as many as KIVI's residual (arXiv 2402.02750).
TEST(Policy, EveryPolicyHasAFormat) {
  for (const PolicySchema& schema : PolicySchemas()) {
    EXPECT_EQ(SealRuleOf(*MakePolicySpec(schema.name, {})), SealRule()) << schema.name;
    for (SealedFormat format : kSealedFormats) {
      const auto spec = MakePolicySpec(schema.name, {{"format", NameOf(format)}});
      ASSERT_TRUE(spec.ok()) << schema.name << ": " << spec.status();
      EXPECT_EQ(SealRuleOf(*spec), (SealRule{.format = format, .open_rows = 128}));
    }
    const absl::Status bad = MakePolicySpec(schema.name, {{"format", "int2"}}).status();
    EXPECT_NE(bad.message().find("native or fp8 or int8 or int4"), std::string::npos) << bad;
  }
}

TEST(Policy, StreamingKeepsSinksAndTheNewest) {
  const auto policy = Make("streaming", {{"sinks", 4}, {"recent", 60}, {"slack", 16}});
  EXPECT_EQ(policy->NextCompactAt({}), 80u);
  EXPECT_EQ(policy->PeakTokens({.max_tokens = 5000, .chunk = 256}), 80u + 256);
  EXPECT_EQ(policy->PeakTokens({.max_tokens = 100, .chunk = 256}), 100u);
  EXPECT_FALSE(CompactAt(*policy, 64).has_value());
  EXPECT_TRUE(CompactAt(*policy, 65).has_value());  // under pressure, before it is due
  EXPECT_EQ(policy->Needs().queries, QueryNeed::kSampled);

  Planes planes(kGeometry, {});
  planes.Append(0, 80);
  for (int round = 0; round < 3; ++round) {
    const std::vector<KeepRows> keep = SelectNow(*policy, planes);
    ASSERT_EQ(keep[0].size(), 64u);
    planes.Gather(0, keep[0]);
    const uint32_t next = 80 + round * 16;
    std::vector<uint32_t> expected = {0, 1, 2, 3};
    for (uint32_t p = next - 60; p < next; ++p) expected.push_back(p);
    EXPECT_EQ(planes.positions(0), expected);
    planes.Append(next, 16);
  }
}

TEST(Policy, ScissorhandsNumbers) {
  const auto policy = Make("scissorhands", {});  // B 256, w 400, r 10, m 128
  EXPECT_EQ(policy->NextCompactAt({}), 256u);
  EXPECT_EQ(policy->PeakTokens({.max_tokens = 5000, .chunk = 64}), 320u);
  EXPECT_EQ(policy->PeakTokens({.max_tokens = 200, .chunk = 64}), 200u);
  EXPECT_FALSE(CompactAt(*policy, 128).has_value());
  for (uint32_t length : {129u, 256u, 319u}) {
    const auto selection = CompactAt(*policy, length);
    ASSERT_TRUE(selection.has_value());
    EXPECT_EQ(selection->heads[0].total, 128u);
    EXPECT_EQ(selection->heads[0].recent, 10u);
    EXPECT_EQ(selection->heads[0].first, 0u);
    EXPECT_EQ(selection->score.window, 400u);
  }
  const PolicyNeeds needs = policy->Needs();
  EXPECT_EQ(needs.queries, QueryNeed::kExact);
  EXPECT_EQ(needs.prompt_rows, 400u);
  EXPECT_EQ(needs.planes.low_count_ring, 13u + 4 + 1);  // ceil(400/32) full, ceil(400/128) early
}

// The ring never forgets a drain that fits in w, when drains are full or end at a hand-over.
TEST(Policy, ScissorhandsRingCoversItsWindow) {
  for (uint32_t window : {1u, 31u, 32u, 33u, 100u, 400u}) {
    for (uint32_t drop : {1u, 7u, 16u, 31u, 33u, 50u, 100u, 128u}) {
      const auto policy = Make("scissorhands", {{"window", window}, {"drop", drop}});
      Planes planes(kGeometry, policy->Needs().planes);
      std::vector<uint32_t> entries;  // newest last, never forgotten
      for (uint32_t period = 0; period < 2 * window / drop + 4; ++period) {
        for (uint32_t left = drop; left > 0;) {
          const uint32_t queries = std::min(left, kDrainQueries);
          planes.BeginDrain(queries, 1);
          if (!entries.empty() && entries.back() + queries <= kDrainQueries) {
            entries.back() += queries;
          } else {
            entries.push_back(queries);
          }
          left -= queries;
          uint32_t fits = 0, sum = 0;
          while (fits < entries.size()) {
            sum += entries[entries.size() - 1 - fits];
            if (fits > 0 && sum > window) break;
            ++fits;
          }
          ASSERT_EQ(planes.DrainsWithin(window), fits) << "w " << window << " m " << drop;
        }
      }
    }
  }
}

// One head under Algorithms 1 and 2 as the paper prints them, with one mark a query and key.
class PaperHead {
 public:
  PaperHead(uint32_t budget, uint32_t window, uint32_t recent, uint32_t drop)
      : budget_(budget), window_(window), recent_(recent), drop_(drop) {}

  bool full() const { return keys_.size() >= budget_; }
  const std::vector<uint32_t>& keys() const { return keys_; }
  void Append(uint32_t key) {
    keys_.push_back(key);
    marks_.emplace_back();
  }
  // One query marks every key; keys younger than a query have no mark from it.
  void Mark(const std::vector<bool>& low) {
    for (size_t i = 0; i < keys_.size(); ++i) marks_[i].push_back(low[i]);
  }
  void Compress() {
    std::vector<std::pair<int, uint32_t>> order;  // (-I, key): Argsort with older first
    for (size_t i = 0; i < keys_.size(); ++i) {
      const auto from = marks_[i].end() - std::min<ptrdiff_t>(window_, marks_[i].size());
      int low = static_cast<int>(std::count(from, marks_[i].end(), true));
      if (i + recent_ >= keys_.size()) low = -1;
      order.emplace_back(-low, keys_[i]);
    }
    std::sort(order.begin(), order.end());
    order.resize(drop_);
    for (const auto& [rank, key] : order) {
      const auto at = std::find(keys_.begin(), keys_.end(), key);
      marks_.erase(marks_.begin() + (at - keys_.begin()));
      keys_.erase(at);
    }
  }

 private:
  uint32_t budget_, window_, recent_, drop_;
  std::vector<uint32_t> keys_;
  std::vector<std::vector<bool>> marks_;
};

// Windows that are whole drains, so that counts per drain lose nothing: the same keys stay as in
// the paper, at every step.
TEST(Policy, ScissorhandsEqualsThePaper) {
  const struct {
    uint32_t budget, window, recent, drop;
  } cases[] = {{96, 64, 10, 32}, {128, 128, 1, 64}, {160, 32, 40, 96}, {96, 96, 64, 32}};
  for (const auto& c : cases) {
    std::mt19937 random(c.budget + c.window);
    const auto policy =
        Make("scissorhands",
             {{"budget", c.budget}, {"window", c.window}, {"recent", c.recent}, {"drop", c.drop}});
    PaperHead paper(c.budget, c.window, c.recent, c.drop);
    Planes planes(kGeometry, policy->Needs().planes);
    std::vector<std::vector<bool>> pending;  // marks of undrained queries, by row
    for (uint32_t step = 0; step < 600; ++step) {
      if (planes.rows(0) >= *policy->NextCompactAt({})) {
        ASSERT_TRUE(paper.full());
        ASSERT_TRUE(pending.empty());
        const std::vector<KeepRows> keep = SelectNow(*policy, planes);
        ASSERT_EQ(keep[0].size(), c.budget - c.drop);
        planes.Gather(0, keep[0]);
        paper.Compress();
      }
      planes.Append(step, 1);
      paper.Append(step);
      std::vector<bool> low(planes.rows(0));
      for (size_t i = 0; i < low.size(); ++i) low[i] = random() % 100 < (i * 37 % 100);
      paper.Mark(low);
      pending.push_back(low);
      if (pending.size() == kDrainQueries) {
        planes.BeginDrain(kDrainQueries, step + 1);
        for (const std::vector<bool>& marks : pending) {
          for (size_t i = 0; i < marks.size(); ++i) planes.low_counts(0, 0)[i] += marks[i];
        }
        pending.clear();
      }
      ASSERT_EQ(planes.positions(0), paper.keys());
      ASSERT_LE(planes.rows(0), c.budget);
    }
  }
}

}  // namespace
}  // namespace kvpool
