// The stage, the load and the operator. See simulation.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/simulation.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/geometry.h"

namespace kvpool::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Bytes kSlabBytes = 64_KiB;
constexpr size_t kWorkersPerAgent = 4;

Layout MakeLayout(uint32_t layers, uint32_t heads) {
  Geometry geometry{.layers = layers,
                    .query_heads = heads,
                    .kv_heads = heads,
                    .key_dim = 16,
                    .value_dim = 16,
                    .dtype = Dtype::kBf16};
  for (uint32_t i = 0; i < layers; ++i) geometry.kv_of_layer.push_back(static_cast<uint16_t>(i));
  return Layout::Make(geometry, kSlabBytes).value();
}

}  // namespace

Simulation::Simulation(uint64_t seed, const Options& options)
    : seed_(seed),
      options_(options),
      world_(seed, options.recording),
      network_(world_),
      invariants_(world_, agents_, managers_, kSlabBytes) {
  layouts_.push_back(MakeLayout(3, 2));  // 10 pages a slab
  layouts_.push_back(MakeLayout(2, 2));  // 16
  for (int i = 0; i < 2; ++i) {
    managers_.emplace_back(world_, network_, disk_, world_.NewProcess(absl::StrCat("manager-", i)));
  }
  const uint64_t agents = 1 + world_.Draw(options_.agents);
  for (uint64_t i = 0; i < agents; ++i) {
    const std::string name = absl::StrCat("agent-", i);
    const auto reserve = static_cast<uint32_t>(world_.Draw(2));
    agents_.emplace_back(SimAgent::Deps{.world = &world_,
                                        .network = &network_,
                                        .process = world_.NewProcess(name),
                                        .dial = [this] { return AnyManager(); }},
                         AgentShape{.name = name,
                                    .slabs = reserve + 6 + static_cast<uint32_t>(world_.Draw(14)),
                                    .reserve = reserve,
                                    .slab_bytes = kSlabBytes});
  }
}

SimManager* Simulation::Leader() {
  SimManager* leader = nullptr;
  for (SimManager& manager : managers_) {
    const Cluster* cluster = manager.cluster();
    if (cluster == nullptr) continue;
    if (leader == nullptr || cluster->epoch() > leader->cluster()->epoch()) leader = &manager;
  }
  return leader;
}

// While an old manager goes on beside the new one, the address may lead to either.
SimManager* Simulation::AnyManager() {
  std::vector<SimManager*> running;
  for (SimManager& manager : managers_) {
    if (manager.cluster() != nullptr) running.push_back(&manager);
  }
  return running.empty() ? nullptr : running[world_.Draw(running.size())];
}

Bytes Simulation::Slabs(int64_t slabs) const { return kSlabBytes * slabs; }

int64_t Simulation::ClusterSlabs() const {
  int64_t slabs = 0;
  for (const SimAgent& agent : agents_) slabs += agent.capacity();
  return slabs;
}

const Layout* Simulation::AnyLayout() { return &layouts_[world_.Draw(layouts_.size())]; }

bool Simulation::RunUntil(TimePoint until, const std::function<bool()>& done) {
  while (!done() && world_.Step(until)) {
    invariants_.AfterEvent();
    if (world_.violation().has_value()) return false;
  }
  return true;
}

// ---- Load --------------------------------------------------------------------------------------

void Simulation::Spawn(SimAgent* agent, TenantId tenant) {
  WorkerShape shape{.tenant = tenant,
                    .layout = AnyLayout(),
                    .sessions = 1 + static_cast<uint32_t>(world_.Draw(5)),
                    .longest_tokens = 64 + static_cast<uint32_t>(world_.Draw(512)),
                    .shortest_life = milliseconds(100),
                    .longest_life = milliseconds(200 + world_.Draw(4000))};
  if (act_ == Act::kFaults) {
    if (world_.Chance(15)) shape.holder = SimDevice::Holder::kLiar;
    if (world_.Chance(10)) shape.safe_points = WorkerShape::SafePoints::kNever;
  }
  Process* process = world_.NewProcess(absl::StrCat("worker-", workers_.size()));
  workers_.emplace_back(world_, network_, process, agent, shape);
  workers_.back().Start();
}

void Simulation::Populate() {
  if (act_ == Act::kLeaving) return;
  world_.At(world_.now() + milliseconds(300), nullptr, [this] { Populate(); });
  std::map<SimAgent*, size_t> living;
  for (SimWorker& worker : workers_) living[worker.agent()] += worker.process()->alive() ? 1 : 0;
  for (SimAgent& agent : agents_) {
    if (!agent.running() || living[&agent] >= kWorkersPerAgent || !world_.Chance(50)) continue;
    std::vector<TenantId> tenants;
    for (const auto& [id, tenant] : agent.book().tenants()) {
      const bool probed =
          std::any_of(probes_.begin(), probes_.end(),
                      [&, id = id](const SimWorker* probe) { return probe->shape().tenant == id; });
      if (tenant.lease_slabs > 0 && !probed) tenants.push_back(id);
    }
    if (!tenants.empty()) Spawn(&agent, tenants[world_.Draw(tenants.size())]);
  }
}

