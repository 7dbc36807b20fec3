// One decision after the other, each a few milliseconds after the last.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/sim_worker.h"

#include <algorithm>
#include <utility>

namespace kvpool::sim {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

using State = SharedMemory::State;

constexpr Network::Delay kDelay{microseconds(20), microseconds(400)};
constexpr milliseconds kFastestTick(10), kSlowestTick(60);
constexpr milliseconds kAfterRefusal(120);
constexpr milliseconds kRedial(200), kLastWords(500);
constexpr uint32_t kChunk = 64;

}  // namespace

void SimWorker::Start() {
  process_->Start();
  process_->After(Duration(0), [this] {
    Connect();
    Tick();
  });
}

void SimWorker::Kill() {
  if (!process_->alive()) return;
  process_->Kill();
  network_.Died(process_, Network::Loss::kProcess);
}

void SimWorker::Connect() {
  if (link_ != Link::kDown || !agent_->running()) return;
  link_ = Link::kConnecting;
  const uint64_t number = ++try_number_;
  auto agents_id = std::make_shared<WorkerId>();
  connection_ = network_.Connect(
      process_,
      [this, number] {
        HungUp(number);
        // Without its memory it has nothing to do any more.
        process_->After(world_.DrawBetween(Duration(0), kLastWords), [this] { Kill(); });
      },
      agent_->process(), [agent = agent_, agents_id] { agent->workers().HungUp(*agents_id); },
      kDelay);
  shared_ = std::make_shared<SharedMemory>();
  network_.Send(
      connection_, process_, [this, number, agents_id, shared = shared_, connection = connection_] {
        const auto id =
            agent_->workers().Attach(this, connection, shape_.tenant, *shape_.layout, shared);
        if (id.ok()) *agents_id = *id;
        network_.Send(connection, agent_->process(), [this, number, id] {
          if (number != try_number_) return;
          if (!id.ok()) {
            network_.Close(connection_, process_);
            return HungUp(number);
          }
          id_ = *id;
          link_ = Link::kAttached;
        });
      });
}

// Its sessions are lost.
void SimWorker::HungUp(uint64_t number) {
  if (number != try_number_) return;
  ++try_number_;
  link_ = Link::kDown;
  sessions_.clear();
  opening_ = reserving_ = served_ = false;
}

void SimWorker::CallAgent(std::function<void(AgentWorkers&)> call) {
  network_.Send(connection_, process_,
                [agent = agent_, call = std::move(call)] { call(agent->workers()); });
}

void SimWorker::Tick() {
  process_->After(world_.DrawBetween(kFastestTick, kSlowestTick), [this] { Tick(); });
  if (link_ == Link::kDown) {
    process_->After(kRedial, [this] { Connect(); });
    return;
  }
  if (link_ != Link::kAttached) return;
  if (shape_.holder == SimDevice::Holder::kLiar && world_.Chance(5)) Lie();
  std::vector<uint32_t> slots;
  for (const auto& [slot, session] : sessions_) slots.push_back(slot);
  for (uint32_t slot : slots) Step(slot);
  if (sessions_.size() < shape_.sessions && !opening_) OpenSession();
}

void SimWorker::OpenSession() {
  const bool probe = shape_.purpose == WorkerShape::Purpose::kProbe;
  if (probe ? !sessions_.empty() : !world_.Chance(30)) return;
  const auto max_tokens = static_cast<uint32_t>(
      probe ? shape_.longest_tokens : kPageTokens + world_.Draw(shape_.longest_tokens));
  const auto prompt = probe ? max_tokens : static_cast<uint32_t>(1 + world_.Draw(max_tokens));
  const SessionPlan plan{
      .prompt_tokens = prompt, .max_tokens = max_tokens, .chunk = std::min(kChunk, max_tokens)};
  opening_ = true;
  const uint64_t number = try_number_;
  CallAgent([this, number, plan, connection = connection_, id = id_](AgentWorkers& workers) {
    const absl::StatusOr<OpenedSession> opened = workers.Open(id, plan);
    network_.Send(connection, agent_->process(), [this, number, plan, opened] {
      if (number != try_number_) return;
      if (!opened.ok()) {
        world_.Note("refused", "process % opens no session of % tokens",
                    {process_->id(), plan.max_tokens});
        process_->After(kAfterRefusal, [this] { opening_ = false; });
        return;
      }
      opening_ = false;
      sessions_[opened->slot] = {
          .id = opened->id,
          .max_tokens = plan.max_tokens,
          .peak_tokens = opened->peak_tokens,
          .ends = world_.now() + world_.DrawBetween(shape_.shortest_life, shape_.longest_life)};
      world_.Note("session", "process % opens session % of % tokens",
                  {process_->id(), static_cast<int64_t>(opened->id.value()), plan.max_tokens});
    });
  });
}

