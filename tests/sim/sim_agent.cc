// The link to the manager, in the order of agent/manager_link.cc.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/sim_agent.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "agent/manager_messages.h"
#include "proto/limits.h"

namespace kvpool::sim {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kCallDeadline(5);
constexpr uint32_t kFirstPauseMillis = 200, kLongestPauseMillis = 5000;
constexpr seconds kLatest(2);  // a message that arrives again
constexpr milliseconds kReportSpacing(20), kReportEvery(limits::kReportMillis);
constexpr Network::Delay kDelay{microseconds(200), milliseconds(40)};

}  // namespace

SimAgent::Life::Life(const Deps& deps, const AgentShape& shape, uint64_t incarnation)
    : journal(PoolLedger::JournalBytes(
          {.slabs = shape.slabs, .reserve_slabs = shape.reserve, .slab_bytes = shape.slab_bytes})),
      ledger(PoolLedger::Make({.slabs = shape.slabs,
                               .reserve_slabs = shape.reserve,
                               .slab_bytes = shape.slab_bytes},
                              journal)
                 .value()),
      device(std::make_shared<SimDevice>(*deps.world, shape.slabs)),
      workers({.world = deps.world,
               .network = deps.network,
               .process = deps.process,
               .ledger = &*ledger,
               .book = &book,
               .device = device}),
      incarnation(incarnation) {}

void SimAgent::Start() {
  deps_.process->Start();
  life_ = std::make_unique<Life>(deps_, shape_, deps_.world->Draw(uint64_t{1} << 62) + 1);
  life_->reclaimer.emplace(AgentReclaimer::Deps{.world = deps_.world,
                                                .process = deps_.process,
                                                .ledger = &*life_->ledger,
                                                .device = life_->device,
                                                .workers = &life_->workers,
                                                .book = &life_->book},
                           [this] { Hurry(); });
  life_->workers.OnChange([this](TenantId tenant) {
    life_->reclaimer->Look(tenant);
    Hurry();
  });
  Restore();
  deps_.process->After(Duration(0), [this] { Dial(); });
}

// See agent/agent.cc.
void SimAgent::Restore() {
  life_->book.Restore(disk_, static_cast<uint32_t>(capacity()));
  for (const auto& [id, tenant] : life_->book.tenants()) {
    (void)life_->ledger->SetLease(id, tenant.lease_slabs);
    if (tenant.lease_slabs > 0) {
      deps_.world->Note("lease", "agent process % begins with % slabs for tenant %",
                        {deps_.process->id(), tenant.lease_slabs, id.value()});
    }
  }
}

// See agent/lease_keeper.cc. The disk has the new content at some moment of the write.
void SimAgent::Keep() {
  if (life_->keeping) return;
  const KeptOrders orders = life_->book.ToKeep();
  if (orders == disk_) return;
  life_->keeping = true;
  life_->book.BeginKeeping(orders);
  const Duration most = deps_.world->Chance(20) ? Duration(seconds(8)) : milliseconds(60);
  const Duration takes = deps_.world->DrawBetween(microseconds(100), most);
  deps_.process->After(takes / 2, [this, orders] { disk_ = orders; });
  deps_.process->After(takes, [this, orders] {
    life_->keeping = false;
    life_->book.Kept(orders);
    Hurry();
    Keep();
  });
}

void SimAgent::Crash(Network::Loss loss) {
  if (!running()) return;
  CheckJournal();
  deps_.process->Kill();
  deps_.network->Died(deps_.process, loss);
  life_.reset();
}

// The journal alone makes the ledger again, at any moment.
void SimAgent::CheckJournal() {
  std::vector<std::byte> copy = life_->journal;
  const auto rebuilt = PoolLedger::Rebuild(Config(), copy);
  if (!rebuilt.ok()) {
    deps_.world->Violate("I1", absl::StrCat("the journal of ", shape_.name, " is no ledger: ",
                                            std::string(rebuilt.status().message())));
  } else if (!(*rebuilt == *life_->ledger)) {
    deps_.world->Violate("I1", absl::StrCat("the journal of ", shape_.name, " is another ledger"));
  }
}

void SimAgent::CorruptJournal() {
  for (std::byte& byte : life_->journal) byte ^= std::byte{0x55};
}

