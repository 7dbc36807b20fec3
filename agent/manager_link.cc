// Dial, register, exchange, again. See manager_link.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/manager_link.h"

#include <algorithm>
#include <utility>

#include "agent/manager_messages.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

constexpr auto kCallDeadline = std::chrono::seconds(5);
// Short, because another manager may be waiting with leases that it has to learn.
constexpr auto kDialDeadline = std::chrono::seconds(2);
constexpr uint32_t kFirstPauseMillis = 200;
constexpr uint32_t kLongestPauseMillis = 2000;
// Reports that demand hastens keep at least this distance.
constexpr auto kReportSpacing = 20 * kj::MILLISECONDS;

const char* ToString(rpc::RegisterRefusal refusal) {
  switch (refusal) {
    case rpc::RegisterRefusal::BAD_TOKEN:
      return "manager_token is not the agent token of that manager";
    case rpc::RegisterRefusal::BAD_VERSION:
      return "it speaks another protocol version";
    case rpc::RegisterRefusal::BAD_NAME:
      return "the agent's name breaks the rules for names";
    case rpc::RegisterRefusal::BAD_CERTIFICATE:
      return "tls_certificate is for another agent: its common name must be the setting name";
    case rpc::RegisterRefusal::NAME_TAKEN:
      return "another agent of this name is connected";
    case rpc::RegisterRefusal::TOO_MANY:
      return "it serves as many agents as it can";
    case rpc::RegisterRefusal::BAD_POOL:
      return "pool or slab_bytes do not fit: all agents of a cluster have slabs of one size";
    case rpc::RegisterRefusal::STALE_EPOCH:
      return "this agent has followed a newer manager";
    case rpc::RegisterRefusal::NOT_LEADER:
    case rpc::RegisterRefusal::UNKNOWN:
      break;
  }
  return "it did not say why";
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
  if (options_.tls != nullptr) tls_.emplace(options_.tls, RpcTls::Side::kClient);
  tasks_.add(Run());
}

void ManagerLink::taskFailed(kj::Exception&& error) {
  log_.Error("the manager link stopped", {{"error", error.getDescription().cStr()}});
}

