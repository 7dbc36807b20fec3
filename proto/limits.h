// The table of limits: the named maximum of every queue, ring, table and message that crosses a
// process boundary. Past a limit comes a typed refusal, a metric, and a test of that refusal.
// Compile-time constants, any thread. proto/README.md lists them with what happens past each.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace kvpool::limits {

// Versions. A peer with another major version is refused.
inline constexpr uint32_t kProtocolVersion = 1;

// Cap'n Proto messages.
inline constexpr uint64_t kMessageWords = 128 * 1024;  // 1 MiB a message
inline constexpr uint32_t kNestingDepth = 16;          // pointer depth
inline constexpr uint32_t kFdsPerMessage = 16;         // file descriptors a message

inline constexpr uint64_t kInFlightWords = 4 * kMessageWords;  // unanswered calls a connection
inline constexpr uint64_t kSendQueueBytes = 4 << 20;           // answers that a peer has not read

// Connections.
inline constexpr uint32_t kConnections = 256;  // open connections an agent or manager serves
inline constexpr uint32_t kAuthenticateMillis = 2000;  // from connect to a first accepted token
inline constexpr uint32_t kTokenBytes = 128;           // length of any token
inline constexpr uint32_t kNameBytes = 64;             // tenant, agent and worker names

// Worker <-> agent.
inline constexpr uint32_t kWorkers = 64;                     // attachments an agent
inline constexpr uint32_t kSessionsPerWorker = 1024;         // session slots an attachment
inline constexpr uint32_t kRunningPerWorker = 256;           // query windows an attachment
inline constexpr uint32_t kSessionTokens = 1 << 20;          // tokens a session
inline constexpr uint64_t kSharedBytes = uint64_t{1} << 40;  // both memories of an attachment
inline constexpr uint32_t kWindowQueries = 32;               // W: depth of a query window
inline constexpr uint32_t kMagazinePages = 8192;             // ring slots, a power of two
inline constexpr uint32_t kMagazineShare = 64;               // a magazine holds 1/64 of the lease
inline constexpr uint32_t kBatchItems = 256;                 // sessions in a drain or hand-over
inline constexpr uint32_t kSlabsPerCall = 16;                // slabs granted or revoked in one call
inline constexpr uint32_t kLayers = 256;                     // cached or model layers of a geometry
inline constexpr uint32_t kHeads = 256;                      // query or KV heads of a geometry
inline constexpr uint32_t kHeadDim = 1024;                   // key or value dim of a geometry

// Agent <-> manager.
inline constexpr uint32_t kAgents = 1024;                  // agents a manager serves
inline constexpr uint32_t kTenants = 512;                  // tenants a manager knows
inline constexpr uint32_t kSlabsPerAgent = 1 << 20;        // slabs of an agent's pool
inline constexpr int64_t kTenantBytes = int64_t{1} << 50;  // largest budget of a tenant
inline constexpr uint32_t kTokensPerTenant = 16;           // worker tokens a tenant may have
inline constexpr uint32_t kFloorsPerTenant = 128;          // agents where a tenant has a floor
inline constexpr uint32_t kReclaimsPerReport = 64;         // reclaim records in one report
inline constexpr uint32_t kPolicyTextBytes = 256;          // text of a policy or device in a report
inline constexpr uint32_t kReclaimsKept = 20;              // runs of reclaims kept for each tenant
inline constexpr uint32_t kDecisionsKept = 20;             // runs of lease moves kept, likewise
inline constexpr uint32_t kReportMillis = 250;             // how often an agent reports

// Files that an operator writes.
inline constexpr uint32_t kConfigFileBytes = 1 << 20;  // a configuration or tenants file

// The file that an agent keeps for its next start.
inline constexpr uint32_t kStateFileBytes = 4 << 20;

// Operator API.
inline constexpr uint32_t kAuditKept = 1024;            // changes that the audit log keeps
inline constexpr uint32_t kAuditReply = 256;            // of them in one answer
inline constexpr uint32_t kOperators = 64;              // operators with a token in the store
inline constexpr uint32_t kHttpBodyBytes = 1 << 20;     // request body
inline constexpr uint32_t kHttpHeaderBytes = 16 << 10;  // request line and headers
inline constexpr uint32_t kHttpReplyBytes = 16 << 20;   // response body a client accepts
inline constexpr uint32_t kHttpConnections = 64;        // open HTTP connections
inline constexpr uint32_t kHttpSeconds = 10;            // to read a request
inline constexpr uint32_t kJsonDepth = 16;              // nesting of a JSON body

}  // namespace kvpool::limits
