// Both ends of the shared memory in one process and without RPC: the client's Tenant and Session on
// one side, the agent's Attachment, ledger and device on the other. Use it when the wire and
// processes do not matter; tests/integration has the real thing.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "agent/attachment.h"
#include "agent/host_device.h"
#include "agent/pool.h"
#include "agent/tenant_book.h"
#include "client/tenant.h"

namespace kvpool {

class Loopback {
 public:
  struct Options {
    Geometry geometry{.layers = 2,
                      .query_heads = 4,
                      .kv_heads = 2,
                      .key_dim = 32,
                      .value_dim = 32,
                      .dtype = Dtype::kF32,
                      .kv_of_layer = {0, 1}};
    Bytes slab_bytes = 256_KiB;
    uint32_t slabs = 8;
    uint32_t lease = 8;
    uint32_t chunk = 64;
    uint32_t session_tokens = 1024;
    uint32_t windows = 8;
    PolicySpec policy = DefaultPolicySpec();
  };

  static constexpr TenantId kTenant{1};

  explicit Loopback(const Options& options) : options_(options) {
    const PoolConfig pool{
        .slabs = options.slabs + 1, .reserve_slabs = 1, .slab_bytes = options.slab_bytes};
    journal_.resize(PoolLedger::JournalBytes(pool) / sizeof(uint64_t) + 1);
    ledger_ = std::make_unique<PoolLedger>(
        *PoolLedger::Make(pool, std::as_writable_bytes(std::span(journal_))));
    device_ = *HostDevice::Make(options.slab_bytes, pool.slabs);
    EXPECT_TRUE(device_->CreateSlab(SlabIndex(options.slabs)).ok());
    EXPECT_TRUE(ledger_->SetLease(kTenant, options.lease).ok());
    EXPECT_TRUE(book_
                    .Apply(1, TenantBook::Coverage::kComplete,
                           {{.tenant = kTenant,
                             .name = "t",
                             .seq = 1,
                             .lease_slabs = options.lease,
                             .limit_slabs = options.lease,
                             .policy = options.policy}})
                    .ok());
    const Layout layout = *Layout::Make(options.geometry, options.slab_bytes);
    worker_ = *ledger_->AddWorker(kTenant, layout);
    const shm::ShmSizes sizes{
        .sessions = 8,
        .windows = options.windows,
        .session_tokens = options.session_tokens,
        .planes = options.geometry.planes(),
        .query_floats = options.geometry.model_layers() * options.geometry.query_heads *
                        options.geometry.key_dim,
        .query_lses = options.geometry.model_layers() * options.geometry.query_heads};
    attachment_ = *Attachment::Make({.id = worker_,
                                     .tenant = kTenant,
                                     .layout = layout,
                                     .sizes = sizes,
                                     .chunk_tokens = options.chunk,
                                     .base = device_->base(),
                                     .prefixes = prefixes_},
                                    ledger_.get());
    MapSlabs();
    SharedRegions& regions = attachment_->regions();
    control_ = *Mapping::Map(regions.control_fd(), Size(shm::ControlBytes(sizes)),
                             Mapping::Access::kReadWrite);
    magazine_ = std::make_unique<Magazine>(control_.data(), regions.doorbell_fd());
    tenant_ = std::make_unique<TenantImpl>(
        TenantSetup{.layout = layout,
                    .base = device_->base(),
                    .sizes = sizes,
                    .control = control_.data(),
                    .tables = *Mapping::Map(regions.tables_fd(), Size(shm::TablesBytes(sizes)),
                                            Mapping::Access::kRead),
                    .magazine = magazine_.get(),
                    .calls = std::make_unique<Calls>(*this)});
  }

  Tenant& tenant() { return *tenant_; }
  Attachment& attachment() { return *attachment_; }
  PoolLedger& ledger() { return *ledger_; }
  PrefixIndex& prefixes() { return *prefixes_; }
  Magazine& magazine() { return *magazine_; }
  std::byte* control() { return control_.data(); }
  HostDevice& device() { return *device_; }
  WorkerId worker() const { return worker_; }
  // What a job of the slot is given to seal through.
  std::vector<PageId> ReservePages(uint32_t slot) const {
    std::vector<PageId> pages;
    for (uint32_t i = 0; i < attachment_->ReservePages(slot); ++i) {
      pages.push_back(attachment_->layout().Page(SlabIndex(options_.slabs), i));
    }
    return pages;
  }
  uint64_t used_pages() const { return ledger_->Usage(kTenant).owned_pages; }
  const std::vector<CompactionOutcome>& compactions() const { return compactions_; }

  // From now on drains and hand-overs are done when AnswerNext says so.
  void HoldAnswers() { hold_ = true; }
  // Does the oldest of them, on any thread; false when there is none.
  bool AnswerNext() {
    std::function<void()> answer;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (held_.empty()) return false;
      answer = std::move(held_.front());
      held_.pop_front();
    }
    answer();
    return true;
  }

 private:
  static Bytes Size(uint64_t bytes) { return Bytes(static_cast<int64_t>(bytes)); }

  void MapSlabs() {
    for (;;) {
      const absl::StatusOr<SlabIndex> slab = ledger_->AssignSlab(worker_);
      if (!slab.ok()) return;
      EXPECT_TRUE(device_->CreateSlab(*slab).ok());
      EXPECT_TRUE(ledger_->MarkOffered(worker_, *slab).ok());
      EXPECT_TRUE(ledger_->MarkMapped(worker_, *slab).ok());
    }
  }

