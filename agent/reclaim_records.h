// What became of some sessions of a tenant, as records of its reclaims. Pure, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <vector>

#include "agent/attachment.h"
#include "agent/tenant_book.h"
#include "common/units.h"

namespace kvpool {

// One record for each policy and step under which something was done. Policies are the sessions'
// own: a tenant may have another by now. `common` holds what all records share: tenant, time and
// reason; `page` is a page of these sessions.
std::vector<ReclaimRecord> RecordsOf(const ReclaimRecord& common, Bytes page,
                                     std::span<const CompactionOutcome> outcomes);

}  // namespace kvpool
