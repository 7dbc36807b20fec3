// The shared memory between one attachment's worker and the agent, byte for byte.
//
// Two memfds. `Control` is written by both: the worker owns its words in it, and the agent treats
// every byte of it as hostile: it reads a word once, clamps it, and checks ids against its ledger.
// `Tables` is written by the agent alone and mapped read-only by the worker (sealed against future
// write mappings), so it needs no checks by a worker that trusts its agent.
//
// All integers are little endian. Sizes follow from six numbers (ShmSizes) that both sides know
// from attach. Atomics are lock-free words; the release/acquire pairs are stated at each field.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace kvpool::shm {

inline constexpr uint64_t kMagic = 0x316c6f6f70766bULL;  // "kvpool1"
inline constexpr uint32_t kVersion = 2;

// Session states, in SessionSlot::state. RUNNING is the worker's, BUSY is the agent's.
// IDLE -> RUNNING by the worker, IDLE -> BUSY by the agent (both compare-and-swap, so one wins);
// RUNNING -> BUSY by the worker just before handOver; BUSY -> RUNNING or IDLE by the agent alone.
enum class State : uint32_t { kFree = 0, kIdle = 1, kRunning = 2, kBusy = 3, kFailed = 4 };

// Why a session is FAILED, in TableHeader::failed: a RefusalReason of agent.capnp.
enum class Failure : uint32_t { kNone = 0, kBadPageList = 9, kPreempted = 11 };

// The six numbers that fix every offset.
struct ShmSizes {
  uint32_t sessions = 0;        // session slots
  uint32_t windows = 0;         // query windows
  uint32_t session_tokens = 0;  // longest session
  uint32_t planes = 0;          // cached layers * KV heads
  uint32_t query_floats = 0;    // model layers * query heads * key dim: floats of one query
  uint32_t query_lses = 0;      // model layers * query heads: log-sum-exps of one query

  constexpr uint32_t pages() const { return (session_tokens + 15) / 16; }
};

// A ring of page ids with one producer and one consumer in different processes. Indices count up
// for ever; slot = index % kRingSlots. Producer: store the id, then index with release. Consumer:
// load the producer's index with acquire.
inline constexpr uint32_t kRingSlots = 8192;  // limits::kMagazinePages
struct alignas(64) PageRing {
  alignas(64) std::atomic<uint64_t> produced;
  alignas(64) std::atomic<uint64_t> consumed;
  alignas(64) std::atomic<uint32_t> slots[kRingSlots];
};

struct alignas(64) ControlHeader {
  uint64_t magic;    // kMagic
  uint32_t version;  // kVersion
  uint32_t unused;
  // Non-zero while the agent sleeps; whoever exchanges it for 0 writes the doorbell eventfd.
  alignas(64) std::atomic<uint32_t> agent_sleeping;
  // Grants left, or returns waiting, at which the worker looks at agent_sleeping.
  std::atomic<uint32_t> low_watermark;
};

// One session's words in Control. Followed by its page list, std::atomic<uint32_t>[pages], and the
// flags of its tokens (kernels/token_flags.h), u8 [session_tokens], written before `committed`.
struct alignas(64) SessionSlot {
  std::atomic<uint32_t> state;       // State
  std::atomic<uint32_t> page_count;  // fresh pages in the list; release, after the list entries
  std::atomic<uint64_t>
      committed;  // logical tokens finished and accepted; release; never decreases
  // Prompt tokens that the finished profile covers, 0 while there is none; release, after the
  // profile. The agent takes a profile up when the session is handed over.
  std::atomic<uint32_t> profiled;
};

// One query window in Control: a ring of W entries: u32 positions [W], then f32 vectors
// [W][query_floats], then f32 log-sum-exps [W][query_lses]: of each query's scaled logits over the
// keys that its own attention saw, or NaN where the worker's kernel does not tell it. Query number
// n of a session lies in entry n % W.
inline constexpr uint32_t kWindowQueries = 32;  // limits::kWindowQueries

// One session's header in Tables, then two buffers (see TableBufferBytes).
struct alignas(64) TableHeader {
  std::atomic<uint64_t> epoch;         // buffer epoch % 2 holds the current lists; release
  std::atomic<uint64_t> fresh_start;   // logical position of the first fresh token in this epoch
  std::atomic<uint32_t> compact_at;    // cache tokens at which to hand over; 0: never
  std::atomic<uint32_t> hand_over;     // non-zero: hand over at the next safe point
  std::atomic<uint32_t> cache_tokens;  // longest head's compacted rows in this epoch
  std::atomic<uint32_t> failed;        // Failure
};

constexpr uint64_t AlignUp(uint64_t n) { return (n + 63) & ~uint64_t{63}; }

