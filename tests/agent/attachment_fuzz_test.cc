// A worker that writes rubbish: a million seeded writes into its Control memory and its slabs,
// between the calls an agent makes on a worker's behalf. After every call the ledger is whole, and
// another tenant beside it keeps every byte.
//
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <variant>
#include <vector>

#include "agent/attachment.h"
#include "agent/host_device.h"
#include "agent/pool.h"
#include "agent/tenant_book.h"

namespace kvpool {
namespace {

constexpr TenantId kHostile{1}, kHonest{2};
constexpr uint32_t kSlabs = 10, kHostileSlabs = 6, kHonestSlabs = 2;
constexpr Bytes kSlabBytes = 64_KiB;  // 16 pages
constexpr shm::ShmSizes kSizes{.sessions = 6,
                               .windows = 3,
                               .session_tokens = 256,
                               .planes = 4,
                               .query_floats = 2 * 4 * 8,
                               .query_lses = 2 * 4};

Layout SmallLayout() {
  return *Layout::Make({.layers = 2,
                        .query_heads = 4,
                        .kv_heads = 2,
                        .key_dim = 8,
                        .value_dim = 8,
                        .dtype = Dtype::kF32,
                        .kv_of_layer = {0, 1}},
                       kSlabBytes);
}

// The words of one attachment as its worker sees them.
struct WorkerWords {
  explicit WorkerWords(Attachment& attachment) : regions(attachment.regions()) {}

  std::atomic<uint32_t>& listed(uint32_t slot, uint32_t index) {
    auto* list = reinterpret_cast<std::atomic<uint32_t>*>(
        reinterpret_cast<std::byte*>(&regions.slot(slot)) + sizeof(shm::SessionSlot));
    return list[index];
  }
  // Any aligned word of Control: its header is where it starts.
  std::atomic<uint32_t>& any(uint64_t index) {
    return reinterpret_cast<std::atomic<uint32_t>*>(&regions.header())[index];
  }
  std::byte* window(uint32_t index) {
    return reinterpret_cast<std::byte*>(&regions.header()) + shm::WindowOffset(kSizes, index);
  }

  SharedRegions& regions;
};

class Rig {
 public:
  explicit Rig(uint64_t seed) : random_(seed) {
    const PoolConfig pool{.slabs = kSlabs, .slab_bytes = kSlabBytes};
    journal_.resize(PoolLedger::JournalBytes(pool) / sizeof(uint64_t) + 1);
    ledger_ = std::make_unique<PoolLedger>(
        *PoolLedger::Make(pool, std::as_writable_bytes(std::span(journal_))));
    device_ = *HostDevice::Make(kSlabBytes, kSlabs);
    for (uint32_t i = 0; i < kSlabs; ++i) EXPECT_TRUE(device_->CreateSlab(SlabIndex(i)).ok());
    EXPECT_TRUE(ledger_->SetLease(kHostile, kHostileSlabs).ok());
    EXPECT_TRUE(ledger_->SetLease(kHonest, kHonestSlabs).ok());
    const auto order = [](TenantId id, const PolicySpec& policy) {
      return TenantOrder{.tenant = id, .name = "t", .seq = 1, .policy = policy};
    };
    EXPECT_TRUE(book_
                    .Apply(1, TenantBook::Coverage::kComplete,
                           {order(kHostile, *MakePolicySpec("scissorhands", {{"budget", 96},
                                                                             {"window", 64},
                                                                             {"recent", 8},
                                                                             {"format", "int4"},
                                                                             {"open", 0}})),
                            order(kHonest, DefaultPolicySpec())})
                    .ok());
    honest_ = Attach(kHonest);
    StartHonestSession();
    hostile_ = Attach(kHostile);
  }

  // One write, then one call of the agent's, after which everything is checked.
  void Step() {
    WriteRubbish();
    if (Draw(2) == 0) BehaveWell();
    AgentCall();
    const absl::Status whole = ledger_->CheckInvariants();
    ASSERT_TRUE(whole.ok()) << whole;
    CheckSums();
  }

