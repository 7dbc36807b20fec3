// What the vector kernels are called with: plain data, one KV head at a time.
//
// The vector kernels are compiled once for each instruction set (see targets.h). Only data may be
// shared with them, no inline functions: the linker keeps one copy of an inline function, and if
// that were the AVX-512 one, it would run on processors that lack it.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/format.h"

namespace kvpool::simd {

inline constexpr uint32_t kTileRows = 16;      // rows that are processed together
inline constexpr uint32_t kMaxLanes = 16;      // floats of the widest vector
inline constexpr uint32_t kMaxQueryLanes = 4;  // lanes of attend_query that share one reading
inline constexpr uint32_t kLaneVectors = 4;    // vectors of lanes of attend_chunk that share one

// Rows of one segment: row i is row i % 16 of the block at (ids[i / 16] + offset) * 512.
struct Run {
  const uint32_t* ids = nullptr;
  uint32_t offset = 0;
  uint32_t rows = 0;
};

// Sealed rows: row i is row i % 32 of the sealed block at ids[i / 32] * 512.
struct SealedRun {
  const uint32_t* ids = nullptr;
  uint32_t rows = 0;
  SealedShape shape;
};

// The rows of one (layer, head), in their order.
struct HeadRows {
  const std::byte* base = nullptr;
  SealedRun sealed;
  Run open, fresh;
  uint32_t key_dim = 0, value_dim = 0;
  Dtype dtype = Dtype::kBf16;
  uint32_t element_bytes = 0;  // of dtype
};

// One query head of one query: what it reads and where its result goes.
struct Lane {
  const float* query = nullptr;  // [key_dim]
  uint32_t rows = 0;             // it attends rows 0 .. rows - 1
  float* out = nullptr;          // [value_dim]
  float* lse = nullptr;          // or nullptr
};

// The lanes of one KV head.
struct AttendArgs {
  HeadRows head;
  const Lane* lanes = nullptr;
  uint32_t lane_count = 0;
  float scale = 1;
  float* scratch = nullptr;  // [AttendScratch()]
};

// The drained queries of one KV head.
struct ScoreHeadArgs {
  HeadRows head;
  const float* const* queries = nullptr;  // [heads][query_count], each [key_dim]
  const float* const* lses = nullptr;     // [heads][query_count], each one float; or nullptr
  // [query_count] a query saw the rows whose number is below it.
  const uint32_t* query_rows = nullptr;
  const uint32_t* masked_rows = nullptr;  // [query_count] the same in heads of `masks`, at most
  const uint8_t* masks = nullptr;         // [heads], 1: masked_rows counts; or nullptr: none
  const uint32_t* numbers = nullptr;      // [rows], of each row; nullptr: in their order
  const float* thresholds = nullptr;      // [query_count] alpha below this is low
  const float* hits = nullptr;            // [query_count] what a query leaves in last_hits
  uint32_t heads = 0;                     // query heads that read this KV head
  uint32_t query_count = 0;
  float scale = 1;
  float* mass = nullptr;          // [rows], added to
  float* square_sum = nullptr;    // [rows], added to; or nullptr
  uint8_t* low_counts = nullptr;  // [rows], added to; or nullptr
  uint16_t* last_hits = nullptr;  // [rows], raised to the highest of `hits`; or nullptr
  float* scratch = nullptr;       // [ScoreScratch()]
};

// A chunk of a prompt's queries, of one query head.
struct ProfileHeadArgs {
  HeadRows head;
  const float* const* queries = nullptr;  // [query_count], each [key_dim]
  const float* lse = nullptr;             // [query_count]
  const uint32_t* query_rows = nullptr;   // [query_count] rows that a query saw
  // [query_count] the rows of positions below it are far from a query
  const uint32_t* far_positions = nullptr;
  uint32_t query_count = 0;
  const uint32_t* positions = nullptr;  // [rows], of each row
  float scale = 1;
  float* mass = nullptr;     // [positions], added to
  float* far = nullptr;      // [positions], added to by queries to which the row is far
  float* scratch = nullptr;  // [ProfileScratch()]
};

// Reads rows first .. first + 15 of a head as f32, fewer where sealed rows or all rows end; past
// those are numbers that mean nothing. `first` is less than the head's rows, and where the tile
// before ended.
struct TileArgs {
  HeadRows head;
  uint32_t first = 0;
  float* keys = nullptr;    // [16][key_dim]
  float* values = nullptr;  // [16][value_dim]; or nullptr
};

// Dot products of a tile of rows with many vectors, which lie side by side 16 at a time.
struct ProductArgs {
  const float* rows = nullptr;     // [16][dim]
  const float* columns = nullptr;  // [blocks][dim][16]
  uint32_t dim = 0;
  uint32_t blocks = 0;
  float* out = nullptr;  // [16][blocks * 16]
};

}  // namespace kvpool::simd
