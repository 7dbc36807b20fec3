// Which page of a prefix that nobody uses goes next when room is needed. Pure; knows no pool, no
// sessions and no clock: pages are numbers of its caller, time is any count that never decreases
// and stays below 2^48, such as the sessions opened so far. One for each set of pages that share
// their room (a tenant's pages of one layout). One thread.
//
// A prefix is a chain of pages; two that begin alike share their first pages, so all of them form
// trees. A page is of use only together with the pages before it, hence it goes only after all that
// hang on it: what goes next is always a leaf.
//
// Of the leaves goes the one whose rank is least:
//   rank = time of its last use + mean interval between two uses of a page * (uses before that one)
// up to kUsesThatCount. So it is least recently used first among pages used equally often, and a
// page that came back before is given the time that it takes to come back once more. Uses are
// remembered beyond a page's end: where the cache is small against what passes through it, no page
// is used twice while it is there. Why this rule and no other: docs/simulation.md.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/units.h"

namespace kvpool {

// A page as its caller numbers it: small numbers, free again after Remove. Memory goes with the
// highest one.
using PrefixNode = StrongInt<struct PrefixNodeTag, uint32_t>;
// What the page holds, as a hash of all tokens up to its end: the same again after the page has
// gone and come back.
using PrefixKey = StrongInt<struct PrefixKeyTag, uint64_t>;

class ParkedOrder {
 public:
  static constexpr uint32_t kUsesThatCount = 8;
  // How many pages that have gone are worth remembering for each one that there is room for.
  static constexpr size_t kRememberedPerPage = 8;

  // Remembers the uses of the last `remembered` pages that have gone, in 64 bytes or so each.
  explicit ParkedOrder(size_t remembered) : remembered_(remembered) {}

  // A page that was not there is written by a session: it is in use. Its `parent` is the page
  // before it, or none for the first page of a prompt.
  void Add(PrefixNode page, std::optional<PrefixNode> parent, PrefixKey key, uint64_t now);
  // A session that opens begins with this page, parked or in use: it is in use from now on. Call it
  // for the pages of a prefix in any order.
  void Use(PrefixNode page, uint64_t now);
  // Its last session has left it. Pages of a prefix may be parked in any order.
  void Park(PrefixNode page);
  // It is gone; nothing may hang on it. Parked or in use.
  void Remove(PrefixNode page);

  // The parked page, with nothing behind it, that is worth least; none when nothing is parked.
  // Deterministic. O(1); what changes the order is O(log parked leaves).
  std::optional<PrefixNode> Next() const;

  size_t parked() const { return parked_; }
  // How many pages are behind the page, at one step.
  uint32_t children(PrefixNode page) const { return nodes_[page.value()].children; }

 private:
  struct Uses {
    uint64_t last = 0;
    uint32_t count = 0;
  };
  struct Node {
    std::optional<PrefixNode> parent;
    uint32_t children = 0;
    bool parked = false;
    PrefixKey key;
    Uses uses;
    uint64_t rank = 0;   // the least goes first
    uint64_t order = 0;  // of equal ranks
  };
  using Place = std::tuple<uint64_t, uint64_t, PrefixNode>;  // rank, order, page

  static bool IsCandidate(const Node& node) { return node.parked && node.children == 0; }
  Place PlaceOf(PrefixNode page) const;
  void CountUse(Node* node, uint64_t now);
  void Remember(const Node& node);

  const size_t remembered_;
  std::vector<Node> nodes_;
  std::set<Place> candidates_;
  size_t parked_ = 0;
  uint64_t changes_ = 0;
  struct Gone {
    Uses uses;
    uint64_t when = 0;  // of changes_
  };
  absl::flat_hash_map<PrefixKey, Gone> gone_;
  std::deque<std::pair<PrefixKey, uint64_t>> gone_order_;  // also what has come back since
  // Between two uses of a page; halved now and then, so that they follow the load.
  uint64_t interval_sum_ = 0, interval_count_ = 0;
};

}  // namespace kvpool
