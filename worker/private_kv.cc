// A free list of pages over one lazily touched anonymous mapping.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/private_kv.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace kvpool {

class PrivateKv::Session final : public KvSession {
 public:
  Session(PrivateKv* kv, uint32_t max_tokens) : kv_(kv) {
    pages_.reserve(CeilDiv(max_tokens, kPageTokens));
  }
  ~Session() override { kv_->free_.insert(kv_->free_.end(), pages_.rbegin(), pages_.rend()); }

  const Layout& layout() const override { return kv_->layout_; }
  std::byte* base() const override { return kv_->base_; }

  Readiness Prepare(uint32_t tokens) {
    const size_t need = CeilDiv(committed_ + tokens, kPageTokens) - pages_.size();
    if (need > kv_->free_.size()) return Readiness::kNoSpace;
    pages_.insert(pages_.end(), kv_->free_.rbegin(), kv_->free_.rbegin() + need);
    kv_->free_.resize(kv_->free_.size() - need);
    prepared_ = tokens;
    return Readiness::kReady;
  }

  SessionView View() const override {
    return {.fresh_pages = pages_.data(), .fresh_tokens = committed_ + prepared_};
  }

  QuerySlot SlotOf(uint32_t) override { return {}; }
  bool WantsProfile() const override { return false; }
  void Profile(const AttendedChunk&) override {}

  void Commit() override { committed_ += std::exchange(prepared_, 0); }

 private:
  PrivateKv* const kv_;
  std::vector<PageId> pages_;
  uint32_t committed_ = 0;
  uint32_t prepared_ = 0;
};

absl::StatusOr<std::unique_ptr<PrivateKv>> PrivateKv::Make(const PrivateKvOptions& options) {
  absl::StatusOr<Layout> layout = Layout::Make(options.geometry, options.slab_bytes);
  if (!layout.ok()) return layout.status();
  const uint64_t slabs = CeilDiv(options.max_pages, layout->pages_per_slab());
  if (slabs == 0 || slabs * static_cast<uint64_t>(options.slab_bytes.value()) >=
                        (uint64_t{1} << 32) * kGranuleBytes) {
    return absl::InvalidArgumentError(absl::StrCat("private KV of ", options.max_pages,
                                                   " pages does not fit the range of block ids"));
  }
  const Bytes reserved = options.slab_bytes * static_cast<int64_t>(slabs);
  void* const base = mmap(nullptr, reserved.value(), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "cannot reserve ", reserved.value(), " bytes of private KV: ", std::strerror(errno)));
  }
  return std::unique_ptr<PrivateKv>(
      new PrivateKv(*layout, static_cast<std::byte*>(base), reserved, options.max_pages));
}

PrivateKv::PrivateKv(const Layout& layout, std::byte* base, Bytes reserved, uint32_t max_pages)
    : layout_(layout), base_(base), reserved_(reserved), max_pages_(max_pages) {
  free_.reserve(max_pages);
  for (uint32_t page = max_pages; page-- > 0;) {
    free_.push_back(
        layout_.Page(SlabIndex(page / layout_.pages_per_slab()), page % layout_.pages_per_slab()));
  }
}

PrivateKv::~PrivateKv() { munmap(base_, reserved_.value()); }

void PrivateKv::Prepare(std::span<KvStep> steps) {
  for (KvStep& step : steps) {
    step.readiness = static_cast<Session*>(step.session)->Prepare(step.tokens);
  }
}

OpenResult PrivateKv::Open(const OpenRequest& request) {
  const uint32_t most = CeilDiv(request.max_tokens, kPageTokens);
  if (most > max_pages_) {
    return {.outcome = OpenOutcome::kTooLarge,
            .text = absl::StrCat("the session may need ", most, " pages, private KV has ",
                                 max_pages_, "; raise --private-mib")};
  }
  if (CeilDiv(request.prompt_tokens, kPageTokens) > free_pages()) {
    return {.outcome = OpenOutcome::kNoSpace, .text = "no pages for the prompt are free"};
  }
  return {.outcome = OpenOutcome::kOpened,
          .session = std::make_unique<Session>(this, request.max_tokens)};
}

}  // namespace kvpool
