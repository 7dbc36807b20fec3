// See agent.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/agent.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <boost/asio/thread_pool.hpp>
#include <memory>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/agent_metrics.h"
#include "agent/host_device.h"
#include "agent/lease_keeper.h"
#include "agent/manager_link.h"
#include "agent/pool.h"
#include "agent/prefix_store.h"
#include "agent/reclaimer.h"
#include "agent/service.h"
#include "agent/state_file.h"
#include "agent/tenant_book.h"
#include "agent/workers.h"
#include "common/http_server.h"
#include "common/json.h"
#include "common/kj_asio.h"
#include "common/log.h"
#include "common/rpc_listener.h"
#include "common/secret.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

// The ledger's journal in a memfd of its own: with the slabs' descriptors it is all that a
// restarted agent would need.
class JournalMemory {
 public:
  static absl::StatusOr<JournalMemory> Make(size_t bytes) {
    const int fd = memfd_create("kvpool-journal", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
      return absl::ErrnoToStatus(errno, "cannot make the journal's memory");
    }
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) return absl::ErrnoToStatus(errno, "cannot map the journal");
    return JournalMemory(fd, {static_cast<std::byte*>(data), bytes});
  }
  JournalMemory(JournalMemory&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), memory_(std::exchange(other.memory_, {})) {}
  ~JournalMemory() {
    if (!memory_.empty()) munmap(memory_.data(), memory_.size());
    if (fd_ >= 0) close(fd_);
  }

  std::span<std::byte> memory() const { return memory_; }

 private:
  JournalMemory(int fd, std::span<std::byte> memory) : fd_(fd), memory_(memory) {}
  int fd_;
  std::span<std::byte> memory_;
};

// The slabs that are never assigned, made and given their memory before anything needs them.
absl::Status MakeReserve(const PoolConfig& pool, Device& device) {
  for (uint32_t i = pool.slabs - pool.reserve_slabs; i < pool.slabs; ++i) {
    if (absl::Status made = device.CreateSlab(SlabIndex(i)); !made.ok()) return made;
    if (absl::Status filled = device.Populate(SlabIndex(i)); !filled.ok()) return filled;
  }
  return absl::OkStatus();
}

// Everything that lives on the RPC loop, in the order in which it is made and, reversed, destroyed.
class Agent {
 public:
  static absl::Status Run(const AgentConfig& config, const AgentTls& tls, kj::AsyncIoContext& io);

 private:
  Agent(const AgentConfig& config, const AgentTls& tls, kj::AsyncIoContext& io,
        JournalMemory journal, PoolLedger ledger, std::unique_ptr<Device> device);

  absl::Status Restore();
  absl::Status BeginWith(const KeptOrders& kept);
  absl::Status Listen();
  void HandleHttp(HttpRequest request, HttpServer::Done done);

  const AgentConfig& config_;
  const AgentTls& tls_;
  kj::AsyncIoContext& io_;
  const Logger log_{"agent"};
  JournalMemory journal_;
  PoolLedger ledger_;
  std::unique_ptr<Device> device_;
  AgentMetrics metrics_;
  TenantBook book_;
  SealingReserve reserve_;
  PrefixStore prefixes_;
  boost::asio::thread_pool pool_;
  LeaseKeeper keeper_;
  Workers workers_;
  Reclaimer reclaimer_;
  Inbox inbox_;
  std::unique_ptr<RpcListener> listener_;
  std::unique_ptr<ManagerLink> link_;
  std::unique_ptr<HttpServer> http_;
};

