// Records: what goes in comes out, and what cannot be understood is named.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/records.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

namespace kvpool {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

Tenant MakeTenant(uint32_t id, const std::string& name) {
  return {.id = TenantId(id),
          .spec = {.name = name,
                   .guaranteed = 2_MiB,
                   .limit = 3_MiB,
                   .policy = *MakePolicySpec("scissorhands", {{"budget", 512}}),
                   .floors = {{"gpu-0", 1_MiB}},
                   .weight = 3,
                   .priority = 9,
                   .borrowing = Borrowing::kOff,
                   .grace = {std::chrono::milliseconds(1), std::chrono::minutes(2)},
                   .over_deadline = OverDeadline::kPreempt},
          .revision = 4,
          .tokens = {Sha256(name + "1"), Sha256(name + "2")}};
}

class RecordsTest : public ::testing::Test {
 protected:
  void Write(const Store::Changes& changes) {
    for (const auto& [key, value] : changes) {
      contents_.records.erase(key);
      if (value.has_value()) contents_.records[key] = *value;
    }
  }
  Records Read() {
    const auto records = ReadRecords(contents_);
    EXPECT_TRUE(records.ok()) << records.status();
    return records.ok() ? *records : Records();
  }
  std::string Error(const std::string& key, const std::string& value) {
    const auto records = ReadRecords({.records = {{key, value}}});
    EXPECT_EQ(records.status().code(), absl::StatusCode::kFailedPrecondition) << key;
    return std::string(records.status().message());
  }

