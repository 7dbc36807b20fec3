// Tenants files: what a good one means, and what each mistake is answered with.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/tenants_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/limits.h"

namespace kvpool {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(TenantsFileTest, ReadsEveryField) {
  const auto tenants = ParseTenants(R"(version: 1
tenants:
  - name: chat
    guaranteed: 8 MiB
    limit: 24 MiB
    policy: {name: scissorhands, budget: 512}
    floors: {gpu-0: 4 MiB, gpu-1: 2 MiB}
    weight: 3
    priority: 7
    borrowing: off
    grace: {cold: 250 ms, running: 1 min}
    over_deadline: preempt
  - {name: batch-2, guaranteed: 0, limit: 4 MiB}
)",
                                    "t.yaml");
  ASSERT_TRUE(tenants.ok()) << tenants.status();
  ASSERT_EQ(tenants->size(), 2u);
  const TenantSpec& chat = (*tenants)[0];
  EXPECT_EQ(chat.name, "chat");
  EXPECT_EQ(chat.guaranteed, 8_MiB);
  EXPECT_EQ(chat.limit, 24_MiB);
  EXPECT_EQ(chat.floors, (std::map<std::string, Bytes>{{"gpu-0", 4_MiB}, {"gpu-1", 2_MiB}}));
  EXPECT_EQ(chat.weight, 3);
  EXPECT_EQ(chat.priority, 7);
  EXPECT_EQ(chat.borrowing, Borrowing::kOff);
  EXPECT_EQ(chat.grace, (Grace{std::chrono::milliseconds(250), std::chrono::minutes(1)}));
  EXPECT_EQ(chat.over_deadline, OverDeadline::kPreempt);
  EXPECT_EQ(ToString(chat.policy),
            "scissorhands(budget=512,drop=256,format=native,gain=1,layers=even,open=128,recent=10,"
            "window=400)");
  EXPECT_EQ((*tenants)[1], (TenantSpec{.name = "batch-2", .limit = 4_MiB}));
}

TEST(TenantsFileTest, NoTenantsIsAFile) {
  const auto tenants = ParseTenants("version: 1\ntenants: []\n", "t.yaml");
  ASSERT_TRUE(tenants.ok());
  EXPECT_TRUE(tenants->empty());
}

struct Mistake {
  const char* text;
  const char* where;
  const char* what;
};

const Mistake kMistakes[] = {
    {"tenants: []", "t.yaml:1", "\"version\" is missing"},
    {"version: 2\ntenants: []", "t.yaml:1", "2 is outside 1..1"},
    {"version: 1", "t.yaml:1", "\"tenants\" is missing"},
    {"version: 1\ntenants: {a: 1}", "t.yaml:2", "expected a list"},
    {"version: 1\ntenants: []\nowner: me", "t.yaml:3", "unknown key \"owner\""},
    {"version: 1\ntenants:\n- {name: a, guaranteed: 0, limit: 1 B, limit: 2 B}", "t.yaml:3",
     "\"limit\" is there twice"},
    {"version: 1\ntenants:\n- {name: a, guaranteed: 0, limit: 1 B,\n   wait: 2}", "t.yaml:4",
     "unknown key \"wait\""},
    {"version: 1\ntenants:\n- {guaranteed: 0, limit: 1 B}", "t.yaml:3", "\"name\" is missing"},
    {"version: 1\ntenants:\n- {name: a, limit: 1 B}", "t.yaml:3", "\"guaranteed\" is missing"},
    {"version: 1\ntenants:\n- {name: a, guaranteed: 0}", "t.yaml:3", "\"limit\" is missing"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 12 GB", "t.yaml:5", "GiB"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: -1\n  limit: 1 B", "t.yaml:4", "-1"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 2048 TiB", "t.yaml:5", "outside"},
    {"version: 1\ntenants:\n- {name: a, guaranteed: 8 MiB, limit: 4 MiB}", "t.yaml:3",
     "8 MiB > 4 MiB"},
    {"version: 1\ntenants:\n- {name: Team A, guaranteed: 0, limit: 1 B}", "t.yaml:3",
     "name \"Team A\" is not allowed"},
    {"version: 1\ntenants:\n- {name: a, guaranteed: 0, limit: 1 B}\n"
     "- {name: a, guaranteed: 0, limit: 1 B}",
     "t.yaml:4", "is there twice; first at t.yaml:3"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 1 B\n  policy: full", "t.yaml:6",
     "expected a policy"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 1 B\n  policy: {name: best}",
     "t.yaml:6", "policy \"best\" is not known"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 1 B\n"
     "  policy: {name: full, budget: 7}",
     "t.yaml:6", "no parameter \"budget\""},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 1 B\n"
     "  policy: {name: scissorhands, budget: many}",
     "t.yaml:6", "many"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 1 B\n"
     "  policy: {name: scissorhands, budget: 31}",
     "t.yaml:6", "budget = 31 is not allowed; it must be 32..1048576 tokens"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 1 B\n"
     "  policy: {name: adakv, floor: 1.5}",
     "t.yaml:6", "floor = 1.5 is not allowed; it must be 0..1"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 1 B\n"
     "  policy: {name: corm, threshold: often}",
     "t.yaml:6", "threshold = often is not allowed; it must be inv_step or inv_cached"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 1 B\n"
     "  policy: {name: snapkv, kernel: 4}",
     "t.yaml:6", "kernel must be odd"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 1 B\n  weight: 0", "t.yaml:6",
     "0 is outside 1..1000"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 1 B\n  priority: 10", "t.yaml:6",
     "10 is outside 0..9"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 1 B\n  borrowing: maybe",
     "t.yaml:3", "borrowing \"maybe\" is not allowed; it must be on or off"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 1 B\n  over_deadline: kill",
     "t.yaml:3", "it must be hold or preempt"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 1 B\n  grace: 5 s", "t.yaml:6",
     "expected durations"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 1 B\n  grace: {cold: 5}",
     "t.yaml:6", "unit"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 1 B\n  grace: {hot: 5 s}",
     "t.yaml:6", "unknown key \"hot\"; allowed are cold, running"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 1 B\n"
     "  grace: {running: 2 h}",
     "t.yaml:6", "2 h is outside"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 2 B\n  limit: 9 B\n"
     "  floors: {gpu-0: 2 B, gpu-1: 1 B}",
     "t.yaml:3", "floors must not exceed guaranteed, got 3 B in all > 2 B"},
    {"version: 1\ntenants:\n- name: a\n  guaranteed: 2 B\n  limit: 9 B\n"
     "  floors: {GPU: 2 B}",
     "t.yaml:3", "agent name \"GPU\" is not allowed"},
    {"version: 1\ntenants:\n- name: a\n  limit: [1, 2]\n  guaranteed: 0", "t.yaml:4",
     "single value"},
};