Agent::Agent(const AgentConfig& config, const AgentTls& tls, kj::AsyncIoContext& io,
             JournalMemory journal, PoolLedger ledger, std::unique_ptr<Device> device)
    : config_(config),
      tls_(tls),
      io_(io),
      journal_(std::move(journal)),
      ledger_(std::move(ledger)),
      device_(std::move(device)),
      metrics_("host", device_->info().name),
      reserve_(ledger_.config().slabs, ledger_.config().reserve_slabs),
      prefixes_(&ledger_),
      pool_(static_cast<size_t>(config.threads)),
      keeper_({.book = &book_, .pool = &pool_, .timer = &io.provider->getTimer()},
              config.state_file, {.agent = config.name, .slab_bytes = config.slab_bytes},
              [this] {
                if (link_ != nullptr) link_->Hurry();
              }),
      workers_({.device = device_.get(),
                .ledger = &ledger_,
                .book = &book_,
                .reserve = &reserve_,
                .prefixes = &prefixes_,
                .pool = &pool_,
                .timer = &io.provider->getTimer(),
                .port = &io.unixEventPort,
                .metrics = &metrics_}),
      reclaimer_({.device = device_.get(),
                  .ledger = &ledger_,
                  .book = &book_,
                  .workers = &workers_,
                  .pool = &pool_,
                  .timer = &io.provider->getTimer(),
                  .parked_ttl = config.parked_ttl}),
      inbox_(io.unixEventPort) {
  book_.OnRecord([this](const TenantState& tenant, const ReclaimRecord& record) {
    metrics_.ObserveReclaim(tenant, record);
  });
  workers_.OnChange([this](TenantId tenant) {
    reclaimer_.Look(tenant);
    if (link_ != nullptr) link_->Hurry();
  });
  workers_.OnLacking(
      [this](WorkerId worker, uint32_t slabs) { reclaimer_.TakeFromOtherLayouts(worker, slabs); });
  reclaimer_.OnProgress([this] {
    if (link_ != nullptr) link_->Hurry();
  });
}

// What its last life kept, if it did.
absl::Status Agent::Restore() {
  if (config_.state_file.empty()) return absl::OkStatus();
  const StateOwner owner{.agent = config_.name, .slab_bytes = config_.slab_bytes};
  const auto kept = ReadState(config_.state_file, owner);
  if (!kept.ok()) return kept.status();
  if (kept->has_value()) {
    if (absl::Status begun = BeginWith(**kept); !begun.ok()) return begun;
  }
  // Also tells now, not at the first shrink, that the file cannot be written.
  return WriteState(config_.state_file, EncodeState(owner, book_.ToKeep()));
}

absl::Status Agent::BeginWith(const KeptOrders& kept) {
  const PoolConfig& pool = ledger_.config();
  book_.Restore(kept, pool.slabs - pool.reserve_slabs);
  uint32_t slabs = 0;
  for (const auto& [id, tenant] : book_.tenants()) {
    if (absl::Status set = ledger_.SetLease(id, tenant.lease_slabs); !set.ok()) return set;
    slabs += tenant.lease_slabs;
  }
  log_.Info("kept from before", {{"file", config_.state_file},
                                 {"epoch", book_.highest_epoch()},
                                 {"tenants", book_.tenants().size()},
                                 {"slabs", slabs}});
  return absl::OkStatus();
}

absl::Status Agent::Listen() {
  const ServiceDeps service{.workers = &workers_,
                            .book = &book_,
                            .ledger = &ledger_,
                            .port = &io_.unixEventPort,
                            .refresh = [this]() -> kj::Promise<void> {
                              return link_ == nullptr ? kj::Promise<void>(kj::READY_NOW)
                                                      : link_->Refresh();
                            },
                            .metrics = &metrics_};
  auto listener =
      RpcListener::Listen(*io_.lowLevelProvider, {.address = UnixPath{config_.socket}},
                          [service](RpcPeer peer, kj::Own<RpcConnection> connection) {
                            return MakeAgentService(service, kj::mv(peer), kj::mv(connection));
                          });
  if (!listener.ok()) return listener.status();
  listener_ = *std::move(listener);

  absl::StatusOr<HostPort> http = ParseHostPort(config_.http);
  if (!http.ok()) return http.status();
  auto server = HttpServer::Start(
      {.address = *http, .tls = tls_.http}, [this](HttpRequest request, HttpServer::Done done) {
        inbox_.Post([this, request = std::move(request), done = std::move(done)]() mutable {
          HandleHttp(std::move(request), std::move(done));
        });
      });
  if (!server.ok()) return server.status();
  http_ = *std::move(server);

  absl::StatusOr<uint64_t> incarnation = RandomId();
  if (!incarnation.ok()) return incarnation.status();
  absl::StatusOr<std::vector<HostPort>> managers = ParseHostPorts(config_.manager);
  if (!managers.ok()) return managers.status();
  link_ = std::make_unique<ManagerLink>(
      ManagerLink::Deps{.io = &io_, .book = &book_, .ledger = &ledger_, .workers = &workers_},
      ManagerLinkOptions{.managers = *std::move(managers),
                         .token = config_.manager_token,
                         .agent = config_.name,
                         .incarnation = *incarnation,
                         .device = device_->info().name,
                         .tls = tls_.manager,
                         .tls_name = config_.tls_manager_name},
      [this] {
        workers_.ClimbSessions();
        for (const auto& [id, tenant] : book_.tenants()) reclaimer_.Look(id);
        for (const auto& [id, worker] : workers_.all()) workers_.TopUp(id);
        keeper_.Look();
      });
  return absl::OkStatus();
}

