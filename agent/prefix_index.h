// The pages of one tenant and one layout that begin prompts, found by what they hold: chains that
// share their beginnings, so trees. Sessions hold a chain from its first page on; a page that
// nobody holds is parked: it waits for the next prompt that begins like it, until it is dropped.
// Hence whoever holds a page holds all pages before it, and what hangs on a parked page is parked.
//
// Pure: it knows no memory, no ledger and no sessions; the caller keeps the ledger's frozen pages
// in step (attachment_prefix.cc, workers_prefix.cc). RPC thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "agent/parked_order.h"
#include "agent/prefix_keys.h"
#include "common/clock.h"
#include "common/ids.h"

namespace kvpool {

class PrefixIndex {
 public:
  // Holds at most `most` pages.
  PrefixIndex(const PrefixSecret& secret, size_t most)
      : secret_(secret), most_(most), order_(ParkedOrder::kRememberedPerPage * most) {}

  const PrefixSecret& secret() const { return secret_; }

  // The pages of the longest known beginning of a chain.
  std::vector<PageId> Find(std::span<const PageKey> chain) const;

  // A session that opens holds these pages of a chain, or none, from now on. Requires that Find
  // finds them all. Sessions that open are the order's time.
  void Hold(std::span<const PageKey> chain);
  // A session holds `chain` but for its last page, which is new and lies in `page`: it holds that
  // now too. False when a page of this key is known already, or when the index is full: then
  // nothing changes.
  bool Add(std::span<const PageKey> chain, PageId page);
  // It holds none of them any more.
  void LetGo(std::span<const PageKey> chain, TimePoint now);

  // Each of these forgets pages and returns them; nobody held them but where it says so.
  // At most `count` parked ones, those worth least first.
  std::vector<PageId> Drop(size_t count);
  // Parked ones of which `goes` says so, and what hangs on them.
  std::vector<PageId> DropIf(const std::function<bool(PageId)>& goes);
  // Those that have been parked since before `then`.
  std::vector<PageId> DropParkedBefore(TimePoint then);
  // The pages of a chain from number `first` on, and what hangs on them. Requires that one session,
  // which holds them, is the only one.
  std::vector<PageId> TakeOut(std::span<const PageKey> chain, size_t first);

  size_t pages() const { return entries_.size(); }
  bool full() const { return pages() >= most_; }
  size_t parked() const { return order_.parked(); }
  size_t held() const { return pages() - parked(); }

 private:
  struct Entry {
    PageKey key{};
    PageId page;
    std::optional<PrefixNode> parent;
    uint32_t depth = 0;
    uint32_t holders = 0;
    TimePoint parked_since;  // while there are none
  };

  PageId Remove(PrefixNode node);
  // The nodes and all that hangs on them.
  std::vector<PageId> RemoveTrees(const std::vector<PrefixNode>& roots);

  const PrefixSecret secret_;
  const size_t most_;
  ParkedOrder order_;
  absl::flat_hash_map<PageKey, PrefixNode> entries_;
  std::vector<Entry> nodes_;
  std::vector<PrefixNode> unused_;
  uint64_t opened_ = 0;  // sessions
};

}  // namespace kvpool
