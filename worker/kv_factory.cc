// The kinds of memory there are.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/kv_factory.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <limits>
#include <map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/secret.h"
#include "worker/pool_kv.h"
#include "worker/private_kv.h"

namespace kvpool {
namespace {

absl::StatusOr<std::unique_ptr<KvCache>> MakePrivate(const KvOptions& options,
                                                     const KvNeeds& needs) {
  PrivateKvOptions private_options{.geometry = needs.geometry};
  absl::StatusOr<Layout> layout = Layout::Make(needs.geometry, private_options.slab_bytes);
  if (!layout.ok()) return layout.status();
  private_options.max_pages = static_cast<uint32_t>(
      std::min<int64_t>(Bytes(int64_t{options.private_mib} << 20) / layout->page_bytes(),
                        std::numeric_limits<uint32_t>::max()));
  return PrivateKv::Make(private_options);
}

// The token of `tenant` from the files that were named.
absl::StatusOr<std::string> TokenFor(const KvOptions& options, const std::string& tenant) {
  for (const std::string& entry : options.token_files) {
    const size_t equals = entry.find('=');
    const bool named = equals != std::string::npos;
    if (named ? entry.substr(0, equals) == tenant : options.token_files.size() == 1) {
      return ReadTokenFile(named ? entry.substr(equals + 1) : entry);
    }
  }
  return absl::InvalidArgumentError(absl::StrCat("no --token-file for tenant \"", tenant,
                                                 "\": pass --token-file ",
                                                 tenant.empty() ? "FILE" : tenant + "=FILE"));
}

absl::StatusOr<std::unique_ptr<KvCache>> MakePool(const KvOptions& options, const KvNeeds& needs,
                                                  const std::string& tenant, Connection& agent) {
  absl::StatusOr<std::string> token = TokenFor(options, tenant);
  if (!token.ok()) return token.status();
  absl::StatusOr<std::unique_ptr<Tenant>> attached =
      agent.Attach(*token, {.geometry = needs.geometry,
                            .max_sessions = needs.sessions,
                            .max_running = needs.sessions,
                            .max_session_tokens = needs.session_tokens,
                            .chunk_tokens = std::min(needs.chunk_tokens, needs.session_tokens)});
  if (!attached.ok()) return attached.status();
  return std::make_unique<PoolKv>(*std::move(attached), needs.token_flags, needs.model);
}

}  // namespace

void AddKvFlags(CLI::App& app, KvOptions& options) {
  app.add_option("--kv", options.kind,
                 "Where keys and values live: in an agent's pool, or private to this process")
      ->check(CLI::IsMember({"pool", "private"}))
      ->capture_default_str();
  app.add_option("--agent", options.agent, "With --kv pool: the agent's unix socket")
      ->capture_default_str();
  app.add_option("--token-file", options.token_files,
                 "With --kv pool: file with the worker token; TENANT=FILE for several tenants");
  app.add_option("--worker-name", options.worker, "With --kv pool: this worker's name")
      ->capture_default_str();
  app.add_option("--kv-dtype", options.dtype, "Format of keys and values [bf16]")
      ->transform(CLI::CheckedTransformer(std::map<std::string, Dtype>{{"f32", Dtype::kF32},
                                                                       {"bf16", Dtype::kBf16},
                                                                       {"f16", Dtype::kF16}})
                      .description("{f32,bf16,f16}"))
      ->type_name("TEXT");
  app.add_option("--private-mib", options.private_mib,
                 "With --kv private: most memory for keys and values of one tenant, in MiB")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
}

absl::StatusOr<WorkerKv> MakeKv(const KvOptions& options, const KvNeeds& needs) {
  WorkerKv kv;
  if (options.kind == "pool") {
    absl::StatusOr<std::unique_ptr<Connection>> agent =
        Connection::Open({.socket = options.agent, .worker = options.worker});
    if (!agent.ok()) return agent.status();
    kv.agent = *std::move(agent);
  }
  for (const std::string& tenant : needs.tenants) {
    absl::StatusOr<std::unique_ptr<KvCache>> cache =
        kv.agent != nullptr ? MakePool(options, needs, tenant, *kv.agent)
                            : MakePrivate(options, needs);
    if (!cache.ok()) {
      return absl::Status(cache.status().code(),
                          absl::StrCat("tenant \"", tenant, "\": ", cache.status().message()));
    }
    kv.caches.push_back(*std::move(cache));
  }
  return kv;
}

}  // namespace kvpool
