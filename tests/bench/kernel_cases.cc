// See kernel_cases.h. Both cases work on 256 MiB of bf16 rows, 8 KV heads of 128: rows of 256
// bytes.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/kernel_cases.h"

#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "kernels/attention.h"
#include "kernels/compaction.h"

namespace kvpool::bench {
namespace {

constexpr uint32_t kHeads = 8, kGroup = 2, kDim = 128;
constexpr size_t kRowBytes = kDim * 2;

Geometry BenchGeometry() {
  return {.layers = 1,
          .query_heads = kHeads * kGroup,
          .kv_heads = kHeads,
          .key_dim = kDim,
          .value_dim = kDim,
          .dtype = Dtype::kBf16,
          .kv_of_layer = {0}};
}

// Shared memory as a pool has it (no huge pages), touched.
class Pool {
 public:
  explicit Pool(size_t bytes) : bytes_(bytes) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) std::abort();
    base_ = static_cast<std::byte*>(at);
    auto* halves = reinterpret_cast<uint16_t*>(base_);
    std::minstd_rand random(1);
    for (size_t i = 0; i < bytes / 2; ++i)
      halves[i] = 0x3f00 | (random() & 0x80ff);  // |x| in 0.5..2
  }
  ~Pool() { munmap(base_, bytes_); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  std::byte* base() { return base_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  std::byte* base_;
};

struct Session {
  std::vector<uint32_t> lengths;
  std::vector<BlockId> blocks;
  uint32_t stride = 0;
  std::vector<PageId> pages, fresh;
  SessionView View() const {
    return {.compacted_lengths = lengths.data(),
            .compacted_blocks = blocks.data(),
            .compacted_stride = stride,
            .fresh_pages = fresh.data(),
            .fresh_tokens = static_cast<uint32_t>(fresh.size()) * kPageTokens};
  }
};

// Sessions that fill a pool of 256 MiB exactly, pages in random order.
class Workload {
 public:
  Workload(uint32_t sessions, double compacted_share)
      : layout_(*Layout::Make(BenchGeometry(), 32_MiB)), pool_(size_t{256} << 20) {
    std::vector<PageId> pages;
    for (uint32_t s = 0; s < 8; ++s) {
      for (uint32_t p = 0; p < layout_.pages_per_slab(); ++p) {
        pages.push_back(layout_.Page(SlabIndex(s), p));
      }
    }
    std::mt19937 random(2);
    std::shuffle(pages.begin(), pages.end(), random);
    const size_t each = pages.size() / sessions;
    for (uint32_t i = 0; i < sessions; ++i) {
      Session session;
      session.pages.assign(pages.begin() + i * each, pages.begin() + (i + 1) * each);
      session.stride = static_cast<uint32_t>(each * compacted_share);
      session.lengths.assign(kHeads, session.stride * kPageTokens);
      for (uint32_t p = 0; p < session.stride; ++p) {
        for (uint32_t h = 0; h < kHeads; ++h) {
          session.blocks.push_back(layout_.Block(session.pages[p], 0, h));
        }
      }
      std::shuffle(session.blocks.begin(), session.blocks.end(), random);
      session.fresh.assign(session.pages.begin() + session.stride, session.pages.end());
      sessions_.push_back(std::move(session));
    }
  }
  const Layout& layout() const { return layout_; }
  Pool& pool() { return pool_; }
  const std::vector<Session>& sessions() const { return sessions_; }

 private:
  Layout layout_;
  Pool pool_;
  std::vector<Session> sessions_;
};

// GB/s at which `work` gets through `bytes`.
template <typename Work>
double Speed(size_t bytes, Work work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return static_cast<double>(bytes) / seconds.count() / 1e9;
}

// Keeps results that nobody reads from being optimised away.
volatile uint64_t g_sink;

[[gnu::target_clones("avx512f", "avx2", "default"), gnu::optimize("O3")]] uint64_t Sum(
    const uint64_t* from, size_t count) {
  uint64_t sum = 0;
  for (size_t i = 0; i < count; ++i) sum += from[i];
  return sum;
}

// Decode attention: one query a head for each of 16 sessions of 4096 keys.
class AttentionWork {
 public:
  AttentionWork() : work_(16, 0.5), queries_(kHeads * kGroup * kDim), out_(queries_.size()) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (float& x : queries_) x = normal(random);
  }
  double Attend() {
    return Speed(work_.pool().bytes(), [&] {
      for (const Session& session : work_.sessions()) {
        Attention({.layout = &work_.layout(),
                   .base = work_.pool().base(),
                   .session = session.View(),
                   .queries = queries_.data(),
                   .scale = 0.088f,
                   .out = out_.data()});
        g_sink = static_cast<uint64_t>(out_[0] != 0);
      }
    });
  }
  double SumBytes() {
    return Speed(work_.pool().bytes(), [&] {
      g_sink = Sum(reinterpret_cast<const uint64_t*>(work_.pool().base()),
                   work_.pool().bytes() / sizeof(uint64_t));
    });
  }

 private:
  Workload work_;
  std::vector<float> queries_, out_;
};

constexpr size_t kAhead = 16;  // rows fetched ahead

// Rows from known addresses to a dense buffer.
[[gnu::target("avx512f")]] void GatherAvx512(const std::vector<const std::byte*>& rows,
                                             std::byte* to) {
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::byte* ahead = rows[std::min(i + kAhead, rows.size() - 1)];
    for (size_t at = 0; at < kRowBytes; at += 64) {
      __builtin_prefetch(ahead + at, 0, 2);
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i * kRowBytes + at),
                          _mm512_loadu_si512(rows[i] + at));
    }
  }
  _mm_sfence();
}
void GatherSse2(const std::vector<const std::byte*>& rows, std::byte* to) {
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::byte* ahead = rows[std::min(i + kAhead, rows.size() - 1)];
    for (size_t at = 0; at < kRowBytes; at += 64) {
      __builtin_prefetch(ahead + at, 0, 2);
      for (size_t j = 0; j < 64; j += 16) {
        _mm_stream_si128(reinterpret_cast<__m128i*>(to + i * kRowBytes + at + j),
                         _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + at + j)));
      }
    }
  }
  _mm_sfence();
}

