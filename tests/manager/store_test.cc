// The database: what goes in comes out after a restart, and what must not be opened is not.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

namespace kvpool {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

class StoreTest : public ::testing::Test {
 protected:
  StoreTest() {
    std::string pattern = std::filesystem::temp_directory_path() / "kvpool-store-XXXXXX";
    folder_ = mkdtemp(pattern.data());
    path_ = folder_ / "manager.db";
  }
  ~StoreTest() override {
    store_.reset();
    std::filesystem::remove_all(folder_);
  }

  // As a restarted manager does.
  Store::Contents Reopen() {
    store_.reset();
    auto store = Store::Open(path_);
    EXPECT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    auto contents = store_->Begin();
    EXPECT_TRUE(contents.ok()) << contents.status();
    return *contents;
  }

  std::string OpenError() {
    const auto store = Store::Open(path_);
    EXPECT_EQ(store.status().code(), absl::StatusCode::kFailedPrecondition) << store.status();
    return std::string(store.status().message());
  }

  void RunSql(const char* sql) {
    sqlite3* database;
    ASSERT_EQ(sqlite3_open(path_.c_str(), &database), SQLITE_OK);
    char* error = nullptr;
    EXPECT_EQ(sqlite3_exec(database, sql, nullptr, nullptr, &error), SQLITE_OK) << error;
    sqlite3_close(database);
  }

  static Tenant MakeTenant(uint32_t id, const std::string& name) {
    return {.id = TenantId(id),
            .spec = {.name = name,
                     .guaranteed = 1_MiB,
                     .limit = 3_MiB,
                     .policy = *MakePolicySpec("scissorhands", {{"budget", 512}})},
            .revision = 4,
            .tokens = {Sha256(name + "1"), Sha256(name + "2")}};
  }

