// Dial, register, exchange, again. See manager_link.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/manager_link.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/convert.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

constexpr auto kCallDeadline = std::chrono::seconds(5);
constexpr uint32_t kFirstPauseMillis = 200;
constexpr uint32_t kLongestPauseMillis = 5000;
// Reports that demand hastens keep at least this distance.
constexpr auto kReportSpacing = 20 * kj::MILLISECONDS;

rpc::ReclaimStep ToCapnp(ReclaimStep step) {
  switch (step) {
    case ReclaimStep::kCompaction:
      return rpc::ReclaimStep::COMPACTION;
    case ReclaimStep::kRequantisation:
      return rpc::ReclaimStep::REQUANTISATION;
    case ReclaimStep::kRefusal:
      break;
  }
  return rpc::ReclaimStep::REFUSAL;
}

rpc::ReclaimReason ToCapnp(ReclaimReason reason) {
  switch (reason) {
    case ReclaimReason::kScheduled:
      return rpc::ReclaimReason::SCHEDULED;
    case ReclaimReason::kLeaseShrink:
      return rpc::ReclaimReason::LEASE_SHRINK;
    case ReclaimReason::kNoPages:
      return rpc::ReclaimReason::NO_PAGES;
    case ReclaimReason::kAdmission:
      return rpc::ReclaimReason::ADMISSION;
    case ReclaimReason::kLeaseGrowing:
      return rpc::ReclaimReason::LEASE_GROWING;
  }
  return rpc::ReclaimReason::UNKNOWN;
}

const char* ToString(rpc::RegisterRefusal refusal) {
  switch (refusal) {
    case rpc::RegisterRefusal::BAD_TOKEN:
      return "manager_token is not the agent token of that manager";
    case rpc::RegisterRefusal::BAD_VERSION:
      return "it speaks another protocol version";
    case rpc::RegisterRefusal::BAD_NAME:
      return "the agent's name breaks the rules for names";
    case rpc::RegisterRefusal::NAME_TAKEN:
      return "another agent of this name is connected";
    case rpc::RegisterRefusal::TOO_MANY:
      return "it serves as many agents as it can";
    case rpc::RegisterRefusal::BAD_POOL:
      return "pool or slab_bytes do not fit: all agents of a cluster have slabs of one size";
    case rpc::RegisterRefusal::STALE_EPOCH:
      return "this agent has followed a newer manager";
    case rpc::RegisterRefusal::UNKNOWN:
      break;
  }
  return "it did not say why";
}

absl::StatusOr<TenantOrder> FromCapnp(rpc::TenantOrder::Reader reader) {
  absl::StatusOr<PolicySpec> policy = FromProto(reader.getPolicy());
  if (!policy.ok()) return policy.status();
  TenantOrder order{.tenant = TenantId(reader.getTenant()),
                    .name = reader.getName().cStr(),
                    .seq = reader.getSeq(),
                    .lease_slabs = reader.getLeaseSlabs(),
                    .limit_slabs = reader.getLimitSlabs(),
                    .policy = *std::move(policy)};
  if (order.tenant.value() == 0 || reader.getTokenHashes().size() > limits::kTokensPerTenant) {
    return absl::InvalidArgumentError("a tenant without an id, or with too many tokens");
  }
  for (capnp::Data::Reader hash : reader.getTokenHashes()) {
    if (hash.size() != TokenHash().size()) {
      return absl::InvalidArgumentError("a token hash that is not 32 bytes");
    }
    std::copy(hash.begin(), hash.end(), order.token_hashes.emplace_back().begin());
  }
  return order;
}

}  // namespace

ManagerLink::ManagerLink(const Deps& deps, ManagerLinkOptions options,
                         std::function<void()> on_orders)
    : deps_(deps),
      options_(std::move(options)),
      on_orders_(std::move(on_orders)),
      log_("manager_link"),
      report_millis_(limits::kReportMillis),
      jitter_(static_cast<uint32_t>(options_.incarnation)),
      tasks_(*this) {
  tasks_.add(Run());
}

void ManagerLink::taskFailed(kj::Exception&& error) {
  log_.Error("the manager link stopped", {{"error", error.getDescription().cStr()}});
}

void ManagerLink::Hurry() {
  KJ_IF_MAYBE (waiting, hurry_) {
    (*waiting)->fulfill();
  }
}

