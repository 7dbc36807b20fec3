// Schema, checks at start, and small statements.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/sqlite_store.h"

#include <sqlite3.h>

#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/secret.h"

namespace kvpool {
namespace {

constexpr int64_t kApplicationId = 0x6b76706d;  // "kvpm", in the file's header
constexpr int64_t kSchemaVersion = 2;

// `checksum` finds what SQLite cannot: a value that somebody or something has changed.
constexpr char kSchema[] = R"(
CREATE TABLE manager (
  only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
  epoch INTEGER NOT NULL);
INSERT INTO manager VALUES (1, 0);
CREATE TABLE record (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL,
  checksum TEXT NOT NULL) WITHOUT ROWID;
)";

// From version 1, which had a column for each field. The checksums follow.
constexpr char kFromVersion1[] = R"(
CREATE TABLE record (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL,
  checksum TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO record SELECT 'tenant/' || id, json_object(
    'id', id, 'revision', revision,
    'spec', json_object('name', name, 'guaranteed', guaranteed_bytes, 'limit', limit_bytes,
      'policy', json_patch(json_object('name', policy),
        (SELECT json_group_object(name, value) FROM policy_parameter WHERE tenant = id))),
    'tokens', (SELECT json_group_array(lower(hex(hash))) FROM worker_token WHERE tenant = id)), ''
  FROM tenant;
INSERT INTO record SELECT 'next-tenant', coalesce(max(seq), 0) + 1, '' FROM sqlite_sequence;
INSERT INTO record SELECT 'operator/' || lower(hex(hash)), '{}', '' FROM operator_token;
INSERT INTO record SELECT 'agent/' || name, json_object(
    'incarnation', printf('%llu', incarnation), 'pool', pool_bytes, 'slab', slab_bytes,
    'device', device), ''
  FROM agent;
DROP TABLE policy_parameter;
DROP TABLE worker_token;
DROP TABLE tenant;
DROP TABLE operator_token;
DROP TABLE agent;
)";

std::string Checksum(const std::string& key, const std::string& value) {
  return ToHex(Sha256(key + '\0' + value));
}

}  // namespace

absl::Status SqliteStore::Error(const std::string& what) const {
  return absl::InternalError(absl::StrCat(path_, ": ", what, ": ", sqlite3_errmsg(database_)));
}

// One prepared statement, used once: bind in order, then step. Errors are remembered, and come out
// of Step.
class SqliteStore::Statement {
 public:
  Statement(SqliteStore& store, const char* sql) : store_(store) {
    Check(sqlite3_prepare_v2(store.database_, sql, -1, &statement_, nullptr));
  }
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  Statement& Bind(int64_t value) {
    Check(sqlite3_bind_int64(statement_, ++bound_, value));
    return *this;
  }
  Statement& Bind(const std::string& value) {
    Check(sqlite3_bind_text(statement_, ++bound_, value.data(), static_cast<int>(value.size()),
                            SQLITE_TRANSIENT));
    return *this;
  }
  // True when there is a row, whose columns are then read in order.
  absl::StatusOr<bool> Step() {
    column_ = 0;
    if (code_ == SQLITE_OK) code_ = sqlite3_step(statement_);
    if (code_ == SQLITE_ROW) return code_ = SQLITE_OK, true;
    if (code_ == SQLITE_DONE) return false;
    return store_.Error("a statement failed");
  }
  absl::Status Run() { return Step().status(); }

  int64_t Integer() { return sqlite3_column_int64(statement_, column_++); }
  std::string Text() {
    const unsigned char* text = sqlite3_column_text(statement_, column_);
    const int size = sqlite3_column_bytes(statement_, column_++);
    return text == nullptr ? "" : std::string(reinterpret_cast<const char*>(text), size);
  }

 private:
  void Check(int code) {
    if (code_ == SQLITE_OK) code_ = code;
  }

  SqliteStore& store_;
  sqlite3_stmt* statement_ = nullptr;
  int code_ = SQLITE_OK;
  int bound_ = 0;
  int column_ = 0;
};

// Rolls back unless it was committed.
class SqliteStore::Transaction {
 public:
  explicit Transaction(SqliteStore& store)
      : store_(store), status_(store.Execute("BEGIN IMMEDIATE")) {}
  ~Transaction() {
    if (sqlite3_get_autocommit(store_.database_) == 0) (void)store_.Execute("ROLLBACK");
  }

  // Does nothing after an error.
  Transaction& Then(const absl::Status& status) {
    if (status_.ok()) status_ = status;
    return *this;
  }
  bool ok() const { return status_.ok(); }
  absl::Status Commit() { return status_.ok() ? store_.Execute("COMMIT") : status_; }

 private:
  SqliteStore& store_;
  absl::Status status_;
};

absl::StatusOr<std::unique_ptr<SqliteStore>> SqliteStore::Open(const std::string& path) {
  std::error_code error;
  if (std::filesystem::file_size(path, error) == 0 && !error) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": is empty, so something has cut it; restore it from a backup, the ",
                     "budgets are in it, or remove it to begin with no tenants"));
  }
  sqlite3* database = nullptr;
  const int code =
      sqlite3_open_v2(path.c_str(), &database, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr);
  std::unique_ptr<SqliteStore> store(new SqliteStore(database, path));
  if (code != SQLITE_OK) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": cannot be opened: ", sqlite3_errmsg(database),
                     "; the folder must exist and be writable"));
  }
  const absl::Status status = store->Prepare();
  if (status.ok()) return store;
  switch (sqlite3_errcode(database)) {
    case SQLITE_BUSY:
      return absl::FailedPreconditionError(
          absl::StrCat(path, ": is in use by another manager; stop that one first"));
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::FailedPreconditionError(
          absl::StrCat(path, ": is damaged or no database (", sqlite3_errmsg(database),
                       "); restore it from a backup, the budgets are in it"));
    default:
      return status;
  }
}

