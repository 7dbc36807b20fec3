// The builds of the vector kernels, and the choice among them.
//
// attend.cc, profile.cc, score.cc and tiles.cc are compiled three times, into the namespaces
// baseline, avx2 and avx512. Which one runs is decided once, from what the processor can do. Any
// thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "kernels/attention.h"
#include "kernels/profile.h"
#include "kernels/scoring.h"
#include "kernels/simd/args.h"

namespace kvpool::simd {

struct Target {
  const char* name;
  void (*attend_query)(const AttendArgs&);  // every lane sees the same rows: decode
  void (*attend_chunk)(const AttendArgs&);  // many lanes, each with its own number of rows
  void (*score_head)(const ScoreHeadArgs&);
  void (*profile_head)(const ProfileHeadArgs&);
  uint32_t (*read_tile)(const TileArgs&);  // the number of rows read
  void (*multiply)(const ProductArgs&);
};

// The builds, fastest first.
inline constexpr const char* kTargetNames[] = {"avx512", "avx2", "baseline"};

// What this processor can run, fastest first; never empty.
std::span<const Target> Targets();

// Attention(), Score() and AddToProfile() on a given target; for tests that compare targets.
void AttentionOn(const Target& target, const AttentionArgs& args);
void ScoreOn(const Target& target, const ScoreArgs& args, Planes* planes);
void AddToProfileOn(const Target& target, const ProfileArgs& args, PromptSums* sums);

HeadRows RowsOf(const Layout& layout, const std::byte* base, const SessionView& session,
                uint32_t layer, uint32_t head);

// Floats of scratch memory.
size_t AttendScratch(const Geometry& geometry);
size_t ScoreScratch(const Geometry& geometry, uint32_t rows);
size_t ProfileScratch(const Geometry& geometry);

}  // namespace kvpool::simd
