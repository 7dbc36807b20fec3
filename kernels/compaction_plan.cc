// Planning of a compaction: which rows, then which blocks move where. Pure.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>
#include <span>
#include <unordered_set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/compaction.h"
#include "kernels/page_packer.h"
#include "kernels/places.h"

namespace kvpool {
namespace {

// One (layer, head)'s native rows as slots: slot s is row s % 16 of the head's native block number
// s / 16, its open blocks first, then the fresh ones. A number of open rows that is no multiple of
// 16 leaves a gap of slots without rows between the two. Rows are numbered from the first open one.
class HeadSlots {
 public:
  HeadSlots(const Layout& layout, const SessionView& session, uint32_t plane)
      : layout_(layout),
        session_(session),
        layer_(plane / layout.geometry().kv_heads),
        head_(plane % layout.geometry().kv_heads),
        sealed_(session.SealedLength(plane)),
        open_(session.CompactedLength(plane) - sealed_),
        gap_(RoundUp(open_, kPageTokens) - open_) {}

  uint32_t SlotOf(uint32_t row) const { return row < open_ ? row : row + gap_; }
  // Block number `index` of the head. Its first slot is never in the gap.
  BlockId Block(uint32_t index) const {
    const uint32_t slot = index * kPageTokens;
    return session_.BlockOf(layout_, layer_, head_, sealed_ + (slot < open_ ? slot : slot - gap_));
  }

