// How kvpoolctl writes numbers and tables, and what it makes of answers it does not know.
//
// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/cli/commands.h"
#include "client/cli/policy_table.h"
#include "client/cli/render.h"
#include "client/cli/table.h"
#include "client/cli/tenant_change.h"
#include "common/tenant_json.h"

namespace kvpool {
namespace {

using ::testing::HasSubstr;

TEST(CliTableTest, Sizes) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1024), "1 KiB");
  EXPECT_EQ(HumanBytes((1 << 20) - 1), "1.0 MiB") << "not 1024.0 KiB";
  EXPECT_EQ(HumanBytes(25 << 19), "12.5 MiB");
  EXPECT_EQ(HumanBytes(int64_t{1} << 50), "1 PiB");
}

TEST(CliTableTest, Ages) {
  EXPECT_EQ(HumanAge(340), "340ms");
  EXPECT_EQ(HumanAge(12'999), "12s");
  EXPECT_EQ(HumanAge(300'000), "5m");
  EXPECT_EQ(HumanAge(3 * 3600'000), "3h");
  EXPECT_EQ(HumanAge(int64_t{5} * 86400'000), "5d");
}

TEST(CliTableTest, Bars) {
  EXPECT_EQ(Bar(0, 10, 4), "....");
  EXPECT_EQ(Bar(5, 10, 4), "##..");
  EXPECT_EQ(Bar(25, 10, 4), "####");
  EXPECT_EQ(Bar(5, 0, 4), "....");
}

TEST(CliTableTest, ColumnsLineUp) {
  Table table({{"NAME"}, {"SIZE", Align::kRight}, {"NOTE"}});
  table.Add({"a", "5", ""});
  table.Add({"longer", "12345", "x"});
  EXPECT_EQ(table.ToText(1),
            " NAME     SIZE  NOTE\n"
            " a           5\n"
            " longer  12345  x\n");
}

TEST(CliTableTest, AnswersOfAnotherVersionAreShownAsFarAsPossible) {
  const boost::json::array odd = {
      nullptr, 7, {{"name", 7}, {"limit", "x"}}, {{"name", "a"}, {"policy", {{"name", "full"}}}}};
  EXPECT_THAT(RenderTenants(odd), HasSubstr("full"));
  EXPECT_THAT(RenderAgents(odd), HasSubstr("away"));
  EXPECT_THAT(RenderTenant({}, {}), HasSubstr("none"));
  EXPECT_THAT(RenderTop({}, {}), HasSubstr("TENANT"));
  EXPECT_EQ(RenderChanges({}), "");
}

TEST(CliTableTest, APolicyIsShownWithEveryKindOfParameter) {
  const boost::json::object tenant{{"name", "a"},
                                   {"policy",
                                    {{"name", "adakv"},
                                     {"budget", 64},
                                     {"floor", 0.25},
                                     {"scorer", "snapkv"},
                                     {"odd", nullptr}}}};
  EXPECT_THAT(RenderTenants({tenant}), HasSubstr("adakv(budget=64,floor=0.25,scorer=snapkv)"));
}

TEST(CliPolicyTest, TheTableNamesEveryParameterWithWhatIsAllowed) {
  const std::string text = PolicyTable();
  const boost::json::array policies = PolicyDocument().at("policies").as_array();
  ASSERT_EQ(policies.size(), PolicySchemas().size());
  for (size_t i = 0; i < policies.size(); ++i) {
    const PolicySchema& schema = PolicySchemas()[i];
    EXPECT_THAT(text, HasSubstr(schema.name + ": " + schema.summary));
    const boost::json::object& policy = policies[i].as_object();
    EXPECT_EQ(policy.at("name"), boost::json::value(schema.name));
    const boost::json::array& parameters = policy.at("parameters").as_array();
    ASSERT_EQ(parameters.size(), schema.parameters.size());
    for (size_t k = 0; k < parameters.size(); ++k) {
      const boost::json::object& parameter = parameters[k].as_object();
      const std::string allowed = AllowedText(schema.parameters[k]);
      EXPECT_THAT(text, HasSubstr(allowed));
      EXPECT_EQ(parameter.at("allowed"), boost::json::value(allowed));
      // What it says is allowed, and the default, is what the checks take.
      const auto take = [&](const boost::json::value& value) {
        boost::json::object json{{"name", schema.name}};
        json[parameter.at("name").as_string()] = value;
        return PolicyFromJson(json).status();
      };
      EXPECT_TRUE(take(parameter.at("default")).ok()) << allowed;
      if (!parameter.contains("choices")) continue;
      for (const boost::json::value& choice : parameter.at("choices").as_array()) {
        EXPECT_TRUE(take(choice).ok()) << choice;
      }
      EXPECT_THAT(std::string(take("neither").message()), HasSubstr("must be " + allowed));
    }
  }
}

TEST(CliPolicyTest, TheTableNamesWhatEveryPolicyHasOnce) {
  const std::string text = PolicyTable();
  for (const PolicyParameter& common : CommonPolicyParameters()) {
    const size_t first = text.find("\n  " + common.name + " ");
    EXPECT_GT(first, text.find("\nevery policy: ")) << common.name;
    EXPECT_NE(first, std::string::npos) << common.name;
    EXPECT_EQ(text.rfind("\n  " + common.name + " "), first) << common.name;
  }
}

TEST(CliPolicyTest, ParametersChangeAloneOrWithThePolicy) {
  const TenantSpec now{
      .name = "chat", .limit = 1_MiB, .policy = *MakePolicySpec("streaming", {{"recent", 60}})};
  const auto changed = [&](const TenantChange& change) { return Changed(now, change); };
  EXPECT_EQ(*changed({}), now);
  EXPECT_EQ(ToString(changed({.parameters = {"sinks=2"}})->policy),
            "streaming(format=native,open=128,recent=60,sinks=2,slack=64)");
  EXPECT_EQ(changed({.policy = "streaming", .parameters = {"sinks=2"}})->policy.Integer("recent"),
            60);
  EXPECT_EQ(
      changed({.policy = "scissorhands", .parameters = {"budget=512"}})->policy.Integer("budget"),
      512);
  for (const char* bad : {"recent", "recent=", "recent=many", "=1", "x=1", "", "recent=0"}) {
    EXPECT_FALSE(changed({.parameters = {bad}}).ok()) << bad;
  }
  EXPECT_FALSE(changed({.policy = "best"}).ok());
  EXPECT_FALSE(changed({.parameters = {"sinks=2", "sinks=2"}}).ok()) << "twice";
}

TEST(CliPolicyTest, ALadderIsMadeAndChangedByItsParameters) {
  const TenantSpec now{.name = "chat", .limit = 1_MiB};
  const auto made = Changed(now, {.policy = "auto", .parameters = {"min_recovery=0.9"}});
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->ladder, (PolicyLadder{.min_recovery = 0.9, .rungs = DefaultRungs()}));
  const auto shorter = Changed(*made, {.parameters = {"allowed=full,int8,recent-512"}});
  ASSERT_TRUE(shorter.ok()) << shorter.status();
  EXPECT_EQ(shorter->ladder->min_recovery, 0.9);
  EXPECT_EQ(shorter->ladder->rungs.size(), 3u);
  EXPECT_EQ(*Changed(*shorter, {}), *shorter);
  const auto fixed = Changed(*shorter, {.policy = "full"});
  ASSERT_TRUE(fixed.ok()) << fixed.status();
  EXPECT_EQ(*fixed, now);
  EXPECT_FALSE(Changed(now, {.policy = "auto"}).ok()) << "no floor";
  EXPECT_FALSE(Changed(*made, {.parameters = {"allowed="}}).ok());
  EXPECT_FALSE(Changed(*made, {.parameters = {"allowed=best"}}).ok());
  EXPECT_FALSE(Changed(*made, {.parameters = {"budget=7"}}).ok());
}

TEST(CliTableTest, ALadderIsShownWithWhereTheTenantIsAndWhy) {
  boost::json::array rungs;
  for (const char* policy : {"full()", "streaming(recent=60)"}) {
    rungs.push_back({{"policy", policy},
                     {"sessions", 3},
                     {"compactions", 7},
                     {"floor_stops", 1},
                     {"cumulative_recovery", 0.97}});
  }
  const boost::json::object tenant = {
      {"name", "chat"},
      {"policy", {{"name", "auto"}, {"min_recovery", 0.95}}},
      {"ladder", {{"rung", 1}, {"reason", "it holds more than its lease"}, {"rungs", rungs}}}};
  const std::string text = RenderTenant(tenant, {});
  EXPECT_THAT(text, HasSubstr("auto(min_recovery=0.95) 2/2: streaming(recent=60)"));
  EXPECT_THAT(text, HasSubstr("Ladder:       there because it holds more than its lease\n"));
  EXPECT_THAT(text, HasSubstr("> 2"));
  EXPECT_THAT(text, HasSubstr("0.970"));
}

TEST(CliTableTest, APolicyIsShownWithAllItsParametersAndWhetherItIsApproximate) {
  boost::json::object policy = {
      {"name", "fastgen"}, {"recovery", 0.95}, {"profile", "sampled"}, {"slack", 64}};
  boost::json::object tenant = {{"name", "chat"}, {"policy", policy}};
  EXPECT_THAT(RenderTenant(tenant, {}),
              HasSubstr("fastgen(recovery=0.95,profile=sampled,slack=64)  (approximate"));
  tenant.at("policy").at("profile") = "exact";
  EXPECT_THAT(RenderTenant(tenant, {}), HasSubstr("profile=exact,slack=64)\n"));
}

TEST(CliTableTest, ATenantAboveItsLeaseIsShownWithHowLongAndWhereAndWhetherItsGraceHasPassed) {
  boost::json::object tenant = {{"name", "chat"}, {"over_ms", 0}, {"past_deadline", false}};
  EXPECT_THAT(RenderTenant(tenant, {}), HasSubstr("\nOver lease:   no\n"));
  tenant["over_ms"] = 12'000;
  EXPECT_THAT(RenderTenant(tenant, {}), HasSubstr("\nOver lease:   12s\n"));
  tenant["past_deadline"] = true;
  const boost::json::object agents[] = {{{"agent", "gpu-0"}, {"over_ms", 0}},
                                        {{"agent", "gpu-1"}, {"over_ms", 12'000}}};
  tenant["agents"] = {agents[0], agents[1]};
  const std::string text = RenderTenant(tenant, {});
  EXPECT_THAT(text, HasSubstr("\nOver lease:   12s, past its grace\n"));
  EXPECT_THAT(text, testing::ContainsRegex("gpu-0 .* no\n"));
  EXPECT_THAT(text, testing::ContainsRegex("gpu-1 .* 12s\n"));
  const boost::json::object tenants = {{"tenants", {tenant}}};
  EXPECT_THAT(RenderTop(tenants, {}), HasSubstr("12s, past its grace\n"));
}

}  // namespace
}  // namespace kvpool
