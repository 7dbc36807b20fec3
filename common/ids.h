// The names of things, each its own type. See units.h for what a StrongInt may do.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/units.h"

namespace kvpool {

// A tenant, numbered by the manager; 0 is nobody. Never reused for another name.
using TenantId = StrongInt<struct TenantIdTag, uint32_t>;
// One attachment of a worker process to one tenant at one agent. Counts up from 1 per agent.
using WorkerId = StrongInt<struct WorkerIdTag, uint32_t>;
// One sequence's cache. Counts up from 1 per agent and is never reused.
using SessionId = StrongInt<struct SessionIdTag, uint64_t>;
// A slab's slot in the pool's virtual range: slab i lies at base + i * slab_bytes in every process.
using SlabIndex = StrongInt<struct SlabIndexTag, uint32_t>;
// 16 tokens of one cached layer and one KV head. Counts granules of 512 bytes from the pool's base:
// address = base + id * 512, for every geometry and format, in every process.
using BlockId = StrongInt<struct BlockIdTag, uint32_t>;
// 16 tokens x every cached layer x every KV head. Its id is its first block's id (layer 0, head 0).
using PageId = StrongInt<struct PageIdTag, uint32_t>;

inline constexpr uint32_t kGranuleBytes = 512;  // what a BlockId counts
inline constexpr uint32_t kPageTokens = 16;     // tokens in a page and in a block

}  // namespace kvpool
