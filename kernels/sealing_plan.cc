// Planning of a sealing: which rows go into which sealed blocks, and where those lie. Pure.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <deque>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/page_packer.h"
#include "kernels/places.h"
#include "kernels/sealing.h"

namespace kvpool {
namespace {

// What becomes of one (layer, head): sealed blocks that stay, then rows to seal, then open rows.
struct Head {
  uint32_t more = 0;     // open rows that are sealed, a multiple of 32
  uint32_t staying = 0;  // sealed blocks
  uint32_t sealing = 0;  // rows after those: sealed ones that are sealed anew, then open ones
  uint32_t done = 0;     // of those rows, planned so far
};

// Makes a plan that seals at most `most_rows` (a multiple of 32) open rows of each head.
class Sealer {
 public:
  Sealer(const SealingInput& input, uint32_t most_rows)
      : input_(input),
        segment_(*input.segment),
        changes_format_(segment_.format != SealedFormat::kNone && segment_.format != input.format),
        places_(*input.layout, input.format),
        native_places_(*input.layout, SealedFormat::kNone) {
    for (uint32_t plane = 0; plane < segment_.lengths.size(); ++plane) {
      heads_.push_back(Choose(plane, most_rows));
    }
    for (const auto& blocks : segment_.blocks) {
      for (BlockId block : blocks) ++live_[PageOf(block)];
    }
  }

  // Whether free pages suffice.
  enum class Room : uint8_t { kEnough, kTooLittle };
  Room Plan() {
    FindPlaces();
    if (PlanMoves() == Room::kTooLittle) return Room::kTooLittle;
    Finish();
    return LeaveReserve();
  }
  SealingPlan TakePlan() { return std::move(plan_); }

 private:
  uint32_t OldSealedBlocks(uint32_t plane) const {
    return CeilDiv(segment_.sealed_lengths[plane], kSealedRows);
  }
  // Row number `row` of a head, as it lies now.
  RowAt Find(uint32_t plane, uint32_t row) const {
    const uint32_t sealed = segment_.sealed_lengths[plane];
    const auto& blocks = segment_.blocks[plane];
    if (row < sealed) {
      return {.block = blocks[row / kSealedRows],
              .row = static_cast<uint8_t>(row % kSealedRows),
              .format = segment_.format};
    }
    const uint32_t open = row - sealed;
    return {.block = blocks[OldSealedBlocks(plane) + open / kPageTokens],
            .row = static_cast<uint8_t>(open % kPageTokens),
            .format = SealedFormat::kNone};
  }
  PageId PageOf(BlockId block) const { return input_.layout->PlaceOf(block).page; }

  Head Choose(uint32_t plane, uint32_t most_rows) const {
    const uint32_t sealed = segment_.sealed_lengths[plane];
    const uint32_t open = segment_.lengths[plane] - sealed;
    Head head;
    if (open > input_.open_rows) {
      head.more = std::min((open - input_.open_rows) / kSealedRows * kSealedRows, most_rows);
    }
    if (!changes_format_) {
      head.staying = head.more > 0 ? sealed / kSealedRows : CeilDiv(sealed, kSealedRows);
    }
    head.sealing = head.more + sealed - std::min(sealed, head.staying * kSealedRows);
    return head;
  }

  // Places for sealed blocks that are free now: in pages that hold such blocks already, then in
  // spare ones.
  void FindPlaces() {
    std::unordered_set<BlockId> taken;
    for (uint32_t plane = 0; plane < heads_.size() && !changes_format_; ++plane) {
      for (uint32_t i = 0; i < OldSealedBlocks(plane); ++i) {
        taken.insert(segment_.blocks[plane][i]);
        sealed_pages_.insert(PageOf(segment_.blocks[plane][i]));
      }
    }
    for (PageId page : segment_.pages) {
      if (!sealed_pages_.contains(page)) continue;
      for (uint32_t i = 0; i < places_.per_page(); ++i) {
        if (!taken.contains(places_.At(page, i))) free_places_.push_back(places_.At(page, i));
      }
    }
    for (PageId page : input_.spare) free_pages_.push_back({.page = page});
    reserve_.assign(input_.reserve.begin(), input_.reserve.end());
  }

