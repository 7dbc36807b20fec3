// The profile of one session's prompt while it is fed: adds up what each step's attention shows,
// and knows whether nothing is missing in the end. A prompt that was not profiled whole (a step
// committed in part, a head left out) has no profile, and its session stays full.
//
// Add() may be called by several threads for different heads of a layer; everything else by the
// session's thread, between layers.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/profile.h"

namespace kvpool {

class PromptProfiler {
 public:
  // The layout and `base` must outlive it. `tokens`: of the prompt, at least 1.
  PromptProfiler(const Layout& layout, const std::byte* base, const ProfileRule& rule,
                 uint32_t tokens);

  // Whether a step that begins at logical position `position` is to be profiled.
  bool Wants(uint32_t position) const { return position == done_ && done_ < tokens_; }
  // Requires Wants() of the step. `view` includes the chunk's tokens; those past the prompt's end
  // are left out.
  void Add(AttendedChunk chunk, SessionView view);
  // `tokens` tokens from `position` on are committed.
  void EndStep(uint32_t position, uint32_t tokens);
  // Whether the whole prompt has been seen, so that Classes and Frequency may be asked.
  bool complete() const { return done_ == tokens_; }
  uint32_t tokens() const { return tokens_; }

  // The class of each (layer, head). `flags`: token flags of the prompt, [tokens].
  std::vector<HeadClass> Classes(std::span<const uint8_t> flags) const;
  // Attention each key had so far, [tokens] by position: what later "frequent" starts from. Of a
  // sample an estimate of what all queries gave, because those after the prompt count in full.
  std::vector<float> Frequency(uint32_t plane) const;

 private:
  const Layout* const layout_;
  const std::byte* const base_;
  const ProfileRule rule_;
  const uint32_t tokens_;
  PromptSums sums_;
  uint32_t done_ = 0;                 // tokens profiled
  std::atomic<uint32_t> heads_{0};    // profiled in the step under way, over all model layers
  std::atomic<uint32_t> queries_{0};  // in each of them
};

}  // namespace kvpool
