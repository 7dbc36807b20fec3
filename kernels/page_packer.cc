// See page_packer.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/page_packer.h"

#include <algorithm>
#include <utility>

namespace kvpool {

PagePacker::PagePacker(const PagePlaces& places, std::span<const PageId> pages,
                       std::span<const PageId> evacuate, std::vector<BlockId*> blocks)
    : places_(places), blocks_(std::move(blocks)) {
  pages_.reserve(pages.size());
  for (PageId page : pages) AddPage(page, Kind::kOwn);
  for (PageId page : evacuate) {
    if (const auto found = index_.find(page); found != index_.end()) {
      pages_[found->second].kind = Kind::kEvacuate;
    }
  }
  own_ = static_cast<size_t>(std::count_if(
      pages_.begin(), pages_.end(), [](const Page& page) { return page.kind == Kind::kOwn; }));
  for (const BlockId* block : blocks_) {
    Page& page = PageOf(*block);
    page.live[places_.IndexOf(*block)] = true;
    ++page.live_count;
  }
}

void PagePacker::AddPage(PageId page, Kind kind) {
  index_.emplace(page, static_cast<uint32_t>(pages_.size()));
  pages_.push_back({.id = page, .kind = kind, .live = std::vector<bool>(places_.per_page())});
}

size_t PagePacker::MissingPages() const {
  if (blocks_.empty()) return 0;
  const size_t needed = CeilDiv<size_t>(blocks_.size(), places_.per_page());
  return needed > own_ ? needed - own_ : 0;
}

PagePacker::Result PagePacker::Pack(std::span<const PageId> replacements) {
  Result result;
  const size_t given = pages_.size();
  ChoosePages(replacements, &result);
  for (BlockId* block : blocks_) {
    if (!PageOf(*block).stays) *block = MoveToFreePlace(*block, &result);
  }
  for (size_t i = 0; i < given; ++i) {
    if (!pages_[i].stays) result.freed.push_back(pages_[i].id);
  }
  return result;
}

void PagePacker::ChoosePages(std::span<const PageId> replacements, Result* result) {
  if (blocks_.empty()) return;
  for (uint32_t i = 0; i < pages_.size(); ++i) {
    if (pages_[i].kind == Kind::kOwn) chosen_.push_back(i);
  }
  std::stable_sort(chosen_.begin(), chosen_.end(), [&](uint32_t a, uint32_t b) {
    return pages_[a].live_count > pages_[b].live_count;
  });
  const size_t needed = CeilDiv<size_t>(blocks_.size(), places_.per_page());
  chosen_.resize(std::min(needed, chosen_.size()));
  for (size_t i = 0; chosen_.size() < needed; ++i) {
    chosen_.push_back(static_cast<uint32_t>(pages_.size()));
    AddPage(replacements[i], Kind::kReplacement);
  }
  for (uint32_t i : chosen_) {
    pages_[i].stays = true;
    result->pages.push_back(pages_[i].id);
  }
}

BlockId PagePacker::MoveToFreePlace(BlockId from, Result* result) {
  while (pages_[chosen_[chosen_next_]].live[place_next_]) AdvancePlace();
  const Page& page = pages_[chosen_[chosen_next_]];
  const BlockId to = places_.At(page.id, place_next_);
  AdvancePlace();
  (page.kind == Kind::kReplacement ? result->evacuations : result->moves)
      .push_back({.from = from, .to = to, .granules = places_.granules()});
  return to;
}

void PagePacker::AdvancePlace() {
  if (++place_next_ < places_.per_page()) return;
  place_next_ = 0;
  ++chosen_next_;
}

}  // namespace kvpool
