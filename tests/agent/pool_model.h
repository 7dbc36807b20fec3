// A second pool ledger, as simple as can be: maps and sets, no journal, no sums. It draws random
// commands, many of them rubbish, says what each must do, does it to a PoolLedger and compares.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "agent/pool.h"
#include "kernels/geometry.h"

namespace kvpool {

inline Layout MakeTestLayout(uint32_t layers, uint32_t heads, uint32_t dim, Bytes slab_bytes) {
  Geometry geometry{.layers = layers,
                    .query_heads = heads,
                    .kv_heads = heads,
                    .key_dim = dim,
                    .value_dim = dim,
                    .dtype = Dtype::kBf16};
  for (uint32_t i = 0; i < layers; ++i) geometry.kv_of_layer.push_back(static_cast<uint16_t>(i));
  if (layers > 1) geometry.self_masked = {0};  // a ledger keeps all of a geometry
  return Layout::Make(geometry, slab_bytes).value();
}

class PoolModel {
 public:
  static constexpr Bytes kSlabBytes = Bytes(64 << 10);
  static constexpr PoolConfig kConfig{.slabs = 24, .reserve_slabs = 2, .slab_bytes = kSlabBytes};

  explicit PoolModel(uint64_t seed) : random_(seed) {}

  // One random command.
  void Step(PoolLedger* ledger) {
    switch (Draw(27)) {
      case 0:
        return Draw(5) == 0 ? SetLease(ledger) : AssignAndOffer(ledger);
      case 1:
        return Draw(12) == 0 ? RemoveWorker(ledger) : AddWorker(ledger);
      case 2:
        return AssignAndOffer(ledger);
      case 3:
        return Map(ledger);
      case 4:
      case 5:
        return ChangeSlab(ledger);
      case 6:
        return OpenSession(ledger);
      case 7:
        return CloseSession(ledger);
      case 8:
        return PinOrUnpin(ledger);
      case 9:
      case 10:
      case 11:
        return Grant(ledger);
      case 12:
      case 13:
      case 14:
        return Return(ledger);
      case 15:
        return Release(ledger);
      case 16:
      case 17:
        return Freeze(ledger);
      case 18:
      case 19:
        return Share(ledger);
      case 20:
        return Unshare(ledger);
      case 21:
        return StopKeeping(ledger);
      case 22:
        return Thaw(ledger);
      default:
        return Adopt(ledger);
    }
  }

  // The ledger's answers to all questions are the model's.
  void Compare(const PoolLedger& ledger) const {
    uint32_t free_slabs = 0;
    for (uint32_t i = 0; i < kConfig.slabs; ++i) {
      const SlabUsage usage = *ledger.Slab(SlabIndex(i));
      ASSERT_EQ(usage.state, slabs_[i].state) << "slab " << i;
      free_slabs += usage.state == SlabState::kFree;
      if (usage.state == SlabState::kFree) continue;
      EXPECT_EQ(usage.tenant, slabs_[i].tenant);
      EXPECT_EQ(usage.workers, slabs_[i].offered.size());
    }
    EXPECT_EQ(ledger.free_slabs(), free_slabs);
    std::map<TenantId, TenantUsage> expected;
    for (const auto& [page, holder] : pages_) {
      TenantUsage& usage = expected[slabs_[SlabOf(page)].tenant];
      if (holder.frozen) {
        ++usage.frozen_pages;
        usage.parked_pages += holder.holders.empty();
        EXPECT_EQ(ledger.HoldersOf(page), holder.holders.size());
      } else {
        ++(holder.session == 0 ? usage.granted_pages : usage.owned_pages);
      }
    }
    for (uint32_t t = 0; t < kTenants; ++t) {
      const TenantUsage usage = ledger.Usage(TenantId(t));
      EXPECT_EQ(usage.granted_pages, expected[TenantId(t)].granted_pages);
      EXPECT_EQ(usage.owned_pages, expected[TenantId(t)].owned_pages);
      EXPECT_EQ(usage.frozen_pages, expected[TenantId(t)].frozen_pages);
      EXPECT_EQ(usage.parked_pages, expected[TenantId(t)].parked_pages);
      EXPECT_EQ(usage.held_slabs, Held(TenantId(t)));
    }
    for (const auto& [id, session] : sessions_) {
      const auto pages = ledger.PagesOf(SessionId(id));
      ASSERT_TRUE(pages.ok());
      const std::set<PageId> unique(pages->begin(), pages->end());
      EXPECT_EQ(unique.size(), pages->size());
      for (const PageId page : unique) EXPECT_EQ(pages_.at(page).session, id);
      const auto frozen = ledger.FrozenOf(SessionId(id));
      ASSERT_TRUE(frozen.ok());
      for (const PageId page : *frozen) EXPECT_TRUE(pages_.at(page).holders.contains(id));
      const auto held = std::count_if(pages_.begin(), pages_.end(), [id = id](const auto& entry) {
        return entry.second.holders.contains(id);
      });
      EXPECT_EQ(frozen->size(), static_cast<size_t>(held));
    }
  }

