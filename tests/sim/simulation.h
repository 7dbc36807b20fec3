// One seed's cluster and what befalls it, in three acts: load with faults; no more faults, and
// everything that is guaranteed must come true; everybody leaves, and nothing may be left. Checked
// after every event.
//
// A value of options in, a value of results out. One thread; simulations share nothing.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/tenants_file.h"
#include "tests/sim/invariants.h"
#include "tests/sim/network.h"
#include "tests/sim/sim_agent.h"
#include "tests/sim/sim_manager.h"
#include "tests/sim/sim_worker.h"
#include "tests/sim/world.h"

namespace kvpool::sim {

class Simulation;

struct Options {
  uint32_t agents = 4;   // at most
  uint32_t tenants = 6;  // at a time, at most
  Duration faulty = std::chrono::seconds(20);
  World::Recording recording = World::Recording::kOff;
  // Called once in the middle of the faults: for tests of the checks.
  std::function<void(Simulation&)> saboteur;
};

struct Result {
  uint64_t seed = 0;
  uint64_t hash = 0;
  uint64_t events = 0;
  uint64_t checks = 0;
  Duration simulated{0};
  std::optional<Violation> violation;
  std::map<std::string, uint64_t> event_counts, fault_counts;
  std::vector<std::string> last_events;  // as far as they were recorded
};

Result Simulate(uint64_t seed, const Options& options);

class Simulation {
 public:
  Simulation(uint64_t seed, const Options& options);

  Result Run();

  // For saboteurs.
  World& world() { return world_; }
  Network& network() { return network_; }
  std::deque<SimAgent>& agents() { return agents_; }
  std::deque<SimManager>& managers() { return managers_; }
  std::deque<SimWorker>& workers() { return workers_; }
  // Full for good, also when the other faults stop.
  void FillDisk();

 private:
  using Demands = std::map<std::string, std::vector<int64_t>>;  // tenant -> slabs [agent]
  enum class Act : uint8_t { kFaults, kGuarantees, kLeaving };

  // Setting the stage.
  SimManager* Leader();
  SimManager* AnyManager();
  TenantSpec NewSpec(const std::string& name);
  Bytes Slabs(int64_t slabs) const;
  int64_t ClusterSlabs() const;
  const Layout* AnyLayout();

  // Runs events until `until` or until `done`; false when something is violated.
  bool RunUntil(TimePoint until, const std::function<bool()>& done);

  // Load.
  void Populate();
  void Spawn(SimAgent* agent, TenantId tenant);
  void Operate();
  void MutateTenants(SimManager* leader);

  // Faults (faults.cc).
  void NextFault();
  void InjectFault();
  void FaultManager();
  void FaultAgent();
  void FaultNetwork();
  void FaultWorker();
  void FaultDevice();
  void CrashManager(SimManager* manager, Network::Loss loss);
  void FailOver();
  void CrashAgent(SimAgent* agent);
  void EndFaults();

  // The last two acts (endings.cc).
  bool CheckLiveness();
  bool SetGuarantees(Demands* demands);
  bool RunOperator(const std::function<void(SimManager&, SimManager::Done)>& request);
  void StartProbes(const Demands& demands);
  bool PoliciesKnown();
  bool ProbesServed() const;
  bool CheckBaseline();
  bool DeleteTenants();
  std::string Leftovers() const;

  const uint64_t seed_;
  const Options options_;
  World world_;
  Network network_;
  Disk disk_;
  std::deque<Layout> layouts_;
  std::deque<SimManager> managers_;
  std::deque<SimAgent> agents_;
  std::deque<SimWorker> workers_;
  std::vector<SimWorker*> probes_;
  Invariants invariants_;
  Act act_ = Act::kFaults;
  bool disk_heals_ = true;
  uint64_t next_name_ = 1;
};

}  // namespace kvpool::sim
