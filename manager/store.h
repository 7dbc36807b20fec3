// Where the manager keeps what must survive it: records by key, changed all or nothing, by the one
// manager that leads. What the records say is records.h's business; leases are not among them:
// agents are the truth about them. Stores: sqlite_store.h.
//
// Blocking; one thread at a time (the shell runs it on a pool of one thread).
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvpool {

class Store {
 public:
  struct Contents {
    uint64_t epoch = 0;
    std::map<std::string, std::string> records;
  };
  // Key -> new value; none removes the record, or leaves it missing.
  using Changes = std::map<std::string, std::optional<std::string>>;

  Store() = default;
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;
  virtual ~Store() = default;

  // Raises the epoch, and returns it with everything else. Once, before the first message.
  // FailedPrecondition when a record is damaged.
  virtual absl::StatusOr<Contents> Begin() = 0;

  // Durable when it returns OK; after an error nothing is changed and the store goes on.
  virtual absl::Status Write(const Changes& changes) = 0;
};

}  // namespace kvpool