 private:
  const Layout& layout_;
  const SessionView& session_;
  const uint32_t layer_, head_, sealed_, open_, gap_;
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
  source->reserve(source->size() + length);
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

// Step 0 for one head: `keep` are its sealed rows that stay.
void PlanSealed(const CompactionInput& input, uint32_t plane, std::span<const uint32_t> keep,
                CompactionPlan* plan) {
  const SessionView& session = input.session;
  const uint32_t length = session.SealedLength(plane);
  const BlockId* list = session.compacted_blocks + uint64_t{plane} * session.compacted_stride;
  std::vector<BlockId>& blocks = plan->result.blocks[plane];
  std::vector<uint32_t>& sources = plan->sources[plane];
  std::vector<BlockId> places;  // of the blocks that keep some of their rows
  std::vector<uint32_t> rows;   // those rows
  for (size_t i = 0; i < keep.size();) {
    const uint32_t block = keep[i] / kSealedRows;
    size_t end = i;
    while (end < keep.size() && keep[end] / kSealedRows == block) ++end;
    const auto& into = keep.subspan(i, end - i);
    if (end - i == kSealedRows) {
      blocks.push_back(list[block]);
      sources.insert(sources.end(), into.begin(), into.end());
    } else {
      places.push_back(list[block]);
      rows.insert(rows.end(), into.begin(), into.end());
    }
    i = end;
  }
  sources.insert(sources.end(), rows.begin(), rows.end());
  const uint32_t last = (length - 1) / kSealedRows * kSealedRows;
  if (places.size() == 1 && rows.front() == last && rows.size() == length - last) {
    blocks.push_back(places.front());  // the last block, as full as it was
    return;
  }
  // Block number i of the new ones begins with row 32 * i of `rows`, which lies in places[i] or
  // later, because no place gives more than 31: what is overwritten has been read.
  for (size_t i = 0; i < rows.size(); i += kSealedRows) {
    SealMove remake{.to = places[i / kSealedRows]};
    for (size_t j = i; j < std::min(i + kSealedRows, rows.size()); ++j) {
      remake.rows.push_back({.block = list[rows[j] / kSealedRows],
                             .row = static_cast<uint8_t>(rows[j] % kSealedRows),
                             .format = session.sealed_format});
    }
    blocks.push_back(remake.to);
    plan->remakes.push_back(std::move(remake));
  }
}

// The session's pages by what they hold.
struct PagesByFormat {
  std::vector<PageId> native, sealed;
};

PagesByFormat SplitPages(const CompactionInput& input, const PagePlaces& sealed_places) {
  const SessionView& session = input.session;
  std::unordered_set<PageId> sealed;
  for (uint32_t plane = 0; plane < input.layout->geometry().planes(); ++plane) {
    for (uint32_t row = 0; row < session.SealedLength(plane); row += kSealedRows) {
      const BlockId* list = session.compacted_blocks + uint64_t{plane} * session.compacted_stride;
      sealed.insert(sealed_places.PageOf(list[row / kSealedRows]));
    }
  }
  PagesByFormat pages;
  for (PageId page : input.session_pages) {
    (sealed.contains(page) ? pages.sealed : pages.native).push_back(page);
  }
  return pages;
}

template <typename T>
void Append(std::vector<T>* to, const std::vector<T>& from) {
  to->insert(to->end(), from.begin(), from.end());
}

// Steps 2 and 3, for native and for sealed blocks: pages of one kind never take blocks of the
// other.
absl::Status PackPages(const CompactionInput& input, CompactionPlan* plan) {
  CompactedSegment& result = plan->result;
  const PagePlaces native_places(*input.layout, SealedFormat::kNone);
  const PagePlaces sealed_places(*input.layout, input.session.sealed_format);
  std::vector<BlockId*> native, sealed;
  for (uint32_t plane = 0; plane < result.blocks.size(); ++plane) {
    const uint32_t sealed_blocks = CeilDiv(result.sealed_lengths[plane], kSealedRows);
    for (uint32_t i = 0; i < result.blocks[plane].size(); ++i) {
      (i < sealed_blocks ? sealed : native).push_back(&result.blocks[plane][i]);
    }
  }
  const PagesByFormat pages = SplitPages(input, sealed_places);
  PagePacker native_packer(native_places, pages.native, input.evacuate, std::move(native));
  PagePacker sealed_packer(sealed_places, pages.sealed, input.evacuate, std::move(sealed));
  const size_t first = native_packer.MissingPages(), second = sealed_packer.MissingPages();
  if (first + second > input.replacements.size()) {
    return absl::FailedPreconditionError(
        absl::StrCat("compaction: evacuating ", input.evacuate.size(), " pages needs ",
                     first + second, " replacement pages, got ", input.replacements.size()));
  }
  const std::span<const PageId> replacements = input.replacements;
  for (const PagePacker::Result& packed :
       {native_packer.Pack(replacements.first(first)),
        sealed_packer.Pack(replacements.subspan(first, second))}) {
    Append(&result.pages, packed.pages);
    Append(&plan->freed, packed.freed);
    Append(&plan->block_moves, packed.moves);
    Append(&plan->evacuations, packed.evacuations);
  }
  return absl::OkStatus();
}

// Both kinds of rows of one head. Open rows are numbered from 0 in PlanRows.
void PlanHead(const CompactionInput& input, uint32_t plane, const KeepRows& keep,
              CompactionPlan* plan) {
  const uint32_t sealed = input.session.SealedLength(plane);
  const auto open_begin = std::lower_bound(keep.begin(), keep.end(), sealed);
  const std::span<const uint32_t> sealed_keep(keep.begin(), open_begin);
  if (!sealed_keep.empty()) PlanSealed(input, plane, sealed_keep, plan);
  KeepRows open(open_begin, keep.end());
  for (uint32_t& row : open) row -= sealed;
  std::vector<uint32_t>& sources = plan->sources[plane];
  PlanRows(HeadSlots(*input.layout, input.session, plane), open, &plan->row_moves, &sources,
           &plan->result.blocks[plane]);
  for (size_t i = sealed_keep.size(); i < sources.size(); ++i) sources[i] += sealed;
  plan->result.lengths[plane] = static_cast<uint32_t>(keep.size());
  plan->result.sealed_lengths[plane] = static_cast<uint32_t>(sealed_keep.size());
  if (!sealed_keep.empty()) plan->result.format = input.session.sealed_format;
}

}  // namespace

absl::StatusOr<CompactionPlan> PlanCompaction(const CompactionInput& input) {
  const Layout& layout = *input.layout;
  const uint32_t planes = layout.geometry().planes();
  CompactionPlan plan;
  plan.result.lengths.resize(planes);
  plan.result.blocks.resize(planes);
  plan.result.sealed_lengths.resize(planes);
  plan.sources.resize(planes);
  for (uint32_t plane = 0; plane < planes; ++plane) {
    KeepRows all;
    if (input.keep == nullptr) all = AllRows(input.session.Length(plane));
    const KeepRows& keep = input.keep == nullptr ? all : (*input.keep)[plane];
    PlanHead(input, plane, keep, &plan);
  }
  if (absl::Status status = PackPages(input, &plan); !status.ok()) return status;
  return plan;
}

}  // namespace kvpool
