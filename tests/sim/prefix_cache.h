// Prefixes of prompts that one tenant keeps at one agent, in blocks of a trace: which blocks are
// there, which sessions hold them, and which goes next by agent/parked_order.h or by its peer, the
// least recently used. It knows no memory. And how often blocks would have been found in a room of
// a fixed size, by either order and at best. Pure, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <tuple>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "agent/parked_order.h"

namespace kvpool::sim {

// What ParkedOrder is compared with. The same interface, the same rules of use.
class LruOrder {
 public:
  void Add(PrefixNode page, std::optional<PrefixNode> parent, PrefixKey key, uint64_t now);
  void Use(PrefixNode page, uint64_t now);
  void Park(PrefixNode page);
  void Remove(PrefixNode page);
  std::optional<PrefixNode> Next() const;

 private:
  struct Node {
    std::optional<PrefixNode> parent;
    uint32_t children = 0;
    bool parked = false;
    uint64_t used = 0, order = 0;
  };
  void List(PrefixNode page);
  void Unlist(PrefixNode page);

  std::vector<Node> nodes_;
  std::set<std::tuple<uint64_t, uint64_t, PrefixNode>> leaves_;  // parked ones
  uint64_t parks_ = 0;
};

enum class ParkingRule : uint8_t { kShipped, kLru };

// A name for each block of a prompt, of all tokens up to its end.
std::vector<PrefixKey> ChainKeys(std::span<const uint64_t> blocks);

class PrefixCache {
 public:
  // For about `room` blocks.
  PrefixCache(ParkingRule rule, size_t room);

  // How many blocks of the chain are there, from its first on.
  size_t Find(std::span<const PrefixKey> chain) const;
  // A session holds them from now on. Requires that Find finds them all.
  void Hold(std::span<const PrefixKey> chain);
  // A session holds `chain` but for its last block, which is new: it holds that now too. False when
  // the block is there already; then nothing changes.
  bool Add(std::span<const PrefixKey> chain);
  // The session holds none of them any more.
  void LetGo(std::span<const PrefixKey> chain);
  // Drops the block that nobody holds and that is worth least. False when there is none.
  bool DropOne();

  size_t blocks() const { return entries_.size(); }
  size_t parked() const { return parked_; }

 private:
  struct Entry {
    PrefixKey key;
    uint32_t holders = 0;
  };

  std::variant<ParkedOrder, LruOrder> order_;
  absl::flat_hash_map<PrefixKey, PrefixNode> entries_;
  std::vector<Entry> nodes_;
  std::vector<PrefixNode> unused_;
  size_t parked_ = 0;
  uint64_t uses_ = 0;
};

// Of all blocks of `chains`, one after the other, those that were found in a room for `room` blocks
// where nothing else is kept.
uint64_t BlocksFound(std::span<const std::vector<PrefixKey>> chains, ParkingRule rule, size_t room);

// The most that any order can find there, with the future known: out goes what is used again last
// (Belady's MIN; what is never used again is not kept at all). The block before another one is used
// no later than that, so the optimum drops leaves first by itself: the rule that only leaves may go
// costs it nothing, and the bound is exact.
uint64_t BlocksFoundAtBest(std::span<const std::vector<PrefixKey>> chains, size_t room);

}  // namespace kvpool::sim
