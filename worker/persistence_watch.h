// How well a model's important keys stay important (Scissorhands, arXiv 2305.17118, section 3.2 and
// figure 2): of the keys of a sequence's first half that its second half's queries find important,
// the share that the first half's queries found important too. What the method builds on, and
// which random weights do not show.
//
// A cache in front of a cache that never drops keys: it asks for every query, and scores them as an
// agent does for `corm`. A key is important to a query when one of the KV head's query heads gives
// it at least 1 / step. Engine's thread, as KvCache.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "worker/kv_cache.h"

namespace kvpool {

// Keys of one cached layer, over all its heads and all watched sessions. With t half the length:
struct PersistenceCounts {
  uint64_t keys = 0;   // of the first half: t a head
  uint64_t early = 0;  // of them, important to a query up to step t
  uint64_t late = 0;   // of them, important to a query after step t
  uint64_t both = 0;

  // The paper's ratio; 1 where nothing is important late.
  double Persistence() const;
  // How much of the cache is ever important up to step t: the paper's |S| / t.
  double Important() const;
};

class PersistenceWatch final : public KvCache {
 public:
  // Sessions of `tokens` tokens count, when they have come to them. `inner` outlives this, and
  // profiles nothing.
  PersistenceWatch(KvCache& inner, uint32_t tokens) : inner_(inner), tokens_(tokens) {}

  OpenResult Open(const OpenRequest& request) override;
  void Prepare(std::span<KvStep> steps) override;

  // [cached layers]; empty before a session has come to its end.
  const std::vector<PersistenceCounts>& layers() const { return layers_; }

 private:
  class Session;

  KvCache& inner_;
  const uint32_t tokens_;
  std::vector<PersistenceCounts> layers_;
};

}  // namespace kvpool