SqliteStore::SqliteStore(sqlite3* database, std::string path)
    : database_(database), path_(std::move(path)) {}

SqliteStore::~SqliteStore() { sqlite3_close(database_); }

absl::Status SqliteStore::Execute(const char* sql) {
  if (sqlite3_exec(database_, sql, nullptr, nullptr, nullptr) == SQLITE_OK) return absl::OkStatus();
  return Error("a statement failed");
}

absl::Status SqliteStore::Prepare() {
  if (absl::Status status = Execute("PRAGMA locking_mode = EXCLUSIVE;"
                                    "PRAGMA journal_mode = WAL;"
                                    "PRAGMA synchronous = FULL;"
                                    "PRAGMA foreign_keys = ON;"
                                    "PRAGMA trusted_schema = OFF;"
                                    "BEGIN IMMEDIATE; COMMIT");  // takes the lock
      !status.ok()) {
    return status;
  }
  if (absl::Status status = QuickCheck(); !status.ok()) return status;
  int64_t schema = 0, application = 0, objects = 0;
  {
    Statement version(*this,
                      "SELECT user_version, application_id, (SELECT count(*) FROM sqlite_schema)"
                      " FROM pragma_user_version, pragma_application_id");
    if (const auto found = version.Step(); !found.ok()) return found.status();
    schema = version.Integer(), application = version.Integer(), objects = version.Integer();
  }  // an open statement would keep tables from being dropped
  if (schema == kSchemaVersion && application == kApplicationId) return absl::OkStatus();
  if (objects == 0) return Create(kSchema);
  if (schema == 1 && application == kApplicationId) return Create(kFromVersion1);
  if (application != kApplicationId) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, ": is a database of another program; name another file"));
  }
  return absl::FailedPreconditionError(
      absl::StrCat(path_, ": has schema version ", schema, ", this manager knows ", kSchemaVersion,
                   "; run the manager that wrote it, or a newer one"));
}

absl::Status SqliteStore::QuickCheck() {
  Statement check(*this, "PRAGMA quick_check(1)");
  const auto row = check.Step();
  if (!row.ok()) return row.status();
  const std::string result = check.Text();
  if (result == "ok") return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      path_, ": is damaged (", result, "); restore it from a backup, the budgets are in it"));
}

absl::Status SqliteStore::Create(const char* schema) {
  Transaction transaction(*this);
  const std::string create = absl::StrCat(schema, "PRAGMA user_version = ", kSchemaVersion,
                                          "; PRAGMA application_id = ", kApplicationId);
  if (transaction.ok()) transaction.Then(Execute(create.c_str()));
  Statement record(*this, "SELECT key, value FROM record");
  Changes records;
  while (transaction.ok()) {
    const auto row = record.Step();
    transaction.Then(row.status());
    if (!row.ok() || !*row) break;
    const std::string key = record.Text();
    records[key] = record.Text();
  }
  if (transaction.ok()) transaction.Then(WriteAll(records));
  return transaction.Commit();
}

absl::StatusOr<Store::Contents> SqliteStore::Begin() {
  Contents contents;
  Transaction transaction(*this);
  transaction.Then(Statement(*this, "UPDATE manager SET epoch = epoch + 1").Run());
  Statement epoch(*this, "SELECT epoch FROM manager");
  transaction.Then(epoch.Step().status());
  contents.epoch = static_cast<uint64_t>(epoch.Integer());
  Statement record(*this, "SELECT key, value, checksum FROM record");
  while (transaction.ok()) {
    const auto row = record.Step();
    transaction.Then(row.status());
    if (!row.ok() || !*row) break;
    const std::string key = record.Text(), value = record.Text();
    if (record.Text() != Checksum(key, value)) {
      return absl::FailedPreconditionError(
          absl::StrCat(path_, ": the record \"", key, "\" is damaged (its checksum is wrong); ",
                       "restore it from a backup, the budgets are in it"));
    }
    contents.records[key] = value;
  }
  if (absl::Status status = transaction.Commit(); !status.ok()) return status;
  return contents;
}

absl::Status SqliteStore::WriteAll(const Changes& changes) {
  for (const auto& [key, value] : changes) {
    const absl::Status status =
        value.has_value() ? Statement(*this, "INSERT OR REPLACE INTO record VALUES (?, ?, ?)")
                                .Bind(key)
                                .Bind(*value)
                                .Bind(Checksum(key, *value))
                                .Run()
                          : Statement(*this, "DELETE FROM record WHERE key = ?").Bind(key).Run();
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::Write(const Changes& changes) {
  Transaction transaction(*this);
  if (transaction.ok()) transaction.Then(WriteAll(changes));
  const absl::Status status = transaction.Commit();
  if (status.ok()) return status;
  return absl::InternalError(
      absl::StrCat(std::string(status.message()), "; nothing was changed; look at the disk"));
}

}  // namespace kvpool
