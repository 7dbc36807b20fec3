// Which memory a worker keeps its KV in: the flags, and the caches made from them.
//
// Start-up code; main thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/kvpool.h"
#include "kernels/geometry.h"
#include "worker/kv_cache.h"

namespace CLI {
class App;
}

namespace kvpool {

// What the operator says.
struct KvOptions {
  std::string kind = "pool";
  Dtype dtype = Dtype::kBf16;
  uint32_t private_mib = 4096;                   // private: most memory a tenant
  std::string agent = "/run/kvpool/agent.sock";  // pool: the agent's socket
  std::string worker = "kvpool-worker";          // pool: this worker's name
  // pool: files with worker tokens, "FILE" for the only tenant or "TENANT=FILE" for each.
  std::vector<std::string> token_files;
};

// What the worker needs.
struct KvNeeds {
  Geometry geometry;
  std::vector<std::string> tenants;  // by name; "" is the only one when none is named
  uint32_t sessions = 0;             // most open at once, a tenant
  uint32_t session_tokens = 0;       // longest session
  std::vector<uint8_t> token_flags;  // of each token of the vocabulary (token_classes.h)
  std::string model;                 // model_name.h
  uint32_t chunk_tokens = 0;         // most tokens of a session between two safe points
};

// Adds the flags that fill `options`, which must outlive the parsing.
void AddKvFlags(CLI::App& app, KvOptions& options);

// The caches, and what they live on.
struct WorkerKv {
  std::unique_ptr<Connection> agent;             // pool only; outlives the caches
  std::vector<std::unique_ptr<KvCache>> caches;  // one per tenant, in order
};

absl::StatusOr<WorkerKv> MakeKv(const KvOptions& options, const KvNeeds& needs);

}  // namespace kvpool