  uint64_t refused() const { return refused_; }
  uint64_t done() const { return done_; }

 private:
  static constexpr uint32_t kTenants = 4;    // 0 is nobody
  static constexpr size_t kMostWorkers = 6;  // live at a time
  static constexpr size_t kMostSessions = 24;

  struct Holder {
    uint32_t worker = 0;  // 0 for a session whose worker is gone
    uint64_t session = 0;
    // Then nobody else has it.
    bool frozen = false, kept = false;
    std::set<uint64_t> holders;
  };
  struct ModelWorker {
    TenantId tenant;
    uint32_t layout;
  };
  struct ModelSlab {
    SlabState state = SlabState::kFree;
    TenantId tenant;
    uint32_t layout = 0;
    std::set<uint32_t> offered, mapped;
  };
  struct ModelSession {
    uint32_t worker = 0;  // 0: closed, but pinned
    uint32_t pins = 0;
  };

  // --- Random arguments --------------------------------------------------------------------------

  uint32_t Draw(uint32_t n) { return static_cast<uint32_t>(random_() % n); }
  bool Chance(uint32_t n) { return Draw(n) != 0; }  // no, one time in n
  uint32_t Rubbish() {
    const uint32_t kinds[] = {0u, ~0u, 1u << 31, Draw(100), static_cast<uint32_t>(random_())};
    return kinds[Draw(5)];
  }
  WorkerId AnyWorker() {
    if (workers_.empty() || !Chance(20)) return WorkerId(Rubbish());
    return WorkerId(std::next(workers_.begin(), Draw(workers_.size()))->first);
  }
  SessionId AnySession() {
    if (sessions_.empty() || !Chance(20)) return SessionId(Rubbish());
    return SessionId(std::next(sessions_.begin(), Draw(sessions_.size()))->first);
  }
  SlabIndex AnySlab() { return Chance(20) ? SlabIndex(Draw(kConfig.slabs)) : SlabIndex(Rubbish()); }
  PageId AnyPage() {
    if (!Chance(10)) return PageId(Rubbish());
    if (!Chance(10)) return PageId(Draw(kConfig.slabs * 128));  // mostly inside the pool
    const auto found = pages_.lower_bound(PageId(Draw(kConfig.slabs * 128)));
    return found == pages_.end() ? PageId(Rubbish()) : found->first;
  }
  // Pages of one holder, sometimes with something wrong.
  std::vector<PageId> PageList(uint32_t worker, uint64_t session) {
    std::vector<PageId> list;
    const bool dirty = !Chance(4);
    for (const auto& [page, holder] : pages_) {
      const bool own = session != 0
                           ? holder.session == session
                           : holder.worker == worker && holder.session == 0 && !holder.frozen;
      if (own && Draw(3) == 0) list.push_back(page);
    }
    std::shuffle(list.begin(), list.end(), random_);
    if (dirty) list.push_back(AnyPage());
    if (dirty && !list.empty()) list.push_back(list[Draw(list.size())]);
    return list;
  }

