// How an operator asks for a change, and what became of it. Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "common/units.h"
#include "manager/audit.h"

namespace kvpool {

// kRehearse: the same checks, and nothing is changed.
enum class Effect { kChange, kRehearse };

struct Asker {
  std::string actor;  // the operator's name
  Effect effect = Effect::kChange;
};

// What a tenant's leases come to now, and would come to with a change at today's demand.
struct LeaseOutlook {
  std::string tenant;
  Bytes leased;
  Bytes after;
};

struct Outcome {
  std::vector<AuditEntry> changes;   // none when all is as it was asked for
  std::vector<LeaseOutlook> leases;  // of a rehearsal: the tenants whose leases differ
};

}  // namespace kvpool
