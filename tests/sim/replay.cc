// Who gets which request, and the manager's side of a replay.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/replay.h"

#include <algorithm>
#include <deque>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "proto/limits.h"
#include "tests/sim/replay_agent.h"

namespace kvpool::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// As the real link: agent/manager_link.cc.
constexpr milliseconds kReportSpacing(20), kReportEvery(limits::kReportMillis);

// A number in 0..1 from a hash.
double Share(PrefixKey key) { return static_cast<double>(key.value() >> 11) * 0x1p-53; }

// The value at a part of all that were seen; sorts them.
Duration At(std::vector<Duration>* values, double part) {
  if (values->empty()) return Duration(0);
  const auto index = static_cast<size_t>(part * static_cast<double>(values->size() - 1));
  std::nth_element(values->begin(), values->begin() + static_cast<std::ptrdiff_t>(index),
                   values->end());
  return (*values)[index];
}

class Run {
 public:
  Run(const std::vector<Request>& requests, const ReplayOptions& options,
      const Contender& contender, const Layout& layout, std::atomic<uint64_t>* arrived);
  ReplayResult Result();

 private:
  struct Link {
    std::optional<ReplayAgent> agent;
    std::string name;
    bool exchanging = false;
    bool hurried = false;
    TimePoint last_answer;
    uint64_t tries = 0;
  };

  bool budgets() const { return contender_.division == Contender::Division::kBudgets; }
  Bytes Slabs(int64_t slabs) const { return kReplaySlab * slabs; }
  void StartManager();
  void GiveShares();
  void Next(size_t request);
  void Sample();
  void Hurry(size_t index);
  void ExchangeAfter(size_t index, Duration pause);
  void Exchange(size_t index);
  TenantOrder OrderOf(const TenantOrders& orders) const;
  void CheckBudget(TenantId tenant);

  const std::vector<Request>& requests_;
  const ReplayOptions options_;
  const Contender contender_;
  const Layout layout_;
  std::atomic<uint64_t>* const arrived_;
  const int64_t slabs_, share_;  // of an agent; of a tenant at an agent
  World world_;
  ReplayCounts counts_;
  std::optional<Cluster> cluster_;
  std::deque<Link> links_;
  uint64_t samples_ = 0;
  bool over() const { return counts_.result.requests == requests_.size() && counts_.open == 0; }
};

Run::Run(const std::vector<Request>& requests, const ReplayOptions& options,
         const Contender& contender, const Layout& layout, std::atomic<uint64_t>* arrived)
    : requests_(requests),
      options_(options),
      contender_(contender),
      layout_(layout),
      arrived_(arrived),
      slabs_(options.pool / kReplaySlab),
      share_(slabs_ / options.tenants),
      world_(1, World::Recording::kOff) {
  counts_.result.name = contender.name;
  const std::shared_ptr<const Policy> policy = MakePolicy(contender.policy);
  for (uint32_t i = 0; i < options_.agents; ++i) {
    Link& link = links_.emplace_back();
    link.name = absl::StrCat("gpu-", i);
    link.agent.emplace(
        ReplayAgent::Deps{.world = &world_,
                          .options = &options_,
                          .contender = &contender_,
                          .layout = &layout_,
                          .policy = policy,
                          .counts = &counts_,
                          .hurry = [this, i] { Hurry(i); },
                          .holds_more = [this](TenantId tenant) { CheckBudget(tenant); }},
        static_cast<uint32_t>(slabs_), static_cast<uint32_t>(share_));
  }
  budgets() ? StartManager() : GiveShares();
}

void Run::StartManager() {
  std::vector<Tenant> tenants;
  for (uint32_t i = 1; i <= options_.tenants; ++i) {
    TenantSpec spec{.name = absl::StrCat("tenant-", i),
                    .guaranteed = Slabs(share_ * options_.agents),
                    .limit = Slabs(kLimitTimes * share_ * options_.agents),
                    .policy = contender_.policy,
                    .over_deadline = OverDeadline::kPreempt};
    for (const Link& link : links_) spec.floors[link.name] = Slabs(share_);
    tenants.push_back({.id = TenantId(i), .spec = std::move(spec), .revision = 1});
  }
  cluster_.emplace(Cluster::Start{
      .epoch = 1, .tenants = TenantTable(std::move(tenants), TenantId(options_.tenants + 1))});
  for (size_t i = 0; i < links_.size(); ++i) {
    (void)cluster_->Connect({.name = links_[i].name,
                             .incarnation = i + 1,
                             .pool_bytes = Slabs(slabs_),
                             .slab_bytes = kReplaySlab});
    Exchange(i);
  }
}

