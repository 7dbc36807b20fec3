// Schema, checks at start, and small statements.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/store.h"

#include <sqlite3.h>

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvpool {
namespace {

constexpr int64_t kApplicationId = 0x6b76706d;  // "kvpm", in the file's header
constexpr int64_t kSchemaVersion = 1;

// AUTOINCREMENT keeps the highest id ever given, so that an id never names another tenant.
constexpr char kSchema[] = R"(
CREATE TABLE manager (
  only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
  epoch INTEGER NOT NULL);
INSERT INTO manager VALUES (1, 0);
CREATE TABLE tenant (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  guaranteed_bytes INTEGER NOT NULL,
  limit_bytes INTEGER NOT NULL CHECK (guaranteed_bytes BETWEEN 0 AND limit_bytes),
  policy TEXT NOT NULL,
  revision INTEGER NOT NULL);
CREATE TABLE policy_parameter (
  tenant INTEGER NOT NULL REFERENCES tenant (id) ON DELETE CASCADE,
  name TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (tenant, name));
CREATE TABLE worker_token (
  hash BLOB PRIMARY KEY CHECK (length(hash) = 32),
  tenant INTEGER NOT NULL REFERENCES tenant (id) ON DELETE CASCADE);
CREATE TABLE operator_token (
  hash BLOB PRIMARY KEY CHECK (length(hash) = 32));
CREATE TABLE agent (
  name TEXT PRIMARY KEY,
  incarnation INTEGER NOT NULL,
  pool_bytes INTEGER NOT NULL,
  slab_bytes INTEGER NOT NULL CHECK (slab_bytes > 0),
  device TEXT NOT NULL);
)";

}  // namespace

absl::Status Store::Error(const std::string& what) const {
  return absl::InternalError(absl::StrCat(path_, ": ", what, ": ", sqlite3_errmsg(database_)));
}