int64_t SimAgent::MayHold(TenantId tenant) const {
  const TenantState* state = life_->book.Find(tenant);
  const uint32_t held = life_->ledger->Usage(tenant).held_slabs;
  return state == nullptr ? held : TenantBook::Promise(*state, held);
}

void SimAgent::Dial() {
  const uint64_t number = ++life_->try_number;
  life_->connection = ConnectionId::kNone;
  life_->registered = false;
  SimManager* manager = deps_.dial();
  deps_.process->After(kCallDeadline, [this, number] {
    if (!life_->registered) LinkFailed(number);
  });
  if (manager == nullptr || manager->cluster() == nullptr) {
    deps_.process->After(milliseconds(1), [this, number] { LinkFailed(number); });
    return;
  }
  // A handshake needs both ways.
  if (deps_.network->Blocked(deps_.process, manager->process()) ||
      deps_.network->Blocked(manager->process(), deps_.process)) {
    return;
  }
  life_->manager = manager;
  auto connection = std::make_shared<ConnectionId>();
  *connection = deps_.network->Connect(
      deps_.process, [this, number] { LinkFailed(number); }, manager->process(),
      [manager, connection] { manager->OnClosed(*connection); }, kDelay);
  life_->connection = *connection;
  Register();
}

void SimAgent::Register() {
  const Message message = NewMessage();
  auto params = message->initRoot<rpc::RegisterParams>();
  const PoolConfig pool = Config();
  params.setProtocolVersion(limits::kProtocolVersion);
  params.setAgent(shape_.name.c_str());
  params.setIncarnation(life_->incarnation);
  params.setPoolBytes(static_cast<uint64_t>(capacity() * pool.slab_bytes.value()));
  params.setSlabBytes(static_cast<uint64_t>(pool.slab_bytes.value()));
  params.setHighestEpoch(life_->book.highest_epoch());
  params.setDevice("simulated");
  const uint64_t number = life_->try_number;
  const auto answer = [this, number](const Registered& registered) {
    if (number == life_->try_number) OnRegistered(registered);
  };
  deps_.network->Send(life_->connection, deps_.process,
                      [manager = life_->manager, connection = life_->connection, message, answer] {
                        manager->OnRegister(connection, message, answer);
                      });
}

void SimAgent::OnRegistered(const Registered& registered) {
  if (registered.outcome != RegisterOutcome::kOk) {
    deps_.world->Note("link", "agent process % is refused at manager process %: %",
                      {deps_.process->id(), life_->manager->process()->id(),
                       static_cast<int64_t>(registered.outcome)});
    return LinkFailed(life_->try_number);
  }
  life_->registered = true;
  life_->failures = 0;
  deps_.world->Note("link", "agent process % registers at manager process % of epoch %",
                    {deps_.process->id(), life_->manager->process()->id(),
                     static_cast<int64_t>(registered.epoch)});
  Exchange();
}

void SimAgent::Exchange() {
  const uint64_t number = life_->try_number;
  const TimePoint now = deps_.process->Now();
  auto report =
      std::make_shared<OutgoingReport>(OutgoingReport{.seq = ++life_->seq,
                                                      .free_slabs = life_->ledger->free_slabs(),
                                                      .stuck_slabs = life_->ledger->stuck_slabs(),
                                                      .reclaims = life_->book.TakeRecords()});
  for (const auto& [id, tenant] : life_->book.tenants()) {
    const TenantUsage usage = life_->ledger->Usage(id);
    report->tenants.push_back({.tenant = id,
                               .lease_epoch = tenant.lease_epoch,
                               .lease_seq = tenant.lease_seq,
                               .promised_slabs = TenantBook::Promise(tenant, usage.held_slabs),
                               .held_slabs = usage.held_slabs,
                               .used = life_->workers.UsedBytes(id),
                               .charged_slabs = life_->workers.ChargedSlabs(id),
                               .wanted_slabs = life_->workers.WantedSlabs(id, now),
                               .sessions = life_->workers.Sessions(id),
                               .workers = life_->workers.Count(id),
                               .counters = tenant.counters});
  }
  const Message message = NewMessage();
  ToProto(*report, now, message->initRoot<rpc::Report>());
  auto answered = std::make_shared<bool>(false);
  const auto answer = [this, number, report, answered](const Message& orders) {
    if (number != life_->try_number || *answered) return;
    *answered = true;
    Apply(orders);
    life_->book.ManagerHeard(deps_.process->Now());
    for (const ReportedTenant& tenant : report->tenants) {
      life_->book.DemandHeard(tenant.tenant, tenant.wanted_slabs, deps_.process->Now());
      if (MayHold(tenant.tenant) < tenant.promised_slabs) Hurry();
    }
    NextExchange();
  };
  life_->exchanging = true;
  life_->hurried = false;
  // Now and then twice, the second time after newer ones: it must change nothing.
  const auto deliver = [manager = life_->manager, connection = life_->connection, message, answer] {
    manager->OnExchange(connection, message, answer);
  };
  deps_.network->Send(life_->connection, deps_.process, deliver);
  if (deps_.world->Chance(2)) {
    deps_.process->After(deps_.world->DrawBetween(Duration(0), kLatest),
                         [this, connection = life_->connection, deliver] {
                           deps_.network->Send(connection, deps_.process, deliver);
                         });
  }
  deps_.process->After(kCallDeadline, [this, number, answered] {
    if (!*answered) LinkFailed(number);
  });
}