  void Answer(std::function<void()> answer) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      held_.push_back(std::move(answer));
    }
    if (!hold_) AnswerNext();
  }

  // What service.cc and workers.cc do, synchronously.
  class Calls final : public AgentCalls {
   public:
    explicit Calls(Loopback& loop) : loop_(loop) {}
    absl::Status Reserve(uint32_t pages) override {
      loop_.attachment_->Collect();
      if (loop_.attachment_->Fill(pages) >= pages) return absl::OkStatus();
      return absl::ResourceExhaustedError("no pages");
    }
    absl::StatusOr<OpenedSession> Open(const OpenOptions& options) override {
      const TenantState& tenant = *loop_.book_.Find(kTenant);
      const SessionPlan plan{.prompt_tokens = options.prompt_tokens,
                             .max_tokens = options.max_tokens,
                             .chunk = loop_.options_.chunk};
      const Layout& layout = loop_.attachment_->layout();
      const std::vector<uint32_t> prompt(options.prompt.begin(), options.prompt.end());
      const PrefixSecret& secret = loop_.prefixes_->secret();
      const std::vector<PageKey> keys = PageKeys(secret, RootKey(secret, options.model), prompt);
      const uint32_t shareable = ShareableTokens(layout, *tenant.policy, plan);
      loop_.attachment_->FreezeAll();
      SessionTerms terms = TermsFor(layout, tenant, plan, [](SealedFormat) { return true; });
      if (!terms.copies)
        terms.charge.pages -= loop_.attachment_->FindPrefix(keys, shareable).size();
      const absl::StatusOr<AgentSession*> session =
          loop_.attachment_->Open(tenant, plan, std::move(terms));
      if (!session.ok()) return session.status();
      loop_.attachment_->TakePrefix(*session, keys, shareable);
      return Opened(**session);
    }
    absl::StatusOr<OpenedSession> Fork(uint32_t slot, uint32_t max_tokens) override {
      const absl::StatusOr<const AgentSession*> parent = loop_.attachment_->CheckFork(slot);
      if (!parent.ok()) return parent.status();
      const SessionPlan plan{.prompt_tokens = (*parent)->plan.prompt_tokens,
                             .max_tokens = max_tokens,
                             .chunk = loop_.options_.chunk};
      SessionTerms terms{.charge = PeakCharge(loop_.attachment_->layout(), *(*parent)->policy,
                                              (*parent)->seal, plan),
                         .copies = (*parent)->copies};
      if (!terms.copies) terms.charge.pages -= (*parent)->committed / kPageTokens;
      const absl::StatusOr<AgentSession*> fork =
          loop_.attachment_->Fork(slot, *loop_.book_.Find(kTenant), plan, std::move(terms));
      if (!fork.ok()) return fork.status();
      return Opened(**fork);
    }
    void Close(uint64_t handle) override {
      loop_.attachment_->Close(static_cast<uint32_t>(handle));
    }
    void Drain(const std::vector<DrainRequest>& requests, Done done) override {
      loop_.Answer([this, requests, done = std::move(done)] { DrainNow(requests, done); });
    }
    void HandOver(const std::vector<uint32_t>& slots, Done done) override {
      loop_.Answer([this, slots, done = std::move(done)] { HandOverNow(slots, done); });
    }
    absl::Status Ping() override { return absl::OkStatus(); }
    absl::StatusOr<TenantStatistics> Statistics() override { return TenantStatistics{}; }

   private:
    static OpenedSession Opened(const AgentSession& session) {
      const PolicyNeeds& needs = session.needs;
      return {.handle = session.slot,
              .slot = session.slot,
              .queries = static_cast<QueryWish>(needs.queries),
              .sample_every = needs.sample_every,
              .prompt_rows = needs.prompt_rows,
              .token_flags = needs.planes.flags,
              .profile = needs.profile,
              .shared_tokens = session.committed};
    }

    void DrainNow(const std::vector<DrainRequest>& requests, const Done& done) {
      std::vector<absl::Status> outcomes;
      for (const DrainRequest& r : requests) {
        absl::StatusOr<DrainJob> job =
            loop_.attachment_->BeginDrain(r.slot, r.window, r.first, r.count);
        outcomes.push_back(job.status());
        if (!job.ok()) continue;
        job->Run();
        loop_.attachment_->EndDrain(r.slot, *std::move(job));
      }
      done(outcomes);
    }
    void HandOverNow(const std::vector<uint32_t>& slots, const Done& done) {
      std::vector<absl::Status> outcomes;
      for (uint32_t slot : slots) {
        if (const AgentSession* session = loop_.attachment_->Find(slot);
            session != nullptr && session->ending) {
          outcomes.push_back(loop_.attachment_->End(slot).status);
          continue;
        }
        auto job = loop_.attachment_->BeginCompaction(slot, shm::State::kRunning,
                                                      loop_.ReservePages(slot));
        outcomes.push_back(job.status());
        if (!job.ok() || !job->has_value()) continue;
        (*job)->Run();
        loop_.compactions_.push_back(
            loop_.attachment_->EndCompaction(slot, **std::move(job), shm::State::kRunning));
      }
      done(outcomes);
    }

    Loopback& loop_;
  };

  const Options options_;
  std::vector<uint64_t> journal_;
  std::unique_ptr<PoolLedger> ledger_;
  std::unique_ptr<HostDevice> device_;
  TenantBook book_;
  WorkerId worker_;
  std::shared_ptr<PrefixIndex> prefixes_ =
      std::make_shared<PrefixIndex>(DrawPrefixSecret().value(), 4096);
  std::unique_ptr<Attachment> attachment_;
  Mapping control_;
  std::unique_ptr<Magazine> magazine_;
  std::unique_ptr<TenantImpl> tenant_;
  std::vector<CompactionOutcome> compactions_;
  bool hold_ = false;
  std::mutex mutex_;  // of what follows
  std::deque<std::function<void()>> held_;
};

}  // namespace kvpool