  // The other tenant's bytes are as it wrote them, and its session goes on.
  void CheckHonest() {
    for (const auto& [slab, bytes] : honest_bytes_) {
      ASSERT_EQ(memcmp(bytes.data(), Start(slab), bytes.size()), 0)
          << "another tenant's slab changed";
    }
    const AgentSession& session = *honest_->Find(0);
    ASSERT_FALSE(session.failed);
    auto job = honest_->BeginDrain(0, 0, session.drained, 1);
    ASSERT_TRUE(job.ok()) << job.status();
    job->Run();
    honest_->EndDrain(0, *std::move(job));
    Commit(*honest_, honest_pages_, static_cast<uint32_t>(session.committed) + 1);
  }

  // The worker goes away, with jobs under way or not: everything of it comes back.
  void Reattach() {
    for (uint32_t slot = 0; slot < kSizes.sessions; ++slot) hostile_->Close(slot);
    while (!jobs_.empty()) EndJob(jobs_.begin()->first);
    while (!waiting_.empty()) GoOn(*waiting_.begin());
    ASSERT_TRUE(hostile_->sessions().empty());
    EXPECT_EQ(hostile_->charge(), Charge());
    const WorkerId id = hostile_->setup().id;
    past_failures_ += hostile_->bad_page_lists();
    past_returns_ += hostile_->bad_returns();
    hostile_ = nullptr;
    ASSERT_TRUE(ledger_->RemoveWorker(id).ok());
    EXPECT_EQ(ledger_->Usage(kHostile).owned_pages, 0u);
    EXPECT_EQ(ledger_->Usage(kHostile).granted_pages, 0u);
    hostile_ = Attach(kHostile);
    consumed_ = 0;
  }

  // What the fuzz must have seen to be worth anything.
  void CheckCoverage() {
    EXPECT_GT(past_failures_, 1000u);
    EXPECT_GT(past_returns_, 1000u);
    EXPECT_GT(drains_, 1000u);
    EXPECT_GT(compactions_, 1000u);
    EXPECT_GT(moves_, 20u);
    EXPECT_GT(sealings_, 20u);
    EXPECT_GT(slabs_freed_, 20u);
    EXPECT_GT(ended_, 1000u);
    EXPECT_GT(climbs_, 100u);
    EXPECT_GT(held_, 100u);
    EXPECT_GT(waits_, 100u);
  }

 private:
  using Job = std::variant<DrainJob, CompactionJob>;

  uint32_t Draw(uint64_t n) { return static_cast<uint32_t>(random_() % n); }

  std::byte* Start(SlabIndex slab) { return device_->base() + slab.value() * kSlabBytes.value(); }

  std::unique_ptr<Attachment> Attach(TenantId tenant) {
    const WorkerId id = *ledger_->AddWorker(tenant, layout_);
    auto attachment = *Attachment::Make({.id = id,
                                         .tenant = tenant,
                                         .layout = layout_,
                                         .sizes = kSizes,
                                         .chunk_tokens = 32,
                                         .base = device_->base()},
                                        ledger_.get());
    MapSlabs(id);
    return attachment;
  }

  void MapSlabs(WorkerId id) {
    while (ledger_->AssignSlab(id).ok()) {
    }
    for (SlabIndex slab : ledger_->SlabsToOffer(id, kSlabs)) {
      EXPECT_TRUE(ledger_->MarkOffered(id, slab).ok());
      EXPECT_TRUE(ledger_->MarkMapped(id, slab).ok());
    }
  }

  absl::StatusOr<AgentSession*> Open(Attachment& attachment) {
    const TenantState& tenant = *book_.Find(attachment.setup().tenant);
    const SessionPlan plan{.max_tokens = kSizes.session_tokens, .chunk = 32};
    if (tenant.id == kHostile && Draw(2) == 0) {
      SessionLadder ladder = LadderFor(layout_, ladder_, plan, [](SealedFormat) { return true; });
      const Charge charge = ladder.rungs[tenant.rung].charge;
      return attachment.Open(tenant, plan,
                             {.charge = charge, .ladder = std::move(ladder), .copies = true});
    }
    return attachment.Open(tenant, plan,
                           TermsFor(layout_, tenant, plan, [](SealedFormat) { return true; }));
  }