// Control: header, grant ring (agent produces), return ring (worker produces), session slots,
// windows, profiles.
constexpr uint64_t GrantRingOffset() { return AlignUp(sizeof(ControlHeader)); }
constexpr uint64_t ReturnRingOffset() { return GrantRingOffset() + AlignUp(sizeof(PageRing)); }
constexpr uint64_t SlotsOffset() { return ReturnRingOffset() + AlignUp(sizeof(PageRing)); }
constexpr uint64_t SlotStride(const ShmSizes& s) {
  return AlignUp(sizeof(SessionSlot) + uint64_t{s.pages()} * 4 + s.session_tokens);
}
constexpr uint64_t SlotOffset(const ShmSizes& s, uint32_t slot) {
  return SlotsOffset() + slot * SlotStride(s);
}
constexpr uint64_t TokenFlagsOffset(const ShmSizes& s, uint32_t slot) {
  return SlotOffset(s, slot) + sizeof(SessionSlot) + uint64_t{s.pages()} * 4;
}
constexpr uint64_t WindowsOffset(const ShmSizes& s) { return SlotOffset(s, s.sessions); }
constexpr uint64_t WindowVectorsOffset() { return AlignUp(uint64_t{kWindowQueries} * 4); }
constexpr uint64_t WindowLsesOffset(const ShmSizes& s) {
  return WindowVectorsOffset() + AlignUp(uint64_t{kWindowQueries} * s.query_floats * 4);
}
constexpr uint64_t WindowStride(const ShmSizes& s) {
  return WindowLsesOffset(s) + AlignUp(uint64_t{kWindowQueries} * s.query_lses * 4);
}
constexpr uint64_t WindowOffset(const ShmSizes& s, uint32_t window) {
  return WindowsOffset(s) + window * WindowStride(s);
}
// A prompt's profile, one per slot, untouched where no policy wants one: u8 classes [planes]
// (kernels/profile.h, HeadClass), then f32 frequencies [planes][session_tokens], of which the first
// `profiled` of those heads count whose class ranks by them. On system pages of their own, so that
// the agent can give their memory back.
constexpr uint64_t kSystemPage = 4096;
constexpr uint64_t AlignPage(uint64_t n) { return (n + kSystemPage - 1) & ~(kSystemPage - 1); }
constexpr uint64_t ProfilesOffset(const ShmSizes& s) {
  return AlignPage(WindowOffset(s, s.windows));
}
constexpr uint64_t ProfileFrequencyOffset(const ShmSizes& s, uint32_t plane) {
  return AlignUp(s.planes) + uint64_t{plane} * s.session_tokens * 4;
}
constexpr uint64_t ProfileStride(const ShmSizes& s) {
  return AlignPage(ProfileFrequencyOffset(s, s.planes));
}
constexpr uint64_t ProfileOffset(const ShmSizes& s, uint32_t slot) {
  return ProfilesOffset(s) + slot * ProfileStride(s);
}
constexpr uint64_t ControlBytes(const ShmSizes& s) { return ProfileOffset(s, s.sessions); }

// Tables: per slot a header and two buffers, each: u32 lengths [planes]; u32 sealed format (0:
// none, 1: fp8, 2: int8, 3: int4) and u32 sealed lengths [planes], of the lengths above; u32 block
// ids [planes][pages], sealed blocks first; u32 positions [planes][pages * 16]. Untouched parts of
// a memfd cost nothing.
constexpr uint64_t LengthsBytes(const ShmSizes& s) { return AlignUp(uint64_t{s.planes} * 4); }
constexpr uint64_t SealedBytes(const ShmSizes& s) { return AlignUp(uint64_t{s.planes} * 4 + 4); }
constexpr uint64_t BlocksBytes(const ShmSizes& s) {
  return AlignUp(uint64_t{s.planes} * s.pages() * 4);
}
constexpr uint64_t PositionsBytes(const ShmSizes& s) {
  return AlignUp(uint64_t{s.planes} * s.pages() * 16 * 4);
}
constexpr uint64_t TableBlocksOffset(const ShmSizes& s) { return LengthsBytes(s) + SealedBytes(s); }
constexpr uint64_t TablePositionsOffset(const ShmSizes& s) {
  return TableBlocksOffset(s) + BlocksBytes(s);
}
constexpr uint64_t TableBufferBytes(const ShmSizes& s) {
  return TablePositionsOffset(s) + PositionsBytes(s);
}
constexpr uint64_t TableStride(const ShmSizes& s) {
  return sizeof(TableHeader) + 2 * TableBufferBytes(s);
}
constexpr uint64_t TableOffset(const ShmSizes& s, uint32_t slot) { return slot * TableStride(s); }
constexpr uint64_t TableBufferOffset(const ShmSizes& s, uint32_t slot, uint64_t epoch) {
  return TableOffset(s, slot) + sizeof(TableHeader) + (epoch & 1) * TableBufferBytes(s);
}
constexpr uint64_t TablesBytes(const ShmSizes& s) { return TableOffset(s, s.sessions); }

static_assert(sizeof(SessionSlot) == 64 && sizeof(TableHeader) == 64);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

}  // namespace kvpool::shm
