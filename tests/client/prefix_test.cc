// Sessions whose prompts begin alike, over shared memory: the same rows, once; and what becomes of
// them when sessions end, slabs go, or a worker lies.
//
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "tests/client/loopback.h"

namespace kvpool {
namespace {

// Feeds sessions rows that follow from token and position, as a model's would from the tokens.
class PrefixTest : public testing::Test {
 protected:
  static std::vector<int32_t> Tokens(uint32_t count, int32_t first = 100) {
    std::vector<int32_t> tokens(count);
    for (uint32_t i = 0; i < count; ++i) tokens[i] = first + static_cast<int32_t>(i);
    return tokens;
  }

  std::unique_ptr<Session> Open(const std::vector<int32_t>& prompt, uint32_t max_tokens = 300) {
    auto session = loop_.tenant().Open({.prompt_tokens = static_cast<uint32_t>(prompt.size()),
                                        .max_tokens = max_tokens,
                                        .prompt = prompt,
                                        .model = "m"});
    EXPECT_TRUE(session.ok()) << session.status();
    return session.ok() ? *std::move(session) : nullptr;
  }

  static std::vector<float> Row(const Geometry& g, uint32_t layer, uint32_t head, int32_t token,
                                uint32_t position) {
    std::vector<float> row(g.key_dim + g.value_dim);
    for (size_t i = 0; i < row.size(); ++i) {
      row[i] = static_cast<float>(token) + 0.001f * static_cast<float>(position) +
               static_cast<float>(layer * 7 + head * 3) + static_cast<float>(i % 5);
    }
    return row;
  }

