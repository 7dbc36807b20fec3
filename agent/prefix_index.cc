// See prefix_index.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/prefix_index.h"

#include <algorithm>
#include <cstring>

namespace kvpool {
namespace {

PrefixKey ShortKey(const PageKey& key) {
  uint64_t word;
  std::memcpy(&word, key.data(), sizeof(word));
  return PrefixKey(word);
}

}  // namespace

std::vector<PageId> PrefixIndex::Find(std::span<const PageKey> chain) const {
  std::vector<PageId> pages;
  for (const PageKey& key : chain) {
    const auto found = entries_.find(key);
    if (found == entries_.end()) break;
    pages.push_back(nodes_[found->second.value()].page);
  }
  return pages;
}

void PrefixIndex::Hold(std::span<const PageKey> chain) {
  ++opened_;
  for (const PageKey& key : chain) {
    const PrefixNode node = entries_.at(key);
    ++nodes_[node.value()].holders;
    order_.Use(node, opened_);
  }
}

bool PrefixIndex::Add(std::span<const PageKey> chain, PageId page) {
  const PageKey& key = chain.back();
  if (entries_.contains(key) || full()) return false;
  std::optional<PrefixNode> parent;
  if (chain.size() > 1) parent = entries_.at(chain[chain.size() - 2]);
  PrefixNode node(static_cast<uint32_t>(nodes_.size()));
  if (unused_.empty()) {
    nodes_.emplace_back();
  } else {
    node = unused_.back();
    unused_.pop_back();
  }
  nodes_[node.value()] = {.key = key,
                          .page = page,
                          .parent = parent,
                          .depth = static_cast<uint32_t>(chain.size()),
                          .holders = 1};
  entries_[key] = node;
  order_.Add(node, parent, ShortKey(key), opened_);
  return true;
}

void PrefixIndex::LetGo(std::span<const PageKey> chain, TimePoint now) {
  // The last one first: pages are parked after those that hang on them.
  for (size_t i = chain.size(); i-- > 0;) {
    const PrefixNode node = entries_.at(chain[i]);
    Entry& entry = nodes_[node.value()];
    if (--entry.holders > 0) continue;
    entry.parked_since = now;
    order_.Park(node);
  }
}

PageId PrefixIndex::Remove(PrefixNode node) {
  Entry& entry = nodes_[node.value()];
  order_.Remove(node);
  entries_.erase(entry.key);
  unused_.push_back(node);
  const PageId page = entry.page;
  entry = Entry();
  return page;
}

std::vector<PageId> PrefixIndex::Drop(size_t count) {
  std::vector<PageId> pages;
  while (pages.size() < count) {
    const std::optional<PrefixNode> next = order_.Next();
    if (!next.has_value()) break;
    pages.push_back(Remove(*next));
  }
  return pages;
}

std::vector<PageId> PrefixIndex::RemoveTrees(const std::vector<PrefixNode>& roots) {
  std::vector<PageId> pages;
  if (roots.empty()) return pages;
  // By depth, so that a page comes after what it hangs on.
  std::vector<PrefixNode> all;
  for (const auto& [key, node] : entries_) all.push_back(node);
  std::sort(all.begin(), all.end(), [this](PrefixNode a, PrefixNode b) {
    const uint32_t depth_a = nodes_[a.value()].depth, depth_b = nodes_[b.value()].depth;
    return depth_a != depth_b ? depth_a < depth_b : a < b;
  });
  std::vector<bool> goes(nodes_.size());
  for (const PrefixNode root : roots) goes[root.value()] = true;
  for (const PrefixNode node : all) {
    const std::optional<PrefixNode> parent = nodes_[node.value()].parent;
    if (parent.has_value() && goes[parent->value()]) goes[node.value()] = true;
  }
  for (size_t i = all.size(); i-- > 0;) {
    if (goes[all[i].value()]) pages.push_back(Remove(all[i]));
  }
  return pages;
}

std::vector<PageId> PrefixIndex::DropIf(const std::function<bool(PageId)>& goes) {
  std::vector<PrefixNode> roots;
  for (const auto& [key, node] : entries_) {
    const Entry& entry = nodes_[node.value()];
    if (entry.holders == 0 && goes(entry.page)) roots.push_back(node);
  }
  return RemoveTrees(roots);
}

std::vector<PageId> PrefixIndex::DropParkedBefore(TimePoint then) {
  std::vector<PrefixNode> roots;
  for (const auto& [key, node] : entries_) {
    const Entry& entry = nodes_[node.value()];
    if (entry.holders == 0 && entry.parked_since < then) roots.push_back(node);
  }
  return RemoveTrees(roots);
}

std::vector<PageId> PrefixIndex::TakeOut(std::span<const PageKey> chain, size_t first) {
  // What hangs on the first of them are the others, and parked pages.
  return RemoveTrees({entries_.at(chain[first])});
}

}  // namespace kvpool