  static void Commit(Attachment& attachment, const std::vector<PageId>& pages, uint32_t tokens) {
    WorkerWords words(attachment);
    for (uint32_t i = 0; i < pages.size(); ++i) words.listed(0, i).store(pages[i].value());
    words.regions.slot(0).page_count.store(static_cast<uint32_t>(pages.size()));
    words.regions.slot(0).committed.store(tokens);
  }

  // With room for every token that it will ever commit: CheckHonest adds one.
  void StartHonestSession() {
    ASSERT_TRUE(Open(*honest_).ok());
    ASSERT_GE(honest_->Fill(16), 16u);
    for (uint32_t i = 0; i < 16; ++i) {
      honest_pages_.emplace_back(honest_->regions().grants().slots[i].load());
    }
    honest_->regions().grants().consumed.store(16);
    for (uint32_t i = 0; i < kSlabs; ++i) {
      const SlabIndex slab(i);
      if (ledger_->Slab(slab)->tenant != kHonest) continue;
      std::vector<std::byte>& bytes = honest_bytes_[slab];
      for (int64_t k = 0; k < kSlabBytes.value(); ++k) bytes.push_back(std::byte(random_()));
      memcpy(Start(slab), bytes.data(), bytes.size());
    }
    ASSERT_EQ(honest_bytes_.size(), kHonestSlabs);
    Commit(*honest_, honest_pages_, 100);
  }

  // ---- The worker ------------------------------------------------------------------------------

  // Ids that might be believed: waiting, taken, a session's, the other tenant's, of no page.
  uint32_t SomePage() {
    shm::PageRing& ring = hostile_->regions().grants();
    switch (Draw(6)) {
      case 0:
      case 1:
        return ring.slots[Draw(64)].load();
      case 2:
        return WorkerWords(*hostile_).listed(Draw(kSizes.sessions), Draw(kSizes.pages())).load();
      case 3:
        return honest_pages_[Draw(honest_pages_.size())].value();
      case 4:
        return layout_.Page(SlabIndex(Draw(kSlabs)), Draw(layout_.pages_per_slab())).value();
      default:
        return SomeNumber();
    }
  }

  uint32_t SomeNumber() {
    switch (Draw(5)) {
      case 0:
        return 0;
      case 1:
        return std::numeric_limits<uint32_t>::max() - Draw(3);
      case 2:
        return Draw(8);
      case 3:
        return Draw(8192);
      default:
        return static_cast<uint32_t>(random_());
    }
  }

  uint64_t SomeIndex(uint64_t near) {
    switch (Draw(4)) {
      case 0:
        return near + Draw(16);
      case 1:
        return near - Draw(16);
      case 2:
        return near + Draw(2 * shm::kRingSlots);
      default:
        return uint64_t{SomeNumber()} << 32 | SomeNumber();
    }
  }

  uint32_t SomeFloat() {
    constexpr float kFloats[] = {
        std::numeric_limits<float>::quiet_NaN(),  std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity(),  std::numeric_limits<float>::max(),
        std::numeric_limits<float>::denorm_min(), 0.5f};
    return std::bit_cast<uint32_t>(kFloats[Draw(std::size(kFloats))]);
  }