  std::filesystem::path folder_;
  std::string path_;
  std::unique_ptr<Store> store_;
};

TEST_F(StoreTest, ANewDatabaseIsEmpty) {
  const Store::Contents contents = Reopen();
  EXPECT_EQ(contents.epoch, 1u);
  EXPECT_EQ(contents.next_tenant_id, TenantId(1));
  EXPECT_THAT(contents.tenants, IsEmpty());
  EXPECT_THAT(contents.agents, IsEmpty());
  EXPECT_THAT(contents.operator_tokens, IsEmpty());
}

TEST_F(StoreTest, TheEpochRisesWithEachStart) {
  Reopen();
  EXPECT_EQ(Reopen().epoch, 2u);
  EXPECT_EQ(Reopen().epoch, 3u);
}

TEST_F(StoreTest, EverythingSurvives) {
  Reopen();
  const Tenant a = MakeTenant(1, "a"), b = MakeTenant(2, "b");
  const AgentInfo agent{.name = "gpu-0",
                        .incarnation = ~uint64_t{0},
                        .pool_bytes = 64_MiB,
                        .slab_bytes = 2_MiB,
                        .device = "host"};
  ASSERT_TRUE(store_->SaveTenants({a, b}).ok());
  ASSERT_TRUE(store_->SaveAgent(agent).ok());
  ASSERT_TRUE(store_->AddOperatorToken(Sha256("admin")).ok());

  const Store::Contents contents = Reopen();
  ASSERT_THAT(contents.tenants, SizeIs(2));
  EXPECT_EQ(contents.tenants[0].spec, a.spec);
  EXPECT_EQ(contents.tenants[0].id, a.id);
  EXPECT_EQ(contents.tenants[0].revision, 4u);
  EXPECT_THAT(contents.tenants[0].tokens, UnorderedElementsAre(Sha256("a1"), Sha256("a2")));
  EXPECT_EQ(contents.tenants[1].spec, b.spec);
  EXPECT_THAT(contents.agents, ElementsAre(agent));
  EXPECT_THAT(contents.operator_tokens, ElementsAre(Sha256("admin")));
}

TEST_F(StoreTest, SavingAgainReplaces) {
  Reopen();
  Tenant tenant = MakeTenant(1, "a");
  ASSERT_TRUE(store_->SaveTenants({tenant}).ok());
  tenant.spec.policy = *MakePolicySpec("full", {});
  tenant.spec.limit = 2_MiB;
  tenant.revision = 5;
  tenant.tokens = {Sha256("new")};
  ASSERT_TRUE(store_->SaveTenants({tenant}).ok());
  const Store::Contents contents = Reopen();
  ASSERT_THAT(contents.tenants, SizeIs(1));
  EXPECT_EQ(contents.tenants[0].spec, tenant.spec);
  EXPECT_EQ(contents.tenants[0].revision, 5u);
  EXPECT_THAT(contents.tenants[0].tokens, ElementsAre(Sha256("new")));
}

TEST_F(StoreTest, ManyAreSavedAllOrNothing) {
  Reopen();
  // The same token for two tenants cannot be.
  Tenant a = MakeTenant(1, "a"), b = MakeTenant(2, "b");
  b.tokens = a.tokens;
  EXPECT_FALSE(store_->SaveTenants({a, b}).ok());
  EXPECT_TRUE(store_->SaveTenants({MakeTenant(3, "c")}).ok()) << "the store goes on";
  const Store::Contents contents = Reopen();
  ASSERT_THAT(contents.tenants, SizeIs(1));
  EXPECT_EQ(contents.tenants[0].spec.name, "c");
}

TEST_F(StoreTest, ARemovedTenantsIdStaysUsed) {
  Reopen();
  ASSERT_TRUE(store_->SaveTenants({MakeTenant(1, "a"), MakeTenant(2, "b")}).ok());
  ASSERT_TRUE(store_->RemoveTenant(TenantId(2)).ok());
  const Store::Contents contents = Reopen();
  EXPECT_THAT(contents.tenants, SizeIs(1));
  EXPECT_EQ(contents.next_tenant_id, TenantId(3));
  EXPECT_TRUE(store_->SaveTenants({MakeTenant(3, "b")}).ok()) << "its tokens went with it";
}

TEST_F(StoreTest, AForgottenAgentIsGone) {
  Reopen();
  ASSERT_TRUE(store_->SaveAgent({.name = "a", .slab_bytes = 1_MiB}).ok());
  ASSERT_TRUE(store_->RemoveAgent("a").ok());
  EXPECT_THAT(Reopen().agents, IsEmpty());
}

TEST_F(StoreTest, OneManagerAtATime) {
  Reopen();
  EXPECT_THAT(OpenError(), HasSubstr("in use by another manager"));
}

TEST_F(StoreTest, ADamagedFileIsRefused) {
  Reopen();
  for (uint32_t i = 1; i < 200; ++i) {
    ASSERT_TRUE(store_->SaveTenants({MakeTenant(i, "t" + std::to_string(i))}).ok());
  }
  store_.reset();
  const auto size = static_cast<std::streamoff>(std::filesystem::file_size(path_));
  std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(4096);
  for (std::streamoff i = 4096; i < size; ++i) file.put('\x5a');
  file.close();
  EXPECT_THAT(OpenError(), HasSubstr("restore it from a backup"));
}

TEST_F(StoreTest, AnotherKindOfFileIsRefused) {
  std::ofstream(path_) << std::string(4096, 'x');
  EXPECT_THAT(OpenError(), HasSubstr("no database"));
}

TEST_F(StoreTest, ADatabaseOfAnotherProgramIsRefused) {
  RunSql("CREATE TABLE song (title TEXT)");
  EXPECT_THAT(OpenError(), HasSubstr("another program"));
}

TEST_F(StoreTest, ANewerSchemaIsRefused) {
  Reopen();
  store_.reset();
  RunSql("PRAGMA user_version = 2");
  EXPECT_THAT(OpenError(), HasSubstr("has schema version 2, this manager knows 1"));
}

TEST_F(StoreTest, APolicyOfANewerManagerIsRefused) {
  Reopen();
  ASSERT_TRUE(store_->SaveTenants({MakeTenant(1, "a")}).ok());
  store_.reset();
  RunSql("UPDATE tenant SET policy = 'better'");
  auto store = Store::Open(path_);
  ASSERT_TRUE(store.ok());
  const auto contents = (*store)->Begin();
  EXPECT_THAT(std::string(contents.status().message()), HasSubstr("\"better\" is not known"));
}

TEST_F(StoreTest, AMissingFolderIsNamed) {
  path_ = folder_ / "none" / "manager.db";
  EXPECT_THAT(OpenError(), HasSubstr("the folder must exist"));
}

}  // namespace
}  // namespace kvpool
