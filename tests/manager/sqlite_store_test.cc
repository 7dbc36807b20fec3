// What is SQLite's own about the store: files that must not be opened, are out of date, or full.
// What every store must do is in conformance/store_suite.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/sqlite_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <filesystem>
#include <fstream>

#include "manager/records.h"
#include "tests/conformance/store_suite.h"

namespace kvpool {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::SizeIs;

// A folder of its own with a database in it.
class SqliteRig final : public StoreRig {
 public:
  SqliteRig() {
    std::string pattern = std::filesystem::temp_directory_path() / "kvpool-store-XXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  ~SqliteRig() override { std::filesystem::remove_all(folder_); }

  absl::StatusOr<std::unique_ptr<Store>> Open() override { return SqliteStore::Open(path()); }
  std::string path() const { return folder_ / "manager.db"; }
  const std::filesystem::path& folder() const { return folder_; }

 private:
  std::filesystem::path folder_;
};

INSTANTIATE_TEST_SUITE_P(Sqlite, StoreSuite,
                         ::testing::Values([] { return std::make_unique<SqliteRig>(); }));

class SqliteStoreTest : public ::testing::Test {
 protected:
  // As a restarted manager does.
  Store::Contents Reopen() {
    store_.reset();
    auto store = rig_.Open();
    EXPECT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    auto contents = store_->Begin();
    EXPECT_TRUE(contents.ok()) << contents.status();
    return *contents;
  }

  std::string OpenError() {
    const auto store = rig_.Open();
    EXPECT_EQ(store.status().code(), absl::StatusCode::kFailedPrecondition) << store.status();
    return std::string(store.status().message());
  }

  void RunSql(const char* sql) {
    sqlite3* database;
    ASSERT_EQ(sqlite3_open(rig_.path().c_str(), &database), SQLITE_OK);
    char* error = nullptr;
    EXPECT_EQ(sqlite3_exec(database, sql, nullptr, nullptr, &error), SQLITE_OK) << error;
    sqlite3_close(database);
  }

