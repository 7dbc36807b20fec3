// The last two acts of a simulation: what is guaranteed comes true, and nothing is left behind.
//
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/admission.h"
#include "tests/sim/simulation.h"

namespace kvpool::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Longer than anything that may still be running: a lost machine is noticed after 20 s, a STUCK
// slab is looked at every 5 s, an agent dials every 5 s, a session of others lives 4 s.
constexpr seconds kBound(60);
constexpr uint32_t kChunk = 64;
// What an agent may have waiting when nothing happens: deadlines of the last calls.
constexpr size_t kEventsPerAgent = 64;

// The longest session of at most so many slabs; 0: there is none.
uint32_t TokensFor(const Layout& layout, const TenantSpec& spec, int64_t slabs) {
  const std::unique_ptr<const Policy> policy = MakePolicy(spec.policy);
  for (auto pages = slabs * layout.pages_per_slab(); pages > 0; --pages) {
    const auto tokens = static_cast<uint32_t>(pages * kPageTokens);
    const SessionPlan plan{.prompt_tokens = tokens, .max_tokens = tokens, .chunk = kChunk};
    const Charge charge = PeakCharge(layout, *policy, SealRuleOf(spec.policy), plan);
    if (SlabsFor(layout, charge) <= slabs) return tokens;
  }
  return 0;
}

// What a tenant has at each agent, for people.
std::string Describe(const std::deque<SimAgent>& agents, TenantId tenant) {
  std::string text;
  for (const SimAgent& agent : agents) {
    const TenantUsage usage = agent.ledger().Usage(tenant);
    absl::StrAppend(&text, text.empty() ? "" : "; ", agent.shape().name, " lease ",
                    usage.lease_slabs, ", charged ", agent.workers().ChargedSlabs(tenant),
                    ", wanted ", agent.workers().WantedSlabs(tenant, agent.process()->Now()),
                    ", holds ", usage.held_slabs, " (", usage.evacuating_slabs, " evacuating, ",
                    usage.draining_slabs, " draining, ", usage.stuck_slabs, " stuck, ",
                    usage.free_pages, " pages free), ", agent.workers().Count(tenant), " workers, ",
                    agent.workers().Sessions(tenant), " sessions, ", agent.ledger().free_slabs(),
                    " of ", agent.capacity(), " slabs free");
  }
  return text;
}

}  // namespace

// Repeats a request until a manager has done it: one that is learning, or changes hands, may not.
bool Simulation::RunOperator(const std::function<void(SimManager&, SimManager::Done)>& request) {
  const TimePoint end = world_.now() + kBound;
  absl::Status last = absl::UnavailableError("no manager");
  while (world_.now() < end) {
    auto outcome = std::make_shared<std::optional<absl::Status>>();
    if (SimManager* leader = Leader(); leader != nullptr) {
      request(*leader, [outcome](const absl::Status& status) { *outcome = status; });
    }
    const TimePoint retry = world_.now() + milliseconds(500);
    if (!RunUntil(retry, [&] { return outcome->has_value(); })) return false;
    if (outcome->has_value()) {
      last = **outcome;
      if (last.ok()) return true;
    }
    if (!RunUntil(retry, [] { return false; })) return false;
  }
  world_.Violate("I9", absl::StrCat("the operator is not served: ", std::string(last.message())));
  return false;
}

// Every other tenant is guaranteed what it is about to ask for, the rest nothing; all of them may
// borrow.
bool Simulation::SetGuarantees(Demands* demands) {
  std::vector<int64_t> room;
  for (const SimAgent& agent : agents_) room.push_back(agent.capacity());
  std::vector<TenantSpec> specs;
  size_t index = 0;
  for (const auto& [name, tenant] : Leader()->cluster()->tenants().by_name()) {
    TenantSpec spec = tenant.spec;
    spec.floors.clear();
    std::vector<int64_t> demand(agents_.size());
    int64_t sum = 0;
    for (size_t a = 0; a < agents_.size() && index % 2 == 0; ++a) {
      demand[a] = std::min<int64_t>(room[a], static_cast<int64_t>(world_.Draw(6)));
      if (TokensFor(layouts_[0], spec, demand[a]) == 0) demand[a] = 0;
      room[a] -= demand[a];
      sum += demand[a];
    }
    spec.guaranteed = Slabs(sum);
    spec.limit = std::max(spec.guaranteed, Slabs(index % 2 == 0 ? sum : ClusterSlabs() / 2));
    (*demands)[name] = demand;
    specs.push_back(spec);
    ++index;
  }
  return RunOperator([&specs](SimManager& manager, SimManager::Done done) {
    manager.Apply(specs, std::move(done));
  });
}

