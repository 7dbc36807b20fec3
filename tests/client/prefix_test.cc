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
  explicit PrefixTest(const PolicySpec& policy = DefaultPolicySpec())
      : loop_({.slabs = 12, .lease = 12, .policy = policy}) {}

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

  // Each of the rows is what its token makes, in whatever order; all of them, or what is left.
  enum class Expected : uint8_t { kAll, kSome };
  void ExpectRows(Session* session, const std::vector<int32_t>& tokens,
                  Expected expect = Expected::kAll) {
    const Layout& layout = loop_.tenant().layout();
    const Geometry& g = layout.geometry();
    const SessionView view = session->View(0);
    for (uint32_t l = 0; l < g.layers; ++l) {
      for (uint32_t h = 0; h < g.kv_heads; ++h) {
        const uint32_t plane = l * g.kv_heads + h;
        std::vector<std::vector<float>> expected, found;
        for (uint32_t row = 0; row < session->position(); ++row) {
          expected.push_back(Row(g, l, h, tokens[row], row));
        }
        for (uint32_t row = 0; row < view.Length(plane); ++row) {
          std::vector<float> both(g.key_dim + g.value_dim);
          ReadRow(layout, loop_.tenant().base(), view, plane, row, both.data(),
                  both.data() + g.key_dim);
          found.push_back(both);
        }
        std::sort(expected.begin(), expected.end());
        std::sort(found.begin(), found.end());
        if (expect == Expected::kAll) {
          ASSERT_EQ(found, expected) << "layer " << l << ", head " << h;
        }
        ASSERT_TRUE(std::includes(expected.begin(), expected.end(), found.begin(), found.end()))
            << "layer " << l << ", head " << h << ": a row that nobody wrote";
      }
    }
  }

  TenantUsage Usage() { return loop_.ledger().Usage(Loopback::kTenant); }
  void TearDown() override { EXPECT_EQ(loop_.ledger().CheckInvariants(), absl::OkStatus()); }

  Loopback loop_;
};

// Sessions are compacted to 96 rows when they would pass 112.
class CompactingPrefixTest : public PrefixTest {
 protected:
  CompactingPrefixTest()
      : PrefixTest(*MakePolicySpec("streaming", {{"sinks", 4}, {"recent", 92}, {"slack", 16}})) {}