void SimAgent::Apply(const Message& message) {
  const auto reader = message->getRoot<rpc::Orders>().asReader();
  const absl::StatusOr<ReceivedOrders> orders = CheckedOrders(reader);
  if (!orders.ok()) {
    deps_.world->Violate("orders", std::string(orders.status().message()));
    return;
  }
  const int copies = deps_.world->Chance(2) ? 2 : 1;
  for (int i = 0; i < copies; ++i) {
    const absl::Status applied =
        life_->book.Apply(orders->epoch, orders->coverage, orders->tenants);
    if (!applied.ok()) {
      deps_.world->Note("orders", "agent process % ignores orders of epoch %",
                        {deps_.process->id(), static_cast<int64_t>(orders->epoch)});
      return;
    }
  }
  for (const auto& [id, tenant] : life_->book.tenants()) {
    if (life_->ledger->Usage(id).lease_slabs != tenant.lease_slabs) {
      deps_.world->Note("lease", "agent process % may hold % slabs for tenant %",
                        {deps_.process->id(), tenant.lease_slabs, id.value()});
    }
    (void)life_->ledger->SetLease(id, tenant.lease_slabs);
  }
  life_->book.ForgetGone(life_->ledger->Tenants());
  for (const auto& [id, tenant] : life_->book.tenants()) life_->reclaimer->Look(id);
  for (const auto& [id, worker] : life_->workers.all()) life_->workers.TopUp(id);
  Keep();
}

void SimAgent::NextExchange() {
  life_->exchanging = false;
  life_->last_answer = deps_.world->now();
  const uint64_t number = life_->try_number;
  const uint64_t seq = life_->seq;
  const auto report = [this, number, seq] {
    if (number == life_->try_number && seq == life_->seq && !life_->exchanging) Exchange();
  };
  deps_.process->After(life_->hurried ? kReportSpacing : kReportSpacing + kReportEvery, report);
}

void SimAgent::Hurry() {
  if (!life_->registered || life_->hurried) return;
  life_->hurried = true;
  if (life_->exchanging) return;
  const uint64_t number = life_->try_number;
  const uint64_t seq = life_->seq;
  const Duration rest = life_->last_answer + kReportSpacing - deps_.world->now();
  deps_.process->After(std::max(rest, Duration(0)), [this, number, seq] {
    if (number == life_->try_number && seq == life_->seq && !life_->exchanging) Exchange();
  });
}

// Whatever went wrong with this try: forget it and dial again, later each time.
void SimAgent::LinkFailed(uint64_t number) {
  if (number != life_->try_number) return;
  ++life_->try_number;
  ++life_->failures;
  life_->registered = false;
  life_->exchanging = false;
  if (life_->connection != ConnectionId::kNone) {
    deps_.network->Close(life_->connection, deps_.process);
  }
  life_->connection = ConnectionId::kNone;
  const uint32_t longest =
      std::min(kLongestPauseMillis, kFirstPauseMillis << std::min(life_->failures, 5u));
  deps_.process->After(milliseconds(longest / 2 + deps_.world->Draw(longest / 2)),
                       [this] { Dial(); });
}

}  // namespace kvpool::sim
