// The least recently used leaf goes first.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/parked_order.h"

namespace kvpool {

ParkedOrder::ParkedOrder(size_t /*remembered*/) {}

ParkedOrder::Place ParkedOrder::PlaceOf(PrefixNode page) const {
  const Node& node = nodes_[page.value()];
  return {node.rank, node.order, page};
}

void ParkedOrder::Add(PrefixNode page, std::optional<PrefixNode> parent, PrefixKey /*key*/,
                      uint64_t now) {
  if (nodes_.size() <= page.value()) nodes_.resize(page.value() + 1);
  nodes_[page.value()] = Node{.parent = parent, .rank = now};
  if (!parent.has_value()) return;
  Node& before = nodes_[parent->value()];
  if (IsCandidate(before)) candidates_.erase(PlaceOf(*parent));
  ++before.children;
}

void ParkedOrder::Use(PrefixNode page, uint64_t now) {
  Node& node = nodes_[page.value()];
  if (IsCandidate(node)) candidates_.erase(PlaceOf(page));
  if (node.parked) --parked_;
  node.parked = false;
  node.rank = now;
}

void ParkedOrder::Park(PrefixNode page) {
  Node& node = nodes_[page.value()];
  node.parked = true;
  node.order = ++changes_;
  ++parked_;
  if (IsCandidate(node)) candidates_.insert(PlaceOf(page));
}

void ParkedOrder::Remove(PrefixNode page) {
  Node& node = nodes_[page.value()];
  if (IsCandidate(node)) candidates_.erase(PlaceOf(page));
  if (node.parked) --parked_;
  node.parked = false;
  if (!node.parent.has_value()) return;
  Node& parent = nodes_[node.parent->value()];
  --parent.children;
  if (IsCandidate(parent)) candidates_.insert(PlaceOf(*node.parent));
}

std::optional<PrefixNode> ParkedOrder::Next() const {
  if (candidates_.empty()) return std::nullopt;
  return std::get<PrefixNode>(*candidates_.begin());
}

}  // namespace kvpool
