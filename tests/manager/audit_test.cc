// The audit log: numbers, what is kept, what is found.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/audit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/limits.h"

namespace kvpool {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

AuditEntry About(const std::string& name, const std::string& kind = "tenant") {
  return {.action = kind + ".update", .kind = kind, .name = name};
}

std::vector<uint64_t> Numbers(const std::vector<AuditEntry>& entries) {
  std::vector<uint64_t> numbers;
  for (const AuditEntry& entry : entries) numbers.push_back(entry.seq);
  return numbers;
}

TEST(AuditTest, NumbersGoOnFromTheHighest) {
  AuditEntry nine = About("a"), eleven = About("b");
  nine.seq = 9;
  eleven.seq = 11;
  AuditLog log({eleven, nine});
  const auto numbered = log.Number({About("c"), About("d")});
  EXPECT_THAT(Numbers(numbered), ElementsAre(12, 13));
  EXPECT_THAT(Numbers(log.Number({About("c")})), ElementsAre(12)) << "nothing was committed";
  log.Commit(numbered);
  EXPECT_THAT(Numbers(log.Find({.limit = 10})), ElementsAre(9, 11, 12, 13));
}

TEST(AuditTest, TheOldestGo) {
  AuditLog log;
  for (uint32_t i = 0; i < limits::kAuditKept; ++i) {
    EXPECT_THAT(log.Dropped(1), IsEmpty());
    log.Commit(log.Number({About("a")}));
  }
  EXPECT_THAT(log.Dropped(0), IsEmpty());
  EXPECT_THAT(log.Dropped(2), ElementsAre(1, 2));
  log.Commit(log.Number({About("b"), About("c")}));
  EXPECT_THAT(Numbers(log.Find({.after = 0, .limit = 1})), ElementsAre(3));
  EXPECT_EQ(log.Find({.limit = limits::kAuditKept + 1}).size(), limits::kAuditKept);
  EXPECT_EQ(log.Dropped(2 * limits::kAuditKept).size(), limits::kAuditKept);
}

TEST(AuditTest, TheNewestOrTheNext) {
  AuditLog log;
  log.Commit(log.Number({About("a"), About("b"), About("a", "agent"), About("a"), About("b")}));
  EXPECT_THAT(Numbers(log.Find({.limit = 2})), ElementsAre(4, 5));
  EXPECT_THAT(Numbers(log.Find({.after = 1, .limit = 2})), ElementsAre(2, 3));
  EXPECT_THAT(Numbers(log.Find({.limit = 9, .tenant = "a"})), ElementsAre(1, 4));
  EXPECT_THAT(Numbers(log.Find({.after = 1, .limit = 1, .tenant = "a"})), ElementsAre(4));
  EXPECT_THAT(log.Find({.after = 5, .limit = 9}), IsEmpty());
  EXPECT_THAT(log.Find({.limit = 0}), IsEmpty());
}

TEST(AuditTest, TimesAreForPeople) {
  using std::chrono::seconds;
  const std::chrono::system_clock::time_point epoch;
  EXPECT_EQ(UtcText(epoch), "1970-01-01T00:00:00Z");
  EXPECT_EQ(UtcText(epoch + seconds(951'827'696)), "2000-02-29T12:34:56Z");
}

}  // namespace
}  // namespace kvpool