kj::Promise<void> ManagerLink::Refresh() {
  if (state_ != State::kRegistered) return kj::READY_NOW;
  auto refreshed = kj::newPromiseAndFulfiller<void>();
  refreshing_.add(kj::mv(refreshed.fulfiller));
  Hurry();
  return kj::mv(refreshed.promise);
}

kj::Promise<void> ManagerLink::Run() {
  return Session()
      .then([] {},
            [this](kj::Exception&& error) {
              if (failures_++ % 10 == 0) {
                log_.Warn("no manager; the last leases stay in force",
                          {{"manager", ToString(options_.manager)},
                           {"error", ToStatus(error).ToString()}});
              }
            })
      .then([this] {
        state_ = State::kConnecting;
        for (auto& waiting : refreshing_) waiting->fulfill();
        refreshing_.clear();
        link_ = nullptr;
        client_ = nullptr;
        return Pause();
      })
      .then([this] { return Run(); });
}

kj::Promise<void> ManagerLink::Pause() {
  const uint32_t longest =
      std::min(kLongestPauseMillis, kFirstPauseMillis << std::min(failures_, 5u));
  const uint32_t millis = longest / 2 + jitter_() % (longest / 2);
  return deps_.io->provider->getTimer().afterDelay(millis * kj::MILLISECONDS);
}

kj::Promise<void> ManagerLink::Session() {
  return WithDeadline(RpcConnect(*deps_.io, options_.manager), deps_.io->provider->getTimer(),
                      kCallDeadline)
      .then([this](kj::Own<RpcClient> client) {
        client_ = kj::mv(client);
        return Register(client_->Bootstrap().castAs<rpc::Manager>());
      })
      .then([this] { return ExchangeLoop().exclusiveJoin(client_->OnDisconnect()); });
}

kj::Promise<void> ManagerLink::Register(rpc::Manager::Client manager) {
  auto request = manager.registerRequest();
  auto params = request.getParams();
  const PoolConfig& pool = deps_.ledger->config();
  params.setProtocolVersion(limits::kProtocolVersion);
  params.setToken(options_.token);
  params.setAgent(options_.agent);
  params.setIncarnation(options_.incarnation);
  params.setPoolBytes(uint64_t{pool.slabs - pool.reserve_slabs} * pool.slab_bytes.value());
  params.setSlabBytes(pool.slab_bytes.value());
  params.setHighestEpoch(deps_.book->highest_epoch());
  params.setDevice(options_.device);
  return WithDeadline(request.send(), deps_.io->provider->getTimer(), kCallDeadline)
      .then([this](auto&& response) {
        auto result = response.getResult();
        if (!result.isLink()) {
          log_.Error("the manager refuses this agent",
                     {{"reason", result.isRefused() ? ToString(result.getRefused())
                                                    : "unknown to this version"}});
          KJ_FAIL_REQUIRE("refused");
        }
        link_ = result.getLink();
        state_ = State::kRegistered;
        failures_ = 0;
        log_.Info("registered at the manager", {{"manager", ToString(options_.manager)}});
      });
}

kj::Promise<void> ManagerLink::ExchangeLoop() {
  return Exchange()
      .then([this] {
        auto hurried = kj::newPromiseAndFulfiller<void>();
        hurry_ = kj::mv(hurried.fulfiller);
        kj::Timer& timer = deps_.io->provider->getTimer();
        return timer.afterDelay(kReportSpacing)
            .then([&timer, this, hurry = kj::mv(hurried.promise)]() mutable {
              return hurry.exclusiveJoin(timer.afterDelay(report_millis_ * kj::MILLISECONDS));
            });
      })
      .then([this] {
        hurry_ = nullptr;
        return ExchangeLoop();
      });
}

kj::Promise<void> ManagerLink::Exchange() {
  auto request = KJ_ASSERT_NONNULL(link_).exchangeRequest();
  FillReport(request.initReport());
  std::vector<std::pair<TenantId, uint32_t>> wanted;
  for (rpc::TenantUse::Reader use : request.getReport().asReader().getTenants()) {
    wanted.emplace_back(use.getTenant(), use.getWantedSlabs());
  }
  return WithDeadline(request.send(), deps_.io->provider->getTimer(), kCallDeadline)
      .then([this, wanted = std::move(wanted)](auto&& response) {
        Apply(response.getOrders());
        deps_.book->ManagerHeard(BootClock::now());
        for (const auto& [tenant, slabs] : wanted) {
          deps_.book->DemandHeard(tenant, slabs, BootClock::now());
        }
        for (auto& waiting : refreshing_) waiting->fulfill();
        refreshing_.clear();
      });
}

