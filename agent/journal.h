// The ledger's journal: fixed records in one flat piece of memory (a memfd that the caller maps and
// that outlives the process). Two halves: one is appended to; when it is full, the shortest list of
// records that makes the same state (a checkpoint) goes to the other half, which then becomes the
// current one by the store of a single word. It does not know what a record means (pool.h does).
//
// Every record carries a check word over its bytes, its place and its half's generation, stored
// last. So a record that was being written when the process died is ignored, records left from an
// older generation never count, and a bad record with a good one behind it is corruption.
//
// The agent's RPC thread. Nobody else may write the memory.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/statusor.h"

namespace kvpool {

// One step of the ledger. Which fields a type uses, and for what, stands beside it; the others are
// zero. The numbers are the format: never reuse one.
struct Record {
  enum class Type : uint8_t {
    kCheckpoint = 1,    // first of a half. count: records of the checkpoint behind it
    kPool = 2,          // slab: slabs, count: reserve, mask: slab bytes
    kNextIds = 3,       // count: next WorkerId, id: next SessionId
    kLease = 4,         // id: tenant, count: slabs
    kLayerMap = 5,      // part of the next kGroup's kv_of_layer. word: first layer,
                        // id, mask: eight entries of 16 bits, the highest for self_masked
    kGroup = 6,         // word: group, slab: tenant, id: layers, query heads, kv heads, key dim and
                        // mask: value dim, dtype, model layers, of 16 bits each
    kAddWorker = 7,     // slot: its slot, count: WorkerId, word: group
    kRemoveWorker = 8,  // slot: its slot
    kOpenSession = 9,   // id: session, slot: its worker's slot, or kNoSlot when closed and pinned
    kCloseSession = 10,  // id: session
    kPins = 11,          // id: session, count: pins from now on
    kSlab = 12,          // slab, slot: SlabState, word: group
    kMappings = 13,      // slab, id: worker slots that were offered it, mask: that mapped it
    kPages = 14,         // slab, word, mask: pages word * 64 + bit, slot: new PageState,
                         // id: worker slot or session that gets them; when frozen, the session
                         // that holds them, or 0; count: Keep
    kHold = 15,          // slab, word, mask: frozen pages, id: session, slot: 1 when it holds them
                         // from now on, 0 when no more
    kStopKeeping = 16,   // slab, word, mask: frozen pages
  };
  static constexpr uint8_t kNoSlot = 0xff;

  Type type{};
  uint8_t slot = 0;
  uint16_t word = 0;
  uint32_t slab = 0;
  uint64_t id = 0;
  uint64_t mask = 0;
  uint32_t count = 0;
  uint32_t check = 0;  // the journal's own

  bool operator==(const Record&) const = default;
};
static_assert(sizeof(Record) == 32);

class Journal {
 public:
  static constexpr uint32_t kVersion = 1;

  // Memory for two halves of `records` records each.
  static size_t BytesFor(uint64_t records);

  // Starts a journal with `checkpoint` in new memory: all zero, aligned to 8 bytes.
  // InvalidArgument: too small. FailedPrecondition: not new; it may hold a journal.
  static absl::StatusOr<Journal> Format(std::span<std::byte> memory,
                                        std::span<const Record> checkpoint);

  // Opens a journal that another process may have left. A torn last record is dropped.
  // DataLoss: corrupt or cut short. FailedPrecondition: of another version.
  static absl::StatusOr<Journal> Open(std::span<std::byte> memory);

  // A checkpoint and everything appended since, oldest first. Valid until the next change.
  std::span<const Record> records() const;

  // Records that the journal can hold, and how many more it can take before a Restart.
  uint64_t capacity() const { return half_records_ - 1; }
  uint64_t room() const { return half_records_ - size_; }

  // Requires room().
  void Append(const Record& record);
  // Makes `checkpoint` the journal's whole content. Requires checkpoint.size() <= capacity().
  void Restart(std::span<const Record> checkpoint);

 private:
  explicit Journal(std::span<std::byte> memory);

  Record* Half(uint64_t generation) const;

  std::span<std::byte> memory_;
  uint64_t half_records_ = 0;
  uint64_t generation_ = 0;  // of the current half, number generation_ % 2
  uint64_t size_ = 0;        // records in it, kCheckpoint included
};

}  // namespace kvpool
