// A session that lives under a policy: fed chunk by chunk with random rows and queries, drained,
// compacted and sealed in the order that client and agent keep, with the real kernels on a small
// pool. Queries have a direction in common, so that most agree on which keys are important; or a
// model's own rows and queries, through BeginStep and EndStep. Knows what each row must hold, by
// its position.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "kernels/compaction.h"
#include "kernels/derived_scores.h"
#include "kernels/policy/policy.h"
#include "kernels/scoring.h"
#include "kernels/sealing.h"
#include "tests/kernels/test_session.h"

namespace kvpool {

class PolicySession {
 public:
  PolicySession(const Geometry& geometry, const Policy& policy, const SessionPlan& plan,
                uint32_t seed)
      : policy_(policy),
        needs_(policy.Needs()),
        plan_(plan),
        random_(seed),
        layout_(
            *Layout::Make(geometry, Layout::Make(geometry, Bytes(int64_t{1} << 40))->page_bytes())),
        planes_(geometry, needs_.planes),
        compacted_(MakeEmpty(geometry)),
        rows_(geometry.planes()) {
    const uint32_t pages = CeilDiv(plan.max_tokens, kPageTokens) + kSparePages;
    pool_.resize(pages * static_cast<size_t>(layout_.page_bytes().value()));
    for (uint32_t i = pages; i > 0; --i) free_.push_back(layout_.Page(SlabIndex(i - 1), 0));
    compact_at_ = policy.NextCompactAt(State());
  }

  // What a worker's profile has found, instead of what this session makes up: classes of the heads,
  // and what each key of the prompt was given, [planes][prompt tokens].
  void SetProfile(const std::vector<HeadClass>& classes,
                  const std::vector<std::vector<float>>& frequency) {
    for (HeadClass c : classes) classes_.push_back(static_cast<uint8_t>(c));
    for (uint32_t p = 0; p < planes_.planes(); ++p) planes_.SetSums(p, frequency[p]);
  }
  // Flags of the newest tokens. Requires a policy that declares them.
  void SetNewestFlags(std::span<const uint8_t> flags) { planes_.SetNewestFlags(flags); }

  // What is sealed from now on, at every hand-over and each time that kSealBatch rows have come.
  void SealAs(const SealRule& rule) { seal_ = rule; }

  const Geometry& geometry() const { return layout_.geometry(); }
  const Planes& planes() const { return planes_; }
  uint32_t committed() const { return committed_; }
  uint32_t compactions() const { return compactions_; }
  std::optional<uint32_t> compact_at() const { return compact_at_; }
  // What the last compaction selected, and the positions that each head held before it.
  const Selection& selection() const { return selection_; }
  const std::vector<std::vector<uint32_t>>& before() const { return before_; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(geometry().key_dim)); }
  const std::vector<float>& key(uint32_t plane, uint32_t position) const {
    return rows_[plane][position].key;
  }
  const std::vector<float>& value(uint32_t plane, uint32_t position) const {
    return rows_[plane][position].value;
  }

  PolicyState State() const {
    return {.geometry = &layout_.geometry(),
            .plan = plan_,
            .session = 7,
            .step = committed_,
            .length = Longest(),
            .compacted_step = compacted_step_,
            .compacted_length = compacted_length_,
            .observed = planes_.observed(),
            .head_classes = HeadClasses()};
  }

  // What a worker's profile has found or may have: one head after the other of each class.
  std::vector<uint8_t> HeadClasses() const {
    std::vector<uint8_t> classes = classes_;
    if (!classes.empty()) return classes;
    if (!needs_.profile.has_value() || committed_ < plan_.prompt_tokens) return classes;
    for (uint32_t p = 0; p < planes_.planes(); ++p) {
      classes.push_back(static_cast<uint8_t>((p + 3) % 5));
    }
    return classes;
  }