void Agent::HandleHttp(HttpRequest request, HttpServer::Done done) {
  if (request.method != "GET") {
    done({.status = 405, .body = JsonError("method_not_allowed", "only GET here")});
  } else if (request.path == "/metrics") {
    done({.content_type = kMetricsContentType,
          .body = metrics_.Page({.ledger = &ledger_,
                                 .book = &book_,
                                 .workers = &workers_,
                                 .reserve = &reserve_,
                                 .prefixes = &prefixes_,
                                 .listener = listener_.get(),
                                 .http = http_.get(),
                                 .link = link_.get(),
                                 .keeper = &keeper_,
                                 .tls = {{"manager", tls_.manager}, {"http", tls_.http}}})});
  } else if (request.path == "/healthz") {
    const bool registered = link_->state() == ManagerLink::State::kRegistered;
    done({.body = absl::StrCat("{\"status\":\"ok\",\"manager\":\"",
                               registered ? "registered" : "connecting", "\"}\n")});
  } else {
    done({.status = 404, .body = JsonError("not_found", "try /metrics or /healthz")});
  }
}

absl::Status Agent::Run(const AgentConfig& config, const AgentTls& tls, kj::AsyncIoContext& io) {
  const PoolConfig pool{.slabs = static_cast<uint32_t>(config.pool / config.slab_bytes),
                        .reserve_slabs = static_cast<uint32_t>(config.reserve_slabs),
                        .slab_bytes = config.slab_bytes};
  absl::StatusOr<JournalMemory> journal = JournalMemory::Make(PoolLedger::JournalBytes(pool));
  if (!journal.ok()) return journal.status();
  absl::StatusOr<PoolLedger> ledger = PoolLedger::Make(pool, journal->memory());
  if (!ledger.ok()) return ledger.status();
  // A descriptor a slab, and some for connections and shared memories of workers.
  const uint64_t files = pool.slabs + limits::kConnections * 4 + limits::kWorkers * 8 + 64;
  if (absl::Status status = RaiseFileLimit(files); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<HostDevice>> device =
      HostDevice::Make(pool.slab_bytes, pool.slabs);
  if (!device.ok()) return device.status();
  if (absl::Status reserve = MakeReserve(pool, **device); !reserve.ok()) return reserve;

  Agent agent(config, tls, io, *std::move(journal), *std::move(ledger), *std::move(device));
  if (absl::Status status = agent.Restore(); !status.ok()) return status;
  if (absl::Status status = agent.Listen(); !status.ok()) return status;
  agent.log_.Info("agent started", {{"name", config.name},
                                    {"device", agent.device_->info().name},
                                    {"slabs", pool.slabs},
                                    {"slab_bytes", pool.slab_bytes.value()},
                                    {"socket", config.socket},
                                    {"http", ToString(agent.http_->address())}});
  auto stop = io.unixEventPort.onSignal(SIGTERM).exclusiveJoin(io.unixEventPort.onSignal(SIGINT));
  stop.wait(io.waitScope);
  agent.log_.Info("agent stops");
  agent.http_.reset();
  agent.link_.reset();
  agent.listener_.reset();
  agent.pool_.join();
  return absl::OkStatus();
}

}  // namespace

absl::Status RunAgent(const AgentConfig& config, const AgentTls& tls) {
  kj::UnixEventPort::captureSignal(SIGTERM);
  kj::UnixEventPort::captureSignal(SIGINT);
  KjLogScope kj_logs;
  kj::AsyncIoContext io = kj::setupAsyncIo();
  return Agent::Run(config, tls, io);
}

}  // namespace kvpool
