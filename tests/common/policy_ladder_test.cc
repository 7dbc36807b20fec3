// Policy `auto` as an operator writes it: what a ladder is, what is refused and in which words, and
// that files and requests say the same.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/policy_ladder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "common/tenant_json.h"
#include "common/tenants_file.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

absl::StatusOr<TenantSpec> FromYaml(const std::string& policy) {
  const auto tenants = ParseTenants(
      "version: 1\ntenants:\n- name: a\n  guaranteed: 0\n  limit: 8 MiB\n  policy: " + policy,
      "t.yaml");
  if (!tenants.ok()) return tenants.status();
  return tenants->at(0);
}

TEST(PolicyLadderTest, TheBuiltInLadderIsALadder) {
  EXPECT_TRUE(CheckLadder({.min_recovery = 0.95, .rungs = DefaultRungs()}).ok());
  EXPECT_EQ(DefaultRungs().front(), DefaultPolicySpec()) << "it begins with losing nothing";
  std::set<std::string> names;
  for (const NamedRung& rung : BuiltInRungs()) {
    EXPECT_TRUE(names.insert(rung.name).second) << rung.name;
    EXPECT_EQ(*FindRung(rung.name), rung.policy);
    EXPECT_FALSE(rung.why.empty());
  }
}

TEST(PolicyLadderTest, AFileAndARequestSayTheSame) {
  const auto whole = FromYaml("{name: auto, min_recovery: 0.95}");
  ASSERT_TRUE(whole.ok()) << whole.status();
  ASSERT_TRUE(whole->ladder.has_value());
  EXPECT_EQ(whole->ladder->min_recovery, 0.95);
  EXPECT_EQ(whole->ladder->rungs, DefaultRungs());
  EXPECT_EQ(whole->policy, DefaultRungs().front());

  const auto some = FromYaml(
      "{name: auto, min_recovery: 0.9, allowed: [int8, {name: h2o, budget: 640, format: int8}, "
      "recent-512]}");
  ASSERT_TRUE(some.ok()) << some.status();
  EXPECT_EQ(some->ladder->rungs,
            (std::vector<PolicySpec>{*FindRung("int8"),
                                     *MakePolicySpec("h2o", {{"budget", 640}, {"format", "int8"}}),
                                     *FindRung("recent-512")}));
  EXPECT_EQ(some->policy, *FindRung("int8"));
  for (const TenantSpec& spec : {*whole, *some}) {
    const boost::json::value json = ToJson(spec);
    const auto again =
        TenantsFromJson(boost::json::value{{"version", 1}, {"tenants", boost::json::array{json}}});
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->at(0), spec);
  }
}

struct Mistake {
  const char* policy;
  const char* what;
};

const Mistake kMistakes[] = {
    {"{name: auto}", "\"min_recovery\" is missing"},
    {"{name: auto, min_recovery: 1.5}", "min_recovery = 1.5 is not allowed; it must be 0..1"},
    {"{name: auto, min_recovery: -0.1}", "must be 0..1"},
    {"{name: auto, min_recovery: nan}", "must be 0..1"},
    {"{name: auto, min_recovery: most}", "min_recovery = most is not allowed"},
    {"{name: auto, min_recovery: 0.9, budget: 7}", "unknown key \"budget\""},
    {"{name: auto, min_recovery: 0.9, allowed: []}", "allowed is empty; name a policy"},
    {"{name: auto, min_recovery: 0.9, allowed: full}", "expected a list of names and policies"},
    {"{name: auto, min_recovery: 0.9, allowed: [best]}",
     "\"best\" is no rung of the built-in ladder, which are full, int8, int4"},
    {"{name: auto, min_recovery: 0.9, allowed: [{name: best}]}", "policy \"best\" is not known"},
    {"{name: auto, min_recovery: 0.9, allowed: [{name: auto, min_recovery: 0.8}]}",
     "policy \"auto\" is not known"},
    {"{name: auto, min_recovery: 0.9, allowed: [full, full]}", "allowed[1], full: is there twice"},
    {"{name: auto, min_recovery: 0.9, allowed: [full, {name: snapkv}]}",
     "allowed[1], snapkv: it acts on the prompt alone"},
    {"{name: auto, min_recovery: 0.9, allowed: [{name: fastgen}]}", "acts on the prompt alone"},
    {"{name: auto, min_recovery: 0.9, allowed: [int4, int8]}",
     "its format int8 is not denser than int4"},
    {"{name: auto, min_recovery: 0.9, allowed: [int8, {name: streaming}]}",
     "its format native is not denser than int8"},
    {"{name: auto, min_recovery: 0.9, allowed: [int8, {name: full, format: fp8}]}",
     "its format fp8 is not denser than int8"},
    {"{name: auto, min_recovery: 0.9, allowed: [{name: scissorhands}, {name: corm, threshold: "
     "inv_cached}]}",
     "counts important keys by inv_cached, and scissorhands before it by inv_step"}};

TEST(PolicyLadderTest, MistakesAreAnsweredWithWhatIsWrong) {
  for (const Mistake& mistake : kMistakes) {
    const absl::Status status = FromYaml(mistake.policy).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << mistake.policy;
    EXPECT_THAT(std::string(status.message()), HasSubstr(mistake.what)) << mistake.policy;
    EXPECT_THAT(std::string(status.message()), StartsWith("t.yaml:6")) << mistake.policy;
  }
}

TEST(PolicyLadderTest, NumbersOfRequestsAreCheckedToo) {
  for (const char* bad :
       {R"({"name": "auto", "min_recovery": 2})", R"({"name": "auto", "min_recovery": true})",
        R"({"name": "auto", "min_recovery": 0.9, "allowed": [7]})",
        R"({"name": "auto", "min_recovery": 0.9, "allowed": {}})",
        R"({"name": "auto", "min_recovery": 0.9, "more": 1})"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(LadderFromJson(boost::json::parse(bad)).status())) << bad;
  }
  EXPECT_TRUE(LadderFromJson(boost::json::parse(R"({"name": "auto", "min_recovery": 0})")).ok());
}

TEST(PolicyLadderTest, ALadderHasAtMostSoManyRungs) {
  PolicyLadder ladder{.min_recovery = 0.5};
  for (uint32_t i = 0; i < limits::kRungs; ++i) {
    ladder.rungs.push_back(*MakePolicySpec("streaming", {{"recent", int64_t{1000} - i}}));
  }
  EXPECT_TRUE(CheckLadder(ladder).ok());
  ladder.rungs.push_back(DefaultPolicySpec());
  EXPECT_THAT(std::string(CheckLadder(ladder).message()),
              HasSubstr("9 policies are too many; at most 8"));
}

}  // namespace
}  // namespace kvpool
