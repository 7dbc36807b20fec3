// Registration, exchanges, and changes that take turns. See manager/control.cc and
// manager/agent_service.cc.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/sim_manager.h"

#include <utility>

#include "manager/agent_messages.h"
#include "manager/manager_config.h"
#include "manager/records.h"
#include "proto/manager.capnp.h"

namespace kvpool::sim {
namespace {

using std::chrono::milliseconds;

constexpr Duration kFastestWrite = milliseconds(1), kSlowestWrite = milliseconds(30);

}  // namespace

// The newest to begin leads, and an old one may not notice: as if its lease never ended.
absl::StatusOr<Store::Standing> DiskStore::Campaign() {
  return Standing{.leads_until = TimePoint::max()};
}

absl::StatusOr<TimePoint> DiskStore::Renew() { return TimePoint::max(); }

absl::StatusOr<Store::Contents> DiskStore::Begin() {
  epoch_ = ++disk_.epoch;
  return Contents{.epoch = epoch_, .records = disk_.records};
}

absl::Status DiskStore::Write(const Changes& changes) {
  if (disk_.epoch != epoch_) {
    return absl::FailedPreconditionError("a newer manager has taken over the store");
  }
  if (world_.now() < disk_.full_until) return absl::ResourceExhaustedError("the disk is full");
  for (const auto& [key, value] : changes) {
    if (value.has_value()) {
      disk_.records[key] = *value;
    } else {
      disk_.records.erase(key);
    }
  }
  return absl::OkStatus();
}

void SimManager::Start() {
  process_->Start();
  store_.emplace(world_, disk_);
  const Store::Contents contents = store_->Begin().value();
  absl::StatusOr<Records> records = ReadRecords(contents);
  if (!records.ok()) {
    world_.Violate("records", std::string(records.status().message()));
    records = Records();
  }
  cluster_.emplace(
      Cluster::Start{.epoch = contents.epoch,
                     .tenants = TenantTable(std::move(records->tenants), records->next_tenant_id),
                     .known_agents = std::move(records->agents),
                     .learn_until = process_->Now() + ManagerConfig().learning});
  world_.Note("manager", "manager process % leads with epoch %",
              {process_->id(), static_cast<int64_t>(contents.epoch)});
}

void SimManager::Crash(Network::Loss loss) {
  if (!process_->alive()) return;
  process_->Kill();
  network_.Died(process_, loss);
  cluster_.reset();
  store_.reset();
  links_.clear();
  turns_.clear();
  moving_.clear();
  busy_ = Busy::kNo;
}

void SimManager::TakeTurn(Turn turn) {
  turns_.push_back(std::move(turn));
  if (busy_ == Busy::kYes) return;
  busy_ = Busy::kYes;
  process_->After(Duration(0), [this] { BeginTurn(); });
}

void SimManager::BeginTurn() {
  const Turn turn = std::move(turns_.front());
  turns_.pop_front();
  turn();
}

void SimManager::EndTurn() {
  busy_ = turns_.empty() ? Busy::kNo : Busy::kYes;
  if (busy_ == Busy::kYes) process_->After(Duration(0), [this] { BeginTurn(); });
}

// A crash before the first of the two moments loses the write, between them only its answer.
void SimManager::Write(Store::Changes changes, Done then) {
  const auto half = [this] { return world_.DrawBetween(kFastestWrite, kSlowestWrite); };
  process_->After(half(), [this, half, changes = std::move(changes), then = std::move(then)] {
    const absl::Status written = store_->Write(changes);
    process_->After(half(), [then, written] { then(written); });
  });
}

void SimManager::Apply(std::vector<TenantSpec> specs, Done done) {
  TakeTurn([this, specs = std::move(specs), done = std::move(done)] {
    const auto changed = cluster_->tenants().PlanApply(specs, cluster_->AgentPools());
    if (!changed.ok() || changed->empty()) {
      done(changed.status());
      return EndTurn();
    }
    Write(SaveTenants(*changed, cluster_->tenants().next_id()),
          [this, changed = *changed, done](const absl::Status& saved) {
            if (saved.ok()) cluster_->CommitTenants(changed);
            done(saved);
            EndTurn();
          });
  });
}

void SimManager::RemoveTenant(const std::string& name, Done done) {
  TakeTurn([this, name, done = std::move(done)] {
    const Tenant* tenant = cluster_->tenants().Find(name);
    if (tenant == nullptr || cluster_->ledger().Committed(tenant->id) > 0) {
      done(tenant == nullptr ? absl::NotFoundError(name) : absl::FailedPreconditionError(name));
      return EndTurn();
    }
    const Tenant before = *tenant;
    Tenant leaving = before;
    leaving.spec.guaranteed = leaving.spec.limit = 0_B;
    leaving.spec.floors.clear();
    cluster_->CommitTenants({leaving});
    Write(kvpool::RemoveTenant(before.id), [this, before, done](const absl::Status& removed) {
      if (removed.ok()) {
        cluster_->RemoveTenant(before.spec.name);
      } else {
        cluster_->CommitTenants({before});
      }
      done(removed);
      EndTurn();
    });
  });
}

void SimManager::ForgetAgent(const std::string& name, Done done) {
  TakeTurn([this, name, done = std::move(done)] {
    if (absl::Status status = cluster_->CheckForget(name); !status.ok()) {
      done(status);
      return EndTurn();
    }
    Write(RemoveAgent(name), [this, name, done](const absl::Status& removed) {
      if (removed.ok()) cluster_->Forget(name);
      done(removed);
      EndTurn();
    });
  });
}

void SimManager::Answer(ConnectionId connection,
                        const std::function<void(const Registered&)>& answer,
                        const Registered& registered) {
  network_.Send(connection, process_, [answer, registered] { answer(registered); });
}

void SimManager::OnRegister(ConnectionId connection, const Message& message,
                            std::function<void(const Registered&)> answer) {
  const auto params = message->getRoot<rpc::RegisterParams>().asReader();
  const absl::StatusOr<AgentInfo> info = CheckedAgentInfo(params);
  if (!info.ok()) {
    return Answer(connection, answer, {.outcome = RegisterOutcome::kBadPool});
  }
  TakeTurn([this, connection, answer = std::move(answer), agent = *info,
            highest_epoch = params.getHighestEpoch()] {
    const RegisterOutcome outcome = cluster_->CheckAgent(agent, highest_epoch);
    if (outcome != RegisterOutcome::kOk) {
      Answer(connection, answer, {.outcome = outcome});
      return EndTurn();
    }
    const auto connect = [this, connection, answer, agent] {
      const uint64_t link = cluster_->Connect(agent);
      if (network_.IsOpen(connection, process_)) {
        links_[connection] = {agent.name, link};
        Answer(connection, answer, {.link = link, .epoch = cluster_->epoch()});
      } else {
        cluster_->Disconnect(agent.name, link);
      }
      EndTurn();
    };
    const auto known = cluster_->agents().find(agent.name);
    if (known != cluster_->agents().end() && known->second.info == agent) return connect();
    Write(SaveAgent(agent), [this, connect, connection, answer](const absl::Status& saved) {
      if (saved.ok()) return connect();
      Answer(connection, answer, {.outcome = RegisterOutcome::kTooMany});
      EndTurn();
    });
  });
}

void SimManager::OnExchange(ConnectionId connection, const Message& message,
                            std::function<void(const Message&)> answer) {
  const auto found = links_.find(connection);
  if (found == links_.end() || !cluster_->IsLive(found->second.agent, found->second.link)) {
    OnClosed(connection);
    return network_.Close(connection, process_);
  }
  const std::string& name = found->second.agent;
  const TimePoint now = process_->Now();
  auto report = CheckedReport(message->getRoot<rpc::Report>().asReader(),
                              cluster_->agents().at(name).info, now);
  if (!report.ok()) {
    world_.Violate("report", std::string(report.status().message()));
    return;
  }
  // What it wants anew may wait for the next plan: the real manager answers then, this one at once.
  (void)cluster_->Exchange(name, *std::move(report), now);
  MoveRungs();
  if (!cluster_->AwaitsBounds(name)) return SendOrders(connection, answer);
  RecordBounds(connection, std::move(answer));
}

void SimManager::MoveRungs() {
  for (const RungMove& move : cluster_->RungsDue(process_->Now())) {
    if (!moving_.insert(move.tenant).second) continue;
    TakeTurn([this, move] {
      const std::optional<Tenant> moved = cluster_->Moved(move);
      if (!moved.has_value()) {
        moving_.erase(move.tenant);
        return EndTurn();
      }
      world_.Note("rung", "tenant % goes from rung % to %",
                  {moved->id.value(), move.from, moved->rung.index});
      Write(SaveTenants({*moved}, cluster_->tenants().next_id()),
            [this, moved = *moved](const absl::Status& saved) {
              moving_.erase(moved.spec.name);
              if (saved.ok()) cluster_->CommitTenants({moved});
              EndTurn();
            });
    });
  }
}

void SimManager::RecordBounds(ConnectionId connection, std::function<void(const Message&)> answer) {
  TakeTurn([this, connection, answer = std::move(answer)] {
    const auto link = links_.find(connection);
    if (link == links_.end() || !cluster_->AwaitsBounds(link->second.agent)) {
      SendOrders(connection, answer);
      return EndTurn();
    }
    const std::string agent = link->second.agent;
    const LeaseBounds bounds = cluster_->PrepareBounds(agent);
    Write(SaveBounds(agent, bounds),
          [this, connection, answer, agent, bounds](const absl::Status& saved) {
            if (saved.ok()) cluster_->BoundsRecorded(agent, bounds);
            SendOrders(connection, answer);
            EndTurn();
          });
  });
}

void SimManager::SendOrders(ConnectionId connection,
                            const std::function<void(const Message&)>& answer) {
  const auto link = links_.find(connection);
  if (link == links_.end() || !cluster_->IsLive(link->second.agent, link->second.link)) return;
  const Message orders = NewMessage();
  ToProto(cluster_->OrdersFor(link->second.agent), orders->initRoot<rpc::Orders>());
  network_.Send(connection, process_, [answer, orders] { answer(orders); });
}

void SimManager::OnClosed(ConnectionId connection) {
  const auto found = links_.find(connection);
  if (found == links_.end()) return;
  cluster_->Disconnect(found->second.agent, found->second.link);
  links_.erase(found);
}

}  // namespace kvpool::sim