// ---- The operator ------------------------------------------------------------------------------

TenantSpec Simulation::NewSpec(const std::string& name) {
  const auto all = static_cast<uint64_t>(ClusterSlabs());
  TenantSpec spec{.name = name};
  spec.limit = Slabs(static_cast<int64_t>(world_.Draw(all + 1)));
  spec.guaranteed =
      std::min(spec.limit, Slabs(static_cast<int64_t>(world_.Draw(all / options_.tenants + 1))));
  Bytes rest = spec.guaranteed;
  for (const SimAgent& agent : agents_) {
    const int64_t share = agent.capacity() / static_cast<int64_t>(options_.tenants);
    if (!world_.Chance(30) || share == 0) continue;
    const Bytes floor = std::min(rest, Slabs(static_cast<int64_t>(world_.Draw(share + 1))));
    if (floor > 0_B) spec.floors[agent.shape().name] = floor;
    rest -= floor;
  }
  // Not always whole slabs.
  if (world_.Chance(20)) spec.limit += Bytes(1000);
  if (world_.Chance(50)) {
    const auto recent = static_cast<int64_t>(16 + world_.Draw(96));
    spec.policy = MakePolicySpec("streaming", {{"recent", recent}}).value();
  }
  return spec;
}

void Simulation::MutateTenants(SimManager* leader) {
  std::vector<std::string> names;
  for (const auto& [name, tenant] : leader->cluster()->tenants().by_name()) names.push_back(name);
  const auto note = [this](const absl::Status& status) {
    world_.Note("operator", "the change ends with code %", {static_cast<int64_t>(status.code())});
  };
  const uint64_t what = world_.Draw(10);
  if (names.size() < options_.tenants && (names.empty() || what < 3)) {
    const std::string name = absl::StrCat("tenant-", next_name_++);
    world_.Note("operator", "creates tenant-%", {static_cast<int64_t>(next_name_ - 1)});
    leader->Apply({NewSpec(name)}, note);
  } else if (what < 8) {
    const std::string& name = names[world_.Draw(names.size())];
    world_.Note("operator", "changes a tenant's budget");
    leader->Apply({NewSpec(name)}, note);
  } else {
    const std::string name = names[world_.Draw(names.size())];
    world_.Note("operator", "deletes a tenant");
    TenantSpec empty = leader->cluster()->tenants().Find(name)->spec;
    empty.guaranteed = empty.limit = 0_B;
    empty.floors.clear();
    leader->Apply({empty}, [leader, name, note](const absl::Status& status) {
      if (status.ok()) leader->RemoveTenant(name, note);
    });
  }
}

void Simulation::Operate() {
  world_.At(world_.now() + world_.DrawBetween(milliseconds(200), milliseconds(2500)), nullptr,
            [this] {
              if (act_ != Act::kFaults) return;
              Operate();
              SimManager* leader = Leader();
              if (leader != nullptr && !leader->process()->stopped()) MutateTenants(leader);
            });
}

// ---- Three acts --------------------------------------------------------------------------------

Result Simulation::Run() {
  managers_[0].Start();
  for (SimAgent& agent : agents_) agent.Start();
  std::vector<TenantSpec> specs;
  for (uint64_t i = 1 + world_.Draw(options_.tenants); i > 0; --i) {
    specs.push_back(NewSpec(absl::StrCat("tenant-", next_name_++)));
  }
  managers_[0].Apply(specs, [](const absl::Status&) {});
  Populate();
  Operate();
  NextFault();
  if (options_.saboteur) {
    world_.At(world_.now() + options_.faulty / 2, nullptr, [this] { options_.saboteur(*this); });
  }
  const TimePoint end = world_.now() + options_.faulty;
  if (RunUntil(end, [] { return false; })) {
    EndFaults();
    if (CheckLiveness()) CheckBaseline();
  }
  invariants_.Walk();
  return {.seed = seed_,
          .hash = world_.hash(),
          .events = world_.events(),
          .checks = invariants_.checks(),
          .simulated = world_.elapsed(),
          .violation = world_.violation(),
          .event_counts = world_.EventCounts(),
          .fault_counts = world_.FaultCounts(),
          .last_events = {world_.last_events().begin(), world_.last_events().end()}};
}

Result Simulate(uint64_t seed, const Options& options) { return Simulation(seed, options).Run(); }

}  // namespace kvpool::sim