void ManagerLink::FillReport(rpc::Report::Builder report) {
  const TimePoint now = BootClock::now();
  report.setSeq(++seq_);
  report.setFreeSlabs(deps_.ledger->free_slabs());
  report.setStuckSlabs(deps_.ledger->stuck_slabs());
  auto tenants = report.initTenants(deps_.book->tenants().size());
  uint32_t index = 0;
  for (const auto& [id, tenant] : deps_.book->tenants()) {
    const TenantUsage usage = deps_.ledger->Usage(id);
    rpc::TenantUse::Builder use = tenants[index++];
    use.setTenant(id.value());
    use.setLeaseEpoch(tenant.lease_epoch);
    use.setLeaseSeq(tenant.lease_seq);
    use.setLeaseSlabs(TenantBook::Promise(tenant, usage.held_slabs));
    use.setHeldSlabs(usage.held_slabs);
    use.setUsedBytes(deps_.workers->UsedBytes(id).value());
    use.setChargedSlabs(deps_.workers->ChargedSlabs(id));
    use.setWantedSlabs(deps_.workers->WantedSlabs(id, now));
    const WorkerCounts counts = deps_.workers->Count(id);
    use.setSessions(counts.sessions);
    use.setWorkers(counts.workers);
    use.setRefusals(tenant.counters.refusals);
    use.setCompactions(tenant.counters.compactions);
    use.setRecoverySum(tenant.counters.recovery_sum);
    use.setRecoveryCount(tenant.counters.recovery_count);
    use.setRecoveryMin(tenant.counters.recovery_min);
  }
  const std::vector<ReclaimRecord> records = deps_.book->TakeRecords();
  auto reclaims = report.initReclaims(records.size());
  for (size_t i = 0; i < records.size(); ++i) {
    const ReclaimRecord& record = records[i];
    const auto age = std::chrono::duration_cast<std::chrono::milliseconds>(now - record.time);
    reclaims[i].setTenant(record.tenant.value());
    reclaims[i].setAgeMillis(std::max<int64_t>(age.count(), 0));
    reclaims[i].setStep(ToCapnp(record.step));
    reclaims[i].setReason(ToCapnp(record.reason));
    reclaims[i].setPolicy(record.policy);
    reclaims[i].setSessions(record.sessions);
    reclaims[i].setBytes(record.bytes);
    reclaims[i].setBytesBefore(record.bytes_before);
    reclaims[i].setRecovery(record.recovery.mean);
    reclaims[i].setRecoveryMin(record.recovery.min);
    reclaims[i].setCumulativeRecovery(record.cumulative.mean);
    reclaims[i].setCumulativeRecoveryMin(record.cumulative.min);
    reclaims[i].setCount(record.count);
    reclaims[i].setMeasured(record.recovery.count);
  }
}

void ManagerLink::Apply(rpc::Orders::Reader orders) {
  if (orders.getReportMillis() > 0) {
    report_millis_ = std::clamp(orders.getReportMillis(), 10u, 60'000u);
  }
  if (const absl::Status applied = TryApply(orders); !applied.ok()) {
    ++bad_orders_;
    log_.Warn("orders ignored", {{"error", applied.ToString()}});
    return;
  }
  for (const auto& [id, tenant] : deps_.book->tenants()) {
    (void)deps_.ledger->SetLease(id, tenant.lease_slabs);
  }
  on_orders_();
}

absl::Status ManagerLink::TryApply(rpc::Orders::Reader orders) {
  if (orders.getTenants().size() > limits::kTenants) {
    return absl::InvalidArgumentError(absl::StrCat("orders for ", orders.getTenants().size(),
                                                   " tenants, at most ", limits::kTenants,
                                                   " can be"));
  }
  std::vector<TenantOrder> accepted;
  for (rpc::TenantOrder::Reader reader : orders.getTenants()) {
    absl::StatusOr<TenantOrder> order = FromCapnp(reader);
    // Dropping one order of a complete message would look like the tenant's end: take none.
    if (!order.ok()) return order.status();
    accepted.push_back(*std::move(order));
  }
  return deps_.book->Apply(
      orders.getEpoch(),
      orders.getComplete() ? TenantBook::Coverage::kComplete : TenantBook::Coverage::kPartial,
      accepted);
}

}  // namespace kvpool
