// The records in SQLite: one file, held exclusively, so that one manager leads; every change is
// durable when its call returns. Blocking; one thread at a time.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "manager/store.h"

struct sqlite3;

namespace kvpool {

class SqliteStore final : public Store {
 public:
  // Opens or creates the database and checks it; one of an older schema is brought up to date.
  // FailedPrecondition, with advice, when it is damaged, written by a newer version, no database,
  // or in use.
  static absl::StatusOr<std::unique_ptr<SqliteStore>> Open(const std::string& path);
  ~SqliteStore() override;

  // Who holds the file leads, for as long as it does.
  absl::StatusOr<Standing> Campaign() override { return Standing{.leads_until = TimePoint::max()}; }
  absl::StatusOr<Contents> Begin() override;
  absl::Status Write(const Changes& changes) override;
  absl::StatusOr<TimePoint> Renew() override { return TimePoint::max(); }
  void Resign() override {}

 private:
  class Statement;
  class Transaction;

  SqliteStore(sqlite3* database, std::string path);

  absl::Status Prepare();
  absl::Status QuickCheck();
  // Makes the tables, or brings them up to date, and gives every record its checksum.
  absl::Status Create(const char* schema);
  absl::Status Execute(const char* sql);
  absl::Status WriteAll(const Changes& changes);
  absl::Status Error(const std::string& what) const;

  sqlite3* database_;
  std::string path_;
};

}  // namespace kvpool