void ManagerLink::Hurry() {
  hurried_ = true;
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
      .then([] {}, [this](kj::Exception&& error) { Note(error); })
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

void ManagerLink::Note(const kj::Exception& error) {
  ++failures_;
  const uint32_t rounds = failures_ / Managers();
  if (failures_ % Managers() != 0 || rounds % 10 != 1) return;
  std::string text = ToStatus(error).ToString();
  if (tls_ != nullptr) {
    text += TlsAdvice(text);
  } else if (state_ == State::kConnecting && client_.get() != nullptr &&
             error.getType() == kj::Exception::Type::DISCONNECTED) {
    text += " (it hung up; if its agent port speaks TLS, set tls_certificate, tls_key and tls_ca)";
  }
  log_.Warn("no manager; the last leases stay in force",
            {{"manager", ToString(Manager())}, {"error", text}});
}

const HostPort& ManagerLink::Manager() const {
  return options_.managers[dials_ % options_.managers.size()];
}

// After all of them have failed; a link that broke is first tried elsewhere.
kj::Promise<void> ManagerLink::Pause() {
  ++dials_;
  if (failures_ % Managers() != 0) return kj::READY_NOW;
  const uint32_t longest =
      std::min(kLongestPauseMillis, kFirstPauseMillis << std::min(failures_ / Managers(), 5u));
  const uint32_t millis = longest / 2 + jitter_() % (longest / 2);
  return deps_.io->provider->getTimer().afterDelay(millis * kj::MILLISECONDS);
}

kj::Promise<kj::Own<RpcClient>> ManagerLink::Dial() {
  KJ_IF_MAYBE (tls, tls_) {
    const std::string& name = options_.tls_name.empty() ? Manager().host : options_.tls_name;
    return RpcConnect(*deps_.io, Manager(), *tls, name);
  }
  return RpcConnect(*deps_.io, Manager());
}

kj::Promise<void> ManagerLink::Session() {
  return WithDeadline(Dial(), deps_.io->provider->getTimer(), kDialDeadline)
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
  return WithDeadline(request.send(), deps_.io->provider->getTimer(), kDialDeadline)
      .then([this](auto&& response) {
        auto result = response.getResult();
        if (result.isRefused() && result.getRefused() == rpc::RegisterRefusal::NOT_LEADER) {
          kj::throwFatalException(KJ_EXCEPTION(DISCONNECTED, "this manager does not lead"));
        }
        if (!result.isLink()) {
          log_.Error("the manager refuses this agent",
                     {{"reason", result.isRefused() ? ToString(result.getRefused())
                                                    : "unknown to this version"}});
          KJ_FAIL_REQUIRE("refused");
        }
        link_ = result.getLink();
        state_ = State::kRegistered;
        failures_ = 0;
        log_.Info("registered at the manager", {{"manager", ToString(Manager())}});
      });
}

kj::Promise<void> ManagerLink::ExchangeLoop() {
  return Exchange()
      .then([this] {
        auto hurried = kj::newPromiseAndFulfiller<void>();
        if (hurried_) hurried.fulfiller->fulfill();  // while the manager answered
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
  const TimePoint now = BootClock::now();
  hurried_ = false;
  OutgoingReport report = MakeReport(now);
  ToProto(report, now, request.initReport());
  return WithDeadline(request.send(), deps_.io->provider->getTimer(), kCallDeadline)
      .then([this, report = std::move(report)](auto&& response) {
        Apply(response.getOrders());
        deps_.book->ManagerHeard(BootClock::now());
        for (const ReportedTenant& tenant : report.tenants) {
          deps_.book->DemandHeard(tenant.tenant, tenant.wanted_slabs, BootClock::now());
        }
        if (AcknowledgesMore(report)) Hurry();
        for (auto& waiting : refreshing_) waiting->fulfill();
        refreshing_.clear();
      });
}

bool ManagerLink::AcknowledgesMore(const OutgoingReport& report) const {
  return std::any_of(
      report.tenants.begin(), report.tenants.end(), [this](const ReportedTenant& reported) {
        const TenantState* tenant = deps_.book->Find(reported.tenant);
        const uint32_t held = deps_.ledger->Usage(reported.tenant).held_slabs;
        return tenant != nullptr && TenantBook::Promise(*tenant, held) < reported.promised_slabs;
      });
}

OutgoingReport ManagerLink::MakeReport(TimePoint now) {
  OutgoingReport report{.seq = ++seq_,
                        .free_slabs = deps_.ledger->free_slabs(),
                        .stuck_slabs = deps_.ledger->stuck_slabs(),
                        .reclaims = deps_.book->TakeRecords()};
  for (const auto& [id, tenant] : deps_.book->tenants()) {
    const TenantUsage usage = deps_.ledger->Usage(id);
    const WorkerCounts counts = deps_.workers->Count(id);
    report.tenants.push_back({.tenant = id,
                              .lease_epoch = tenant.lease_epoch,
                              .lease_seq = tenant.lease_seq,
                              .promised_slabs = TenantBook::Promise(tenant, usage.held_slabs),
                              .held_slabs = usage.held_slabs,
                              .used = deps_.workers->UsedBytes(id),
                              .charged_slabs = deps_.workers->ChargedSlabs(id),
                              .wanted_slabs = deps_.workers->WantedSlabs(id, now),
                              .sessions = counts.sessions,
                              .workers = counts.workers,
                              .counters = tenant.counters,
                              .rungs = deps_.workers->CountRungs(tenant),
                              .over = tenant.overage.Lasted(now),
                              .past_deadline = tenant.PastDeadline(now)});
  }
  return report;
}

void ManagerLink::Apply(rpc::Orders::Reader message) {
  if (message.getReportMillis() > 0) {
    report_millis_ = std::clamp(message.getReportMillis(), 10u, 60'000u);
  }
  const absl::StatusOr<ReceivedOrders> orders = CheckedOrders(message);
  const absl::Status applied =
      orders.ok() ? deps_.book->Apply(orders->epoch, orders->coverage, orders->tenants)
                  : orders.status();
  if (!applied.ok()) {
    ++bad_orders_;
    log_.Warn("orders ignored", {{"error", applied.ToString()}});
    return;
  }
  for (const auto& [id, tenant] : deps_.book->tenants()) {
    (void)deps_.ledger->SetLease(id, tenant.lease_slabs);
  }
  deps_.book->ForgetGone(deps_.ledger->Tenants());
  on_orders_();
}

}  // namespace kvpool
