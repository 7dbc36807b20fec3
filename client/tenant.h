// Tenant and Session over shared memory: the decode thread's half of the client. Takes pages from
// the magazine, writes page lists and `committed`, fills query windows, reads tables. Whatever
// needs the agent goes through AgentCalls.
//
// One caller thread, but for drain completions, which arrive on the RPC thread through
// DrainProgress.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "client/agent_calls.h"
#include "client/kvpool.h"
#include "client/magazine.h"
#include "client/mapping.h"
#include "client/prompt_profiler.h"
#include "proto/shared_memory.h"

namespace kvpool {

// Everything fixed at attach.
struct TenantSetup {
  Layout layout;
  std::byte* base = nullptr;  // the pool's range
  shm::ShmSizes sizes;
  std::byte* control = nullptr;  // lives as long as keep_alive
  Mapping tables;
  Magazine* magazine = nullptr;  // lives as long as keep_alive
  std::shared_ptr<void> keep_alive;
  std::unique_ptr<AgentCalls> calls;
  std::string policy;
  std::chrono::milliseconds timeout{10'000};
};

// How far the agent has come with one session. Set by the caller's thread when it sends something,
// cleared by the RPC thread, under the signal's mutex, when the answer is there.
struct SessionProgress {
  std::atomic<uint64_t> drained{0};  // queries below this number have been scored
  std::atomic<bool> draining{false};
  std::atomic<bool> handed_over{false};
  absl::Status outcome;  // of the last hand-over; to be read when it is no longer under way
};

// Where waiting for the agent happens; shared with completions that may outlive the tenant.
struct ProgressSignal {
  std::mutex mutex;
  std::condition_variable changed;
};

class SessionImpl;

class TenantImpl final : public Tenant {
 public:
  explicit TenantImpl(TenantSetup setup);
  ~TenantImpl() override;

  const Layout& layout() const override { return setup_.layout; }
  std::byte* base() const override { return setup_.base; }
  const std::string& policy() const override { return setup_.policy; }
  absl::StatusOr<std::unique_ptr<Session>> Open(const OpenOptions& options) override;
  absl::StatusOr<std::unique_ptr<Session>> Fork(Session& session, uint32_t max_tokens) override;
  absl::Status SafePoint(std::span<Step> steps) override;
  absl::Status Ping() override { return setup_.calls->Ping(); }
  absl::StatusOr<TenantStatistics> Statistics() override { return setup_.calls->Statistics(); }

  // For benchmarks and tests, which cycle pages without sessions.
  Magazine& magazine() { return *setup_.magazine; }

 private:
  friend class SessionImpl;

  absl::Status CheckOpened(const OpenedSession& opened) const;
  // Takes back what was handed over and hands over what is due. Outcome Aborted: the agent has the
  // session, and another one can step meanwhile; when none can, waits for the first.
  void HandOverDue(std::span<Step> steps);
  // Gives each session that steps a query window, if it pushes queries at all; when none is free,
  // that of a session which does not step, once its queries are scored.
  absl::Status TakeWindows(std::span<Step> steps);
  void TakePages(std::span<Step> steps);
  // Starts drains for those sessions that have none in flight. Drains of one call are answered
  // together.
  void StartDrains(const std::vector<SessionImpl*>& sessions);
  // A call for each, so that the first one back can step while the agent has the others. Requires
  // that none has unscored queries.
  void StartHandOvers(const std::vector<SessionImpl*>& sessions);
  // Aborted steps become lost ones (Unavailable): the agent has had the whole timeout.
  static void LoseAborted(std::span<Step> steps);
  // Waits until one of the sessions may go on; false: not before `deadline`.
  bool AwaitAny(const std::vector<SessionImpl*>& sessions,
                std::chrono::steady_clock::time_point deadline);
  // Has everything scored that these sessions have pushed, and waits for it.
  absl::Status DrainAll(const std::vector<SessionImpl*>& sessions);
  // Waits until `done` or the timeout: DeadlineExceeded.
  template <typename Done>
  absl::Status WaitForDrains(Done done) {
    std::unique_lock<std::mutex> lock(signal_->mutex);
    if (signal_->changed.wait_for(lock, setup_.timeout, done)) return absl::OkStatus();
    return absl::DeadlineExceededError("the agent did not drain a query window in time");
  }