void Simulation::StartProbes(const Demands& demands) {
  for (const auto& [name, tenant] : Leader()->cluster()->tenants().by_name()) {
    // One that an earlier request has created in the meantime asks for nothing.
    const auto found = demands.find(name);
    if (found == demands.end() || tenant.spec.guaranteed == 0_B) continue;
    const std::vector<int64_t>& demand = found->second;
    for (SimWorker& worker : workers_) {
      if (worker.shape().tenant == tenant.id) worker.Leave();
    }
    for (size_t a = 0; a < agents_.size(); ++a) {
      if (demand[a] == 0) continue;
      WorkerShape shape{.tenant = tenant.id,
                        .layout = &layouts_[0],
                        .sessions = 1,
                        .longest_tokens = TokensFor(layouts_[0], tenant.spec, demand[a]),
                        .purpose = WorkerShape::Purpose::kProbe};
      Process* process = world_.NewProcess(absl::StrCat("probe-", probes_.size()));
      workers_.emplace_back(world_, network_, process, &agents_[a], shape);
      probes_.push_back(&workers_.back());
      workers_.back().Start();
    }
  }
}

bool Simulation::PoliciesKnown() {
  const auto& tenants = Leader()->cluster()->tenants().by_name();
  return std::all_of(agents_.begin(), agents_.end(), [&](const SimAgent& agent) {
    return std::all_of(tenants.begin(), tenants.end(), [&](const auto& entry) {
      const TenantState* state = agent.book().Find(entry.second.id);
      return state != nullptr && state->spec == entry.second.spec.policy;
    });
  });
}

bool Simulation::ProbesServed() const {
  return std::all_of(probes_.begin(), probes_.end(),
                     [](const SimWorker* probe) { return probe->served(); });
}

// I9.
bool Simulation::CheckLiveness() {
  const auto linked = [this] {
    return std::all_of(agents_.begin(), agents_.end(),
                       [](const SimAgent& agent) { return agent.registered(); });
  };
  if (!RunUntil(world_.now() + kBound, linked)) return false;
  if (!linked()) {
    world_.Violate("I9", "an agent does not find its manager");
    return false;
  }
  Demands demands;
  if (!SetGuarantees(&demands)) return false;
  // A session keeps the policy that it was opened under.
  if (!RunUntil(world_.now() + kBound, [this] { return PoliciesKnown(); })) return false;
  StartProbes(demands);
  if (!RunUntil(world_.now() + kBound, [this] { return ProbesServed(); })) return false;
  for (const SimWorker* probe : probes_) {
    if (probe->served()) continue;
    world_.Violate(
        "I9", absl::StrCat(
                  "tenant ", probe->shape().tenant.value(), " waits at ",
                  probe->agent()->shape().name, " for a session of ", probe->shape().longest_tokens,
                  " tokens within its guarantee: ", Describe(agents_, probe->shape().tenant)));
    return false;
  }
  world_.Note("act", "what is guaranteed is served");
  return true;
}

bool Simulation::DeleteTenants() {
  std::vector<TenantSpec> specs;
  for (const auto& [name, tenant] : Leader()->cluster()->tenants().by_name()) {
    specs.push_back(tenant.spec);
    specs.back().guaranteed = specs.back().limit = 0_B;
    specs.back().floors.clear();
  }
  if (!RunOperator([&specs](SimManager& manager, SimManager::Done done) {
        manager.Apply(specs, std::move(done));
      })) {
    return false;
  }
  for (const TenantSpec& spec : specs) {
    if (!RunOperator([&spec](SimManager& manager, SimManager::Done done) {
          manager.RemoveTenant(spec.name, std::move(done));
        })) {
      return false;
    }
  }
  return true;
}

// I10, I7. What is not as it was at the beginning, in words; empty: nothing.
std::string Simulation::Leftovers() const {
  for (const SimAgent& agent : agents_) {
    const std::string& name = agent.shape().name;
    const PoolLedger& ledger = agent.ledger();
    for (const auto& [id, worker] : agent.workers().all()) {
      return absl::StrCat(name, " still has worker ", id.value(), " (",
                          worker.peer->process()->alive() ? "alive" : "dead", ", ",
                          worker.detached ? "detached" : "attached", ", ",
                          worker.growing ? "growing, " : "", worker.sessions.size(), " sessions)");
    }
    if (ledger.free_slabs() != agent.shape().slabs) return name + " has slabs that are not free";
    if (agent.device().objects() > 0) return name + " has memory that no slab needs";
    if (!ledger.Tenants().empty()) return name + "'s ledger still has tenants";
    if (!agent.book().tenants().empty()) return name + " still knows tenants that are gone";
    if (agent.workers().jobs_begun() != agent.workers().jobs_ended()) {
      return name + " has jobs that never ended";
    }
  }
  if (network_.open() != agents_.size()) {
    return absl::StrCat(network_.open(), " connections are open for ", agents_.size(), " agents");
  }
  if (world_.waiting() > kEventsPerAgent * (1 + agents_.size())) {
    return absl::StrCat(world_.waiting(), " timers wait");
  }
  return "";
}

bool Simulation::CheckBaseline() {
  act_ = Act::kLeaving;
  for (SimWorker& worker : workers_) worker.Leave();
  probes_.clear();
  if (!DeleteTenants()) return false;
  if (!RunUntil(world_.now() + kBound, [this] { return Leftovers().empty(); })) return false;
  if (const std::string left = Leftovers(); !left.empty()) {
    const bool job = left.find("jobs") != std::string::npos;
    world_.Violate(job ? "I7" : "I10", left);
    return false;
  }
  world_.Note("act", "nothing is left");
  return true;
}

}  // namespace kvpool::sim