  void WriteRubbish() {
    WorkerWords words(*hostile_);
    const uint32_t slot = Draw(kSizes.sessions);
    shm::SessionSlot& session = words.regions.slot(slot);
    shm::PageRing& returns = words.regions.returns();
    shm::PageRing& grants = words.regions.grants();
    switch (Draw(200)) {
      case 0:
        return session.page_count.store(SomeNumber());
      case 1:
        return session.committed.store(SomeIndex(session.committed.load()));
      case 2:
        return words.listed(slot, Draw(kSizes.pages())).store(SomePage());
      case 3:
        return session.state.store(Draw(2) == 0 ? Draw(6) : SomeNumber());
      case 4:
        return returns.produced.store(SomeIndex(returns.produced.load()));
      case 5:
        return grants.consumed.store(SomeIndex(grants.consumed.load()));
      case 6:
        return grants.produced.store(SomeIndex(0));
      case 7:
        return words.any(random_() % (shm::ControlBytes(kSizes) / 4)).store(SomeNumber());
      case 8:
        return grants.slots[Draw(64)].store(SomePage());
    }
    // Most writes go where they leave their session alive.
    const uint32_t number = Draw(3) == 0 ? SomeFloat() : SomeNumber();
    switch (Draw(3)) {
      case 0:
        return returns.slots[returns.produced.load() % shm::kRingSlots].store(SomePage());
      case 1:
        memcpy(words.window(Draw(kSizes.windows)) + 4 * Draw(shm::WindowStride(kSizes) / 4),
               &number, sizeof(number));
        return;
      default:
        WriteKey(number);
    }
  }

  // Keys and values, in a slab of its own.
  void WriteKey(uint32_t bits) {
    const SlabIndex slab(Draw(kSlabs));
    if (ledger_->Slab(slab)->tenant != kHostile) return;
    memcpy(Start(slab) + 4 * Draw(kSlabBytes.value() / 4), &bits, sizeof(bits));
  }

  // A session that goes on as it should, so that the rubbish meets sessions in all their states;
  // or a ring that is as the agent believes it.
  void BehaveWell() {
    const uint32_t slot = Draw(kSizes.sessions);
    const AgentSession* session = hostile_->Find(slot);
    WorkerWords words(*hostile_);
    shm::PageRing& returns = words.regions.returns();
    if (session == nullptr || Draw(8) == 0) {
      // The agent's own index, which it publishes after every Collect, is the last one believed.
      return returns.produced.store(returns.consumed.load() + Draw(3));
    }
    shm::SessionSlot& slot_words = words.regions.slot(slot);
    if (session->job == AgentSession::Job::kCompaction) return;
    const auto pages = static_cast<uint32_t>(session->fresh_pages.size());
    for (uint32_t i = 0; i < pages; ++i) {
      words.listed(slot, i).store(session->fresh_pages[i].value());
    }
    uint32_t count = pages;
    if (count + 1 < kSizes.pages() && hostile_->Fill(2) > 0) {
      words.listed(slot, count++)
          .store(words.regions.grants().slots[consumed_ % shm::kRingSlots].load());
      words.regions.grants().consumed.store(++consumed_);
    }
    slot_words.page_count.store(count);
    const uint32_t room = session->fresh_start + count * kPageTokens;
    slot_words.committed.store(
        std::min(kSizes.session_tokens, session->committed + Draw(room - session->committed + 1)));
    slot_words.state.store(static_cast<uint32_t>(shm::State::kRunning) + Draw(2));
    if (slot_words.state.load() == static_cast<uint32_t>(shm::State::kBusy)) Compact(slot);
  }

  // ---- The agent -------------------------------------------------------------------------------

  void AgentCall() {
    const uint32_t slot = Draw(8) != 0 ? Draw(kSizes.sessions) : SomeNumber();
    switch (Draw(16)) {
      case 0:
        return hostile_->Collect();
      case 1:
        EXPECT_LE(hostile_->Fill(SomeNumber()), shm::kRingSlots);
        return;
      case 2:
        return hostile_->SnapshotAll();
      case 3:
        if (Draw(4) == 0) hostile_->Close(slot);
        return;
      case 4:
      case 5:
        (void)Open(*hostile_);  // refused when all slots are open
        return;
      case 6:
      case 7:
        return BeginDrain(slot);
      case 8:
      case 9:
        return Compact(slot);
      case 10:
        if (slot < kSizes.sessions && hostile_->regions().TakeIdle(slot)) Compact(slot);
        return;
      case 11:
        return End(slot);
      case 12:
        return Evacuate(SlabIndex(Draw(kSlabs)));
      case 13:
        if (Draw(2) == 0) return Climb();
        for (const auto& [index, session] : hostile_->sessions()) {
          EXPECT_LE(hostile_->PagesFreedByCompaction(session), kSizes.pages());
          hostile_->AskHandOver(index);
        }
        return;
      case 14:
        if (!waiting_.empty()) GoOn(*std::next(waiting_.begin(), Draw(waiting_.size())));
        return;
      default:
        if (!jobs_.empty()) EndJob(std::next(jobs_.begin(), Draw(jobs_.size()))->first);
    }
  }