void Run::GiveShares() {
  std::vector<TenantOrder> orders;
  for (uint32_t i = 1; i <= options_.tenants; ++i) {
    orders.push_back({.tenant = TenantId(i),
                      .name = absl::StrCat("tenant-", i),
                      .seq = i,
                      .lease_slabs = static_cast<uint32_t>(share_),
                      .limit_slabs = static_cast<uint32_t>(share_),
                      .policy = contender_.policy});
  }
  for (Link& link : links_) link.agent->Apply(1, orders);
}

// ---- Reports ------------------------------------------------------------------------------------

void Run::Hurry(size_t index) {
  Link& link = links_[index];
  if (!budgets() || link.hurried) return;
  link.hurried = true;
  if (link.exchanging) return;
  const Duration rest = link.last_answer + kReportSpacing - world_.now();
  ExchangeAfter(index, std::max(rest, Duration(0)));
}

void Run::ExchangeAfter(size_t index, Duration pause) {
  Link& link = links_[index];
  world_.At(world_.now() + pause, nullptr, [this, index, number = ++link.tries] {
    if (number == links_[index].tries && !links_[index].exchanging) Exchange(index);
  });
}

TenantOrder Run::OrderOf(const TenantOrders& orders) const {
  const TenantSpec& spec = orders.tenant->spec;
  return {.tenant = orders.tenant->id,
          .name = spec.name,
          .seq = orders.lease.seq,
          .lease_slabs = static_cast<uint32_t>(orders.lease.slabs),
          .limit_slabs = static_cast<uint32_t>(orders.limit_slabs),
          .policy = spec.policy,
          .grace = spec.grace,
          .over_deadline = spec.over_deadline};
}

void Run::Exchange(size_t index) {
  Link& link = links_[index];
  link.exchanging = true;
  link.hurried = false;
  world_.At(world_.now() + kMessage, nullptr, [this, index, report = link.agent->Report()] {
    const std::string& name = links_[index].name;
    AgentOrders orders = cluster_->Exchange(name, report, world_.now());
    if (cluster_->AwaitsBounds(name)) {
      cluster_->BoundsRecorded(name, cluster_->PrepareBounds(name));
      orders = cluster_->OrdersFor(name);
    }
    std::vector<TenantOrder> sent;
    for (const TenantOrders& line : orders.tenants) sent.push_back(OrderOf(line));
    world_.At(world_.now() + kMessage, nullptr,
              [this, index, epoch = orders.epoch, sent = std::move(sent)] {
                Link& link = links_[index];
                link.exchanging = false;
                link.last_answer = world_.now();
                link.agent->Apply(epoch, sent);
                ExchangeAfter(index, link.hurried ? Duration(kReportSpacing)
                                                  : Duration(kReportSpacing + kReportEvery));
              });
  });
}

// ---- Requests and counts ------------------------------------------------------------------------

void Run::CheckBudget(TenantId tenant) {
  int64_t held = 0, overhead = 0;
  for (const Link& link : links_) {
    if (!link.agent.has_value()) continue;
    held += link.agent->HeldSlabs(tenant);
    overhead += link.agent->ChargedOverhead(tenant);
  }
  const int64_t limit = (budgets() ? kLimitTimes : 1) * share_ * options_.agents;
  const auto over = [&](int64_t slabs) {
    return Slabs(std::max<int64_t>(0, slabs - limit)).value();
  };
  ReplayResult& result = counts_.result;
  result.bytes_over = std::max(result.bytes_over, over(held));
  result.bytes_over_with_overhead =
      std::max(result.bytes_over_with_overhead, over(held + overhead));
}

