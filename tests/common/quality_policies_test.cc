// The table of what scripts/quality measures: every policy that an operator can name is in it, and
// every line is one that an operator may write.
//
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/policy_spec.h"
#include "common/tenants_file.h"
#include "tests/paths.h"

namespace kvpool {
namespace {

// {policy, the same as in a file of tenants} of each line.
std::vector<std::pair<std::string, std::string>> Lines() {
  std::vector<std::pair<std::string, std::string>> lines;
  std::ifstream file(SourcePath("scripts/quality_policies.txt"));
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line.substr(0, line.find('#')));
    std::string policy, word;
    if (!(words >> policy)) continue;
    std::string spec = absl::StrCat("{name: ", policy);
    while (words >> word) {
      const size_t equals = word.find('=');
      EXPECT_NE(equals, std::string::npos) << line;
      absl::StrAppend(&spec, ", ", word.substr(0, equals), ": ", word.substr(equals + 1));
    }
    lines.emplace_back(policy, spec + "}");
  }
  return lines;
}

TEST(QualityPoliciesTest, EveryPolicyIsMeasured) {
  std::set<std::string> measured;
  for (const auto& [policy, spec] : Lines()) measured.insert(policy);
  for (const PolicySchema& schema : PolicySchemas()) {
    EXPECT_TRUE(measured.contains(schema.name))
        << "no line for \"" << schema.name << "\" in scripts/quality_policies.txt";
  }
}

TEST(QualityPoliciesTest, EveryLineIsAPolicyOfATenant) {
  std::set<std::string> specs;
  for (const auto& [policy, spec] : Lines()) {
    const auto tenants = ParseTenants(
        absl::StrCat(
            "version: 1\ntenants:\n  - {name: a, guaranteed: 1 MiB, limit: 1 MiB, policy: ", spec,
            "}\n"),
        "file");
    ASSERT_TRUE(tenants.ok()) << spec << ": " << tenants.status().message();
    EXPECT_TRUE(specs.insert(ToString(tenants->at(0).policy)).second) << "twice: " << spec;
  }
}

}  // namespace
}  // namespace kvpool
