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

}  // namespace

void AddKvFlags(CLI::App& app, KvOptions& options) {
  app.add_option("--kv", options.kind, "Where keys and values live: in this process")
      ->check(CLI::IsMember({"private"}))
      ->capture_default_str();
  app.add_option("--kv-dtype", options.dtype, "Format of keys and values: f32 or bf16 [bf16]")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, Dtype>{{"f32", Dtype::kF32}, {"bf16", Dtype::kBf16}}));
  app.add_option("--private-mib", options.private_mib,
                 "With --kv private: most memory for keys and values of one tenant, in MiB")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
}

absl::StatusOr<std::vector<std::unique_ptr<KvCache>>> MakeKv(const KvOptions& options,
                                                             const KvNeeds& needs, Waiter*) {
  std::vector<std::unique_ptr<KvCache>> caches;
  for (const std::string& tenant : needs.tenants) {
    absl::StatusOr<std::unique_ptr<KvCache>> cache = MakePrivate(options, needs);
    if (!cache.ok()) {
      return absl::Status(cache.status().code(),
                          absl::StrCat("tenant \"", tenant, "\": ", cache.status().message()));
    }
    caches.push_back(*std::move(cache));
  }
  return caches;
}

}  // namespace kvpool
