// Planning of a compaction: which rows, then which blocks move where. Pure.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/compaction.h"

namespace kvpool {
namespace {

// One (layer, head)'s rows as slots: slot s is row s % 16 of the head's block number s / 16, its
// compacted blocks first, then the fresh ones. A compacted length that is no multiple of 16 leaves
// a gap of slots without rows between the two.
class HeadSlots {
 public:
  HeadSlots(const Layout& layout, const SessionView& session, uint32_t plane)
      : layout_(layout),
        session_(session),
        layer_(plane / layout.geometry().kv_heads),
        head_(plane % layout.geometry().kv_heads),
        compacted_(session.CompactedLength(plane)),
        gap_(RoundUp(compacted_, kPageTokens) - compacted_) {}

  uint32_t SlotOf(uint32_t row) const { return row < compacted_ ? row : row + gap_; }
  // Block number `index` of the head. Its first slot is never in the gap.
  BlockId Block(uint32_t index) const {
    const uint32_t slot = index * kPageTokens;
    return session_.BlockOf(layout_, layer_, head_, slot < compacted_ ? slot : slot - gap_);
  }

 private:
  const Layout& layout_;
  const SessionView& session_;
  const uint32_t layer_, head_, compacted_, gap_;
};

// Step 1 for one head. Kept rows at slots below the new length stay where they are; the others fill
// the slots between them, both in ascending order, so that copies run forward through memory.
void PlanRows(const HeadSlots& slots, const KeepRows& keep, std::vector<RowMove>* moves,
              std::vector<uint32_t>* source, std::vector<BlockId>* blocks) {
  const auto length = static_cast<uint32_t>(keep.size());
  auto stay = keep.begin();
  const auto stay_end = std::partition_point(
      keep.begin(), keep.end(), [&](uint32_t row) { return slots.SlotOf(row) < length; });
  auto mover = stay_end;
  source->reserve(length);
  for (uint32_t slot = 0; slot < length; ++slot) {
    if (slot % kPageTokens == 0) blocks->push_back(slots.Block(slot / kPageTokens));
    if (stay != stay_end && slots.SlotOf(*stay) == slot) {
      source->push_back(*stay++);
      continue;
    }
    const uint32_t from = slots.SlotOf(*mover);
    moves->push_back({.from = slots.Block(from / kPageTokens),
                      .to = blocks->back(),
                      .from_row = static_cast<uint8_t>(from % kPageTokens),
                      .to_row = static_cast<uint8_t>(slot % kPageTokens)});
    source->push_back(*mover++);
  }
}

KeepRows AllRows(uint32_t length) {
  KeepRows rows(length);
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

// Steps 2 and 3: packs the live blocks of a plan into as few pages as hold them.
class PagePacker {
 public:
  PagePacker(const CompactionInput& input, CompactionPlan* plan)
      : input_(input), layout_(*input.layout), plan_(plan) {
    pages_.reserve(input.session_pages.size() + input.replacements.size());
    for (PageId page : input.session_pages) AddPage(page, Kind::kOwn);
    for (PageId page : input.evacuate) pages_[index_.at(page)].kind = Kind::kEvacuate;
    for (const auto& blocks : plan->result.blocks) {
      for (BlockId block : blocks) {
        Page& page = PageOf(block);
        page.live[PlaceIndex(block)] = true;
        ++page.live_count;
        ++live_blocks_;
      }
    }
  }

  absl::Status Pack() {
    if (absl::Status status = ChoosePages(); !status.ok()) return status;
    for (auto& blocks : plan_->result.blocks) {
      for (BlockId& block : blocks) {
        if (!PageOf(block).stays) block = MoveToFreePlace(block);
      }
    }
    for (PageId page : input_.session_pages) {
      if (!pages_[index_.at(page)].stays) plan_->freed.push_back(page);
    }
    return absl::OkStatus();
  }

 private:
  enum class Kind : uint8_t { kOwn, kEvacuate, kReplacement };
  struct Page {
    PageId id;
    Kind kind;
    bool stays = false;
    uint32_t live_count = 0;
    std::vector<bool> live;  // [blocks_per_page], layer-major
  };

  void AddPage(PageId page, Kind kind) {
    index_.emplace(page, static_cast<uint32_t>(pages_.size()));
    pages_.push_back(
        {.id = page, .kind = kind, .live = std::vector<bool>(layout_.blocks_per_page())});
  }
  Page& PageOf(BlockId block) { return pages_[index_.at(layout_.PlaceOf(block).page)]; }
  uint32_t PlaceIndex(BlockId block) const {
    const BlockPlace place = layout_.PlaceOf(block);
    return place.layer * layout_.geometry().kv_heads + place.head;
  }

  // The fullest pages stay, so the fewest blocks move; replacements only when those that may be
  // used do not suffice.
  absl::Status ChoosePages() {
    for (uint32_t i = 0; i < pages_.size(); ++i) {
      if (pages_[i].kind == Kind::kOwn) chosen_.push_back(i);
    }
    std::stable_sort(chosen_.begin(), chosen_.end(), [&](uint32_t a, uint32_t b) {
      return pages_[a].live_count > pages_[b].live_count;
    });
    const size_t needed = CeilDiv<size_t>(live_blocks_, layout_.blocks_per_page());
    if (needed > chosen_.size() + input_.replacements.size()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "compaction: evacuating ", input_.evacuate.size(), " pages needs ",
          needed - chosen_.size(), " replacement pages, got ", input_.replacements.size()));
    }
    chosen_.resize(std::min(needed, chosen_.size()));
    for (size_t i = 0; chosen_.size() < needed; ++i) {
      chosen_.push_back(static_cast<uint32_t>(pages_.size()));
      AddPage(input_.replacements[i], Kind::kReplacement);
    }
    for (uint32_t i : chosen_) {
      pages_[i].stays = true;
      plan_->result.pages.push_back(pages_[i].id);
    }
    return absl::OkStatus();
  }

