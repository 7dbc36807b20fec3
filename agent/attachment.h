// One worker's hold on one tenant's memory: its shared regions, its magazine and its sessions.
// Turns what the worker wrote into checked values, makes jobs of them, and takes their results
// back.
//
// A session's life here: Open (admitted, slot, RUNNING) -> any number of BeginDrain / EndDrain and
// BeginCompaction / EndCompaction, one job at a time -> Close (pages freed, at once or when its job
// ends). A session whose page list does not check out fails: state FAILED, no job ever again. One
// that is ended for its tenant's lease fails likewise, but its pages and its charge go at once.
//
// Knows no RPC and no threads: lives on the RPC thread; jobs run where the caller runs them.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/pool.h"
#include "agent/prefix_index.h"
#include "agent/recovery.h"
#include "agent/session.h"
#include "agent/session_jobs.h"
#include "agent/shared_regions.h"
#include "agent/tenant_book.h"

namespace kvpool {

struct AttachmentSetup {
  WorkerId id;
  TenantId tenant;
  Layout layout;
  shm::ShmSizes sizes;
  uint32_t chunk_tokens = 1;
  QueryOffer queries = QueryOffer::kAll;
  std::byte* base = nullptr;  // the device's range, for host kernels
  // Of its tenant and layout; nullptr: no prefixes are shared.
  std::shared_ptr<PrefixIndex> prefixes;
};

// What a compaction did, or the end of a session, for records and replies.
struct CompactionOutcome {
  absl::Status status;
  absl::Status sealed;         // not ok: why not all was sealed that could be; the session is whole
  std::string policy;          // the session's own, as text
  uint32_t pages_before = 0;   // of the session
  uint32_t freed_pages = 0;    // by compaction
  uint32_t sealing_freed = 0;  // pages freed by sealing after it
  RecoveryStats recovery;      // over heads
  RecoveryStats cumulative;    // the same of the running product over the session's compactions
  // kEnded: `freed_pages` is all it had, and `status` what its worker is told (Cancelled).
  enum class Effect : uint8_t { kNothing, kMoved, kCompacted, kEnded } effect = Effect::kNothing;
  enum class Sealing : uint8_t { kNone, kSealed } sealing = Sealing::kNone;
  // kHeld: the floor of recovery did not allow a compaction that would have freed about
  // `held_pages`. kHeldAgain: likewise, and it has not grown since that was said.
  enum class Floor : uint8_t { kKept, kHeld, kHeldAgain } floor = Floor::kKept;
  uint32_t held_pages = 0;
  // kAwaited: it was due, so the session waits BUSY for its whole charge: until GoOn.
  enum class Room : uint8_t { kEnough, kAwaited } room = Room::kEnough;
  std::shared_ptr<const Ladder> ladder;  // the session's, if it has one
  uint32_t rung = 0;                     // of it
};

class Attachment {
 public:
  // The ledger must know the worker (AddWorker) and outlive the attachment.
  static absl::StatusOr<std::unique_ptr<Attachment>> Make(AttachmentSetup setup,
                                                          PoolLedger* ledger);

  const AttachmentSetup& setup() const { return setup_; }
  const Layout& layout() const { return setup_.layout; }
  SharedRegions& regions() { return *regions_; }

  // The magazine. Collect takes back what the worker returned; Fill grants pages until `pages` lie
  // in the ring or the ledger has no more for this worker, and returns how many do.
  void Collect();
  uint32_t Fill(uint32_t pages);
  // Pages the magazine is kept at: 1/64 of the lease, at least two.
  void SetTarget(uint32_t pages);
  uint32_t target() const { return target_; }
  // Pages in the ring that the worker has not taken, as far as its index can be believed.
  uint32_t waiting();
  // Pages that went through the rings so far, either way.
  uint64_t traffic() const { return granted_ + collected_; }
  uint64_t bad_returns() const { return bad_returns_; }
  uint64_t bad_page_lists() const { return bad_page_lists_; }
  uint64_t bad_profiles() const { return bad_profiles_; }
  uint64_t missing_profiles() const { return missing_profiles_; }

  // ResourceExhausted when no slot is free.
  absl::StatusOr<AgentSession*> Open(const TenantState& tenant, const SessionPlan& plan,
                                     SessionTerms terms);
  // Frees the session's pages now, or when its job ends. Those of its prompt that others may share
  // are parked.
  void Close(uint32_t slot);