void SimWorker::Step(uint32_t slot) {
  Session& session = sessions_.at(slot);
  SharedMemory::Slot& shared = shared_->slots[slot];
  if (session.waits || shared.state == State::kBusy) return;
  const bool probe = shape_.purpose == WorkerShape::Purpose::kProbe;
  if (shared.state == State::kFailed || (!probe && world_.now() >= session.ends)) {
    return CloseSession(slot);
  }
  if (shared.state == State::kIdle) {
    if (world_.Chance(20)) shared.state = State::kRunning;
    return;
  }
  const bool safe = shape_.safe_points == WorkerShape::SafePoints::kReached;
  if (safe && shared.hand_over == SharedMemory::Slot::HandOver::kAsked) return HandOver(slot);
  if (!probe && world_.Chance(10)) {
    shared.state = State::kIdle;
    return;
  }
  // Its policy's peak is all the memory that a session can want.
  const bool full = shared.tokens + kPageTokens > std::min(session.max_tokens, session.peak_tokens);
  served_ = served_ || (probe && full);
  if (shared.tokens + kPageTokens > session.max_tokens) return;
  if (full) return HandOver(slot);
  Append(slot);
}

void SimWorker::Append(uint32_t slot) {
  SharedMemory::Slot& shared = shared_->slots[slot];
  if (!shared_->grants.empty()) {
    shared.pages.push_back(shared_->grants.front());
    shared_->grants.pop_front();
    shared.tokens += kPageTokens;
    if (shared_->grants.empty())
      CallAgent([id = id_](AgentWorkers& workers) { workers.TopUp(id); });
    return;
  }
  if (reserving_) return;
  reserving_ = true;
  const uint64_t number = try_number_;
  const auto pages = static_cast<uint32_t>(1 + world_.Draw(4));
  CallAgent([this, number, pages, connection = connection_, id = id_](AgentWorkers& workers) {
    workers.Reserve(id, pages, [this, number, connection](const absl::Status& status) {
      network_.Send(connection, agent_->process(), [this, number, status] {
        if (number != try_number_) return;
        if (status.ok()) {
          reserving_ = false;
          return;
        }
        world_.Note("refused", "process % gets no pages", {process_->id()});
        process_->After(kAfterRefusal, [this] { reserving_ = false; });
      });
    });
  });
}

void SimWorker::HandOver(uint32_t slot) {
  Session& session = sessions_.at(slot);
  session.waits = true;
  shared_->slots[slot].state = State::kBusy;
  const uint64_t number = try_number_;
  CallAgent([this, number, slot, session_id = session.id, connection = connection_,
             id = id_](AgentWorkers& workers) {
    workers.HandOver(id, slot, [this, number, slot, session_id, connection] {
      network_.Send(connection, agent_->process(), [this, number, slot, session_id] {
        if (number != try_number_) return;
        const auto found = sessions_.find(slot);
        if (found != sessions_.end() && found->second.id == session_id) {
          found->second.waits = false;
        }
      });
    });
  });
}

void SimWorker::CloseSession(uint32_t slot) {
  const SessionId session = sessions_.at(slot).id;
  sessions_.erase(slot);
  CallAgent([id = id_, slot, session](AgentWorkers& workers) { workers.Close(id, slot, session); });
}

void SimWorker::Leave() {
  process_->After(Duration(0), [this] {
    if (link_ == Link::kAttached) {
      CallAgent([id = id_](AgentWorkers& workers) { workers.Detach(id); });
    }
    Kill();
  });
}

// ---- Calls of the agent ------------------------------------------------------------------------

void SimWorker::OnSlabsGranted(SimDevice& device, const std::vector<SlabMemory>& slabs,
                               const Done& answer) {
  for (const SlabMemory& slab : slabs) device.Map(slab, process_, shape_.holder);
  answer();
}

void SimWorker::OnSlabRevoked(SimDevice& device, SlabIndex slab, const Done& answer) {
  const bool lies = shape_.holder == SimDevice::Holder::kLiar && world_.Chance(50);
  if (!lies) device.Unmap(slab, process_);
  if (shape_.safe_points == WorkerShape::SafePoints::kNever && world_.Chance(30)) return;
  answer();
}

void SimWorker::OnPressure(const Done& answer) {
  for (PageId page : std::exchange(shared_->grants, {})) shared_->returns.push_back(page);
  answer();
}

// ---- Lies --------------------------------------------------------------------------------------

PageId SimWorker::AnyPage() {
  if (world_.Chance(30)) return PageId(static_cast<uint32_t>(world_.Draw(uint64_t{1} << 32)));
  const uint32_t slabs = agent_->shape().slabs;
  const SlabIndex slab(static_cast<uint32_t>(world_.Draw(slabs)));
  return shape_.layout->Page(slab,
                             static_cast<uint32_t>(world_.Draw(shape_.layout->pages_per_slab())));
}

void SimWorker::Lie() {
  world_.NoteFault("lie", "process % writes rubbish into its shared memory", {process_->id()});
  const uint64_t what = world_.Draw(3);
  if (what == 0 || sessions_.empty()) {
    for (int i = 0; i < 8; ++i) shared_->returns.push_back(AnyPage());
    return;
  }
  const uint32_t slot = std::next(sessions_.begin(), world_.Draw(sessions_.size()))->first;
  SharedMemory::Slot& shared = shared_->slots[slot];
  if (what == 1) {
    shared.pages.push_back(AnyPage());
  } else {
    shared.state = static_cast<State>(world_.Draw(5));
    if (!shared.pages.empty()) shared.pages.push_back(shared.pages.front());
  }
}

}  // namespace kvpool::sim
