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
#include "kernels/geometry.h"
#include "worker/kv_cache.h"
#include "worker/waiter.h"

namespace CLI {
class App;
}

namespace kvpool {

// What the operator says.
struct KvOptions {
  std::string kind = "private";
  Dtype dtype = Dtype::kBf16;
  uint32_t private_mib = 4096;  // private: most memory a tenant
};

// What the worker needs.
struct KvNeeds {
  Geometry geometry;
  std::vector<std::string> tenants;  // by name; "" is the only one when none is named
  uint32_t sessions = 0;             // most open at once, a tenant
  uint32_t session_tokens = 0;       // longest session
  uint32_t chunk_tokens = 0;         // most tokens of a session between two safe points
};

// Adds the flags that fill `options`, which must outlive the parsing.
void AddKvFlags(CLI::App& app, KvOptions& options);

// One cache per tenant, in order. They call waiter->Notify when memory may have come free.
absl::StatusOr<std::vector<std::unique_ptr<KvCache>>> MakeKv(const KvOptions& options,
                                                             const KvNeeds& needs, Waiter* waiter);

}  // namespace kvpool
