// What goes wrong in a simulation, when, and how it is put right again. See simulation.h.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "tests/sim/simulation.h"

namespace kvpool::sim {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;

}  // namespace

void Simulation::NextFault() {
  world_.At(world_.now() + world_.DrawBetween(milliseconds(50), milliseconds(1500)), nullptr,
            [this] {
              if (act_ != Act::kFaults) return;
              InjectFault();
              NextFault();
            });
}

void Simulation::InjectFault() {
  const uint64_t what = world_.Draw(100);
  if (what < 15) return FaultManager();
  if (what < 30) return FaultAgent();
  if (what < 60) return FaultNetwork();
  if (what < 85) return FaultWorker();
  FaultDevice();
}

// ---- Managers and the disk ---------------------------------------------------------------------

void Simulation::CrashManager(SimManager* manager, Network::Loss loss) {
  world_.NoteFault("manager crash", "manager process %", {manager->process()->id()});
  manager->Crash(loss);
  const Duration pause = world_.DrawBetween(milliseconds(100), seconds(6));
  world_.At(world_.now() + pause, nullptr, [this] {
    if (Leader() == nullptr) managers_[world_.Draw(managers_.size())].Start();
  });
}

// The old one does not notice for a while.
void Simulation::FailOver() {
  SimManager* old = Leader();
  const auto next = std::find_if(managers_.begin(), managers_.end(), [](const SimManager& manager) {
    return manager.cluster() == nullptr;
  });
  if (old == nullptr || next == managers_.end()) return;
  world_.NoteFault("two managers", "manager process % goes on beside %",
                   {old->process()->id(), next->process()->id()});
  next->Start();
  const uint64_t life = old->process()->life();
  world_.At(world_.now() + world_.DrawBetween(milliseconds(200), seconds(10)), nullptr,
            [this, old, life] {
              const bool same = old->process()->life() == life;
              if (same && act_ == Act::kFaults) old->Crash(Network::Loss::kProcess);
            });
}

void Simulation::FaultManager() {
  SimManager* leader = Leader();
  if (leader == nullptr) return;
  Process* process = leader->process();
  switch (world_.Draw(6)) {
    case 0:
      return CrashManager(leader, Network::Loss::kProcess);
    case 1:
      return CrashManager(leader, Network::Loss::kMachine);
    case 2:
      return FailOver();
    case 3:
      world_.NoteFault("manager stopped", "manager process %", {process->id()});
      return process->StopUntil(world_.now() + world_.DrawBetween(milliseconds(100), seconds(8)));
    case 4:
      world_.NoteFault("clock jump", "of manager process %", {process->id()});
      return process->JumpClock(world_.DrawBetween(seconds(1), hours(24)));
    default:
      world_.NoteFault("disk full", "at the manager");
      disk_.full_until = world_.now() + world_.DrawBetween(milliseconds(100), seconds(5));
  }
}

void Simulation::FillDisk() {
  disk_heals_ = false;
  disk_.full_until = world_.now() + hours(24);
}

// ---- Agents ------------------------------------------------------------------------------------

void Simulation::CrashAgent(SimAgent* agent) {
  const auto loss = world_.Chance(30) ? Network::Loss::kMachine : Network::Loss::kProcess;
  world_.NoteFault("agent crash", "agent process %", {agent->process()->id()});
  agent->Crash(loss);
  if (loss == Network::Loss::kMachine) {
    for (SimWorker& worker : workers_) {
      if (worker.agent() == agent) worker.Kill();
    }
  }
  if (world_.Chance(30)) {
    world_.At(world_.now() + seconds(1), nullptr, [this, agent] {
      SimManager* leader = Leader();
      if (leader == nullptr || agent->running() || leader->process()->stopped()) return;
      world_.NoteFault("agent forgotten", "agent process %", {agent->process()->id()});
      agent->WipeDisk();  // as its operator must: nobody counts any more what it would begin with
      leader->ForgetAgent(agent->shape().name, [](const absl::Status&) {});
    });
  }
  world_.At(world_.now() + world_.DrawBetween(milliseconds(100), seconds(8)), nullptr, [agent] {
    if (!agent->running()) agent->Start();
  });
}