void Run::Next(size_t number) {
  const Request& request = requests_[number];
  ++counts_.result.requests;
  ++counts_.open;
  if (arrived_ != nullptr) ++*arrived_;
  if (number + 1 < requests_.size()) {
    world_.At(world_.now() + requests_[number + 1].at - request.at, nullptr,
              [this, number] { Next(number + 1); });
  }
  links_[request.agent].agent->Arrive(request);
}

void Run::Sample() {
  ++samples_;
  for (const Link& link : links_) {
    const auto pool = static_cast<double>(Slabs(slabs_).value() * options_.agents);
    counts_.result.mean_used += static_cast<double>(link.agent->UsedBytes().value()) / pool;
    counts_.result.mean_kept += static_cast<double>(link.agent->KeptBytes().value()) / pool;
  }
  world_.At(world_.now() + seconds(1), nullptr, [this] { Sample(); });
}

ReplayResult Run::Result() {
  if (!requests_.empty()) {
    world_.At(world_.now(), nullptr, [this] { Next(0); });
    world_.At(world_.now(), nullptr, [this] { Sample(); });
    while (!over() && world_.Step(TimePoint::max())) {
    }
  }
  ReplayResult& result = counts_.result;
  result.mean_used /= static_cast<double>(std::max<uint64_t>(1, samples_));
  result.mean_kept /= static_cast<double>(std::max<uint64_t>(1, samples_));
  result.wait_p50 = At(&counts_.waits, 0.5);
  result.wait_p99 = At(&counts_.waits, 0.99);
  result.claims = counts_.claims.size();
  result.claim_p50 = At(&counts_.claims, 0.5);
  result.claim_p99 = At(&counts_.claims, 0.99);
  result.claim_max = At(&counts_.claims, 1);
  result.events = world_.events();
  return result;
}

}  // namespace

std::vector<Request> DivideArrivals(const Arrivals& arrivals, const ReplayOptions& options) {
  std::vector<double> ends;  // of each tenant's part of 0..1
  for (uint32_t i = 1; i <= options.tenants; ++i) {
    ends.push_back((ends.empty() ? 0 : ends.back()) + 1.0 / i);
  }
  std::vector<Request> requests;
  uint64_t number = 0;
  for (const Arrival& arrival : arrivals.requests) {
    ++number;
    // Many conversations begin with the same words: the second block tells them apart.
    std::vector<uint64_t> start = arrival.blocks;
    start.resize(std::min<size_t>(2, start.size()));
    if (start.size() < 2) start.push_back(~number);
    const PrefixKey key = ChainKeys(start).back();
    const PrefixKey other = ChainKeys(std::vector<uint64_t>{key.value()}).back();
    const auto tenant = std::upper_bound(ends.begin(), ends.end(), Share(key) * ends.back());
    std::vector<PrefixKey> blocks = ChainKeys(arrival.blocks);
    blocks.resize(std::min<size_t>(blocks.size(), arrival.prompt_tokens / kBlockTokens));
    requests.push_back({.at = arrival.at,
                        .prompt_tokens = arrival.prompt_tokens,
                        .answer_tokens = arrival.answer_tokens,
                        .tenant = static_cast<uint32_t>(tenant - ends.begin()),
                        .agent = static_cast<uint32_t>(other.value() % options.agents),
                        .blocks = std::move(blocks)});
  }
  return requests;
}

absl::StatusOr<ReplayResult> Replay(const std::vector<Request>& requests,
                                    const ReplayOptions& options, const Contender& contender,
                                    std::atomic<uint64_t>* arrived) {
  const absl::StatusOr<Layout> layout = Layout::Make(contender.geometry, kReplaySlab);
  if (!layout.ok()) return layout.status();
  if (options.pool / kReplaySlab < options.tenants) {
    return absl::InvalidArgumentError(
        absl::StrCat("a pool of ", options.pool.value(), " bytes has no slab of ",
                     kReplaySlab.value(), " bytes for each of ", options.tenants, " tenants"));
  }
  return Run(requests, options, contender, *layout, arrived).Result();
}

}  // namespace kvpool::sim