  void BeginDrain(uint32_t slot) {
    const AgentSession* session = hostile_->Find(slot);
    const uint64_t next = session == nullptr ? 0 : session->drained;
    auto job = hostile_->BeginDrain(slot, Draw(4) == 0 ? SomeNumber() : Draw(kSizes.windows),
                                    Draw(2) == 0 ? next : SomeIndex(next),
                                    Draw(4) == 0 ? SomeNumber() : 1 + Draw(8));
    if (!job.ok()) return;
    ASSERT_TRUE(jobs_.emplace(slot, *std::move(job)).second) << "two jobs for one session";
    ++drains_;
  }

  void Compact(uint32_t slot) {
    auto job = hostile_->BeginCompaction(
        slot, Draw(2) == 0 ? shm::State::kIdle : shm::State::kRunning, {});
    if (!job.ok() || !job->has_value()) return;
    (*job)->selection.has_value() ? ++compactions_ : ++moves_;
    ASSERT_TRUE(jobs_.emplace(slot, **std::move(job)).second) << "two jobs for one session";
  }

  void Climb() {
    (void)hostile_->Climb(ladder_.get(), Draw(3));
    for (const auto& [slot, session] : hostile_->sessions()) {
      if (session.rung > 0) ++climbs_;
    }
  }

  // There is room for one that the floor holds, or there is none.
  void GoOn(uint32_t slot) {
    waiting_.erase(slot);
    (void)hostile_->GoOn(slot, shm::State::kRunning,
                         Draw(4) == 0 ? Attachment::Going::kWhole : Attachment::Going::kAsItWas);
  }

  // As for a tenant that is past its deadline.
  void End(uint32_t slot) {
    hostile_->SetFate(slot, Draw(2) == 0 ? Attachment::Fate::kEnds : Attachment::Fate::kGoesOn);
    if (slot < kSizes.sessions && Draw(2) == 0) (void)hostile_->regions().TakeIdle(slot);
    const uint64_t before = ledger_->Usage(kHostile).owned_pages;
    const CompactionOutcome outcome = hostile_->End(slot);
    if (outcome.effect != CompactionOutcome::Effect::kEnded) return;
    ++ended_;
    ASSERT_TRUE(absl::IsCancelled(outcome.status)) << outcome.status;
    // What the worker has listed since the last look may have been more.
    ASSERT_LE(ledger_->Usage(kHostile).owned_pages, before);
    ASSERT_FALSE(ledger_->PagesOf(hostile_->Find(slot)->id).ok());
    ASSERT_EQ(hostile_->Find(slot)->charge, Charge());
    ASSERT_FALSE(hostile_->BeginCompaction(slot, shm::State::kRunning, {}).ok());
  }

  void EndJob(uint32_t slot) {
    Job job = std::move(jobs_.at(slot));
    jobs_.erase(slot);
    if (auto* drain = std::get_if<DrainJob>(&job)) {
      drain->Run();
      return hostile_->EndDrain(slot, std::move(*drain));
    }
    auto& compaction = std::get<CompactionJob>(job);
    compaction.Run();
    const CompactionOutcome outcome =
        hostile_->EndCompaction(slot, std::move(compaction), shm::State::kRunning);
    EXPECT_LE(outcome.freed_pages, kHostileSlabs * layout_.pages_per_slab());
    if (outcome.floor == CompactionOutcome::Floor::kHeld) ++held_;
    if (outcome.room == CompactionOutcome::Room::kAwaited) {
      waiting_.insert(slot);
      ++waits_;
    }
    if (outcome.sealing == CompactionOutcome::Sealing::kSealed) ++sealings_;
    EXPECT_FALSE(outcome.recovery.mean > 1.001f);
    EXPECT_FALSE(outcome.cumulative.mean > 1.001f);
  }

