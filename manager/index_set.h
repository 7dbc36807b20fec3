// A set of small indices as bits, for graphs whose edges are looked through again and again: what
// two sets have in common is found 64 indices at a time. A value, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvpool {

class IndexSet {
 public:
  static constexpr size_t kNone = ~size_t{0};

  // Of indices below `size`; empty.
  explicit IndexSet(size_t size) : words_((size + kWordBits - 1) / kWordBits) {}

  void Insert(size_t index) { words_[index / kWordBits] |= Bit(index); }
  void Erase(size_t index) { words_[index / kWordBits] &= ~Bit(index); }
  bool Empty() const {
    return std::all_of(words_.begin(), words_.end(), [](uint64_t word) { return word == 0; });
  }

  // `other` is of the same size, here and below.
  void Insert(const IndexSet& other) {
    for (size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
  }
  void Erase(const IndexSet& other) {
    for (size_t i = 0; i < words_.size(); ++i) words_[i] &= ~other.words_[i];
  }

  // The smallest member from `from` on, or kNone.
  size_t Next(size_t from) const { return NextInBoth(*this, *this, from); }

  // Likewise of what is in both.
  static size_t NextInBoth(const IndexSet& a, const IndexSet& b, size_t from) {
    for (size_t i = from / kWordBits; i < a.words_.size(); ++i) {
      uint64_t word = a.words_[i] & b.words_[i];
      if (i == from / kWordBits) word &= ~(Bit(from) - 1);
      if (word != 0) return i * kWordBits + static_cast<size_t>(std::countr_zero(word));
    }
    return kNone;
  }

 private:
  static constexpr size_t kWordBits = 64;
  static constexpr uint64_t Bit(size_t index) { return uint64_t{1} << index % kWordBits; }

  std::vector<uint64_t> words_;
};

}  // namespace kvpool
