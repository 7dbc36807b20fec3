// See prefix_cache.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/prefix_cache.h"

#include <iterator>
#include <limits>
#include <utility>

namespace kvpool::sim {

// ---- The peer ----------------------------------------------------------------------------------

void LruOrder::List(PrefixNode page) {
  const Node& node = nodes_[page.value()];
  if (node.parked && node.children == 0) leaves_.insert({node.used, node.order, page});
}

void LruOrder::Unlist(PrefixNode page) {
  const Node& node = nodes_[page.value()];
  leaves_.erase({node.used, node.order, page});
}

void LruOrder::Add(PrefixNode page, std::optional<PrefixNode> parent, PrefixKey /*key*/,
                   uint64_t now) {
  if (nodes_.size() <= page.value()) nodes_.resize(page.value() + 1);
  nodes_[page.value()] = {.parent = parent, .used = now};
  if (!parent.has_value()) return;
  Unlist(*parent);
  ++nodes_[parent->value()].children;
}

void LruOrder::Use(PrefixNode page, uint64_t now) {
  Unlist(page);
  nodes_[page.value()].parked = false;
  nodes_[page.value()].used = now;
}

void LruOrder::Park(PrefixNode page) {
  nodes_[page.value()].parked = true;
  nodes_[page.value()].order = ++parks_;
  List(page);
}

void LruOrder::Remove(PrefixNode page) {
  Unlist(page);
  const std::optional<PrefixNode> parent = nodes_[page.value()].parent;
  if (!parent.has_value()) return;
  --nodes_[parent->value()].children;
  List(*parent);
}

std::optional<PrefixNode> LruOrder::Next() const {
  if (leaves_.empty()) return std::nullopt;
  return std::get<PrefixNode>(*leaves_.begin());
}

// ---- The cache ---------------------------------------------------------------------------------

std::vector<PrefixKey> ChainKeys(std::span<const uint64_t> blocks) {
  std::vector<PrefixKey> keys;
  uint64_t key = 0;
  for (const uint64_t block : blocks) {
    // splitmix64 of both.
    key += block + 0x9e3779b97f4a7c15u;
    key = (key ^ (key >> 30)) * 0xbf58476d1ce4e5b9u;
    key = (key ^ (key >> 27)) * 0x94d049bb133111ebu;
    key ^= key >> 31;
    keys.emplace_back(key);
  }
  return keys;
}

PrefixCache::PrefixCache(ParkingRule rule, size_t room)
    : order_(rule == ParkingRule::kLru ? std::variant<ParkedOrder, LruOrder>(LruOrder())
                                       : ParkedOrder(ParkedOrder::kRememberedPerPage * room)) {}

size_t PrefixCache::Find(std::span<const PrefixKey> chain) const {
  size_t found = 0;
  while (found < chain.size() && entries_.contains(chain[found])) ++found;
  return found;
}

void PrefixCache::Hold(std::span<const PrefixKey> chain) {
  ++uses_;
  for (const PrefixKey key : chain) {
    const PrefixNode node = entries_.at(key);
    if (nodes_[node.value()].holders++ == 0) --parked_;
    std::visit([&](auto& order) { order.Use(node, uses_); }, order_);
  }
}

bool PrefixCache::Add(std::span<const PrefixKey> chain) {
  if (entries_.contains(chain.back())) return false;
  PrefixNode node(static_cast<uint32_t>(nodes_.size()));
  if (unused_.empty()) {
    nodes_.emplace_back();
  } else {
    node = unused_.back();
    unused_.pop_back();
  }
  nodes_[node.value()] = {.key = chain.back(), .holders = 1};
  std::optional<PrefixNode> parent;
  if (chain.size() > 1) parent = entries_.at(chain[chain.size() - 2]);
  entries_[chain.back()] = node;
  std::visit([&](auto& order) { order.Add(node, parent, chain.back(), uses_); }, order_);
  return true;
}

void PrefixCache::LetGo(std::span<const PrefixKey> chain) {
  for (const PrefixKey key : chain) {
    const PrefixNode node = entries_.at(key);
    if (--nodes_[node.value()].holders > 0) continue;
    ++parked_;
    std::visit([&](auto& order) { order.Park(node); }, order_);
  }
}

bool PrefixCache::DropOne() {
  const auto node = std::visit([](const auto& order) { return order.Next(); }, order_);
  if (!node.has_value()) return false;
  std::visit([&](auto& order) { order.Remove(*node); }, order_);
  entries_.erase(nodes_[node->value()].key);
  unused_.push_back(*node);
  --parked_;
  return true;
}

// ---- A room of a fixed size --------------------------------------------------------------------

uint64_t BlocksFound(std::span<const std::vector<PrefixKey>> chains, ParkingRule rule,
                     size_t room) {
  PrefixCache cache(rule, room);
  uint64_t found = 0;
  for (const std::vector<PrefixKey>& chain : chains) {
    size_t held = cache.Find(chain);
    found += held;
    cache.Hold(std::span(chain).first(held));
    while (held < chain.size() && (cache.blocks() < room || cache.DropOne())) {
      cache.Add(std::span(chain).first(++held));
    }
    cache.LetGo(std::span(chain).first(held));
  }
  return found;
}

uint64_t BlocksFoundAtBest(std::span<const std::vector<PrefixKey>> chains, size_t room) {
  constexpr uint64_t kNever = std::numeric_limits<uint64_t>::max();
  // Of each block of each chain, which chain uses it next.
  std::vector<std::vector<uint64_t>> next(chains.size());
  absl::flat_hash_map<PrefixKey, uint64_t> user;
  for (size_t i = chains.size(); i-- > 0;) {
    for (const PrefixKey key : chains[i]) {
      const auto [it, is_new] = user.try_emplace(key, kNever);
      next[i].push_back(std::exchange(it->second, i));
    }
  }
  absl::flat_hash_map<PrefixKey, uint64_t> there;            // and by whom it is used next
  std::set<std::tuple<uint64_t, size_t, PrefixKey>> by_use;  // that, depth
  uint64_t found = 0;
  for (size_t i = 0; i < chains.size(); ++i) {
    size_t hits = 0;
    while (hits < chains[i].size() && there.contains(chains[i][hits])) ++hits;
    found += hits;
    for (size_t depth = 0; depth < chains[i].size(); ++depth) {
      const PrefixKey key = chains[i][depth];
      if (const auto it = there.find(key); it != there.end()) by_use.erase({i, depth, key});
      there.erase(key);
      if (next[i][depth] == kNever) continue;
      there[key] = next[i][depth];
      by_use.insert({next[i][depth], depth, key});
    }
    while (by_use.size() > room) {
      const auto last = std::prev(by_use.end());
      there.erase(std::get<PrefixKey>(*last));
      by_use.erase(last);
    }
  }
  return found;
}

}  // namespace kvpool::sim