// A random half of each head of 4 sessions of 16384 keys stays. A plan can be carried out again and
// again: its steps do not read what they write.
class CompactionWork {
 public:
  CompactionWork() : work_(4, 0.0), dense_(work_.pool().bytes() / 2) {
    std::mt19937 random(4);
    for (const Session& session : work_.sessions()) {
      KeepRows all(session.View().fresh_tokens);
      std::iota(all.begin(), all.end(), 0);
      std::vector<KeepRows> keep(kHeads);
      for (uint32_t h = 0; h < kHeads; ++h) {
        std::sample(all.begin(), all.end(), std::back_inserter(keep[h]), all.size() / 2, random);
        for (uint32_t row : keep[h])
          AddSources(session.View().BlockOf(work_.layout(), 0, h, row), row);
      }
      plans_.push_back(*PlanCompaction({.layout = &work_.layout(),
                                        .session = session.View(),
                                        .session_pages = session.pages,
                                        .keep = &keep}));
    }
  }
  double Compact() {
    return Speed(dense_.bytes(), [&] {
      for (const CompactionPlan& plan : plans_) {
        ExecuteCompaction(work_.layout(), work_.pool().base(), plan);
      }
    });
  }
  double Gather() {
    const bool wide = __builtin_cpu_supports("avx512f");
    return Speed(dense_.bytes(),
                 [&] { (wide ? GatherAvx512 : GatherSse2)(sources_, dense_.base()); });
  }

 private:
  void AddSources(BlockId id, uint32_t row) {
    const std::byte* block = BlockAddress(work_.pool().base(), id);
    sources_.push_back(block + row % kPageTokens * kRowBytes);
    sources_.push_back(block + work_.layout().value_offset() + row % kPageTokens * kRowBytes);
  }

  Workload work_;
  Pool dense_;
  std::vector<CompactionPlan> plans_;
  std::vector<const std::byte*> sources_;  // every kept row
};

}  // namespace

std::vector<Case> KernelCases() {
  constexpr int kRounds = 11;
  return {{.name = "attention_host",
           .unit = "GB/s",
           .what = "decode attention over 16 sessions of 4096 keys, half of them in scattered "
                   "compacted blocks (256 MiB, bf16, 8 KV heads of 128, 2 query heads each), "
                   "against a vectorised sum over the same bytes; one thread",
           .prepare = []() -> absl::StatusOr<Instance> {
             auto work = std::make_shared<AttentionWork>();
             return Instance{.value = [work] { return work->Attend(); },
                             .yardstick = [work] { return work->SumBytes(); }};
           },
           .rounds = kRounds},
          {.name = "compaction_host",
           .unit = "GB/s",
           .what = "bytes kept by compactions to a random half (256 MiB, rows of 256 bytes), "
                   "against a gather of the kept rows into a dense buffer with prefetch and "
                   "non-temporal stores; one thread",
           .prepare = []() -> absl::StatusOr<Instance> {
             auto work = std::make_shared<CompactionWork>();
             return Instance{.value = [work] { return work->Compact(); },
                             .yardstick = [work] { return work->Gather(); }};
           },
           .rounds = kRounds}};
}

}  // namespace kvpool::bench