  // Frozen pages of which `good` says so, sometimes with something wrong.
  template <typename Good>
  std::vector<PageId> FrozenList(Good good) {
    std::vector<PageId> list;
    const bool dirty = !Chance(4);
    for (const auto& [page, holder] : pages_) {
      if (holder.frozen && good(page, holder) && Draw(3) != 0) list.push_back(page);
    }
    std::shuffle(list.begin(), list.end(), random_);
    if (dirty) list.push_back(AnyPage());
    if (dirty && !list.empty()) list.push_back(list[Draw(list.size())]);
    return list;
  }
  // Whether all are in use, `good` says so of each, and none is listed twice.
  template <typename Good>
  bool AllOf(const std::vector<PageId>& pages, Good good) const {
    return std::set(pages.begin(), pages.end()).size() == pages.size() &&
           std::all_of(pages.begin(), pages.end(), [&](PageId page) {
             const auto found = pages_.find(page);
             return found != pages_.end() && good(page, found->second);
           });
  }

  // --- Facts -------------------------------------------------------------------------------------

  uint32_t SlabOf(PageId page) const {
    return static_cast<uint32_t>(page.value() / (kSlabBytes.value() / kGranuleBytes));
  }
  uint32_t Held(TenantId tenant) const {
    return std::count_if(slabs_.begin(), slabs_.end(), [&](const ModelSlab& slab) {
      return slab.state != SlabState::kFree && slab.tenant == tenant;
    });
  }
  uint32_t UsedPages(uint32_t slab) const {
    return std::count_if(pages_.begin(), pages_.end(),
                         [&](const auto& entry) { return SlabOf(entry.first) == slab; });
  }
  bool Expect(const absl::Status& status, bool expected, const char* command) {
    EXPECT_EQ(status.ok(), expected) << command << ": " << status;
    ++(expected ? done_ : refused_);
    return expected;
  }
  void FreePagesOf(uint64_t session) {
    std::erase_if(pages_, [&](const auto& entry) { return entry.second.session == session; });
    for (auto& [page, holder] : pages_) holder.holders.erase(session);
    FreeUnheld();
    sessions_.erase(session);
  }
  void FreeUnheld() {
    std::erase_if(pages_, [](const auto& entry) {
      const Holder& holder = entry.second;
      return holder.frozen && !holder.kept && holder.holders.empty();
    });
  }

  // --- Commands ----------------------------------------------------------------------------------

  void SetLease(PoolLedger* ledger) {
    const TenantId tenant(Draw(kTenants));
    const uint32_t slabs = Draw(16);
    const bool good = tenant != TenantId(0);
    if (!Expect(ledger->SetLease(tenant, slabs), good, "SetLease")) return;
    slabs == 0 ? leases_.erase(tenant) : (leases_[tenant] = slabs);
  }

  void AddWorker(PoolLedger* ledger) {
    if (workers_.size() >= kMostWorkers) return;
    const TenantId tenant(Draw(kTenants + 1));
    const uint32_t layout = Draw(2);
    const auto worker = ledger->AddWorker(tenant, layouts_[layout]);
    if (!Expect(worker.status(), tenant != TenantId(0), "AddWorker")) return;
    EXPECT_GT(worker->value(), last_worker_);
    last_worker_ = worker->value();
    workers_[worker->value()] = {tenant, layout};
  }

  void RemoveWorker(PoolLedger* ledger) {
    const uint32_t worker = AnyWorker().value();
    const bool good = workers_.contains(worker);
    if (!Expect(ledger->RemoveWorker(WorkerId(worker)), good, "RemoveWorker")) return;
    std::vector<uint64_t> gone;
    for (auto& [id, session] : sessions_) {
      if (session.worker != worker) continue;
      session.worker = 0;
      if (session.pins == 0) gone.push_back(id);
    }
    for (const uint64_t id : gone) FreePagesOf(id);
    std::erase_if(pages_, [&](const auto& entry) {
      return entry.second.session == 0 && entry.second.worker == worker && !entry.second.frozen;
    });
    for (ModelSlab& slab : slabs_) {
      slab.offered.erase(worker);
      slab.mapped.erase(worker);
    }
    workers_.erase(worker);
  }