  uint32_t Longest() const {
    uint32_t longest = 0;
    for (uint32_t p = 0; p < planes_.planes(); ++p) longest = std::max(longest, planes_.rows(p));
    return longest;
  }
  // Rounded up.
  uint32_t MeanLength() const {
    uint32_t rows = 0;
    for (uint32_t p = 0; p < planes_.planes(); ++p) rows += planes_.rows(p);
    return CeilDiv(rows, planes_.planes());
  }
  const CompactedSegment& compacted() const { return compacted_; }

  // One append of `tokens` tokens, after a hand-over when it is due. Returns its queries,
  // [tokens][model_layers][query_heads][key_dim].
  std::vector<float> Feed(uint32_t tokens) {
    BeginStep(tokens);
    for (uint32_t i = 0; i < tokens; ++i) StoreRandomRows(fresh_ - tokens + i);
    const Geometry& g = geometry();
    const size_t floats = size_t{g.model_layers()} * g.query_heads * g.key_dim;
    std::vector<float> queries = Random(tokens * floats, 2);
    for (size_t i = 0; i < queries.size(); ++i) queries[i] += i % g.key_dim < 4 ? 3.0f : 0.0f;
    EndStep(tokens, queries);
    return queries;
  }

  // The two halves of an append, for a caller that stores the rows: as a worker does, into the last
  // `tokens` fresh rows of View() between them. Queries as Feed() returns them.
  void BeginStep(uint32_t tokens) {
    if (compact_at_.has_value() && fresh_ > 0 && Longest() + tokens > *compact_at_) HandOver();
    if (seal_.format != SealedFormat::kNone && fresh_ >= kSealBatch) Move();
    while (fresh_pages_.size() * kPageTokens < fresh_ + tokens) {
      fresh_pages_.push_back(free_.back());
      free_.pop_back();
    }
    fresh_ += tokens;
  }

  void EndStep(uint32_t tokens, const std::vector<float>& queries) {
    for (uint32_t row = fresh_ - tokens; row < fresh_; ++row) RememberRows(row);
    committed_ += tokens;
    planes_.Append(committed_ - tokens, tokens);
    const Geometry& g = geometry();
    const auto floats =
        static_cast<ptrdiff_t>(size_t{g.model_layers()} * g.query_heads) * g.key_dim;
    for (uint32_t i = 0; i < tokens; ++i) {
      const uint32_t position = committed_ - tokens + i;
      if (!Wanted(position, i, tokens)) continue;
      pending_positions_.push_back(position);
      pending_.insert(pending_.end(), queries.begin() + i * floats,
                      queries.begin() + (i + 1) * floats);
      if (pending_positions_.size() == kDrainQueries) Drain();
    }
  }

  const Layout& layout() const { return layout_; }
  std::byte* base() { return pool_.data(); }
  SessionView View() const {
    return {.compacted_lengths = compacted_.lengths.data(),
            .compacted_blocks = blocks_.data(),
            .compacted_stride = stride_,
            .sealed_lengths = compacted_.sealed_lengths.data(),
            .sealed_format = compacted_.format,
            .fresh_pages = fresh_pages_.data(),
            .fresh_tokens = fresh_};
  }

  void Drain() {
    if (pending_positions_.empty()) return;
    const auto count = static_cast<uint32_t>(pending_positions_.size());
    planes_.BeginDrain(count, pending_positions_.back() + 1);
    Score({.layout = &layout_,
           .base = pool_.data(),
           .session = View(),
           .fresh_start = fresh_start_,
           .queries = pending_.data(),
           .query_positions = pending_positions_.data(),
           .query_count = count,
           .scale = scale()},
          &planes_);
    planes_.KeepQueries(pending_positions_, pending_);
    pending_positions_.clear();
    pending_.clear();
  }

  void HandOver() {
    Drain();
    const std::optional<Selection> selection = policy_.Compact(State());
    if (selection.has_value()) Compact(*selection);
    compact_at_ = policy_.NextCompactAt(State());
  }