  // Feeds tokens from the session's position up to `end`, in pieces of at most 64.
  absl::Status FeedUpTo(Session* session, const std::vector<int32_t>& tokens, uint32_t end) {
    const Layout& layout = loop_.tenant().layout();
    const Geometry& g = layout.geometry();
    while (session->position() < end) {
      Step step{.session = session, .tokens = std::min(64u, end - session->position())};
      if (absl::Status status = loop_.tenant().SafePoint({&step, 1}); !status.ok()) return status;
      if (!step.outcome.ok()) return step.outcome;
      for (uint32_t i = 0; i < step.tokens; ++i) {
        const uint32_t position = session->position() + i;
        for (uint32_t l = 0; l < g.layers; ++l) {
          for (uint32_t h = 0; h < g.kv_heads; ++h) {
            const std::vector<float> row = Row(g, l, h, tokens[position], position);
            StoreRow(layout, loop_.tenant().base(), session->WriteBlock(l, h, i),
                     session->WriteRow(i), row.data(), row.data() + g.key_dim);
          }
        }
      }
      const std::vector<float> queries(
          size_t{step.tokens} * g.model_layers() * g.query_heads * g.key_dim, 0.5f);
      absl::Status status = session->Commit(
          step.tokens, session->WantsQueries(step.tokens) ? queries.data() : nullptr);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // Each of the first rows is what its token makes, in whatever order.
  void ExpectRows(Session* session, const std::vector<int32_t>& tokens) {
    const Layout& layout = loop_.tenant().layout();
    const Geometry& g = layout.geometry();
    const SessionView view = session->View(0);
    for (uint32_t l = 0; l < g.layers; ++l) {
      for (uint32_t h = 0; h < g.kv_heads; ++h) {
        const uint32_t plane = l * g.kv_heads + h;
        ASSERT_EQ(view.Length(plane), session->position());
        std::vector<std::vector<float>> expected, found;
        for (uint32_t row = 0; row < view.Length(plane); ++row) {
          expected.push_back(Row(g, l, h, tokens[row], row));
          std::vector<float> both(g.key_dim + g.value_dim);
          ReadRow(layout, loop_.tenant().base(), view, plane, row, both.data(),
                  both.data() + g.key_dim);
          found.push_back(both);
        }
        std::sort(expected.begin(), expected.end());
        std::sort(found.begin(), found.end());
        ASSERT_EQ(found, expected) << "layer " << l << ", head " << h;
      }
    }
  }

  TenantUsage Usage() { return loop_.ledger().Usage(Loopback::kTenant); }
  void TearDown() override { EXPECT_EQ(loop_.ledger().CheckInvariants(), absl::OkStatus()); }

  Loopback loop_{{}};
};

TEST_F(PrefixTest, TheSecondSessionBeginsWithWhatTheFirstWroteAndItIsChargedOnce) {
  const std::vector<int32_t> prompt = Tokens(100);
  auto first = Open(prompt);
  EXPECT_EQ(first->shared_tokens(), 0u);
  const uint64_t peak = loop_.attachment().charge().pages;
  ASSERT_TRUE(FeedUpTo(first.get(), prompt, 100).ok());
  auto second = Open(prompt);
  EXPECT_EQ(second->shared_tokens(), 96u) << "whole pages, and never the last token";
  EXPECT_EQ(second->position(), 96u);
  ASSERT_TRUE(FeedUpTo(second.get(), prompt, 100).ok());
  ExpectRows(second.get(), prompt);
  ExpectRows(first.get(), prompt);
  loop_.attachment().SnapshotAll();
  EXPECT_EQ(Usage().frozen_pages, 6u);
  EXPECT_EQ(Usage().owned_pages, 2u) << "a last page each";
  EXPECT_EQ(loop_.attachment().charge().pages + loop_.prefixes().held(), 2 * peak - 6);

  // Who comes later shares what is alike, and goes on by itself.
  std::vector<int32_t> other = prompt;
  other[40] = 9;
  auto third = Open(other);
  EXPECT_EQ(third->shared_tokens(), 32u);
  ASSERT_TRUE(FeedUpTo(third.get(), other, 100).ok());
  ExpectRows(third.get(), other);
  ExpectRows(first.get(), prompt);
}

TEST_F(PrefixTest, AWholePromptIsNeverShared) {
  const std::vector<int32_t> prompt = Tokens(96);
  auto first = Open(prompt);
  ASSERT_TRUE(FeedUpTo(first.get(), prompt, 96).ok());
  EXPECT_EQ(Open(prompt)->shared_tokens(), 80u) << "somebody must ask for the last token";
  EXPECT_EQ(Open(Tokens(97))->shared_tokens(), 96u);
  EXPECT_EQ(Open(Tokens(15))->shared_tokens(), 0u);
}

TEST_F(PrefixTest, AnotherModelSharesNothing) {
  const std::vector<int32_t> prompt = Tokens(64);
  auto first = Open(prompt);
  ASSERT_TRUE(FeedUpTo(first.get(), prompt, 64).ok());
  auto other = *loop_.tenant().Open(
      {.prompt_tokens = 64, .max_tokens = 100, .prompt = prompt, .model = "another"});
  EXPECT_EQ(other->shared_tokens(), 0u);
  EXPECT_EQ((*loop_.tenant().Open({.prompt_tokens = 64, .max_tokens = 100}))->shared_tokens(), 0u)
      << "tokens that are not told";
}

TEST_F(PrefixTest, ParkedPagesOutliveTheirSessionsAndGoWhenTheyAreDropped) {
  const std::vector<int32_t> prompt = Tokens(100);
  auto first = Open(prompt);
  ASSERT_TRUE(FeedUpTo(first.get(), prompt, 100).ok());
  first.reset();
  EXPECT_EQ(Usage().owned_pages, 0u);
  EXPECT_EQ(Usage().parked_pages, 6u);
  EXPECT_EQ(loop_.attachment().charge().pages, 0u);
  EXPECT_EQ(loop_.prefixes().held(), 0u) << "nobody is charged";
  auto second = Open(prompt);
  EXPECT_EQ(second->shared_tokens(), 96u);
  EXPECT_EQ(Usage().parked_pages, 0u);
  ASSERT_TRUE(FeedUpTo(second.get(), prompt, 100).ok());
  ExpectRows(second.get(), prompt);
  second.reset();
  ASSERT_TRUE(loop_.ledger().StopKeeping(loop_.prefixes().Drop(2)).ok());
  EXPECT_EQ(Usage().parked_pages, 4u);
  EXPECT_EQ(Open(prompt)->shared_tokens(), 64u);
}

TEST_F(PrefixTest, OnlyWhatIsCommittedAndWholeIsShared) {
  const std::vector<int32_t> prompt = Tokens(100);
  auto first = Open(prompt);
  ASSERT_TRUE(FeedUpTo(first.get(), prompt, 40).ok());
  auto second = Open(prompt);
  EXPECT_EQ(second->shared_tokens(), 32u);
  ASSERT_TRUE(FeedUpTo(first.get(), prompt, 100).ok());
  EXPECT_EQ(Open(prompt)->shared_tokens(), 96u);
  // The second one writes the same tokens in pages of its own: they stay its own.
  ASSERT_TRUE(FeedUpTo(second.get(), prompt, 100).ok());
  loop_.attachment().SnapshotAll();
  EXPECT_EQ(Usage().frozen_pages, 6u);
  ExpectRows(second.get(), prompt);
  second.reset();
  EXPECT_EQ(Open(prompt)->shared_tokens(), 96u);
}

TEST_F(PrefixTest, PagesThatASessionHoldsAloneMoveOutOfASlabAsItsOwn) {
  const std::vector<int32_t> prompt = Tokens(100);
  auto first = Open(prompt);
  ASSERT_TRUE(FeedUpTo(first.get(), prompt, 100).ok());
  auto second = Open(prompt);
  loop_.attachment().SnapshotAll();
  const AgentSession& known = loop_.attachment().sessions().begin()->second;
  const SlabIndex slab = loop_.tenant().layout().SlabOf(known.frozen[0]);
  ASSERT_TRUE(loop_.ledger().BeginEvacuate(slab).ok());
  const auto hand_over = [&](Session* session) {
    loop_.magazine().ReturnAll();
    loop_.attachment().Collect();
    for (const auto& [slot, any] : loop_.attachment().sessions()) {
      loop_.attachment().AskHandOver(slot);
    }
    return FeedUpTo(session, Tokens(200), session->position() + 1);
  };
  // Held by two: they stay, and its own last page moves.
  ASSERT_TRUE(hand_over(first.get()).ok());
  EXPECT_EQ(loop_.ledger().Slab(slab)->frozen_pages, 6u);
  EXPECT_EQ(loop_.ledger().Slab(slab)->shared_pages, 6u);
  EXPECT_EQ(loop_.ledger().Slab(slab)->owned_pages, 0u);
  ExpectRows(first.get(), Tokens(101));
  EXPECT_EQ(Open(prompt)->shared_tokens(), 0u) << "nothing is shared in a slab that goes";
  // Held by one: its own again.
  second.reset();
  ASSERT_TRUE(hand_over(first.get()).ok());
  EXPECT_EQ(loop_.ledger().Slab(slab)->frozen_pages, 0u);
  EXPECT_TRUE(loop_.ledger().BeginDrain(slab).ok());
  EXPECT_EQ(Usage().frozen_pages, 0u);
  EXPECT_EQ(loop_.prefixes().pages(), 0u);
  ExpectRows(first.get(), Tokens(102));
  first.reset();
  EXPECT_EQ(Usage().owned_pages, 0u);
  EXPECT_EQ(loop_.attachment().charge().pages, 0u);
}

TEST_F(PrefixTest, AListThatDoesNotBeginWithTheSharedPagesFailsItsSessionAlone) {
  const std::vector<int32_t> prompt = Tokens(100);
  auto first = Open(prompt);
  ASSERT_TRUE(FeedUpTo(first.get(), prompt, 100).ok());
  auto second = Open(prompt);
  ASSERT_TRUE(FeedUpTo(second.get(), prompt, 100).ok());
  loop_.attachment().SnapshotAll();
  ASSERT_EQ(loop_.attachment().bad_page_lists(), 0u);
  // The second one's slot, as a worker that lies would write it: two pages change places.
  uint32_t slot = 0;
  for (const auto& [at, session] : loop_.attachment().sessions()) {
    if (session.frozen.size() == 6 && session.id.value() == 2) slot = at;
  }
  auto* list = reinterpret_cast<std::atomic<uint32_t>*>(
      reinterpret_cast<std::byte*>(&loop_.attachment().regions().slot(slot)) +
      sizeof(shm::SessionSlot));
  const uint32_t page = list[0].load();
  list[0].store(list[1].load());
  list[1].store(page);
  loop_.attachment().SnapshotAll();
  EXPECT_EQ(loop_.attachment().bad_page_lists(), 1u);
  ExpectRows(first.get(), prompt);
  second.reset();
  EXPECT_EQ(Open(prompt)->shared_tokens(), 96u) << "what the first one holds is as it was";
}

TEST_F(PrefixTest, ManySessionsThatComeAndGoLeaveNothingButWhatIsParked) {
  std::mt19937 random(5);
  std::vector<std::pair<std::unique_ptr<Session>, std::vector<int32_t>>> open;
  for (int step = 0; step < 300; ++step) {
    if (open.size() < 5 && random() % 2 == 0) {
      std::vector<int32_t> prompt = Tokens(20 + random() % 80);
      if (random() % 3 == 0)
        prompt[random() % prompt.size()] = 1 + static_cast<int32_t>(random() % 3);
      auto session = Open(prompt, 200);
      ASSERT_NE(session, nullptr);
      open.emplace_back(std::move(session), prompt);
    } else if (!open.empty()) {
      const size_t which = random() % open.size();
      auto& [session, prompt] = open[which];
      const auto end = static_cast<uint32_t>(prompt.size());
      const uint32_t more = std::min<uint32_t>(end - session->position(), 1 + random() % 70);
      absl::Status fed = FeedUpTo(session.get(), prompt, session->position() + more);
      if (absl::IsResourceExhausted(fed)) {
        ASSERT_TRUE(loop_.ledger().StopKeeping(loop_.prefixes().Drop(8)).ok());
        fed = FeedUpTo(session.get(), prompt, session->position() + more);
      }
      ASSERT_TRUE(fed.ok()) << fed;
      if (more == 0 || random() % 5 == 0) {
        ExpectRows(session.get(), prompt);
        open.erase(open.begin() + static_cast<std::ptrdiff_t>(which));
      }
    }
    ASSERT_EQ(loop_.ledger().CheckInvariants(), absl::OkStatus());
    ASSERT_EQ(Usage().frozen_pages, loop_.prefixes().pages());
    ASSERT_EQ(Usage().parked_pages, loop_.prefixes().parked());
  }
  open.clear();
  EXPECT_EQ(Usage().owned_pages, 0u);
  EXPECT_EQ(loop_.attachment().charge().pages, 0u);
  EXPECT_GT(Usage().parked_pages, 0u);
  ASSERT_TRUE(loop_.ledger().StopKeeping(loop_.prefixes().Drop(10'000)).ok());
  EXPECT_EQ(Usage().frozen_pages, 0u);
}

}  // namespace
}  // namespace kvpool