TEST(TenantsFileTest, EveryMistakeIsNamedWithItsLine) {
  for (const Mistake& mistake : kMistakes) {
    const auto tenants = ParseTenants(mistake.text, "t.yaml");
    ASSERT_FALSE(tenants.ok()) << mistake.text;
    EXPECT_THAT(Message(tenants.status()), StartsWith(mistake.where)) << mistake.text;
    EXPECT_THAT(Message(tenants.status()), HasSubstr(mistake.what)) << mistake.text;
  }
}

TEST(TenantsFileTest, TooManyFloorsAreRefused) {
  TenantSpec spec{.name = "a"};
  for (uint32_t i = 0; i < limits::kFloorsPerTenant; ++i) {
    spec.floors["gpu-" + std::to_string(i)] = 0_B;
  }
  EXPECT_TRUE(CheckTenantSpec(spec).ok());
  spec.floors["more"] = 0_B;
  EXPECT_THAT(Message(CheckTenantSpec(spec)), HasSubstr("129 floors are too many; at most 128"));
}

TEST(TenantsFileTest, TooManyTenantsAreRefused) {
  const auto file = [](uint32_t count) {
    std::string text = "version: 1\ntenants:\n";
    for (uint32_t i = 0; i < count; ++i) {
      text += "- {name: t" + std::to_string(i) + ", guaranteed: 0, limit: 1 B}\n";
    }
    return text;
  };
  EXPECT_TRUE(ParseTenants(file(limits::kTenants), "t.yaml").ok());
  const auto tenants = ParseTenants(file(limits::kTenants + 1), "t.yaml");
  ASSERT_FALSE(tenants.ok());
  EXPECT_THAT(Message(tenants.status()), HasSubstr(" tenants are too many"));
}

TEST(TenantsFileTest, Names) {
  for (const char* good : {"a", "7", "team-a", "a--b", "0x"}) {
    EXPECT_TRUE(CheckName("tenant", good).ok()) << good;
  }
  const std::string longest(limits::kNameBytes, 'a');
  EXPECT_TRUE(CheckName("tenant", longest).ok());
  for (const std::string& bad :
       {std::string(), std::string("-a"), std::string("a-"), std::string("A"), std::string("a_b"),
        std::string("a b"), std::string("a\0b", 3), std::string("\xc3\xa4"), longest + "a"}) {
    EXPECT_FALSE(CheckName("tenant", bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace kvpool