  Store::Contents contents_;
};

TEST_F(RecordsTest, NothingIsNothing) {
  EXPECT_THAT(Read().tenants, SizeIs(0));
  EXPECT_EQ(Read().next_tenant_id, TenantId(1));
}

TEST_F(RecordsTest, EverythingComesBack) {
  const Tenant a = MakeTenant(1, "a"), b = MakeTenant(12, "b");
  const AgentInfo agent{.name = "gpu-0",
                        .incarnation = ~uint64_t{0},
                        .pool_bytes = 64_MiB,
                        .slab_bytes = 2_MiB,
                        .device = "host"};
  Write(SaveTenants({a, b}, TenantId(2)));
  Write(SaveAgent(agent));
  Write(SaveBounds("gpu-0", {{TenantId(12), 64}, {TenantId(11), 8}}));  // 11 is gone
  Write(SaveSettings("gpu-0", {.draining = true, .revision = 3}));
  const Operator reader{.name = "ci", .scope = Scope::kRead, .token = Sha256("reader")};
  Write(SaveOperator(reader));
  const AuditEntry entry{.seq = 12,
                         .time = "2026-11-21T20:58:07Z",
                         .actor = "ci",
                         .action = "tenant.create",
                         .kind = "tenant",
                         .name = "a",
                         .before = nullptr,
                         .after = boost::json::object{{"limit", 3}},
                         .revision = 1};
  AuditEntry older = entry;
  older.seq = 9;
  Write(SaveAudit({older, entry}, {}));
  const Records records = Read();
  EXPECT_THAT(records.audit, ElementsAre(older, entry)) << "sorted by number, not as text";
  Write(SaveAudit({}, {9}));
  EXPECT_THAT(Read().audit, ElementsAre(entry));
  ASSERT_THAT(records.tenants, SizeIs(2));
  EXPECT_EQ(records.tenants[0].id, a.id);
  EXPECT_EQ(records.tenants[0].spec, a.spec);
  EXPECT_EQ(records.tenants[0].revision, 4u);
  EXPECT_EQ(records.tenants[0].tokens, a.tokens);
  EXPECT_EQ(records.tenants[1].spec, b.spec);
  EXPECT_EQ(records.next_tenant_id, TenantId(13));
  EXPECT_THAT(records.agents,
              ElementsAre(KnownAgent{.info = agent,
                                     .bounds = {{TenantId(12), 64}},
                                     .settings = {.draining = true, .revision = 3}}));
  EXPECT_FALSE(records.tenants[0].leaving);
  EXPECT_THAT(records.operators, ElementsAre(reader));
  Write(RemoveOperator(reader.token));
  EXPECT_THAT(Read().operators, SizeIs(0));
}

TEST_F(RecordsTest, ATenantThatLeavesGoesOnLeaving) {
  Tenant tenant = MakeTenant(1, "a");
  tenant.leaving = true;
  Write(SaveTenants({tenant}, TenantId(2)));
  EXPECT_TRUE(Read().tenants.at(0).leaving);
}

TEST_F(RecordsTest, ATenantStaysOnItsRungAndALadderThatIsTooShortIsNamed) {
  Tenant tenant = MakeTenant(1, "a");
  SetLadder({.min_recovery = 0.9, .rungs = DefaultRungs()}, &tenant.spec);
  tenant.rung = {.index = 3, .reason = "it wants 12 MiB where it is given 8 MiB"};
  Write(SaveTenants({tenant}, TenantId(2)));
  const Tenant read = Read().tenants.at(0);
  EXPECT_EQ(read.spec, tenant.spec);
  EXPECT_EQ(read.rung, tenant.rung);
  EXPECT_EQ(read.policy(), DefaultRungs()[3]);
  tenant.rung.index = 8;
  const std::string record = *SaveTenants({tenant}, TenantId(2)).at("tenant/1");
  EXPECT_THAT(Error("tenant/1", record), HasSubstr("within 0..7"));
  SetPolicy(DefaultPolicySpec(), &tenant.spec);
  Error("tenant/1", *SaveTenants({tenant}, TenantId(2)).at("tenant/1"));
  tenant.rung = {};
  Write(SaveTenants({tenant}, TenantId(2)));
  EXPECT_EQ(Read().tenants.at(0).rung, TenantRung());
}

TEST_F(RecordsTest, ARemovedTenantsIdStaysUsed) {
  Write(SaveTenants({MakeTenant(1, "a"), MakeTenant(2, "b")}, TenantId(3)));
  Write(RemoveTenant(TenantId(2)));
  EXPECT_THAT(Read().tenants, SizeIs(1));
  EXPECT_EQ(Read().next_tenant_id, TenantId(3));
  Write(SaveAgent({.name = "a", .slab_bytes = 1_MiB}));
  Write(SaveBounds("a", {{TenantId(1), 8}}));
  Write(RemoveAgent("a"));
  EXPECT_THAT(Read().agents, SizeIs(0));
  EXPECT_FALSE(contents_.records.contains("bounds/a"));
  Write(SaveSettings("b", {.draining = true, .revision = 1}));
  Write(RemoveAgent("b"));
  EXPECT_FALSE(contents_.records.contains("drain/b"));
}

TEST_F(RecordsTest, WhatCannotBeReadIsNamed) {
  const std::string good = *SaveTenants({MakeTenant(1, "a")}, TenantId(1)).at("tenant/1");
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    EXPECT_NE(text.find(from), std::string::npos) << from;
    return text.replace(text.find(from), from.size(), to);
  };
  EXPECT_TRUE(ReadRecords({.records = {{"tenant/1", good}}}).ok());
  EXPECT_THAT(Error("tenant/2", good), HasSubstr("\"tenant/2\" cannot be read: it has another id"));
  EXPECT_THAT(Error("tenant/1", good.substr(1)), HasSubstr("not JSON"));
  EXPECT_THAT(Error("tenant/1", with("scissorhands", "better")), HasSubstr("\"better\""));
  EXPECT_THAT(Error("tenant/1", with("\"revision\"", "\"version\"")), HasSubstr("revision"));
  EXPECT_THAT(Error("tenant/1", with("\"weight\"", "\"colour\"")), HasSubstr("colour"));
  EXPECT_THAT(Error("tenant/1", with("{", "{\"owner\":1,")), HasSubstr("owner"));
  EXPECT_THAT(Error("tenant/1", with("3145728", "3")), HasSubstr("guaranteed must not exceed"));
  EXPECT_THAT(Error("tenant/1", with(ToHex(Sha256("a1")), "12")), HasSubstr("64 digits"));
  EXPECT_THAT(Error("agent/gpu-0", "{}"), HasSubstr("incarnation"));
  EXPECT_THAT(Error("bounds/gpu-0", R"({"x": 1})"), HasSubstr("a tenant is its id"));
  EXPECT_THAT(Error("bounds/gpu-0", R"({"1": -1})"), HasSubstr("whole number"));
  EXPECT_THAT(Error("drain/gpu-0", R"({"draining": 1, "revision": 1})"),
              HasSubstr("true or false"));
  EXPECT_THAT(Error("drain/gpu-0", R"({"draining": true})"), HasSubstr("revision"));
  EXPECT_THAT(Error("operator/12", "{}"), HasSubstr("64 digits"));
  const std::string key = "operator/" + ToHex(Sha256("a"));
  EXPECT_THAT(Error(key, R"({"name": "a", "scope": "root"})"), HasSubstr("\"root\" is no scope"));
  EXPECT_THAT(Error(key, R"({"name": "A", "scope": "read"})"), HasSubstr("not allowed"));
  EXPECT_THAT(Error(key, R"({"name": "a", "scope": "read", "x": 1})"), HasSubstr("\"x\""));
  const std::string audit = R"({"seq": 1, "time": "", "actor": "", "action": "", "kind": "",)"
                            R"( "name": "", "before": null, "after": null, "revision": 0})";
  EXPECT_TRUE(ReadRecords({.records = {{"audit/00000000000000000001", audit}}}).ok());
  EXPECT_THAT(Error("audit/00000000000000000002", audit), HasSubstr("another number"));
  EXPECT_THAT(Error("audit/00000000000000000001", "{}"), HasSubstr("seq"));
  EXPECT_THAT(Error("next-tenant", "-1"), HasSubstr("above 0"));
  EXPECT_THAT(Error("budget/1", "{}"), HasSubstr("knows no such record"));
}

}  // namespace
}  // namespace kvpool