  // A hand-over that drops nothing: the policy is not asked. Seals what there is to be sealed.
  void Move() {
    Drain();
    Rewrite(nullptr);
  }

  // Whether every row holds the key and value of its position, bit for bit, or nearly so where it
  // is sealed, and planes are as long as their heads.
  testing::AssertionResult RowsAreRight() const {
    const Geometry& g = geometry();
    std::vector<float> key(g.key_dim), value(g.value_dim);
    const SessionView view = View();
    for (uint32_t p = 0; p < g.planes(); ++p) {
      if (planes_.rows(p) != view.Length(p) || planes_.mass(p).size() != view.Length(p)) {
        return testing::AssertionFailure() << "head " << p << " and its planes differ in length";
      }
      for (uint32_t row = 0; row < view.Length(p); ++row) {
        ReadRow(layout_, pool_.data(), view, p, row, key.data(), value.data());
        const Row& right = rows_[p][planes_.positions(p)[row]];
        const bool sealed = row < view.SealedLength(p);
        if (sealed ? !Near(key, right.key) || !Near(value, right.value)
                   : key != right.key || value != right.value) {
          return testing::AssertionFailure() << "head " << p << " row " << row;
        }
      }
    }
    return testing::AssertionSuccess();
  }

 private:
  struct Row {
    std::vector<float> key, value;
  };

  static constexpr uint32_t kSealBatch = 64, kSparePages = 8;

  static CompactedSegment MakeEmpty(const Geometry& g) {
    return {.lengths = std::vector<uint32_t>(g.planes()),
            .blocks = std::vector<std::vector<BlockId>>(g.planes()),
            .sealed_lengths = std::vector<uint32_t>(g.planes())};
  }

  // Rows of different positions are about 1 apart in each number.
  static bool Near(const std::vector<float>& a, const std::vector<float>& b) {
    float sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += std::abs(a[i] - b[i]);
    return sum <= 0.5f * static_cast<float>(a.size());
  }

  std::vector<float> Random(size_t count, float size) {
    std::normal_distribution<float> normal(0, size);
    std::vector<float> numbers(count);
    for (float& x : numbers) x = normal(random_);
    return numbers;
  }

  bool Wanted(uint32_t position, uint32_t index, uint32_t tokens) const {
    if (needs_.queries == QueryNeed::kNone) return false;
    if (needs_.queries == QueryNeed::kPrompt && position < plan_.prompt_tokens) {
      return plan_.prompt_tokens - position <= needs_.prompt_rows;
    }
    if (needs_.queries != QueryNeed::kExact) return position % needs_.sample_every == 0;
    return tokens == 1 || tokens - index <= needs_.prompt_rows;
  }

  BlockId FreshBlock(uint32_t plane, uint32_t row) const {
    const uint32_t heads = geometry().kv_heads;
    return layout_.Block(fresh_pages_[row / kPageTokens], plane / heads, plane % heads);
  }

  void StoreRandomRows(uint32_t fresh_row) {
    const Geometry& g = geometry();
    for (uint32_t p = 0; p < g.planes(); ++p) {
      std::vector<float> key = Random(g.key_dim, 1);
      const std::vector<float> value = Random(g.value_dim, 1);
      const float importance = Random(1, 1.5f).front();
      for (uint32_t d = 0; d < 4; ++d) key[d] += importance;
      StoreRow(layout_, pool_.data(), FreshBlock(p, fresh_row), fresh_row % kPageTokens, key.data(),
               value.data());
    }
  }

  void RememberRows(uint32_t fresh_row) {
    const Geometry& g = geometry();
    for (uint32_t p = 0; p < g.planes(); ++p) {
      Row& row = rows_[p].emplace_back();
      row.key.resize(g.key_dim);
      row.value.resize(g.value_dim);
      LoadRow(layout_, pool_.data(), FreshBlock(p, fresh_row), fresh_row % kPageTokens,
              row.key.data(), row.value.data());
    }
  }