  void AssignAndOffer(PoolLedger* ledger) {
    const WorkerId worker = AnyWorker();
    if (Draw(2) == 0) {
      const auto found = workers_.find(worker.value());
      const bool good = found != workers_.end() && leases_.contains(found->second.tenant) &&
                        Held(found->second.tenant) < leases_[found->second.tenant] &&
                        ledger->free_slabs() > kConfig.reserve_slabs;
      const auto slab = ledger->AssignSlab(worker);
      if (!Expect(slab.status(), good, "AssignSlab")) return;
      ASSERT_EQ(slabs_[slab->value()].state, SlabState::kFree);
      slabs_[slab->value()] = {SlabState::kLeased, found->second.tenant, found->second.layout};
      return;
    }
    const SlabIndex slab = AnySlab();
    const bool good = Matches(worker, slab) && slabs_[slab.value()].state == SlabState::kLeased &&
                      !slabs_[slab.value()].offered.contains(worker.value());
    if (!Expect(ledger->MarkOffered(worker, slab), good, "MarkOffered")) return;
    slabs_[slab.value()].offered.insert(worker.value());
  }

  bool Matches(WorkerId worker, SlabIndex slab) const {
    const auto found = workers_.find(worker.value());
    return found != workers_.end() && slab.value() < kConfig.slabs &&
           slabs_[slab.value()].tenant == found->second.tenant &&
           slabs_[slab.value()].layout == found->second.layout;
  }

  void Map(PoolLedger* ledger) {
    const WorkerId worker = AnyWorker();
    for (const SlabIndex slab : ledger->SlabsToOffer(worker, 2)) {
      EXPECT_TRUE(Matches(worker, slab));
      EXPECT_TRUE(ledger->MarkOffered(worker, slab).ok());
      slabs_[slab.value()].offered.insert(worker.value());
    }
    const SlabIndex slab = AnySlab();
    const bool good =
        slab.value() < kConfig.slabs && slabs_[slab.value()].offered.contains(worker.value());
    if (!Expect(ledger->MarkMapped(worker, slab), good, "MarkMapped")) return;
    slabs_[slab.value()].mapped.insert(worker.value());
  }

  void ChangeSlab(PoolLedger* ledger) {
    const SlabIndex slab = AnySlab();
    if (slab.value() >= kConfig.slabs) {
      Expect(ledger->FreeSlab(slab), false, "FreeSlab");
      return;
    }
    ModelSlab& entry = slabs_[slab.value()];
    const SlabState state = entry.state;
    switch (Draw(6)) {
      case 0:
        if (Expect(ledger->BeginEvacuate(slab), state == SlabState::kLeased, "BeginEvacuate")) {
          entry.state = SlabState::kEvacuating;
        }
        return;
      case 1:
        if (Expect(ledger->CancelEvacuate(slab), state == SlabState::kEvacuating, "Cancel")) {
          entry.state = SlabState::kLeased;
        }
        return;
      case 2:
        if (Expect(ledger->BeginDrain(slab),
                   state == SlabState::kEvacuating && UsedPages(slab.value()) == 0, "BeginDrain")) {
          entry.state = SlabState::kDraining;
        }
        return;
      case 3:
        if (Expect(ledger->MarkStuck(slab), state == SlabState::kDraining, "MarkStuck")) {
          entry.state = SlabState::kStuck;
        }
        return;
      case 4: {
        const WorkerId worker = AnyWorker();
        const bool good = workers_.contains(worker.value()) &&
                          (state == SlabState::kDraining || state == SlabState::kStuck);
        if (!Expect(ledger->MarkUnmapped(worker, slab), good, "MarkUnmapped")) return;
        entry.offered.erase(worker.value());
        entry.mapped.erase(worker.value());
        return;
      }
      default:
        if (Expect(ledger->FreeSlab(slab),
                   (state == SlabState::kDraining || state == SlabState::kStuck) &&
                       entry.offered.empty(),
                   "FreeSlab")) {
          entry = {};
        }
    }
  }

  void OpenSession(PoolLedger* ledger) {
    if (sessions_.size() >= kMostSessions) return;
    const WorkerId worker = AnyWorker();
    const auto session = ledger->OpenSession(worker);
    if (!Expect(session.status(), workers_.contains(worker.value()), "OpenSession")) return;
    EXPECT_GT(session->value(), last_session_);
    last_session_ = session->value();
    sessions_[session->value()] = {.worker = worker.value()};
  }

