// Keys and values in this process's own memory, never compacted: the yardstick for speed and the
// oracle for results of the pool-backed cache, with the same layout.
//
// Engine's thread; views are read by several threads.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"
#include "common/units.h"
#include "kernels/layout.h"
#include "worker/kv_cache.h"

namespace kvpool {

struct PrivateKvOptions {
  Geometry geometry;
  Bytes slab_bytes = Bytes(2 << 20);
  uint32_t max_pages = 0;  // past it: kNoSpace; a session larger than it: kTooLarge
};

class PrivateKv final : public KvCache {
 public:
  static absl::StatusOr<std::unique_ptr<PrivateKv>> Make(const PrivateKvOptions& options);
  ~PrivateKv() override;

  // Admits optimistically: kNoSpace only when the prompt's pages are not free now.
  OpenResult Open(const OpenRequest& request) override;
  void Prepare(std::span<KvStep> steps) override;

  const Layout& layout() const { return layout_; }
  uint32_t free_pages() const { return static_cast<uint32_t>(free_.size()); }

 private:
  class Session;
  PrivateKv(const Layout& layout, std::byte* base, Bytes reserved, uint32_t max_pages);

  const Layout layout_;
  std::byte* const base_;
  const Bytes reserved_;
  const uint32_t max_pages_;
  std::vector<PageId> free_;  // last in, first out: what was just used is warm
};

}  // namespace kvpool