  bool Compacted(Session* session) { return session->View(0).CompactedLength(0) > 0; }
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

TEST_F(PrefixTest, AForkBeginsAsItsParentIsAndGoesOnByItself) {
  const std::vector<int32_t> prompt = Tokens(50), text = Tokens(200);
  auto parent = Open(prompt);
  ASSERT_TRUE(FeedUpTo(parent.get(), text, 70).ok());
  auto forked = loop_.tenant().Fork(*parent, 200);
  ASSERT_TRUE(forked.ok()) << forked.status();
  Session* const fork = forked->get();
  EXPECT_EQ(fork->position(), 70u);
  EXPECT_EQ(fork->shared_tokens(), 70u);
  ExpectRows(fork, text);
  // Four full pages, three of them of the prompt; and a last one each.
  EXPECT_EQ(Usage().frozen_pages, 4u);
  EXPECT_EQ(loop_.prefixes().pages(), 3u);
  EXPECT_EQ(Usage().owned_pages, 2u);
  std::vector<int32_t> other = text;
  for (size_t i = 70; i < other.size(); ++i) other[i] += 1000;
  ASSERT_TRUE(FeedUpTo(fork, other, 120).ok());
  ASSERT_TRUE(FeedUpTo(parent.get(), text, 110).ok());
  ExpectRows(fork, other);
  ExpectRows(parent.get(), text);
  auto grandchild = *loop_.tenant().Fork(*fork, 200);
  ASSERT_TRUE(FeedUpTo(grandchild.get(), other, 130).ok());
  parent.reset();
  ExpectRows(fork, other);
  forked->reset();
  ExpectRows(grandchild.get(), other);
  // The agent has a row of statistics for each token of it.
  loop_.attachment().SnapshotAll();
  const AgentSession& known = loop_.attachment().sessions().begin()->second;
  EXPECT_EQ(known.planes.rows(0), 130u);
  EXPECT_EQ(known.planes.positions(0)[129], 129u);
  grandchild.reset();
  EXPECT_EQ(Usage().owned_pages, 0u);
  EXPECT_EQ(Usage().frozen_pages, 3u) << "the prompt is parked, the rest is free";
  EXPECT_EQ(loop_.attachment().charge().pages, 0u);
}

TEST_F(PrefixTest, AForkIsRefusedWithTheReason) {
  auto parent = Open(Tokens(50));
  ASSERT_TRUE(FeedUpTo(parent.get(), Tokens(60), 60).ok());
  EXPECT_EQ(loop_.attachment().CheckFork(7).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(loop_.attachment().CheckFork(~0u).status().code(),
            absl::StatusCode::kFailedPrecondition);
  std::vector<PageId> all(10'000);
  all.resize(*loop_.ledger().Grant(loop_.worker(), all));
  EXPECT_TRUE(absl::IsResourceExhausted(loop_.tenant().Fork(*parent, 100).status()))
      << "no page for the last one";
  EXPECT_EQ(loop_.attachment().sessions().size(), 1u);
  ASSERT_TRUE(loop_.ledger().Return(loop_.worker(), all).ok());
  EXPECT_TRUE(loop_.tenant().Fork(*parent, 100).ok());
  ASSERT_TRUE(FeedUpTo(parent.get(), Tokens(64), 64).ok());
  EXPECT_TRUE(loop_.tenant().Fork(*parent, 100).ok()) << "with every page full it needs none";
}

TEST_F(CompactingPrefixTest, ACompactedSessionIsNotForked) {
  const std::vector<int32_t> text = Tokens(300);
  auto session = Open(Tokens(100));
  for (uint32_t end = 60; end <= 120; ++end) ASSERT_TRUE(FeedUpTo(session.get(), text, end).ok());
  ASSERT_TRUE(Compacted(session.get()));
  const absl::Status refused = loop_.tenant().Fork(*session, 200).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(refused.message().find("feed it the tokens"), std::string::npos) << refused;
}

TEST_F(CompactingPrefixTest, AForkAndItsParentAreCompactedApart) {
  const std::vector<int32_t> text = Tokens(300);
  auto parent = Open(Tokens(100));
  ASSERT_TRUE(FeedUpTo(parent.get(), text, 105).ok());
  auto fork = *loop_.tenant().Fork(*parent, 300);
  for (uint32_t end = 106; end <= 140; ++end) {
    ASSERT_TRUE(FeedUpTo(parent.get(), text, end).ok());
    ExpectRows(fork.get(), text);
  }
  EXPECT_TRUE(Compacted(parent.get()));
  for (uint32_t end = 106; end <= 140; ++end) ASSERT_TRUE(FeedUpTo(fork.get(), text, end).ok());
  EXPECT_TRUE(Compacted(fork.get()));
  ExpectRows(fork.get(), text, Expected::kSome);
  ExpectRows(parent.get(), text, Expected::kSome);
  parent.reset();
  fork.reset();
  EXPECT_EQ(Usage().owned_pages, 0u);
  EXPECT_EQ(Usage().frozen_pages, loop_.prefixes().pages());
  EXPECT_EQ(loop_.attachment().charge().pages, 0u);
}

TEST_F(CompactingPrefixTest, WhatOthersHoldTooIsCopiedBeforeASessionIsCompacted) {
  const std::vector<int32_t> prompt = Tokens(100), text = Tokens(300);
  { ASSERT_TRUE(FeedUpTo(Open(prompt).get(), prompt, 100).ok()); }
  EXPECT_EQ(Usage().parked_pages, 6u);
  auto first = Open(prompt), second = Open(prompt);
  ASSERT_EQ(first->shared_tokens(), 96u);
  ASSERT_EQ(second->shared_tokens(), 96u);
  ASSERT_TRUE(FeedUpTo(second.get(), text, 110).ok());
  for (uint32_t end = 100; end <= 130; ++end) {
    ASSERT_TRUE(FeedUpTo(first.get(), text, end).ok());
    ExpectRows(first.get(), text, Expected::kSome);
  }
  EXPECT_TRUE(Compacted(first.get()));
  EXPECT_FALSE(Compacted(second.get()));
  ExpectRows(second.get(), text);
  EXPECT_EQ(Usage().frozen_pages, 6u);
  EXPECT_EQ(Usage().parked_pages, 0u) << "the second one has them";
  ASSERT_TRUE(FeedUpTo(second.get(), text, 130).ok());
  EXPECT_TRUE(Compacted(second.get()));
  ExpectRows(second.get(), text, Expected::kSome);
  EXPECT_EQ(Usage().parked_pages, 6u) << "for the next one";
  EXPECT_EQ(Open(prompt)->shared_tokens(), 96u);
  first.reset();
  second.reset();
  EXPECT_EQ(Usage().owned_pages, 0u);
  EXPECT_EQ(loop_.attachment().charge().pages, 0u);
}

TEST_F(CompactingPrefixTest, ACompactedPromptStaysForOthersWhereThereIsRoom) {
  const std::vector<int32_t> prompt = Tokens(100), text = Tokens(300);
  auto first = Open(prompt);
  for (uint32_t end = 60; end <= 120; ++end) ASSERT_TRUE(FeedUpTo(first.get(), text, end).ok());
  EXPECT_TRUE(Compacted(first.get()));
  EXPECT_EQ(Usage().parked_pages, 6u);
  auto second = Open(prompt);
  EXPECT_EQ(second->shared_tokens(), 96u);
  ASSERT_TRUE(FeedUpTo(second.get(), text, 104).ok());
  ExpectRows(second.get(), text);
  ExpectRows(first.get(), text, Expected::kSome);
}

TEST_F(CompactingPrefixTest, UnderPressureASessionTakesBackWhatItHoldsAlone) {
  const std::vector<int32_t> prompt = Tokens(100), text = Tokens(300);
  { ASSERT_TRUE(FeedUpTo(Open(prompt).get(), prompt, 100).ok()); }
  auto first = Open(prompt);
  ASSERT_TRUE(FeedUpTo(first.get(), text, 110).ok());
  loop_.attachment().AskHandOver(loop_.attachment().sessions().begin()->first);
  ASSERT_TRUE(FeedUpTo(first.get(), text, 111).ok());
  EXPECT_TRUE(Compacted(first.get()));
  ExpectRows(first.get(), text, Expected::kSome);
  EXPECT_EQ(Usage().frozen_pages, 0u) << "in place, and nothing stays for others";
}

TEST_F(CompactingPrefixTest, PressureIsNoReasonToCopyWhereNothingComesFree) {
  const std::vector<int32_t> prompt = Tokens(100), text = Tokens(300);
  { ASSERT_TRUE(FeedUpTo(Open(prompt).get(), prompt, 100).ok()); }
  auto first = Open(prompt), second = Open(prompt);
  ASSERT_TRUE(FeedUpTo(first.get(), text, 111).ok());
  for (const auto& [slot, session] : loop_.attachment().sessions()) {
    EXPECT_EQ(loop_.attachment().PagesFreedByCompaction(session), 0u);
    loop_.attachment().AskHandOver(slot);
  }
  // One row more would make it due.
  ASSERT_TRUE(FeedUpTo(second.get(), text, 98).ok());
  EXPECT_FALSE(Compacted(second.get()));
  ExpectRows(second.get(), text);
}

TEST_F(CompactingPrefixTest, WithoutRoomForCopiesASessionWaits) {
  const std::vector<int32_t> prompt = Tokens(100), text = Tokens(300);
  { ASSERT_TRUE(FeedUpTo(Open(prompt).get(), prompt, 100).ok()); }
  auto first = Open(prompt), second = Open(prompt);
  ASSERT_TRUE(FeedUpTo(first.get(), text, 112).ok());
  // Somebody else has all pages, but for what a step needs.
  std::vector<PageId> all(10'000);
  all.resize(*loop_.ledger().Grant(loop_.worker(), all));
  ASSERT_GT(all.size(), 2u);
  ASSERT_EQ(*loop_.ledger().Return(loop_.worker(), std::span(all).last(2)), 2u);
  ASSERT_TRUE(FeedUpTo(first.get(), text, 113).ok());
  EXPECT_FALSE(Compacted(first.get()));
  ExpectRows(first.get(), text);
  second.reset();
  // Alone it needs no copies.
  ASSERT_TRUE(FeedUpTo(first.get(), text, 114).ok());
  EXPECT_TRUE(Compacted(first.get()));
  ExpectRows(first.get(), text, Expected::kSome);
}

TEST_F(CompactingPrefixTest, ManySessionsAreCompactedAndNothingIsLost) {
  std::mt19937 random(9);
  const std::vector<int32_t> text = Tokens(300);
  std::vector<std::unique_ptr<Session>> open;
  int forks = 0;
  for (int step = 0; step < 400; ++step) {
    if (open.size() < 5 && random() % 3 == 0) {
      open.push_back(Open(Tokens(30 + random() % 80)));
      ASSERT_NE(open.back(), nullptr);
    } else if (!open.empty() && open.size() < 7 && random() % 6 == 0) {
      auto fork = loop_.tenant().Fork(*open[random() % open.size()], 300);
      forks += fork.ok();
      if (fork.ok()) open.push_back(*std::move(fork));
    } else if (!open.empty()) {
      auto& session = open[random() % open.size()];
      const auto more = static_cast<uint32_t>(1 + random() % 20);
      if (random() % 8 == 0) {
        for (const auto& [slot, known] : loop_.attachment().sessions()) {
          loop_.attachment().AskHandOver(slot);
        }
      }
      absl::Status fed = FeedUpTo(session.get(), text, session->position() + more);
      if (absl::IsResourceExhausted(fed)) {
        ASSERT_TRUE(loop_.ledger().StopKeeping(loop_.prefixes().Drop(100)).ok());
        fed = FeedUpTo(session.get(), text, session->position() + more);
      }
      ASSERT_TRUE(fed.ok()) << fed;
      ExpectRows(session.get(), text, Expected::kSome);
      if (session->position() > 250) std::erase(open, session);
    }
    ASSERT_EQ(loop_.ledger().CheckInvariants(), absl::OkStatus());
    ASSERT_GE(Usage().frozen_pages, loop_.prefixes().pages());
    ASSERT_EQ(Usage().parked_pages, loop_.prefixes().parked());
    for (const auto& session : open) ExpectRows(session.get(), text, Expected::kSome);
  }
  EXPECT_GT(forks, 5);
  open.clear();
  EXPECT_EQ(Usage().owned_pages, 0u);
  EXPECT_EQ(Usage().frozen_pages, loop_.prefixes().pages());
  EXPECT_EQ(loop_.attachment().charge().pages, 0u);
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