// One prepared statement, used once: bind in order, then step. Errors are remembered, and come out
// of Step.
class Store::Statement {
 public:
  Statement(Store& store, const char* sql) : store_(store) {
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
  Statement& Bind(const Sha256Hash& value) {
    Check(sqlite3_bind_blob(statement_, ++bound_, value.data(), static_cast<int>(value.size()),
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
  Sha256Hash Hash() {
    Sha256Hash hash{};
    const void* blob = sqlite3_column_blob(statement_, column_);
    const size_t size = std::min<size_t>(sqlite3_column_bytes(statement_, column_++), hash.size());
    if (blob != nullptr) std::copy_n(static_cast<const uint8_t*>(blob), size, hash.begin());
    return hash;
  }

 private:
  void Check(int code) {
    if (code_ == SQLITE_OK) code_ = code;
  }

  Store& store_;
  sqlite3_stmt* statement_ = nullptr;
  int code_ = SQLITE_OK;
  int bound_ = 0;
  int column_ = 0;
};

// Rolls back unless it was committed.
class Store::Transaction {
 public:
  explicit Transaction(Store& store) : store_(store), status_(store.Execute("BEGIN IMMEDIATE")) {}
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
  Store& store_;
  absl::Status status_;
};

absl::StatusOr<std::unique_ptr<Store>> Store::Open(const std::string& path) {
  sqlite3* database = nullptr;
  const int code =
      sqlite3_open_v2(path.c_str(), &database, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr);
  std::unique_ptr<Store> store(new Store(database, path));
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

Store::Store(sqlite3* database, std::string path) : database_(database), path_(std::move(path)) {}

Store::~Store() { sqlite3_close(database_); }

absl::Status Store::Execute(const char* sql) {
  if (sqlite3_exec(database_, sql, nullptr, nullptr, nullptr) == SQLITE_OK) return absl::OkStatus();
  return Error("a statement failed");
}

absl::Status Store::Prepare() {
  if (absl::Status status = Execute("PRAGMA locking_mode = EXCLUSIVE;"
                                    "PRAGMA journal_mode = WAL;"
                                    "PRAGMA synchronous = FULL;"
                                    "PRAGMA foreign_keys = ON;"
                                    "PRAGMA trusted_schema = OFF;"
                                    "BEGIN IMMEDIATE; COMMIT");  // takes the lock
      !status.ok()) {
    return status;
  }
  Statement check(*this, "PRAGMA quick_check(1)");
  const auto row = check.Step();
  if (!row.ok()) return row.status();
  if (const std::string result = check.Text(); result != "ok") {
    return absl::FailedPreconditionError(absl::StrCat(
        path_, ": is damaged (", result, "); restore it from a backup, the budgets are in it"));
  }
  Statement version(*this,
                    "SELECT user_version, application_id, (SELECT count(*) FROM sqlite_schema)"
                    " FROM pragma_user_version, pragma_application_id");
  if (const auto found = version.Step(); !found.ok()) return found.status();
  const int64_t schema = version.Integer(), application = version.Integer();
  const int64_t objects = version.Integer();
  if (schema == kSchemaVersion && application == kApplicationId) return absl::OkStatus();
  if (objects == 0) {
    const std::string create =
        absl::StrCat("BEGIN IMMEDIATE;", kSchema, "PRAGMA user_version = ", kSchemaVersion,
                     "; PRAGMA application_id = ", kApplicationId, "; COMMIT");
    return Execute(create.c_str());
  }
  if (application != kApplicationId) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, ": is a database of another program; name another file"));
  }
  return absl::FailedPreconditionError(
      absl::StrCat(path_, ": has schema version ", schema, ", this manager knows ", kSchemaVersion,
                   "; run the manager that wrote it, or a newer one"));
}

absl::StatusOr<Store::Contents> Store::Begin() {
  Contents contents;
  Transaction transaction(*this);
  transaction.Then(Statement(*this, "UPDATE manager SET epoch = epoch + 1").Run());
  Statement epoch(*this, "SELECT epoch FROM manager");
  transaction.Then(epoch.Step().status());
  contents.epoch = static_cast<uint64_t>(epoch.Integer());
  transaction.Then(LoadTenants(contents)).Then(LoadTokens(contents)).Then(LoadAgents(contents));
  if (absl::Status status = transaction.Commit(); !status.ok()) return status;
  return contents;
}

absl::Status Store::LoadTenants(Contents& contents) {
  std::map<int64_t, PolicyValues> parameters;
  Statement parameter(*this, "SELECT tenant, name, value FROM policy_parameter");
  absl::StatusOr<bool> row;
  while ((row = parameter.Step()).ok() && *row) {
    const int64_t tenant = parameter.Integer();
    const std::string name = parameter.Text();
    parameters[tenant][name] = parameter.Text();
  }
  if (!row.ok()) return row.status();

  Statement tenant(*this,
                   "SELECT id, name, guaranteed_bytes, limit_bytes, policy, revision FROM tenant");
  while ((row = tenant.Step()).ok() && *row) {
    const int64_t id = tenant.Integer();
    TenantSpec spec{.name = tenant.Text()};
    spec.guaranteed = Bytes(tenant.Integer());
    spec.limit = Bytes(tenant.Integer());
    const auto policy = MakePolicySpec(tenant.Text(), parameters[id]);
    const absl::Status status = policy.ok() ? CheckTenantSpec(spec) : policy.status();
    if (!status.ok()) {
      return absl::FailedPreconditionError(absl::StrCat(
          path_, ": holds a tenant that this manager cannot serve: ", std::string(status.message()),
          "; run the manager that wrote it"));
    }
    spec.policy = *policy;
    contents.tenants.push_back({.id = TenantId(static_cast<uint32_t>(id)),
                                .spec = std::move(spec),
                                .revision = static_cast<uint64_t>(tenant.Integer())});
  }
  if (!row.ok()) return row.status();

  Statement highest(*this, "SELECT coalesce(max(seq), 0) FROM sqlite_sequence");
  if (row = highest.Step(); !row.ok()) return row.status();
  contents.next_tenant_id = TenantId(static_cast<uint32_t>(highest.Integer() + 1));
  return absl::OkStatus();
}

absl::Status Store::LoadTokens(Contents& contents) {
  std::map<TenantId, Tenant*> tenants;
  for (Tenant& tenant : contents.tenants) tenants[tenant.id] = &tenant;
  Statement token(*this, "SELECT tenant, hash FROM worker_token ORDER BY rowid");
  absl::StatusOr<bool> row;
  while ((row = token.Step()).ok() && *row) {
    const TenantId tenant(static_cast<uint32_t>(token.Integer()));
    if (tenants.contains(tenant)) tenants[tenant]->tokens.push_back(token.Hash());
  }
  if (!row.ok()) return row.status();
  Statement operator_token(*this, "SELECT hash FROM operator_token");
  while ((row = operator_token.Step()).ok() && *row) {
    contents.operator_tokens.push_back(operator_token.Hash());
  }
  return row.status();
}

absl::Status Store::LoadAgents(Contents& contents) {
  Statement agent(*this, "SELECT name, incarnation, pool_bytes, slab_bytes, device FROM agent");
  absl::StatusOr<bool> row;
  while ((row = agent.Step()).ok() && *row) {
    AgentInfo info{.name = agent.Text()};
    info.incarnation = static_cast<uint64_t>(agent.Integer());
    info.pool_bytes = Bytes(agent.Integer());
    info.slab_bytes = Bytes(agent.Integer());
    info.device = agent.Text();
    contents.agents.push_back(std::move(info));
  }
  return row.status();
}

absl::Status Store::SaveTenant(const Tenant& tenant) {
  const int64_t id = tenant.id.value();
  const TenantSpec& spec = tenant.spec;
  absl::Status status =
      Statement(*this,
                "INSERT INTO tenant VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
                " guaranteed_bytes = excluded.guaranteed_bytes, limit_bytes = excluded.limit_bytes,"
                " policy = excluded.policy, revision = excluded.revision")
          .Bind(id)
          .Bind(spec.name)
          .Bind(spec.guaranteed.value())
          .Bind(spec.limit.value())
          .Bind(spec.policy.name)
          .Bind(static_cast<int64_t>(tenant.revision))
          .Run();
  for (const char* clear : {"DELETE FROM policy_parameter WHERE tenant = ?",
                            "DELETE FROM worker_token WHERE tenant = ?"}) {
    if (status.ok()) status = Statement(*this, clear).Bind(id).Run();
  }
  for (const auto& [name, value] : spec.policy.parameters) {
    if (!status.ok()) break;
    status = Statement(*this, "INSERT INTO policy_parameter VALUES (?, ?, ?)")
                 .Bind(id)
                 .Bind(name)
                 .Bind(ToString(value))
                 .Run();
  }
  for (const Sha256Hash& hash : tenant.tokens) {
    if (!status.ok()) break;
    status = Statement(*this, "INSERT INTO worker_token VALUES (?, ?)").Bind(hash).Bind(id).Run();
  }
  return status;
}

absl::Status Store::SaveTenants(const std::vector<Tenant>& tenants) {
  Transaction transaction(*this);
  for (const Tenant& tenant : tenants) {
    if (transaction.ok()) transaction.Then(SaveTenant(tenant));
  }
  return transaction.Commit();
}

absl::Status Store::RemoveTenant(TenantId tenant) {
  return Statement(*this, "DELETE FROM tenant WHERE id = ?").Bind(tenant.value()).Run();
}

absl::Status Store::SaveAgent(const AgentInfo& agent) {
  return Statement(*this, "INSERT OR REPLACE INTO agent VALUES (?, ?, ?, ?, ?)")
      .Bind(agent.name)
      .Bind(static_cast<int64_t>(agent.incarnation))
      .Bind(agent.pool_bytes.value())
      .Bind(agent.slab_bytes.value())
      .Bind(agent.device)
      .Run();
}

absl::Status Store::RemoveAgent(const std::string& name) {
  return Statement(*this, "DELETE FROM agent WHERE name = ?").Bind(name).Run();
}

absl::Status Store::AddOperatorToken(const Sha256Hash& hash) {
  return Statement(*this, "INSERT INTO operator_token VALUES (?)").Bind(hash).Run();
}

}  // namespace kvpool
