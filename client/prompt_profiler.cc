// See prompt_profiler.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "client/prompt_profiler.h"

#include <algorithm>
#include <cmath>

namespace kvpool {

PromptProfiler::PromptProfiler(const Layout& layout, const std::byte* base, const ProfileRule& rule,
                               uint32_t tokens)
    : layout_(&layout),
      base_(base),
      rule_(rule),
      tokens_(tokens),
      sums_(layout.geometry(), tokens) {}

void PromptProfiler::Add(AttendedChunk chunk, SessionView view) {
  const uint32_t rest = tokens_ - done_;
  heads_.fetch_add(1, std::memory_order_relaxed);
  queries_.store(chunk.query_count, std::memory_order_relaxed);
  if (chunk.query_count > rest) {
    view.fresh_tokens -= chunk.query_count - rest;
    chunk.query_count = rest;
  }
  AddToProfile({.layout = layout_,
                .base = base_,
                .session = view,
                .chunk = chunk,
                .scale = 1.0f / std::sqrt(static_cast<float>(layout_->geometry().key_dim)),
                .local_keys = LocalKeys(rule_.local, tokens_),
                .sample_every = rule_.sample_every},
               &sums_);
}

void PromptProfiler::EndStep(uint32_t position, uint32_t tokens) {
  if (!Wants(position)) return;
  const Geometry& g = layout_->geometry();
  const uint32_t heads = heads_.exchange(0), queries = queries_.exchange(0);
  // Not whole: done_ stays, and no later step begins there.
  if (heads != g.model_layers() * g.kv_heads || queries != tokens) return;
  done_ = std::min(tokens_, done_ + tokens);
}

std::vector<float> PromptProfiler::Frequency(uint32_t plane) const {
  std::vector<float> frequency = sums_.Frequency(plane);
  for (float& mass : frequency) mass *= static_cast<float>(rule_.sample_every);
  return frequency;
}

std::vector<HeadClass> PromptProfiler::Classes(std::span<const uint8_t> flags) const {
  std::vector<HeadClass> classes;
  for (uint32_t plane = 0; plane < sums_.planes(); ++plane) {
    classes.push_back(ChooseClass(sums_, plane, flags, rule_));
  }
  return classes;
}

}  // namespace kvpool