  SqliteRig rig_;
  std::unique_ptr<Store> store_;
};

TEST_F(SqliteStoreTest, OneManagerAtATime) {
  Reopen();
  EXPECT_THAT(OpenError(), HasSubstr("in use by another manager"));
}

TEST_F(SqliteStoreTest, ADamagedFileIsRefused) {
  Reopen();
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(store_->Write({{"t" + std::to_string(i), std::string(200, 'v')}}).ok());
  }
  store_.reset();
  const auto size = static_cast<std::streamoff>(std::filesystem::file_size(rig_.path()));
  std::fstream file(rig_.path(), std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(4096);
  for (std::streamoff i = 4096; i < size; ++i) file.put('\x5a');
  file.close();
  EXPECT_THAT(OpenError(), HasSubstr("restore it from a backup"));
}

TEST_F(SqliteStoreTest, ARecordThatWasChangedByHandIsRefused) {
  Reopen();
  ASSERT_TRUE(store_->Write({{"a", "1"}, {"b", "2"}}).ok());
  store_.reset();
  RunSql("UPDATE record SET value = '3' WHERE key = 'b'");
  auto store = rig_.Open();
  ASSERT_TRUE(store.ok());
  const auto contents = (*store)->Begin();
  EXPECT_EQ(contents.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(contents.status().message()), HasSubstr("record \"b\" is damaged"));
}

TEST_F(SqliteStoreTest, AnotherKindOfFileIsRefused) {
  std::ofstream(rig_.path()) << std::string(4096, 'x');
  EXPECT_THAT(OpenError(), HasSubstr("no database"));
}

TEST_F(SqliteStoreTest, AFileThatWasCutToNothingIsNotTakenForANewOne) {
  std::ofstream(rig_.path()).close();
  EXPECT_THAT(OpenError(), HasSubstr("is empty, so something has cut it; restore it"));
}

TEST_F(SqliteStoreTest, ADatabaseOfAnotherProgramIsRefused) {
  RunSql("CREATE TABLE song (title TEXT)");
  EXPECT_THAT(OpenError(), HasSubstr("another program"));
}

TEST_F(SqliteStoreTest, ANewerSchemaIsRefused) {
  Reopen();
  store_.reset();
  RunSql("PRAGMA user_version = 3");
  EXPECT_THAT(OpenError(), HasSubstr("has schema version 3, this manager knows 2"));
}

TEST_F(SqliteStoreTest, AMissingFolderIsNamed) {
  std::filesystem::remove(rig_.folder());
  EXPECT_THAT(OpenError(), HasSubstr("the folder must exist"));
}

// A database as version 1 of the schema wrote it, column by column.
TEST_F(SqliteStoreTest, AnOlderSchemaIsBroughtUpToDate) {
  RunSql(R"(
CREATE TABLE manager (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), epoch INTEGER NOT NULL);
INSERT INTO manager VALUES (1, 6);
CREATE TABLE tenant (
  id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
  guaranteed_bytes INTEGER NOT NULL, limit_bytes INTEGER NOT NULL,
  policy TEXT NOT NULL, revision INTEGER NOT NULL);
INSERT INTO tenant VALUES (3, 'chat', 1048576, 3145728, 'scissorhands', 4);
INSERT INTO tenant VALUES (4, 'gone', 0, 0, 'full', 1);
DELETE FROM tenant WHERE id = 4;
CREATE TABLE policy_parameter (
  tenant INTEGER NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (tenant, name));
INSERT INTO policy_parameter VALUES (3, 'budget', '512');
CREATE TABLE worker_token (hash BLOB PRIMARY KEY, tenant INTEGER NOT NULL);
INSERT INTO worker_token VALUES (
  x'00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff', 3);
CREATE TABLE operator_token (hash BLOB PRIMARY KEY);
INSERT INTO operator_token VALUES (
  x'ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff');
CREATE TABLE agent (
  name TEXT PRIMARY KEY, incarnation INTEGER NOT NULL, pool_bytes INTEGER NOT NULL,
  slab_bytes INTEGER NOT NULL, device TEXT NOT NULL);
INSERT INTO agent VALUES ('gpu-0', -1, 67108864, 2097152, 'host');
PRAGMA user_version = 1;
PRAGMA application_id = 1802924141;
)");
  const Store::Contents contents = Reopen();
  EXPECT_EQ(contents.epoch, 7u);
  const auto records = ReadRecords(contents);
  ASSERT_TRUE(records.ok()) << records.status();
  ASSERT_THAT(records->tenants, SizeIs(1));
  const Tenant& chat = records->tenants[0];
  EXPECT_EQ(chat.id, TenantId(3));
  EXPECT_EQ(chat.revision, 4u);
  EXPECT_EQ(chat.spec, (TenantSpec{.name = "chat",
                                   .guaranteed = 1_MiB,
                                   .limit = 3_MiB,
                                   .policy = *MakePolicySpec("scissorhands", {{"budget", 512}})}));
  ASSERT_THAT(chat.tokens, SizeIs(1));
  EXPECT_EQ(TokenId(chat.tokens[0]), "001122334455");
  EXPECT_EQ(records->next_tenant_id, TenantId(5));
  ASSERT_THAT(records->operators, SizeIs(1));
  EXPECT_EQ(TokenId(records->operators[0].token), "ff1122334455");
  EXPECT_EQ(records->operators[0].name, "admin-ff1122334455");
  EXPECT_EQ(records->operators[0].scope, Scope::kAdmin);
  EXPECT_THAT(records->agents, ElementsAre(KnownAgent{.info = {.name = "gpu-0",
                                                               .incarnation = ~uint64_t{0},
                                                               .pool_bytes = 64_MiB,
                                                               .slab_bytes = 2_MiB,
                                                               .device = "host"}}));
  EXPECT_EQ(Reopen().records, contents.records) << "once";
}

// The kernel refuses every write beyond a length, as a full disk does.
TEST_F(SqliteStoreTest, ADiskThatTakesNoMoreLosesNothing) {
  Reopen();
  ASSERT_TRUE(store_->Write({{"a", "1"}}).ok());
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto signal_before = signal(SIGXFSZ, SIG_IGN);
  const rlimit full{.rlim_cur = 256 << 10, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &full), 0);
  const absl::Status refused = store_->Write({{"a", "2"}, {"b", std::string(1 << 20, 'x')}});
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, signal_before);
  EXPECT_EQ(refused.code(), absl::StatusCode::kInternal) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("nothing was changed"));
  EXPECT_TRUE(store_->Write({{"c", "3"}}).ok()) << "the store goes on";
  EXPECT_THAT(Reopen().records, ElementsAre(Pair("a", "1"), Pair("c", "3")));
}

}  // namespace
}  // namespace kvpool
