// See kernel_benches.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/kernel_benches.h"

#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "kernels/attention.h"
#include "kernels/compaction.h"
#include "kernels/scoring.h"

namespace kvpool::bench {
namespace {

constexpr uint32_t kHeads = 8, kGroup = 2, kDim = 128;

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

// Seconds that `threads` threads take for work(0) .. work(count - 1), strided.
double Time(uint32_t threads, uint32_t count, const std::function<void(uint32_t)>& work) {
  const auto run = [&](uint32_t first) {
    for (uint32_t i = first; i < count; i += threads) work(i);
  };
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> others;
  for (uint32_t t = 1; t < threads; ++t) others.emplace_back(run, t);
  run(0);
  for (std::thread& t : others) t.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

[[gnu::target_clones("avx512f", "avx2", "default"), gnu::optimize("O3")]] uint64_t Sum(
    const uint64_t* from, size_t count) {
  uint64_t sum = 0;
  for (size_t i = 0; i < count; ++i) sum += from[i];
  return sum;
}

volatile uint64_t g_sink;

double SumAllBytes(Pool& pool, uint32_t threads) {
  constexpr uint32_t kParts = 16;
  const size_t part = pool.bytes() / kParts;
  return Time(threads, kParts, [&](uint32_t i) {
    g_sink = Sum(reinterpret_cast<const uint64_t*>(pool.base() + i * part), part / 8);
  });
}

std::vector<float> RandomFloats(size_t count) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> floats(count);
  for (float& x : floats) x = normal(random);
  return floats;
}

class AttentionBench : public KernelBench {
 public:
  explicit AttentionBench(uint32_t threads)
      : threads_(threads), work_(16, 0.5), queries_(RandomFloats(kHeads * kGroup * kDim)) {}

  double Decode() {
    return Time(threads_, 16, [&](uint32_t i) {
      std::vector<float> out(kHeads * kGroup * kDim);
      Attention({.layout = &work_.layout(),
                 .base = work_.pool().base(),
                 .session = work_.sessions()[i].View(),
                 .queries = queries_.data(),
                 .scale = 0.088f,
                 .out = out.data()});
      g_sink = static_cast<uint64_t>(out[0]);
    });
  }
  Measured Round() override {
    const double bytes = static_cast<double>(work_.pool().bytes());
    const double seconds = Decode();
    return {.value = bytes / seconds / 1e9,
            .yardstick = bytes / SumAllBytes(work_.pool(), threads_) / 1e9};
  }

 protected:
  uint32_t threads_;
  Workload work_;
  std::vector<float> queries_;
};

class ScoringBench : public AttentionBench {
 public:
  explicit ScoringBench(uint32_t threads)
      : AttentionBench(threads), window_(RandomFloats(kQueries * kHeads * kGroup * kDim)) {
    for (uint32_t i = 0; i < kQueries; ++i) positions_.push_back(4096 - kQueries + i);
    for (size_t i = 0; i < work_.sessions().size(); ++i) {
      planes_.emplace_back(BenchGeometry(), PlaneSet{.low_count_ring = 14});
      planes_.back().Append(0, 4096);
    }
  }
  Measured Round() override {
    const double score = Time(threads_, 16, [&](uint32_t i) {
      planes_[i].BeginDrain(kQueries);
      Score({.layout = &work_.layout(),
             .base = work_.pool().base(),
             .session = work_.sessions()[i].View(),
             .fresh_start = 2048,
             .queries = window_.data(),
             .query_positions = positions_.data(),
             .query_count = kQueries,
             .scale = 0.088f},
            &planes_[i]);
    });
    return {.value = 16 / score, .yardstick = 16 / (Decode() * kQueries)};
  }

 private:
  static constexpr uint32_t kQueries = 32;
  std::vector<float> window_;
  std::vector<uint32_t> positions_;
  std::vector<Planes> planes_;
};

// Rows of 256 bytes from known addresses to a dense buffer.
[[gnu::target("avx512f")]] void GatherAvx512(const std::vector<const std::byte*>& rows,
                                             std::byte* to) {
  constexpr size_t kAhead = 16;
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::byte* ahead = rows[std::min(i + kAhead, rows.size() - 1)];
    for (size_t at = 0; at < 256; at += 64) {
      __builtin_prefetch(ahead + at, 0, 2);
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i * 256 + at),
                          _mm512_loadu_si512(rows[i] + at));
    }
  }
  _mm_sfence();
}
void GatherPlain(const std::vector<const std::byte*>& rows, std::byte* to) {
  constexpr size_t kAhead = 16;
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::byte* ahead = rows[std::min(i + kAhead, rows.size() - 1)];
    for (size_t at = 0; at < 256; at += 64) {
      __builtin_prefetch(ahead + at, 0, 2);
      for (size_t j = 0; j < 64; j += 16) {
        _mm_stream_si128(reinterpret_cast<__m128i*>(to + i * 256 + at + j),
                         _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + at + j)));
      }
    }
  }
  _mm_sfence();
}

class CompactionBench : public KernelBench {
 public:
  explicit CompactionBench(uint32_t threads)
      : threads_(threads), work_(4, 0.0), dense_(work_.pool().bytes() / 2) {
    std::mt19937 random(4);
    for (const Session& session : work_.sessions()) {
      const uint32_t length = session.View().fresh_tokens;
      std::vector<KeepRows> keep(kHeads);
      std::vector<const std::byte*> rows;
      for (uint32_t h = 0; h < kHeads; ++h) {
        KeepRows all(length);
        for (uint32_t i = 0; i < length; ++i) all[i] = i;
        std::sample(all.begin(), all.end(), std::back_inserter(keep[h]), length / 2, random);
        for (uint32_t row : keep[h]) {
          const std::byte* block =
              BlockAddress(work_.pool().base(), session.View().BlockOf(work_.layout(), 0, h, row));
          rows.push_back(block + row % kPageTokens * 256);
          rows.push_back(block + work_.layout().value_offset() + row % kPageTokens * 256);
        }
      }
      plans_.push_back(*PlanCompaction({.layout = &work_.layout(),
                                        .session = session.View(),
                                        .session_pages = session.pages,
                                        .keep = &keep}));
      rows_.push_back(std::move(rows));
    }
  }
  Measured Round() override {
    const double kept = static_cast<double>(dense_.bytes());
    const double compact = Time(threads_, 4, [&](uint32_t i) {
      ExecuteCompaction(work_.layout(), work_.pool().base(), plans_[i]);
    });
    const bool wide = __builtin_cpu_supports("avx512f");
    const double gather = Time(threads_, 4, [&](uint32_t i) {
      (wide ? GatherAvx512 : GatherPlain)(rows_[i], dense_.base() + i * (dense_.bytes() / 4));
    });
    return {.value = kept / compact / 1e9, .yardstick = kept / gather / 1e9};
  }

 private:
  uint32_t threads_;
  Workload work_;
  Pool dense_;
  std::vector<CompactionPlan> plans_;
  std::vector<std::vector<const std::byte*>> rows_;
};

}  // namespace

std::unique_ptr<KernelBench> MakeAttentionBench(uint32_t threads) {
  return std::make_unique<AttentionBench>(threads);
}
std::unique_ptr<KernelBench> MakeCompactionBench(uint32_t threads) {
  return std::make_unique<CompactionBench>(threads);
}
std::unique_ptr<KernelBench> MakeScoringBench(uint32_t threads) {
  return std::make_unique<ScoringBench>(threads);
}

}  // namespace kvpool::bench