  bool IsOpen(SessionId session) const {
    const auto found = sessions_.find(session.value());
    return found != sessions_.end() && found->second.worker != 0;
  }

  void CloseSession(PoolLedger* ledger) {
    if (sessions_.size() < Draw(kMostSessions)) return;
    const SessionId session = AnySession();
    if (!Expect(ledger->CloseSession(session), IsOpen(session), "CloseSession")) return;
    sessions_[session.value()].worker = 0;
    if (sessions_[session.value()].pins == 0) FreePagesOf(session.value());
  }

  void PinOrUnpin(PoolLedger* ledger) {
    const SessionId session = AnySession();
    const auto found = sessions_.find(session.value());
    if (Draw(2) == 0) {
      if (!Expect(ledger->Pin(session), IsOpen(session), "Pin")) return;
      ++found->second.pins;
      return;
    }
    const bool good = found != sessions_.end() && found->second.pins > 0;
    if (!Expect(ledger->Unpin(session), good, "Unpin")) return;
    if (--found->second.pins == 0 && found->second.worker == 0) FreePagesOf(session.value());
  }

  void Grant(PoolLedger* ledger) {
    const WorkerId worker = AnyWorker();
    std::vector<PageId> pages(Draw(100));
    const auto count = ledger->Grant(worker, pages);
    if (!Expect(count.status(), workers_.contains(worker.value()), "Grant")) return;
    ASSERT_LE(*count, pages.size());
    const bool short_of = *count < pages.size();
    pages.resize(*count);
    for (const PageId page : pages) {
      const ModelSlab& slab = slabs_.at(SlabOf(page));
      EXPECT_EQ(slab.state, SlabState::kLeased);
      EXPECT_TRUE(slab.mapped.contains(worker.value()));
      EXPECT_TRUE(layouts_[slab.layout].IsPage(page));
      EXPECT_TRUE(pages_.insert({page, {.worker = worker.value()}}).second) << "granted twice";
    }
    for (uint32_t i = 0; short_of && i < kConfig.slabs; ++i) {
      if (slabs_[i].state != SlabState::kLeased || !slabs_[i].mapped.contains(worker.value())) {
        continue;
      }
      EXPECT_EQ(ledger->Slab(SlabIndex(i))->free_pages, 0u) << "left a free page";
    }
  }

  void Return(PoolLedger* ledger) {
    const WorkerId worker = AnyWorker();
    std::vector<PageId> pages = PageList(worker.value(), 0);
    pages.push_back(AnyPage());
    size_t expected = 0;
    for (const PageId page : pages) {
      const auto found = pages_.find(page);
      if (found == pages_.end() || found->second.worker != worker.value() ||
          found->second.session != 0 || found->second.frozen) {
        continue;
      }
      ++expected;
      pages_.erase(found);
    }
    refused_ += pages.size() - expected;
    const auto count = ledger->Return(worker, pages);
    if (!Expect(count.status(), workers_.contains(worker.value()), "Return")) return;
    EXPECT_EQ(*count, expected);
  }

  void Adopt(PoolLedger* ledger) {
    const SessionId session = AnySession();
    const uint32_t worker = IsOpen(session) ? sessions_[session.value()].worker : Draw(10);
    std::vector<PageId> pages = PageList(worker, 0);
    if (Draw(2) == 0) {
      const std::vector<PageId> more = PageList(worker, session.value());
      pages.insert(pages.end(), more.begin(), more.end());
    }
    bool good = IsOpen(session) && std::set(pages.begin(), pages.end()).size() == pages.size();
    for (const PageId page : pages) {
      const auto found = pages_.find(page);
      good = good && found != pages_.end() && !found->second.frozen &&
             (found->second.session == session.value() ||
              (found->second.session == 0 && found->second.worker == worker));
    }
    if (!Expect(ledger->Adopt(session, pages), good, "Adopt")) return;
    for (const PageId page : pages) pages_[page] = {.worker = worker, .session = session.value()};
  }