  // Prompts that begin alike (attachment_prefix.cc). `keys`: of the whole pages of a prompt.
  //
  // Slabs that must be mapped by this worker before the known beginning can be shared.
  std::vector<SlabIndex> SlabsOfPrefix(std::span<const PageKey> keys) const;
  // The pages that TakePrefix would give to a session of this many shareable tokens.
  std::vector<PageId> FindPrefix(std::span<const PageKey> keys, uint32_t shareable) const;
  // A session just opened begins with them: they are in its page list and committed. Its own pages
  // of the prompt will be shared in turn, unless nothing is shareable.
  void TakePrefix(AgentSession* session, std::vector<PageKey> keys, uint32_t shareable);
  // A session that begins as another one is now, without its keeping anything back: `parent` has a
  // fork when CheckFork has just said so, and a page is free where its last one is not full.
  // FailedPrecondition: why it cannot, and what to do instead. ResourceExhausted: slots, pages, the
  // journal.
  absl::StatusOr<const AgentSession*> CheckFork(uint32_t parent);
  absl::StatusOr<AgentSession*> Fork(uint32_t parent, const TenantState& tenant,
                                     const SessionPlan& plan, SessionTerms terms);
  // Takes up what the workers wrote of prompts that are told and not all shared yet.
  void FreezeAll();
  // Takes up what the workers wrote since the last job, for sessions without one.
  void SnapshotAll();
  // nullptr for a slot without an open session; takes any value.
  AgentSession* Find(uint32_t slot);
  const std::map<uint32_t, AgentSession>& sessions() const { return sessions_; }
  // Sum over open sessions.
  const Charge& charge() const { return charge_; }

  // InvalidArgument or FailedPrecondition when the request makes no sense, DataLoss when the page
  // list does not check out. On success the session's job is kDrain until EndDrain.
  absl::StatusOr<DrainJob> BeginDrain(uint32_t slot, uint32_t window, uint64_t first,
                                      uint32_t count);
  void EndDrain(uint32_t slot, DrainJob job);
  uint64_t unscored() const { return unscored_; }

  // The session is BUSY: by its worker's word (hand-over) or because TakeIdle succeeded. Compacts
  // as far as the policy's parameters allow now, moves out of slabs that are being evacuated, and
  // seals what the session's rule says, through pages of the reserve that the caller holds until
  // EndCompaction: ReservePages(slot) of them. A hand-over for sealing alone does not compact: a
  // format does not change when and what a policy drops.
  // No job (nullopt) when there is nothing to do: the session is given back in `resting`. Errors as
  // BeginDrain.
  absl::StatusOr<std::optional<CompactionJob>> BeginCompaction(uint32_t slot, shm::State resting,
                                                               std::vector<PageId> reserve);
  CompactionOutcome EndCompaction(uint32_t slot, CompactionJob job, shm::State resting);

  // Sessions of this ladder climb to this rung, now or when their job ends: policy, format and when
  // they are due are the rung's from then on, and the charge once they fit it. Nobody comes down.
  // Returns IDLE ones that are due under it now.
  std::vector<SessionId> Climb(const Ladder* ladder, uint32_t rung);
  // Of a session that waits for room: it is charged its whole length now and goes on, or it goes on
  // waiting in its worker's hands. False when it was closed meanwhile: then it is freed.
  enum class Going : uint8_t { kWhole, kAsItWas };
  bool GoOn(uint32_t slot, shm::State resting, Going going);
  // Open sessions of this ladder on each of its rungs.
  void CountRungs(const Ladder* ladder, std::vector<RungCounters>* rungs) const;

  // 0 for a slot whose session has no format, or that has no session.
  uint32_t ReservePages(uint32_t slot) const;

  // Whether the session is to be ended at its next hand-over. Asks for that.
  enum class Fate : uint8_t { kGoesOn, kEnds };
  void SetFate(uint32_t slot, Fate fate);
  // Ends a BUSY session: FAILED, and what it holds is free now. Its slot is until it is closed.
  // Errors, in the outcome, as BeginCompaction.
  CompactionOutcome End(uint32_t slot);

  // Pages that a compaction of the session must copy, because others hold them too, and that it
  // would copy so that its prompt stays for others: the worker's free pages had better be as many.
  // Zeros for a slot without a session.
  struct Copies {
    uint32_t needed = 0;
    uint32_t wanted = 0;  // at least `needed`
  };
  Copies PagesToCopy(uint32_t slot, shm::State resting) const;

  // A BUSY session waits for the reserve before its compaction begins: until EndWait it has a job,
  // so nobody drains it, hands it over again or gives its slot away. Errors as BeginCompaction.
  absl::Status BeginWait(uint32_t slot);
  // Whether it goes on; false when it was closed meanwhile: then it is freed now.
  bool EndWait(uint32_t slot);

