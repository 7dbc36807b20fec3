// Operators: whose token it is, what may be created and revoked.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/operators.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/limits.h"

namespace kvpool {
namespace {

using ::testing::HasSubstr;

Operator Make(const std::string& name, Scope scope) {
  return {.name = name, .scope = scope, .token = Sha256(name)};
}

TEST(OperatorsTest, ScopesGrowAndAreNamed) {
  EXPECT_LT(Scope::kRead, Scope::kOperate);
  EXPECT_LT(Scope::kOperate, Scope::kAdmin);
  for (const Scope scope : {Scope::kRead, Scope::kOperate, Scope::kAdmin}) {
    EXPECT_EQ(*ParseScope(ToString(scope)), scope);
  }
  EXPECT_THAT(std::string(ParseScope("root").status().message()),
              HasSubstr("read, operate and admin"));
}

TEST(OperatorsTest, ATokenBelongsToOneOrNobody) {
  const OperatorTable table({Make("a", Scope::kRead), Make("b", Scope::kOperate)}, Sha256("file"));
  EXPECT_EQ(*table.FindByToken(Sha256("a")), Make("a", Scope::kRead));
  EXPECT_EQ(*table.FindByToken(Sha256("b")), Make("b", Scope::kOperate));
  EXPECT_EQ(table.FindByToken(Sha256("file"))->name, "config");
  EXPECT_EQ(table.FindByToken(Sha256("file"))->scope, Scope::kAdmin);
  EXPECT_EQ(table.FindByToken(Sha256("c")), nullptr);
  EXPECT_FALSE(table.by_name().contains("config"));
}

TEST(OperatorsTest, WhoCannotBeCreated) {
  OperatorTable table({Make("a", Scope::kAdmin)}, std::nullopt);
  EXPECT_TRUE(table.CheckCreate("b").ok());
  EXPECT_EQ(table.CheckCreate("a").code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(table.CheckCreate("config").code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(table.CheckCreate("manager").code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(table.CheckCreate("A b").code(), absl::StatusCode::kInvalidArgument);
  for (uint32_t i = 1; i < limits::kOperators; ++i) {
    const std::string name = "n" + std::to_string(i);
    EXPECT_TRUE(table.CheckCreate(name).ok());
    table.Commit(Make(name, Scope::kRead));
  }
  EXPECT_EQ(table.CheckCreate("b").code(), absl::StatusCode::kResourceExhausted);
}

TEST(OperatorsTest, SomebodyCanAlwaysMakeOthers) {
  OperatorTable table({Make("a", Scope::kAdmin), Make("b", Scope::kOperate)}, std::nullopt);
  EXPECT_EQ(table.CheckRevoke("c").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(table.CheckRevoke("config").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(table.CheckRevoke("a").status().message()), HasSubstr("last admin"));
  EXPECT_EQ(*table.CheckRevoke("b"), Make("b", Scope::kOperate));
  table.Commit(Make("c", Scope::kAdmin));
  EXPECT_TRUE(table.CheckRevoke("a").ok());
  table.Remove("a");
  EXPECT_EQ(table.FindByToken(Sha256("a")), nullptr);
  EXPECT_FALSE(table.CheckRevoke("c").ok());

  const OperatorTable configured({Make("a", Scope::kAdmin)}, Sha256("file"));
  EXPECT_TRUE(configured.CheckRevoke("a").ok());
  EXPECT_THAT(std::string(configured.CheckRevoke("config").status().message()),
              HasSubstr("operator_token_file"));
}

}  // namespace
}  // namespace kvpool