  // The oldest rows of every head first, so that a page which held their native blocks comes free.
  Room PlanMoves() {
    plan_.result.blocks.resize(heads_.size());
    for (uint32_t plane = 0; plane < heads_.size(); ++plane) {
      const auto& old = segment_.blocks[plane];
      plan_.result.blocks[plane].assign(old.begin(), old.begin() + heads_[plane].staying);
    }
    for (bool more = true; more;) {
      more = false;
      for (uint32_t plane = 0; plane < heads_.size(); ++plane) {
        if (heads_[plane].done == heads_[plane].sealing) continue;
        if (MakeRoom() == Room::kTooLittle) return Room::kTooLittle;
        AddMove(plane);
        more = true;
      }
    }
    return Room::kEnough;
  }

  Room MakeRoom() {
    if (!free_places_.empty()) return Room::kEnough;
    if (!left_places_.empty()) {
      const LeftPlace next = left_places_.front();
      left_places_.pop_front();
      AwaitReads(next.left_in);
      free_places_.push_back(next.block);
      return Room::kEnough;
    }
    if (!free_pages_.empty()) {
      const FreePage next = free_pages_.front();
      free_pages_.pop_front();
      AwaitReads(next.left_in);
      Open(next.page);
      return Room::kEnough;
    }
    if (reserve_.empty()) return Room::kTooLittle;
    reserve_used_.push_back(reserve_.front());
    Open(reserve_.front());
    reserve_.pop_front();
    return Room::kEnough;
  }

  // What was left in this slice has been read when the next one begins.
  void AwaitReads(size_t left_in) {
    if (left_in == plan_.slices.size() && left_in > 0) StartSlice();
  }

  void Open(PageId page) {
    sealed_pages_.insert(page);
    for (uint32_t i = 0; i < places_.per_page(); ++i) free_places_.push_back(places_.At(page, i));
  }

  void StartSlice() { plan_.slices.push_back(static_cast<uint32_t>(plan_.moves.size())); }

  void AddMove(uint32_t plane) {
    if (plan_.slices.empty()) StartSlice();
    Head& head = heads_[plane];
    SealMove move{.to = free_places_.front()};
    free_places_.pop_front();
    const uint32_t end = std::min(head.done + kSealedRows, head.sealing);
    for (; head.done < end; ++head.done) {
      const uint32_t row = head.staying * kSealedRows + head.done;
      move.rows.push_back(Find(plane, row));
      const bool last =
          head.done + 1 == head.sealing || Find(plane, row + 1).block != move.rows.back().block;
      if (last) Leave(move.rows.back());
    }
    plan_.result.blocks[plane].push_back(move.to);
    plan_.moves.push_back(std::move(move));
  }

  // All that is needed of a block has been read.
  void Leave(const RowAt& row) {
    const PageId page = PageOf(row.block);
    --live_[page];
    if (sealed_pages_.contains(page)) {
      left_places_.push_back({.block = row.block, .left_in = plan_.slices.size()});
    } else if (live_[page] == 0) {
      free_pages_.push_back({.page = page, .left_in = plan_.slices.size()});
    }
  }

