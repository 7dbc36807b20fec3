// Which page of a prefix that nobody uses goes next when room is needed. Pure; knows no pool, no
// sessions and no clock: pages are numbers of its caller, time is any count that never decreases,
// such as the sessions opened so far. One for each set of pages that share their room (a tenant's
// pages of one layout). One thread.
//
// A prefix is a chain of pages; two that begin alike share their first pages, so all of them form
// trees. A page is of use only together with the pages before it, hence it goes only after all that
// hang on it: what goes next is always a leaf.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <tuple>
#include <vector>

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
  // Remembers how often that many pages were used after they have gone.
  explicit ParkedOrder(size_t remembered);

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
  struct Node {
    std::optional<PrefixNode> parent;
    uint32_t children = 0;
    bool parked = false;
    uint64_t rank = 0;   // the least goes first
    uint64_t order = 0;  // of equal ranks
  };
  using Place = std::tuple<uint64_t, uint64_t, PrefixNode>;  // rank, order, page

  static bool IsCandidate(const Node& node) { return node.parked && node.children == 0; }
  Place PlaceOf(PrefixNode page) const;

  std::vector<Node> nodes_;
  std::set<Place> candidates_;
  size_t parked_ = 0;
  uint64_t changes_ = 0;
};

}  // namespace kvpool
