// One session's words in shared memory: page list, committed, query window, table. See tenant.h.
//
// SPDX-License-Identifier: Apache-2.0
#include <string.h>

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "client/tenant.h"

namespace kvpool {
namespace {

std::byte* SlotBytes(const TenantSetup& setup, uint32_t slot) {
  return setup.control + shm::SlotOffset(setup.sizes, slot);
}

}  // namespace

SessionImpl::SessionImpl(TenantImpl& tenant, const OpenedSession& opened, uint32_t prompt_tokens)
    : tenant_(tenant),
      opened_(opened),
      prompt_tokens_(prompt_tokens),
      words_(reinterpret_cast<shm::SessionSlot*>(SlotBytes(tenant.setup_, opened.slot))),
      page_list_(reinterpret_cast<std::atomic<uint32_t>*>(SlotBytes(tenant.setup_, opened.slot) +
                                                          sizeof(shm::SessionSlot))),
      table_bytes_(tenant.setup_.tables.data()),
      table_(reinterpret_cast<const shm::TableHeader*>(
          table_bytes_ + shm::TableOffset(tenant.setup_.sizes, opened.slot))),
      flags_(reinterpret_cast<uint8_t*>(tenant.setup_.control +
                                        shm::TokenFlagsOffset(tenant.setup_.sizes, opened.slot))) {
  if (opened.profile.has_value()) {
    profiler_ = std::make_unique<PromptProfiler>(tenant.setup_.layout, tenant.setup_.base,
                                                 *opened.profile, prompt_tokens);
  }
  for (uint32_t i = 0; i < CeilDiv(opened.shared_tokens, kPageTokens); ++i) {
    fresh_pages_.emplace_back(page_list_[i].load(std::memory_order_relaxed));
  }
  committed_ = opened.shared_tokens;
  RefreshTable();
}

SessionImpl::~SessionImpl() {
  if (window_ != kNoWindow) tenant_.window_owners_[window_] = nullptr;
  tenant_.setup_.calls->Close(opened_.handle);
}

SessionView SessionImpl::View(uint32_t appended) const {
  return {.compacted_lengths = lengths_,
          .compacted_blocks = blocks_,
          .compacted_stride = tenant_.setup_.sizes.pages(),
          .compacted_positions = positions_,
          .positions_stride = tenant_.setup_.sizes.pages() * kPageTokens,
          .sealed_lengths = sealed_lengths_,
          .sealed_format = sealed_format_,
          .fresh_pages = fresh_pages_.data(),
          .fresh_tokens = fresh_tokens() + appended};
}

BlockId SessionImpl::WriteBlock(uint32_t layer, uint32_t head, uint32_t i) const {
  return tenant_.setup_.layout.Block(fresh_pages_[(fresh_tokens() + i) / kPageTokens], layer, head);
}

uint32_t SessionImpl::PagesMissing(uint32_t tokens) const {
  const uint32_t needed = CeilDiv(fresh_tokens() + tokens, kPageTokens);
  const auto have = static_cast<uint32_t>(fresh_pages_.size());
  return needed > have ? needed - have : 0;
}

void SessionImpl::AddPages(std::span<const PageId> pages) {
  for (PageId page : pages) {
    page_list_[fresh_pages_.size()].store(page.value(), std::memory_order_relaxed);
    fresh_pages_.push_back(page);
  }
  words_->page_count.store(static_cast<uint32_t>(fresh_pages_.size()), std::memory_order_release);
}

bool SessionImpl::Due(uint32_t tokens) const {
  if (table_->hand_over.load(std::memory_order_acquire) != 0) return true;
  const uint32_t compact_at = table_->compact_at.load(std::memory_order_relaxed);
  // Without fresh tokens since the last compaction there is nothing that it left to drop.
  return compact_at != 0 && fresh_tokens() > 0 &&
         compacted_tokens_ + fresh_tokens() + tokens > compact_at;
}

absl::Status SessionImpl::Failure() const {
  const uint32_t why = table_->failed.load(std::memory_order_acquire);
  if (why == static_cast<uint32_t>(shm::Failure::kPreempted)) {
    return absl::CancelledError(
        "the agent ended this session: its tenant held more than its lease for longer than its "
        "grace allows. Open another when there is room, and feed it again");
  }
  return absl::DataLossError(absl::StrCat("the agent refused this session's page list (reason ",
                                          why, "); the session is lost"));
}

absl::Status SessionImpl::TakeBack() {
  static const absl::Status kBusy = absl::AbortedError("the agent has the session");
  if (away_) {
    if (progress_->handed_over.load()) return kBusy;
    away_ = false;
    // Without room for it the session is as whole as before, and may have moved.
    if (progress_->outcome.ok() || absl::IsResourceExhausted(progress_->outcome)) RefreshTable();
    return progress_->outcome;
  }
  auto state = static_cast<uint32_t>(shm::State::kIdle);
  if (words_->state.compare_exchange_strong(state, static_cast<uint32_t>(shm::State::kRunning),
                                            std::memory_order_acq_rel)) {
    RefreshTable();
    return absl::OkStatus();
  }
  if (state == static_cast<uint32_t>(shm::State::kRunning)) return absl::OkStatus();
  return state == static_cast<uint32_t>(shm::State::kBusy) ? kBusy : Failure();
}

bool SessionImpl::WasTaken() const {
  return !away_ &&
         words_->state.load(std::memory_order_acquire) == static_cast<uint32_t>(shm::State::kBusy);
}

bool SessionImpl::MayGoOn() const {
  return away_ ? !progress_->handed_over.load() : !progress_->draining.load() && !WasTaken();
}

void SessionImpl::RefreshTable() {
  const uint64_t epoch = table_->epoch.load(std::memory_order_acquire);
  if (epoch == epoch_) return;
  epoch_ = epoch;
  fresh_start_ = static_cast<uint32_t>(table_->fresh_start.load(std::memory_order_relaxed));
  compacted_tokens_ = table_->cache_tokens.load(std::memory_order_relaxed);
  fresh_pages_.clear();  // the agent has emptied the list: those pages are compacted or gone
  const shm::ShmSizes& sizes = tenant_.setup_.sizes;
  const std::byte* buffer = table_bytes_ + shm::TableBufferOffset(sizes, opened_.slot, epoch);
  lengths_ = reinterpret_cast<const uint32_t*>(buffer);
  const auto* sealed = reinterpret_cast<const uint32_t*>(buffer + shm::LengthsBytes(sizes));
  sealed_format_ = static_cast<SealedFormat>(sealed[0]);
  sealed_lengths_ = sealed + 1;
  blocks_ = reinterpret_cast<const BlockId*>(buffer + shm::TableBlocksOffset(sizes));
  positions_ = reinterpret_cast<const uint32_t*>(buffer + shm::TablePositionsOffset(sizes));
}

bool SessionImpl::WantsQueries(uint32_t tokens) const {
  for (uint32_t i = 0; i < tokens; ++i) {
    if (PushWanted(committed_ + i, i, tokens)) return true;
  }
  return false;
}

bool SessionImpl::PushNeeded(uint32_t position, uint32_t index, uint32_t tokens) const {
  switch (opened_.queries) {
    case QueryWish::kNone:
    case QueryWish::kSampled:
      return false;
    case QueryWish::kExact:
      // A profile counts the prompt's rows; its last ones are pushed for recovery.
      if (opened_.profile.has_value()) return position + opened_.prompt_rows >= prompt_tokens_;
      return tokens == 1 || tokens - index <= opened_.prompt_rows;
    case QueryWish::kPrompt:
      return position < prompt_tokens_ && prompt_tokens_ - position <= opened_.prompt_rows;
  }
  return false;
}

void SessionImpl::WriteFlags(uint32_t tokens, std::span<const uint8_t> flags) {
  if (!opened_.token_flags) return;
  const uint32_t room = tenant_.setup_.sizes.session_tokens - committed_;
  for (uint32_t i = 0; i < std::min(tokens, room); ++i) {
    flags_[committed_ + i] = i < flags.size() ? flags[i] : 0;
  }
}

void SessionImpl::Profile(const AttendedChunk& chunk) {
  profiler_->Add(chunk, View(chunk.query_count));
}

void SessionImpl::PublishProfile() {
  const shm::ShmSizes& sizes = tenant_.setup_.sizes;
  const uint32_t tokens = profiler_->tokens();
  std::byte* const to = tenant_.setup_.control + shm::ProfileOffset(sizes, opened_.slot);
  const std::vector<HeadClass> classes = profiler_->Classes({flags_, tokens});
  memcpy(to, classes.data(), classes.size());
  for (uint32_t plane = 0; plane < sizes.planes; ++plane) {
    // The other classes rank nothing.
    if (classes[plane] != HeadClass::kFrequent && classes[plane] != HeadClass::kLocal) continue;
    const std::vector<float> frequency = profiler_->Frequency(plane);
    memcpy(to + shm::ProfileFrequencyOffset(sizes, plane), frequency.data(),
           frequency.size() * sizeof(float));
  }
  words_->profiled.store(tokens, std::memory_order_release);
}

bool SessionImpl::PushWanted(uint32_t position, uint32_t index, uint32_t tokens) const {
  const bool sampled = opened_.queries == QueryWish::kSampled ||
                       (opened_.queries == QueryWish::kPrompt && position >= prompt_tokens_);
  return PushNeeded(position, index, tokens) || (sampled && position % opened_.sample_every == 0);
}

absl::Status SessionImpl::Commit(uint32_t tokens, const float* queries, const float* lses) {
  if (queries != nullptr && LacksWindow()) {
    return absl::FailedPreconditionError("a step whose queries are wanted begins at a safe point");
  }
  const uint32_t first = committed_;
  committed_ += tokens;
  if (profiler_ != nullptr) {
    profiler_->EndStep(first, tokens);
    if (profiler_->complete()) PublishProfile();
    // Published, or not whole and never will be.
    if (!profiler_->Wants(committed_)) profiler_.reset();
  }
  words_->committed.store(committed_, std::memory_order_release);
  if (queries == nullptr) return absl::OkStatus();
  const size_t floats = tenant_.setup_.sizes.query_floats;
  const size_t heads = tenant_.setup_.sizes.query_lses;
  for (uint32_t i = 0; i < tokens; ++i) {
    if (!PushWanted(first + i, i, tokens)) continue;
    const Patience patience =
        PushNeeded(first + i, i, tokens) ? Patience::kWaits : Patience::kDrops;
    if (absl::Status status = PushQuery(first + i, queries + i * floats,
                                        lses == nullptr ? nullptr : lses + i * heads, patience);
        !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status SessionImpl::PushQuery(uint32_t position, const float* query, const float* lses,
                                    Patience patience) {
  const auto full = [this] { return pushed_ - progress_->drained.load() >= shm::kWindowQueries; };
  while (full()) {
    tenant_.StartDrains({this});
    if (patience == Patience::kDrops) return absl::OkStatus();
    absl::Status status =
        tenant_.WaitForDrains([this, &full] { return !full() || !progress_->draining.load(); });
    if (!status.ok()) return status;
  }
  const shm::ShmSizes& sizes = tenant_.setup_.sizes;
  std::byte* window = tenant_.setup_.control + shm::WindowOffset(sizes, window_);
  const uint64_t entry = pushed_ % shm::kWindowQueries;
  memcpy(window + entry * sizeof(uint32_t), &position, sizeof(position));
  const size_t bytes = size_t{sizes.query_floats} * sizeof(float);
  memcpy(window + shm::WindowVectorsOffset() + entry * bytes, query, bytes);
  auto* entry_lses =
      reinterpret_cast<float*>(window + shm::WindowLsesOffset(sizes)) + entry * sizes.query_lses;
  for (uint32_t i = 0; i < sizes.query_lses; ++i) {
    entry_lses[i] = lses == nullptr ? std::numeric_limits<float>::quiet_NaN() : lses[i];
  }
  ++pushed_;
  return absl::OkStatus();
}

void SessionImpl::Park() {
  if (away_) return;  // it rests with the agent; the next safe point that names it takes it back
  // An exact policy's agent must not compact a session with unscored queries: drain them first.
  tenant_.StartDrains({this});
  // One that the agent has failed stays so: its pages are not its own any more.
  auto running = static_cast<uint32_t>(shm::State::kRunning);
  words_->state.compare_exchange_strong(running, static_cast<uint32_t>(shm::State::kIdle),
                                        std::memory_order_acq_rel);
}

}  // namespace kvpool
