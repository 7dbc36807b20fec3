// Where the manager keeps what must survive it: records by key, changed all or nothing, by the one
// manager that leads; and which one that is. What the records say is records.h's business; leases
// are not among them: agents are the truth about them. Stores: sqlite_store.h, etcd_store.h.
//
//   Campaign until it leads -> Begin -> Write and Renew -> lost: Cancelled, Unknown -> Campaign ...
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
#include "common/clock.h"

namespace kvpool {

class Store {
 public:
  struct Standing {
    // Nobody else leads before this moment; none: this manager does not lead.
    std::optional<TimePoint> leads_until;
    std::string leader;  // who else leads, as it announced itself; empty when nobody does
  };
  struct Contents {
    uint64_t epoch = 0;
    std::map<std::string, std::string> records;
  };
  // Key -> new value, both UTF-8; none removes the record, or leaves it missing.
  using Changes = std::map<std::string, std::optional<std::string>>;

  Store() = default;
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;
  // Lets go of the leadership, so that another may lead at once.
  virtual ~Store() = default;

  // One attempt to lead, of a manager that does not. Unavailable when the store cannot be reached.
  virtual absl::StatusOr<Standing> Campaign() = 0;

  // The epoch of this leadership, higher than all before it, with everything else. Once in each,
  // before the first message. FailedPrecondition when a record is damaged.
  virtual absl::StatusOr<Contents> Begin() = 0;

  // Durable when it returns OK. Cancelled: this manager leads no longer, and nothing was changed.
  // Unknown: it leads no longer, and whether the change was made only its successor will see. After
  // any other error nothing is changed and the store goes on.
  virtual absl::Status Write(const Changes& changes) = 0;

  // Until when it leads from now on. Cancelled: it leads no longer. After another error what was
  // said before still holds; to be tried again.
  virtual absl::StatusOr<TimePoint> Renew() = 0;

  // Lets go of the leadership, if it has it. It may campaign again.
  virtual void Resign() = 0;
};

}  // namespace kvpool