  void Release(PoolLedger* ledger) {
    const SessionId session = AnySession();
    const std::vector<PageId> pages = PageList(0, session.value());
    bool good = sessions_.contains(session.value()) &&
                std::set(pages.begin(), pages.end()).size() == pages.size();
    for (const PageId page : pages) {
      const auto found = pages_.find(page);
      good = good && found != pages_.end() && found->second.session == session.value();
    }
    if (!Expect(ledger->Release(session, pages), good, "Release")) return;
    for (const PageId page : pages) pages_.erase(page);
  }

  void Freeze(PoolLedger* ledger) {
    const SessionId session = AnySession();
    const std::vector<PageId> pages = PageList(0, session.value());
    const bool good = IsOpen(session) && AllOf(pages, [&](PageId, const Holder& holder) {
                        return holder.session == session.value() && !holder.frozen;
                      });
    const Keep keep = Draw(3) == 0 ? Keep::kNo : Keep::kForReuse;
    if (!Expect(ledger->Freeze(session, pages, keep), good, "Freeze")) return;
    for (const PageId page : pages) {
      pages_[page] = {
          .frozen = true, .kept = keep == Keep::kForReuse, .holders = {session.value()}};
    }
  }

  void Share(PoolLedger* ledger) {
    const SessionId session = AnySession();
    const auto fits = [&](PageId page, const Holder& holder) {
      return holder.frozen && IsOpen(session) && !holder.holders.contains(session.value()) &&
             slabs_[SlabOf(page)].mapped.contains(sessions_.at(session.value()).worker);
    };
    const std::vector<PageId> pages = FrozenList(fits);
    const bool good = IsOpen(session) && AllOf(pages, fits);
    if (!Expect(ledger->Share(session, pages), good, "Share")) return;
    for (const PageId page : pages) pages_[page].holders.insert(session.value());
  }

  void Unshare(PoolLedger* ledger) {
    const SessionId session = AnySession();
    const auto held = [&](PageId, const Holder& holder) {
      return holder.holders.contains(session.value());
    };
    const std::vector<PageId> pages = FrozenList(held);
    const bool good = IsOpen(session) && AllOf(pages, held);
    if (!Expect(ledger->Unshare(session, pages), good, "Unshare")) return;
    for (const PageId page : pages) pages_[page].holders.erase(session.value());
    FreeUnheld();
  }

  void StopKeeping(PoolLedger* ledger) {
    const auto kept = [](PageId, const Holder& holder) { return holder.kept; };
    const std::vector<PageId> pages = FrozenList(kept);
    if (!Expect(ledger->StopKeeping(pages), AllOf(pages, kept), "StopKeeping")) return;
    for (const PageId page : pages) pages_[page].kept = false;
    FreeUnheld();
  }

  void Thaw(PoolLedger* ledger) {
    const SessionId session = AnySession();
    const auto alone = [&](PageId, const Holder& holder) {
      return holder.frozen && !holder.kept && holder.holders == std::set{session.value()};
    };
    const std::vector<PageId> pages = FrozenList(alone);
    const bool good = IsOpen(session) && AllOf(pages, alone);
    if (!Expect(ledger->Thaw(session, pages), good, "Thaw")) return;
    const uint32_t worker = IsOpen(session) ? sessions_.at(session.value()).worker : 0;
    for (const PageId page : pages) pages_[page] = {.worker = worker, .session = session.value()};
  }

  std::mt19937_64 random_;
  // 128 pages in two words with nothing left over, and 10 pages with a rest.
  const Layout layouts_[2] = {MakeTestLayout(1, 1, 8, kSlabBytes),
                              MakeTestLayout(3, 2, 16, kSlabBytes)};
  std::map<TenantId, uint32_t> leases_;
  std::map<uint32_t, ModelWorker> workers_;
  std::map<uint64_t, ModelSession> sessions_;
  std::vector<ModelSlab> slabs_{kConfig.slabs};
  std::map<PageId, Holder> pages_;  // those in use
  uint32_t last_worker_ = 0;
  uint64_t last_session_ = 0;
  uint64_t refused_ = 0;
  uint64_t done_ = 0;
};

}  // namespace kvpool
