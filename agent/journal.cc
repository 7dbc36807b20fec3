// The bytes of a journal: header, two halves, check words. See journal.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/journal.h"

#include <array>
#include <atomic>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace kvpool {
namespace {

constexpr uint64_t kMagic = 0x6c616e72756f6a6bULL;  // "kjournal"

struct Header {
  uint64_t magic;
  uint32_t version;
  uint32_t record_bytes;
  uint64_t half_records;
  uint64_t check;       // over the fields above
  uint64_t generation;  // of the current half; the word whose store switches halves
  uint64_t unused[3];
};
static_assert(sizeof(Header) == 64);

uint64_t Mix(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
  return hash ^ hash >> 32;
}

uint64_t HeaderCheck(const Header& header) {
  return Mix(Mix(Mix(header.magic, header.version), header.record_bytes), header.half_records);
}

// A record's bytes but for the check. Put together from the fields: a copy that is wider than the
// stores before it waits for them, and this is on the path of every page.
std::array<uint64_t, 4> Words(const Record& record) {
  return {static_cast<uint64_t>(record.type) | uint64_t{record.slot} << 8 |
              uint64_t{record.word} << 16 | uint64_t{record.slab} << 32,
          record.id, record.mask, record.count};
}

uint32_t Check(const std::array<uint64_t, 4>& words, uint64_t generation, uint64_t index) {
  uint64_t hash = Mix(generation, index);
  for (const uint64_t word : words) hash = Mix(hash, word);
  return static_cast<uint32_t>(hash);
}

bool IsValid(const Record& record, uint64_t generation, uint64_t index) {
  return record.type != Record::Type{} && record.check == Check(Words(record), generation, index);
}

// A process can die between any two stores, which it makes in program order: the check comes last.
void Store(const Record& record, uint64_t generation, uint64_t index, Record* to) {
  const std::array<uint64_t, 4> words = Words(record);
  char* bytes = reinterpret_cast<char*>(to);
  for (size_t i = 0; i < 3; ++i) std::memcpy(bytes + i * 8, &words[i], 8);
  to->count = record.count;
  std::atomic_ref(to->check).store(Check(words, generation, index), std::memory_order_release);
}

Header* HeaderOf(std::span<std::byte> memory) { return reinterpret_cast<Header*>(memory.data()); }

}  // namespace

Journal::Journal(std::span<std::byte> memory)
    : memory_(memory), half_records_((memory.size() - sizeof(Header)) / sizeof(Record) / 2) {}

size_t Journal::BytesFor(uint64_t records) {
  return sizeof(Header) + 2 * (records + 1) * sizeof(Record);
}

Record* Journal::Half(uint64_t generation) const {
  return reinterpret_cast<Record*>(memory_.data() + sizeof(Header)) +
         generation % 2 * half_records_;
}

absl::StatusOr<Journal> Journal::Format(std::span<std::byte> memory,
                                        std::span<const Record> checkpoint) {
  if (memory.size() < BytesFor(checkpoint.size())) {
    return absl::InvalidArgumentError(absl::StrCat("a journal of ", memory.size(),
                                                   " bytes is too small; it takes at least ",
                                                   BytesFor(checkpoint.size())));
  }
  Header* header = HeaderOf(memory);
  const Header zero{};
  if (std::memcmp(header, &zero, sizeof(zero)) != 0) {
    return absl::FailedPreconditionError(
        "the memory is not new: it may hold a journal; rebuild from it, or give new memory");
  }
  Journal journal(memory);
  *header = {kMagic, kVersion, sizeof(Record), journal.half_records_};
  header->check = HeaderCheck(*header);
  journal.Restart(checkpoint);
  return journal;
}

absl::StatusOr<Journal> Journal::Open(std::span<std::byte> memory) {
  if (memory.size() < BytesFor(0)) return absl::DataLossError("the journal is cut short");
  const Header& header = *HeaderOf(memory);
  if (header.magic != kMagic) return absl::DataLossError("the memory holds no journal");
  if (header.version != kVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the journal has version ", header.version,
                                                      "; this agent knows version ", kVersion,
                                                      " only: run the agent that wrote it"));
  }
  Journal journal(memory);
  if (header.check != HeaderCheck(header) || header.record_bytes != sizeof(Record) ||
      header.half_records != journal.half_records_) {
    return absl::DataLossError("the journal's header is corrupt");
  }
  journal.generation_ = header.generation;
  const Record* half = journal.Half(header.generation);
  uint64_t size = 0;
  while (size < journal.half_records_ && IsValid(half[size], header.generation, size)) ++size;
  if (size == 0 || half[0].type != Record::Type::kCheckpoint || half[0].count >= size) {
    return absl::DataLossError("the journal's checkpoint is corrupt");
  }
  for (uint64_t i = size; i < journal.half_records_; ++i) {
    if (IsValid(half[i], header.generation, i)) {
      return absl::DataLossError(absl::StrCat("record ", size, " of the journal is corrupt"));
    }
  }
  journal.size_ = size;
  return journal;
}

std::span<const Record> Journal::records() const {
  return std::span<const Record>(Half(generation_), size_).subspan(1);
}

void Journal::Append(const Record& record) {
  Store(record, generation_, size_, Half(generation_) + size_);
  ++size_;
}

void Journal::Restart(std::span<const Record> checkpoint) {
  const uint64_t generation = generation_ + 1;
  Record* half = Half(generation);
  const Record first{.type = Record::Type::kCheckpoint,
                     .count = static_cast<uint32_t>(checkpoint.size())};
  Store(first, generation, 0, half);
  for (size_t i = 0; i < checkpoint.size(); ++i) {
    Store(checkpoint[i], generation, i + 1, half + i + 1);
  }
  std::atomic_ref(HeaderOf(memory_)->generation).store(generation, std::memory_order_release);
  generation_ = generation;
  size_ = checkpoint.size() + 1;
}

}  // namespace kvpool