  // Out with a slab and in with another, as a lease that shrinks and grows would.
  void Evacuate(SlabIndex slab) {
    const SlabUsage usage = *ledger_->Slab(slab);
    if (usage.tenant != kHostile) return;
    const WorkerId id = hostile_->setup().id;
    if (usage.state == SlabState::kLeased) {
      if (ledger_->Usage(kHostile).evacuating_slabs < 3) (void)ledger_->BeginEvacuate(slab);
    } else if (ledger_->BeginDrain(slab).ok()) {
      ASSERT_TRUE(ledger_->MarkUnmapped(id, slab).ok());
      ASSERT_TRUE(ledger_->FreeSlab(slab).ok());
      MapSlabs(id);
      ++slabs_freed_;
    } else if (Draw(4) == 0) {
      ASSERT_TRUE(ledger_->CancelEvacuate(slab).ok());
    }
  }

  void CheckSums() {
    const TenantUsage hostile = ledger_->Usage(kHostile), honest = ledger_->Usage(kHonest);
    ASSERT_LE(hostile.held_slabs, kHostileSlabs);
    ASSERT_LE(hostile.owned_pages + hostile.granted_pages,
              uint64_t{hostile.held_slabs} * layout_.pages_per_slab());
    ASSERT_EQ(honest.owned_pages + honest.granted_pages, honest_pages_.size());
    Charge charge;
    for (const auto& [slot, session] : hostile_->sessions()) {
      charge += session.charge;
      ASSERT_EQ(session.job != AgentSession::Job::kNone,
                jobs_.contains(slot) || waiting_.contains(slot));
      ASSERT_LE(session.charge.pages + session.Growth().pages, kSizes.pages() + 8);
      ASSERT_LE(session.drained, session.committed);
    }
    ASSERT_EQ(hostile_->charge(), charge);
  }

  std::mt19937_64 random_;
  const Layout layout_ = SmallLayout();
  std::vector<uint64_t> journal_;
  std::unique_ptr<PoolLedger> ledger_;
  std::unique_ptr<HostDevice> device_;
  TenantBook book_;
  std::unique_ptr<Attachment> hostile_, honest_;
  // Policies that its tenant climbs for half of the hostile worker's sessions.
  const std::shared_ptr<const Ladder> ladder_ = MakeLadder(
      {.min_recovery = 0.5,
       .rungs = {
           DefaultPolicySpec(),
           *MakePolicySpec("streaming", {{"recent", 60}, {"slack", 32}, {"open", 0}}),
           *MakePolicySpec(
               "scissorhands",
               {{"budget", 64}, {"window", 64}, {"recent", 8}, {"format", "int4"}, {"open", 0}})}});
  std::set<uint32_t> waiting_;    // slots of sessions that the floor holds
  std::map<uint32_t, Job> jobs_;  // of the hostile worker's sessions, begun and not ended
  uint64_t consumed_ = 0;         // of the hostile worker's grant ring, when it behaves
  std::vector<PageId> honest_pages_;
  std::map<SlabIndex, std::vector<std::byte>> honest_bytes_;
  uint64_t past_failures_ = 0, past_returns_ = 0;
  uint64_t drains_ = 0, compactions_ = 0, moves_ = 0, sealings_ = 0, slabs_freed_ = 0, ended_ = 0;
  uint64_t climbs_ = 0, held_ = 0, waits_ = 0;
};

TEST(AttachmentFuzz, AMillionWritesBreakNothing) {
  constexpr int kWrites = 1'000'000;
  Rig rig(20'26);
  for (int i = 0; i < kWrites; ++i) {
    rig.Step();
    ASSERT_FALSE(testing::Test::HasFailure()) << "write " << i;
    if (i % 8192 == 0) rig.CheckHonest();
    if (i % 20'000 == 0) rig.Reattach();
  }
  rig.Reattach();
  rig.CheckHonest();
  rig.CheckCoverage();
}

}  // namespace
}  // namespace kvpool