  TenantSetup setup_;
  std::shared_ptr<ProgressSignal> signal_ = std::make_shared<ProgressSignal>();
  std::vector<SessionImpl*> window_owners_;  // by window; nullptr: free
  std::vector<PageId> scratch_pages_;
};

class SessionImpl final : public Session {
 public:
  SessionImpl(TenantImpl& tenant, const OpenedSession& opened, uint32_t prompt_tokens);
  ~SessionImpl() override;

  uint32_t shared_tokens() const override { return opened_.shared_tokens; }
  uint32_t position() const override { return committed_; }
  SessionView View(uint32_t appended) const override;
  BlockId WriteBlock(uint32_t layer, uint32_t head, uint32_t i) const override;
  uint32_t WriteRow(uint32_t i) const override {
    return (committed_ - fresh_start_ + i) % kPageTokens;
  }
  bool WantsProfile() const override { return profiler_ && profiler_->Wants(committed_); }
  void Profile(const AttendedChunk& chunk) override;
  using Session::Commit;
  absl::Status Commit(uint32_t tokens, const float* queries, const float* lses) override;
  bool WantsQueries(uint32_t tokens) const override;
  void Park() override;

 private:
  friend class TenantImpl;

  uint32_t fresh_tokens() const { return committed_ - fresh_start_; }
  uint32_t PagesMissing(uint32_t tokens) const;
  void AddPages(std::span<const PageId> pages);
  // Whether the policy or the agent wants the session before `tokens` more are appended.
  bool Due(uint32_t tokens) const;
  // Makes it RUNNING. Aborted: the agent has it.
  absl::Status TakeBack();
  // Whether the agent took it while it was parked, and has it still.
  bool WasTaken() const;
  // Whether TakeBack or a drain under way would come to another end now than it did.
  bool MayGoOn() const;
  // Reads the table after the agent may have changed it.
  void RefreshTable();
  absl::Status Failure() const;

  // Publishes flags of the tokens after the committed ones.
  void WriteFlags(uint32_t tokens, std::span<const uint8_t> flags);
  // Hands a finished profile to the agent, which takes it up at the next hand-over.
  void PublishProfile();
  // Whether the policy cannot do without the query of the index-th token of a step of `tokens`.
  bool PushNeeded(uint32_t position, uint32_t index, uint32_t tokens) const;
  // Whether it has a use for it.
  bool PushWanted(uint32_t position, uint32_t index, uint32_t tokens) const;
  enum class Patience : uint8_t { kWaits, kDrops };  // when the window is full
  // `lses` or nullptr.
  absl::Status PushQuery(uint32_t position, const float* query, const float* lses,
                         Patience patience);
  uint64_t pending() const { return pushed_ - submitted_; }
  // Whether it pushes queries and has nowhere to put them.
  bool LacksWindow() const { return window_ == kNoWindow && opened_.queries != QueryWish::kNone; }

  TenantImpl& tenant_;
  const OpenedSession opened_;
  const uint32_t prompt_tokens_;
  shm::SessionSlot* const words_;
  std::atomic<uint32_t>* const page_list_;
  const std::byte* const table_bytes_;
  const shm::TableHeader* const table_;

  uint32_t committed_ = 0;
  bool away_ = false;  // handed over, and the outcome not taken up yet
  uint64_t epoch_ = 0;
  uint32_t fresh_start_ = 0;
  uint32_t compacted_tokens_ = 0;  // longest head
  std::vector<PageId> fresh_pages_;
  const uint32_t* lengths_ = nullptr;
  const uint32_t* sealed_lengths_ = nullptr;
  SealedFormat sealed_format_ = SealedFormat::kNone;
  const BlockId* blocks_ = nullptr;
  const uint32_t* positions_ = nullptr;

  uint8_t* const flags_;                      // [session_tokens], in shared memory
  std::unique_ptr<PromptProfiler> profiler_;  // while there is more to profile

  static constexpr uint32_t kNoWindow = ~0u;
  uint32_t window_ = kNoWindow;  // taken at a safe point, and kept until another session needs it
  uint64_t pushed_ = 0;          // queries written to the window
  uint64_t submitted_ = 0;       // queries in drains started so far
  std::shared_ptr<SessionProgress> progress_ = std::make_shared<SessionProgress>();
};

}  // namespace kvpool