  BlockId MoveToFreePlace(BlockId from) {
    while (pages_[chosen_[chosen_next_]].live[place_next_]) AdvancePlace();
    const Page& page = pages_[chosen_[chosen_next_]];
    const uint32_t heads = layout_.geometry().kv_heads;
    const BlockId to = layout_.Block(page.id, place_next_ / heads, place_next_ % heads);
    AdvancePlace();
    (page.kind == Kind::kReplacement ? plan_->evacuations : plan_->block_moves)
        .push_back({.from = from, .to = to});
    return to;
  }

  void AdvancePlace() {
    if (++place_next_ < layout_.blocks_per_page()) return;
    place_next_ = 0;
    ++chosen_next_;
  }

  const CompactionInput& input_;
  const Layout& layout_;
  CompactionPlan* const plan_;
  std::vector<Page> pages_;
  std::unordered_map<PageId, uint32_t> index_;  // page -> its place in pages_
  size_t live_blocks_ = 0;
  std::vector<uint32_t> chosen_;  // pages that stay, in the order in which they are filled
  size_t chosen_next_ = 0;        // the next place to look at for a free one
  uint32_t place_next_ = 0;
};

}  // namespace

absl::StatusOr<CompactionPlan> PlanCompaction(const CompactionInput& input) {
  const Layout& layout = *input.layout;
  const uint32_t planes = layout.geometry().planes();
  CompactionPlan plan;
  plan.result.lengths.resize(planes);
  plan.result.blocks.resize(planes);
  plan.sources.resize(planes);
  for (uint32_t plane = 0; plane < planes; ++plane) {
    KeepRows all;
    if (input.keep == nullptr) all = AllRows(input.session.Length(plane));
    const KeepRows& keep = input.keep == nullptr ? all : (*input.keep)[plane];
    PlanRows(HeadSlots(layout, input.session, plane), keep, &plan.row_moves, &plan.sources[plane],
             &plan.result.blocks[plane]);
    plan.result.lengths[plane] = static_cast<uint32_t>(keep.size());
  }
  if (absl::Status status = PagePacker(input, &plan).Pack(); !status.ok()) return status;
  return plan;
}

}  // namespace kvpool