  void Compact(const Selection& selection) {
    selection_ = selection;
    before_.clear();
    for (uint32_t p = 0; p < planes_.planes(); ++p) before_.push_back(planes_.positions(p));
    const RowScores scores = selection.score.derived()
                                 ? DerivedScores(selection.score, {.layout = &layout_,
                                                                   .base = pool_.data(),
                                                                   .session = View(),
                                                                   .fresh_start = fresh_start_,
                                                                   .selected_step = compacted_step_,
                                                                   .planes = &planes_,
                                                                   .scale = scale()})
                                 : PlaneScores(selection.score, planes_);
    const std::vector<KeepRows> keep = Select(selection, geometry(), planes_, scores);
    Rewrite(&keep);
    compacted_step_ = committed_;
    compacted_length_ = Longest();
    ++compactions_;
  }

  // Keeps `keep`, or every row, and seals.
  void Rewrite(const std::vector<KeepRows>* keep) {
    std::vector<PageId> pages = compacted_.pages;
    pages.insert(pages.end(), fresh_pages_.begin(), fresh_pages_.end());
    const CompactionPlan plan = *PlanCompaction(
        {.layout = &layout_, .session = View(), .session_pages = pages, .keep = keep});
    ExecuteCompaction(layout_, pool_.data(), plan);
    for (uint32_t p = 0; p < planes_.planes(); ++p) {
      keep != nullptr ? planes_.Gather(p, plan.sources[p]) : planes_.Reorder(p, plan.sources[p]);
    }
    free_.insert(free_.end(), plan.freed.begin(), plan.freed.end());
    compacted_ = plan.result;
    if (seal_.format != SealedFormat::kNone) Seal();
    stride_ = 1;
    for (const auto& list : compacted_.blocks) {
      stride_ = std::max(stride_, static_cast<uint32_t>(list.size()));
    }
    blocks_.assign(compacted_.blocks.size() * stride_, BlockId(0));
    for (size_t p = 0; p < compacted_.blocks.size(); ++p) {
      std::copy(compacted_.blocks[p].begin(), compacted_.blocks[p].end(),
                blocks_.begin() + static_cast<ptrdiff_t>(p * stride_));
    }
    fresh_pages_.clear();
    fresh_ = 0;
    fresh_start_ = committed_;
  }

  void Seal() {
    for (;;) {
      const SealingPlan part = *PlanSealing({.layout = &layout_,
                                             .segment = &compacted_,
                                             .format = seal_.format,
                                             .open_rows = seal_.open_rows,
                                             .spare = free_});
      if (part.moves.empty()) return;
      for (size_t step = 0; step < part.steps(); ++step) {
        ExecuteSealingStep(layout_, pool_.data(), part, step);
      }
      compacted_ = part.result;
      free_.insert(free_.end(), part.freed.begin(), part.freed.end());
      std::erase_if(free_, [&](PageId page) {
        return std::find(compacted_.pages.begin(), compacted_.pages.end(), page) !=
               compacted_.pages.end();
      });
    }
  }

  const Policy& policy_;
  const PolicyNeeds needs_;
  const SessionPlan plan_;
  SealRule seal_;
  std::vector<uint8_t> classes_;  // [planes], when they were set
  std::mt19937 random_;
  const Layout layout_;
  Planes planes_;
  std::vector<std::byte> pool_;
  std::vector<PageId> free_, fresh_pages_;
  CompactedSegment compacted_;
  std::vector<BlockId> blocks_;  // [planes][stride_]
  uint32_t stride_ = 1, fresh_ = 0, fresh_start_ = 0, committed_ = 0;
  uint32_t compacted_step_ = 0, compacted_length_ = 0, compactions_ = 0;
  std::optional<uint32_t> compact_at_;
  Selection selection_;
  std::vector<std::vector<uint32_t>> before_;
  std::vector<uint32_t> pending_positions_;
  std::vector<float> pending_;
  std::vector<std::vector<Row>> rows_;  // [planes][position], as stored
};

}  // namespace kvpool
