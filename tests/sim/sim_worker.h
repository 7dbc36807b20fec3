// A worker of the simulation: it attaches for one tenant, opens sessions, takes pages, publishes
// them, hands over, goes idle and closes. It may lie: name pages that it does not have, return
// rubbish, and keep mappings that it said it gave up. It can be stopped and killed from outside.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/sim/agent_workers.h"
#include "tests/sim/network.h"
#include "tests/sim/sim_agent.h"
#include "tests/sim/world.h"

namespace kvpool::sim {

// How a worker behaves.
struct WorkerShape {
  TenantId tenant;
  const Layout* layout = nullptr;
  SimDevice::Holder holder = SimDevice::Holder::kHonest;
  enum class SafePoints : uint8_t { kReached, kNever } safe_points = SafePoints::kReached;
  uint32_t sessions = 4;  // at a time, at most
  uint32_t longest_tokens = 320;
  Duration shortest_life{0}, longest_life{0};  // of a session
  // A probe opens one session of the longest length, fills it, and keeps it.
  enum class Purpose : uint8_t { kLoad, kProbe } purpose = Purpose::kLoad;
};

class SimWorker {
 public:
  using Done = std::function<void()>;

  SimWorker(World& world, Network& network, Process* process, SimAgent* agent, WorkerShape shape)
      : world_(world), network_(network), process_(process), agent_(agent), shape_(shape) {}

  Process* process() const { return process_; }
  SimAgent* agent() const { return agent_; }
  const WorkerShape& shape() const { return shape_; }

  void Start();
  void Kill();
  // Says that it detaches, and ends.
  void Leave();
  // All that a probe wants is there.
  bool served() const { return served_; }
  void TellTruth() { shape_.holder = SimDevice::Holder::kHonest; }

  // Calls of the agent.
  void OnSlabsGranted(SimDevice& device, const std::vector<SlabMemory>& slabs, const Done& answer);
  void OnSlabRevoked(SimDevice& device, SlabIndex slab, const Done& answer);
  void OnPressure(const Done& answer);

 private:
  struct Session {
    SessionId id;
    uint32_t max_tokens = 0;
    uint32_t peak_tokens = 0;
    TimePoint ends;
    bool waits = false;  // for an answer
  };
  enum class Link : uint8_t { kDown, kConnecting, kAttached };

  void Connect();
  void HungUp(uint64_t number);
  void Tick();
  void OpenSession();
  void Step(uint32_t slot);
  void Append(uint32_t slot);
  void HandOver(uint32_t slot);
  void CloseSession(uint32_t slot);
  void Lie();
  PageId AnyPage();
  // Runs `call` at the agent; what it passes to its argument comes back.
  void CallAgent(std::function<void(AgentWorkers&)> call);

  World& world_;
  Network& network_;
  Process* const process_;
  SimAgent* const agent_;
  WorkerShape shape_;
  Link link_ = Link::kDown;
  uint64_t try_number_ = 0;
  ConnectionId connection_ = ConnectionId::kNone;
  WorkerId id_;
  std::shared_ptr<SharedMemory> shared_;
  std::map<uint32_t, Session> sessions_;
  bool opening_ = false;
  bool reserving_ = false;
  bool served_ = false;
};

}  // namespace kvpool::sim