  bool IsIdle(uint32_t slot) const;
  // Pages that a compaction would free now, by what was last checked; 0 when its policy has nothing
  // to drop.
  uint32_t PagesFreedByCompaction(const AgentSession& session) const;
  // Pages that sealing would free after that, likewise; 0 when its rule seals nothing.
  uint32_t PagesFreedBySealing(const AgentSession& session) const;
  // Asks the worker, in its table, to hand the session over at its next safe point.
  void AskHandOver(uint32_t slot);

 private:
  Attachment(AttachmentSetup setup, PoolLedger* ledger, std::unique_ptr<SharedRegions> regions);

  enum class Pressure : uint8_t { kNo, kYes };

  // Reads the slot's words and checks them: adopts its pages and extends the planes to `committed`.
  // Then what is whole of the prompt is frozen.
  absl::Status Snapshot(AgentSession* session);
  absl::Status CheckWords(AgentSession* session, const SlotWords& words);
  // What is full of its prompt, from now on for others too.
  void FreezePrefix(AgentSession* session);
  // The last of its frozen pages, from number `first` on, which it holds alone, are its own again.
  void ThawFrom(AgentSession* session, size_t first);
  // So that none of them is in a slab that is being evacuated, as far as it holds them alone.
  void ThawEvacuated(AgentSession* session);
  void ThawAlone(AgentSession* session);
  // Pages of its own for those that it shares, in order, before its rows change; none where it may
  // change all of them in place. nullopt: there are not enough now.
  std::optional<std::vector<PageId>> CopiesFor(AgentSession* session, Pressure pressure);
  // What the policy has to say in a hand-over.
  std::optional<Selection> Choose(AgentSession* session, Pressure pressure);
  void LetGoOfPrefix(AgentSession* session);
  void LeavePrefix(AgentSession* session);
  // Its frozen pages that others hold too: the first ones.
  size_t SharedPages(const AgentSession& session) const;
  void ChangeCharge(AgentSession* session, int64_t pages);
  absl::Status FailForPageList(AgentSession* session, const std::string& why);
  void Fail(AgentSession* session, shm::Failure why);
  void SetCharge(AgentSession* session, const Charge& charge);
  void ClimbNow(AgentSession* session);
  // Charges a session what its rung says, if it surely stays within that from now on.
  void SettleCharge(AgentSession* session);
  // Whether its policy may have its say: not when the floor holds the session.
  static bool MayCompact(const AgentSession& session);
  static bool DueByPolicy(const AgentSession& session);
  // A compaction that the floor held: what becomes of the session.
  void TakeHeld(AgentSession* session, shm::State resting, CompactionOutcome* outcome);
  // The session in a slot that is BUSY without a job, for a hand-over. Errors as BeginCompaction.
  absl::StatusOr<AgentSession*> FindBusy(uint32_t slot);
  // Takes up the classes of a profile that the worker has published since the last hand-over.
  bool TakeProfile(AgentSession* session);
  SessionRows Rows(const AgentSession& session);
  // Rows of the longest head at which a session with a format is due to be sealed, under pressure
  // or not; nullopt: never.
  std::optional<uint32_t> SealAt(const AgentSession& session) const;
  static bool PolicyTurn(const AgentSession& session, Pressure pressure);
  // Tells the worker when the session is due next, by its policy or to be sealed. The policy is
  // asked anew if it had its say in the last hand-over.
  void SetCompactAt(AgentSession* session);
  uint32_t PagesFreedBySealing(const AgentSession& session,
                               const std::optional<Selection>& selection) const;
  // What a job left becomes what the session is.
  static void TakeResult(AgentSession* session, const CompactionJob& job,
                         CompactionOutcome* outcome);
  void Free(AgentSession* session);
  // Its pages, its charge and its profile go.
  void GiveBack(AgentSession* session);
  bool InEvacuatedSlab(PageId page) const;
  std::vector<PageId> GrantReplacements(AgentSession* session, size_t count);

  AttachmentSetup setup_;
  PoolLedger* ledger_;
  std::unique_ptr<SharedRegions> regions_;
  std::map<uint32_t, AgentSession> sessions_;  // by slot
  std::vector<uint32_t> free_slots_;
  Charge charge_;

  std::vector<PageId> scratch_;
  uint32_t target_ = 2;
  uint64_t granted_ = 0;    // our copy of the grant ring's produced index
  uint64_t consumed_ = 0;   // last believable consumed index of the worker
  uint64_t collected_ = 0;  // our copy of the return ring's consumed index
  uint64_t bad_returns_ = 0;
  uint64_t bad_page_lists_ = 0;
  uint64_t bad_profiles_ = 0;
  uint64_t missing_profiles_ = 0;
  uint64_t unscored_ = 0;
};

}  // namespace kvpool
