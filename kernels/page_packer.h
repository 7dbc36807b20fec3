// Packs blocks of one format into as few of a session's pages as hold them: the fullest pages stay,
// so the fewest blocks move. Pure; one use; any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "common/ids.h"
#include "kernels/places.h"
#include "kernels/segment.h"

namespace kvpool {

class PagePacker {
 public:
  // `pages` hold blocks of this format and no other. `blocks` are those that live on, each in one
  // of the pages; Pack changes them. Both must outlive the packer.
  PagePacker(const PagePlaces& places, std::span<const PageId> pages,
             std::span<const PageId> evacuate, std::vector<BlockId*> blocks);

  // Pages that are needed beyond those of `pages` that may be used.
  size_t MissingPages() const;

  // Requires at least MissingPages() replacements; takes that many from the front.
  struct Result {
    std::vector<PageId> pages;           // that hold the blocks now
    std::vector<PageId> freed;           // of the pages given, in their order
    std::vector<BlockMove> moves;        // into pages given
    std::vector<BlockMove> evacuations;  // into replacements
  };
  Result Pack(std::span<const PageId> replacements);

 private:
  enum class Kind : uint8_t { kOwn, kEvacuate, kReplacement };
  struct Page {
    PageId id;
    Kind kind;
    bool stays = false;
    uint32_t live_count = 0;
    std::vector<bool> live;  // [per_page]
  };

  void AddPage(PageId page, Kind kind);
  Page& PageOf(BlockId block) { return pages_[index_.at(places_.PageOf(block))]; }
  void ChoosePages(std::span<const PageId> replacements, Result* result);
  BlockId MoveToFreePlace(BlockId from, Result* result);
  void AdvancePlace();

  const PagePlaces& places_;
  std::vector<BlockId*> blocks_;
  std::vector<Page> pages_;
  std::unordered_map<PageId, uint32_t> index_;  // page -> its place in pages_
  size_t own_ = 0;                              // pages that may be used
  std::vector<uint32_t> chosen_;  // pages that stay, in the order in which they are filled
  size_t chosen_next_ = 0;        // the next place to look at for a free one
  uint32_t place_next_ = 0;
};

}  // namespace kvpool