void Simulation::FaultAgent() {
  SimAgent* agent = &agents_[world_.Draw(agents_.size())];
  if (!agent->running()) return;
  Process* process = agent->process();
  switch (world_.Draw(4)) {
    case 0:
      return CrashAgent(agent);
    case 1:
      world_.NoteFault("clock jump", "of agent process %", {process->id()});
      return process->JumpClock(world_.DrawBetween(seconds(1), hours(24)));
    default:
      world_.NoteFault("agent stopped", "agent process %", {process->id()});
      return process->StopUntil(world_.now() + world_.DrawBetween(milliseconds(50), seconds(7)));
  }
}

// ---- Connections -------------------------------------------------------------------------------

void Simulation::FaultNetwork() {
  const auto is_manager = [this](const Process* process) {
    return std::any_of(managers_.begin(), managers_.end(),
                       [&](const SimManager& manager) { return manager.process() == process; });
  };
  const uint64_t what = world_.Draw(10);
  if (what < 4) {
    world_.NoteFault("connection lost", "between an agent and a manager");
    network_.BreakOne(
        [&](const Process* a, const Process* b) { return is_manager(a) || is_manager(b); });
  } else if (what < 5) {
    world_.NoteFault("connection lost", "between a worker and its agent");
    network_.BreakOne(
        [&](const Process* a, const Process* b) { return !is_manager(a) && !is_manager(b); });
  } else {
    const Process* agent = agents_[world_.Draw(agents_.size())].process();
    const TimePoint until = world_.now() + world_.DrawBetween(milliseconds(50), seconds(12));
    const uint64_t ways = world_.Draw(3);
    world_.NoteFault(ways == 2 ? "partition" : "one-way partition", "agent process %, way %",
                     {agent->id(), static_cast<int64_t>(ways)});
    for (const SimManager& manager : managers_) {
      if (ways != 0) network_.Block(agent, manager.process(), until);
      if (ways != 1) network_.Block(manager.process(), agent, until);
    }
  }
}

// ---- Workers and memory ------------------------------------------------------------------------

void Simulation::FaultWorker() {
  std::vector<SimWorker*> living;
  for (SimWorker& worker : workers_) {
    if (worker.process()->alive()) living.push_back(&worker);
  }
  if (living.empty()) return;
  SimWorker* worker = living[world_.Draw(living.size())];
  switch (world_.Draw(4)) {
    case 0:
      world_.NoteFault("worker killed", "process %", {worker->process()->id()});
      return worker->Kill();
    case 1:
      world_.Note("worker", "process % leaves", {worker->process()->id()});
      return worker->Leave();
    default:
      world_.NoteFault("worker stopped", "process %", {worker->process()->id()});
      worker->process()->StopUntil(world_.now() +
                                   world_.DrawBetween(milliseconds(100), seconds(15)));
  }
}

void Simulation::FaultDevice() {
  SimAgent& agent = agents_[world_.Draw(agents_.size())];
  if (!agent.running()) return;
  const TimePoint until = world_.now() + world_.DrawBetween(milliseconds(100), seconds(8));
  if (world_.Chance(50)) {
    world_.NoteFault("memory short", "at agent process %", {agent.process()->id()});
    agent.device().RunShort(until);
  } else {
    world_.NoteFault("memory stuck", "at agent process %", {agent.process()->id()});
    agent.device().Stick(until);
  }
}

// Everything that is broken is whole again, and whoever lied is gone.
void Simulation::EndFaults() {
  act_ = Act::kGuarantees;
  network_.Heal();
  if (disk_heals_) disk_.full_until = TimePoint();
  SimManager* leader = Leader();
  if (leader != nullptr && leader->cluster()->epoch() < disk_.epoch) leader = nullptr;
  for (SimManager& manager : managers_) {
    if (&manager != leader) manager.Crash(Network::Loss::kProcess);
    manager.process()->Resume();
  }
  if (leader == nullptr) managers_[0].Start();
  for (SimAgent& agent : agents_) {
    if (!agent.running()) agent.Start();
    agent.process()->Resume();
    agent.device().RunShort(TimePoint());
    agent.device().Stick(TimePoint());
  }
  for (SimWorker& worker : workers_) {
    worker.process()->Resume();
    const WorkerShape& shape = worker.shape();
    const bool bad = shape.holder == SimDevice::Holder::kLiar ||
                     shape.safe_points == WorkerShape::SafePoints::kNever;
    if (bad) worker.Kill();
  }
  world_.Note("act", "faults have stopped");
}

}  // namespace kvpool::sim
