// See persistence_watch.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/persistence_watch.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "kernels/planes.h"
#include "kernels/scoring.h"

namespace kvpool {

double PersistenceCounts::Persistence() const {
  return late == 0 ? 1.0 : static_cast<double>(both) / static_cast<double>(late);
}

double PersistenceCounts::Important() const {
  return keys == 0 ? 0.0 : static_cast<double>(early) / static_cast<double>(keys);
}

class PersistenceWatch::Session final : public KvSession {
 public:
  Session(PersistenceWatch& watch, std::unique_ptr<KvSession> inner)
      : watch_(watch),
        inner_(std::move(inner)),
        planes_(geometry(), {.last_hit = true}),
        half_(watch.tokens_ / 2) {}

  KvSession* inner() { return inner_.get(); }
  void Expect(uint32_t tokens) {
    const size_t heads = size_t{geometry().model_layers()} * geometry().query_heads;
    lses_.resize(tokens * heads);
    queries_.resize(tokens * heads * geometry().key_dim);
    expected_ = tokens;
  }

  const Layout& layout() const override { return inner_->layout(); }
  std::byte* base() const override { return inner_->base(); }
  SessionView View() const override { return inner_->View(); }
  QuerySlot SlotOf(uint32_t index) override {
    const size_t first = index * heads();
    return {.queries = &queries_[first * geometry().key_dim], .lses = &lses_[first]};
  }
  bool WantsProfile() const override { return false; }
  void Profile(const AttendedChunk&) override {}

  void Commit() override {
    planes_.Append(committed_, expected_);
    for (uint32_t done = 0; done < expected_;) {
      uint32_t count = std::min(expected_ - done, kDrainQueries);
      const uint32_t step = committed_ + done;
      if (step < half_) count = std::min(count, half_ - step);
      Drain(done, count);
      done += count;
      if (step + count == half_) early_ = HitsSince(1);
    }
    committed_ += expected_;
    inner_->Commit();
    if (committed_ == watch_.tokens_) Count();
  }

 private:
  const Geometry& geometry() const { return inner_->layout().geometry(); }
  size_t heads() const { return size_t{geometry().model_layers()} * geometry().query_heads; }

  void Drain(uint32_t first, uint32_t count) {
    std::vector<uint32_t> positions(count);
    std::iota(positions.begin(), positions.end(), committed_ + first);
    planes_.BeginDrain(count, positions.back() + 1);
    Score({.layout = &layout(),
           .base = base(),
           .session = View(),
           .fresh_start = 0,
           .queries = &queries_[first * heads() * geometry().key_dim],
           .query_positions = positions.data(),
           .lses = &lses_[first * heads()],
           .query_count = count,
           .scale = 1.0f / std::sqrt(static_cast<float>(geometry().key_dim))},
          &planes_);
  }

  // [planes][keys of the first half]: whether a query of step `since` or later found it important.
  std::vector<std::vector<bool>> HitsSince(uint32_t since) const {
    std::vector<std::vector<bool>> hits(planes_.planes());
    for (uint32_t plane = 0; plane < planes_.planes(); ++plane) {
      for (uint32_t row = 0; row < half_; ++row) {
        hits[plane].push_back(planes_.HitSince(plane, row, since));
      }
    }
    return hits;
  }

  void Count() {
    const std::vector<std::vector<bool>> late = HitsSince(half_ + 1);
    watch_.layers_.resize(geometry().layers);
    for (uint32_t plane = 0; plane < planes_.planes(); ++plane) {
      PersistenceCounts& counts = watch_.layers_[plane / geometry().kv_heads];
      counts.keys += half_;
      for (uint32_t row = 0; row < half_; ++row) {
        counts.early += early_[plane][row] ? 1 : 0;
        counts.late += late[plane][row] ? 1 : 0;
        counts.both += early_[plane][row] && late[plane][row] ? 1 : 0;
      }
    }
  }

  PersistenceWatch& watch_;
  const std::unique_ptr<KvSession> inner_;
  Planes planes_;
  const uint32_t half_;
  uint32_t committed_ = 0, expected_ = 0;
  std::vector<float> queries_, lses_;     // of the step under way
  std::vector<std::vector<bool>> early_;  // [planes][keys of the first half], at step half_
};

OpenResult PersistenceWatch::Open(const OpenRequest& request) {
  OpenResult result = inner_.Open(request);
  if (result.session != nullptr) {
    result.session = std::make_unique<Session>(*this, std::move(result.session));
  }
  return result;
}

void PersistenceWatch::Prepare(std::span<KvStep> steps) {
  std::vector<KvStep> inner(steps.begin(), steps.end());
  for (KvStep& step : inner) step.session = static_cast<Session*>(step.session)->inner();
  inner_.Prepare(inner);
  for (size_t i = 0; i < steps.size(); ++i) {
    steps[i].readiness = inner[i].readiness;
    steps[i].text = std::move(inner[i].text);
    static_cast<Session*>(steps[i].session)->Expect(steps[i].tokens);
  }
}

}  // namespace kvpool
