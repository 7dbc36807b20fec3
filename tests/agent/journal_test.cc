// The journal by itself. What a ledger makes of it: pool_rebuild_test.cc.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/journal.h"

#include <gtest/gtest.h>

#include <vector>

namespace kvpool {
namespace {

using Memory = std::vector<std::byte>;

Record Numbered(uint64_t number) { return {.type = Record::Type::kLease, .id = number}; }

std::vector<uint64_t> Numbers(const Journal& journal) {
  std::vector<uint64_t> numbers;
  for (const Record& record : journal.records()) numbers.push_back(record.id);
  return numbers;
}

TEST(Journal, KeepsWhatIsAppended) {
  Memory memory(Journal::BytesFor(8));
  Journal journal = Journal::Format(memory, std::vector{Numbered(1)}).value();
  EXPECT_EQ(journal.capacity(), 8u);
  journal.Append(Numbered(2));
  journal.Append(Numbered(3));
  EXPECT_EQ(Numbers(journal), (std::vector<uint64_t>{1, 2, 3}));
  EXPECT_EQ(Numbers(Journal::Open(memory).value()), (std::vector<uint64_t>{1, 2, 3}));
}

TEST(Journal, RestartForgetsWhatCameBefore) {
  Memory memory(Journal::BytesFor(4));
  Journal journal = Journal::Format(memory, {}).value();
  // Many times around, so that each half is full of older records when it is written again.
  for (uint64_t round = 1; round <= 9; ++round) {
    while (journal.room() > 0) journal.Append(Numbered(round));
    EXPECT_EQ(Numbers(Journal::Open(memory).value()), std::vector(4, round));
    journal.Restart(std::vector{Numbered(100 + round)});
    EXPECT_EQ(Numbers(Journal::Open(memory).value()), std::vector<uint64_t>{100 + round});
    journal.Restart({});
    EXPECT_EQ(Numbers(Journal::Open(memory).value()), std::vector<uint64_t>{});
  }
}

TEST(Journal, AFullHalfIsStillReadable) {
  Memory memory(Journal::BytesFor(3));
  Journal journal =
      Journal::Format(memory, std::vector{Numbered(1), Numbered(2), Numbered(3)}).value();
  EXPECT_EQ(journal.room(), 0u);
  EXPECT_EQ(Numbers(Journal::Open(memory).value()), (std::vector<uint64_t>{1, 2, 3}));
}

TEST(Journal, GoesOnAfterATornRecord) {
  Memory memory(Journal::BytesFor(8));
  Journal journal = Journal::Format(memory, {}).value();
  journal.Append(Numbered(1));
  const Memory before = memory;
  journal.Append(Numbered(2));
  for (size_t i = memory.size(); i-- > 0;) {
    if (memory[i] != before[i]) {
      memory[i] ^= std::byte{1};  // the last byte of the check
      break;
    }
  }
  Journal reopened = Journal::Open(memory).value();
  EXPECT_EQ(Numbers(reopened), std::vector<uint64_t>{1});
  reopened.Append(Numbered(3));
  EXPECT_EQ(Numbers(Journal::Open(memory).value()), (std::vector<uint64_t>{1, 3}));
}

TEST(Journal, RefusesWhatIsNoJournalOrNoRoom) {
  Memory memory(Journal::BytesFor(2));
  EXPECT_TRUE(absl::IsDataLoss(Journal::Open(memory).status()));
  EXPECT_TRUE(absl::IsDataLoss(Journal::Open(std::span(memory).first(10)).status()));
  const std::vector<Record> three(3, Numbered(1));
  EXPECT_TRUE(absl::IsInvalidArgument(Journal::Format(memory, three).status()));
  ASSERT_TRUE(Journal::Format(memory, {}).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(Journal::Format(memory, {}).status()));
}

}  // namespace
}  // namespace kvpool
