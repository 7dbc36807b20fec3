// Ranks, and what is remembered of pages that have gone.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/parked_order.h"

#include <algorithm>

namespace kvpool {
namespace {

// The mean interval is about that many of the newest ones.
constexpr uint64_t kIntervals = 4096;

}  // namespace

ParkedOrder::Place ParkedOrder::PlaceOf(PrefixNode page) const {
  const Node& node = nodes_[page.value()];
  return {node.rank, node.order, page};
}

void ParkedOrder::CountUse(Node* node, uint64_t now) {
  Uses& uses = node->uses;
  if (uses.count > 0) {
    interval_sum_ += now - uses.last;
    if (++interval_count_ == kIntervals) {
      interval_sum_ /= 2;
      interval_count_ /= 2;
    }
  }
  const uint64_t interval = interval_count_ == 0 ? 0 : interval_sum_ / interval_count_;
  node->rank = now + interval * uses.count;
  uses.count = std::min(uses.count + 1, kUsesThatCount);
  uses.last = now;
}

void ParkedOrder::Remember(const Node& node) {
  gone_[node.key] = {.uses = node.uses, .when = ++changes_};
  gone_order_.emplace_back(node.key, changes_);
  if (gone_order_.size() <= remembered_) return;
  const auto [key, when] = gone_order_.front();
  gone_order_.pop_front();
  if (const auto it = gone_.find(key); it != gone_.end() && it->second.when == when)
    gone_.erase(it);
}

void ParkedOrder::Add(PrefixNode page, std::optional<PrefixNode> parent, PrefixKey key,
                      uint64_t now) {
  if (nodes_.size() <= page.value()) nodes_.resize(page.value() + 1);
  Node& node = nodes_[page.value()];
  node = Node{.parent = parent, .key = key};
  if (const auto gone = gone_.find(key); gone != gone_.end()) {
    node.uses = gone->second.uses;
    gone_.erase(gone);
  }
  CountUse(&node, now);
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
  CountUse(&node, now);
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
  Remember(node);
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