  // The new segment; its open blocks move into as few pages as hold them.
  void Finish() {
    CompactedSegment& result = plan_.result;
    result.lengths = segment_.lengths;
    std::vector<BlockId*> open;
    for (uint32_t plane = 0; plane < heads_.size(); ++plane) {
      const uint32_t more = heads_[plane].more;
      auto& blocks = result.blocks[plane];
      const auto& old = segment_.blocks[plane];
      const size_t sealed_blocks = blocks.size();
      blocks.insert(blocks.end(), old.begin() + OldSealedBlocks(plane) + more / kPageTokens,
                    old.end());
      for (size_t i = sealed_blocks; i < blocks.size(); ++i) open.push_back(&blocks[i]);
      result.sealed_lengths.push_back(segment_.sealed_lengths[plane] + more);
      if (result.sealed_lengths.back() > 0) result.format = input_.format;
    }
    std::vector<PageId> native;
    for (PageId page : segment_.pages) {
      (sealed_pages_.contains(page) ? result.pages : native).push_back(page);
    }
    for (PageId page : input_.spare) {
      if (sealed_pages_.contains(page)) result.pages.push_back(page);
    }
    const PagePacker::Result packed =
        PagePacker(native_places_, native, {}, std::move(open)).Pack({});
    result.pages.insert(result.pages.end(), packed.pages.begin(), packed.pages.end());
    plan_.freed = packed.freed;
    plan_.block_moves = packed.moves;
  }

  // Blocks in the reserve move into pages that came free, at the same places there.
  Room LeaveReserve() {
    if (reserve_used_.size() > plan_.freed.size()) return Room::kTooLittle;
    std::unordered_map<PageId, PageId> to;
    for (PageId page : reserve_used_) {
      to.emplace(page, plan_.freed.back());
      plan_.result.pages.push_back(plan_.freed.back());
      plan_.freed.pop_back();
    }
    for (uint32_t plane = 0; plane < heads_.size(); ++plane) {
      const uint32_t sealed = CeilDiv(plan_.result.sealed_lengths[plane], kSealedRows);
      for (BlockId& block : std::span(plan_.result.blocks[plane]).first(sealed)) {
        const auto found = to.find(places_.PageOf(block));
        if (found == to.end()) continue;
        const BlockId moved = places_.At(found->second, places_.IndexOf(block));
        plan_.last_moves.push_back({.from = block, .to = moved, .granules = places_.granules()});
        block = moved;
      }
    }
    return Room::kEnough;
  }

  struct FreePage {
    PageId page;
    size_t left_in = 0;  // slices there were when it was left; 0: it was free before
  };
  struct LeftPlace {
    BlockId block;
    size_t left_in;
  };

  const SealingInput& input_;
  const CompactedSegment& segment_;
  const bool changes_format_;
  const PagePlaces places_, native_places_;
  std::vector<Head> heads_;
  std::unordered_map<PageId, uint32_t> live_;  // blocks of a page that are still needed
  std::unordered_set<PageId> sealed_pages_;    // that hold or take blocks of the new format
  std::deque<BlockId> free_places_;
  std::deque<LeftPlace> left_places_;  // in pages that hold such blocks
  std::deque<FreePage> free_pages_;
  std::deque<PageId> reserve_;
  std::vector<PageId> reserve_used_;
  SealingPlan plan_;
};

}  // namespace

absl::StatusOr<SealingPlan> PlanSealing(const SealingInput& input) {
  const PagePlaces places(*input.layout, input.format);
  if (places.per_page() == 0) {
    const Layout& layout = *input.layout;
    return absl::FailedPreconditionError(
        absl::StrCat("sealing to ", NameOf(input.format), ": a block takes ", places.granules(),
                     " granules of 512 bytes, and a page has ",
                     layout.geometry().kv_heads * layout.block_granules(), " of them in a layer"));
  }
  uint32_t rows = kSealedRows;
  for (uint32_t length : input.segment->lengths)
    rows = std::max(rows, RoundUp(length, kSealedRows));
  for (;; rows = RoundUp(rows / 2, kSealedRows)) {
    Sealer sealer(input, rows);
    if (sealer.Plan() == Sealer::Room::kEnough) return sealer.TakePlan();
    if (rows == kSealedRows) break;
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "sealing to ", NameOf(input.format), ": ", input.spare.size(), " free pages and ",
      input.reserve.size(), " of the reserve do not suffice, or no page would come free"));
}

}  // namespace kvpool
