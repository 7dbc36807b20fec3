// The client's RPC half: Connection, AgentCalls and WorkerEvents over Cap'n Proto.
//
// Capabilities live on the RPC thread alone. Objects used by callers hold a shared_ptr to a struct
// of capabilities, and give it back to that thread to destroy.
//
// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <unistd.h>

#include <set>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/agent_calls.h"
#include "client/kvpool.h"
#include "client/tenant.h"
#include "common/rpc_connect.h"
#include "common/rpc_thread.h"
#include "proto/agent.capnp.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

// ---- Values -----------------------------------------------------------------------------------

absl::Status FromRefusal(rpc::Refusal::Reader refusal) {
  const std::string text(refusal.getText().cStr());
  switch (refusal.getReason()) {
    case rpc::RefusalReason::BAD_TOKEN:
      return absl::UnauthenticatedError(text);
    case rpc::RefusalReason::NO_SPACE:
    case rpc::RefusalReason::TOO_MANY:
      return absl::ResourceExhaustedError(text);
    case rpc::RefusalReason::TOO_LARGE:
      return absl::OutOfRangeError(text);
    case rpc::RefusalReason::BAD_GEOMETRY:
    case rpc::RefusalReason::BAD_ARGUMENT:
      return absl::InvalidArgumentError(text);
    case rpc::RefusalReason::BAD_VERSION:
    case rpc::RefusalReason::BAD_STATE:
      return absl::FailedPreconditionError(text);
    case rpc::RefusalReason::BAD_PAGE_LIST:
      return absl::DataLossError(text);
    case rpc::RefusalReason::PREEMPTED:
      return absl::CancelledError(text);
    case rpc::RefusalReason::SHUTTING_DOWN:
      return absl::UnavailableError(text);
    case rpc::RefusalReason::UNKNOWN:
      break;
  }
  return absl::UnknownError(absl::StrCat("refused by a newer agent: ", text));
}

absl::Status FromOutcome(rpc::Outcome::Reader outcome) {
  switch (outcome.which()) {
    case rpc::Outcome::OK:
      return absl::OkStatus();
    case rpc::Outcome::REFUSED:
      return FromRefusal(outcome.getRefused());
    default:
      return absl::UnknownError("an outcome of a newer agent");
  }
}

namespace {

rpc::Dtype ToCapnp(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32:
      return rpc::Dtype::F32;
    case Dtype::kBf16:
      return rpc::Dtype::BF16;
    case Dtype::kF16:
      return rpc::Dtype::F16;
  }
  return rpc::Dtype::UNKNOWN;
}

}  // namespace

void ToCapnp(const Geometry& geometry, rpc::Geometry::Builder builder) {
  rpc::LayerGroup::Builder group = builder.initGroups(1)[0];
  group.setLayers(geometry.layers);
  group.setQueryHeads(geometry.query_heads);
  group.setKvHeads(geometry.kv_heads);
  group.setKeyDim(geometry.key_dim);
  group.setValueDim(geometry.value_dim);
  group.setDtype(ToCapnp(geometry.dtype));
  auto layers = group.initKvOfLayer(geometry.model_layers());
  for (uint32_t i = 0; i < geometry.model_layers(); ++i) layers.set(i, geometry.kv_of_layer[i]);
  const auto masked_count = static_cast<uint32_t>(geometry.self_masked.size());
  auto masked = group.initSelfMasked(masked_count);
  for (uint32_t i = 0; i < masked_count; ++i) masked.set(i, geometry.self_masked[i]);
}

QueryWish FromCapnp(rpc::QueryNeed need) {
  switch (need) {
    case rpc::QueryNeed::EXACT:
      return QueryWish::kExact;
    case rpc::QueryNeed::PROMPT:
      return QueryWish::kPrompt;
    case rpc::QueryNeed::SAMPLED:
      return QueryWish::kSampled;
    case rpc::QueryNeed::NONE:
      break;
  }
  return QueryWish::kNone;
}

std::optional<ProfileRule> FromCapnp(rpc::ProfileWish::Reader wish) {
  if (wish.getSampleEvery() == 0) return std::nullopt;
  return ProfileRule{.recovery = wish.getRecovery(),
                     .local = wish.getLocal(),
                     .frequent = wish.getFrequent(),
                     .group = wish.getGroup() == rpc::ProfileGroup::MEAN ? ProfileRule::Group::kMean
                                                                         : ProfileRule::Group::kMin,
                     .sample_every = wish.getSampleEvery()};
}

// A descriptor of our own from a capability that carries one.
kj::Promise<kj::AutoCloseFd> TakeFd(rpc::Memory::Client memory) {
  auto promise = memory.getFd();
  return promise.then([memory = kj::mv(memory)](kj::Maybe<int> fd) mutable {
    KJ_IF_MAYBE (raw, fd) {
      int copy = fcntl(*raw, F_DUPFD_CLOEXEC, 0);
      KJ_REQUIRE(copy >= 0, "cannot duplicate a file descriptor");
      return kj::AutoCloseFd(copy);
    }
    KJ_FAIL_REQUIRE("the agent sent no file descriptor");
  });
}

// ---- What the agent calls ---------------------------------------------------------------------

// Shared by a tenant's caller thread and its WorkerEvents on the RPC thread. The memory under the
// magazine lives as long as this.
struct TenantShared {
  kj::AutoCloseFd doorbell;
  Mapping control;
  std::unique_ptr<Magazine> magazine;
  std::shared_ptr<PoolRange> range;
  std::set<SlabIndex> slabs;  // mapped now; RPC thread
};

class EventsImpl final : public rpc::WorkerEvents::Server {
 public:
  explicit EventsImpl(std::shared_ptr<TenantShared> shared) : shared_(std::move(shared)) {}

  kj::Promise<void> slabsGranted(SlabsGrantedContext context) override {
    const auto slabs = context.getParams().getSlabs();
    KJ_REQUIRE(slabs.size() <= limits::kSlabsPerCall, "too many slabs in one call");
    auto promises = kj::heapArrayBuilder<kj::Promise<void>>(slabs.size());
    for (rpc::SlabGrant::Reader slab : slabs) {
      const SlabIndex index(slab.getIndex());
      promises.add(TakeFd(slab.getMemory()).then([this, index](kj::AutoCloseFd fd) {
        const absl::Status status = shared_->range->Map(index, fd.get());
        KJ_REQUIRE(status.ok(), "cannot map a slab");
        shared_->slabs.insert(index);
      }));
    }
    return kj::joinPromises(promises.finish());
  }

  kj::Promise<void> slabsRevoked(SlabsRevokedContext context) override {
    const auto slabs = context.getParams().getSlabs();
    KJ_REQUIRE(slabs.size() <= limits::kSlabsPerCall, "too many slabs in one call");
    for (uint32_t index : slabs) {
      if (shared_->slabs.erase(SlabIndex(index)) == 0) continue;
      const absl::Status status = shared_->range->Unmap(SlabIndex(index));
      KJ_REQUIRE(status.ok(), "cannot unmap a slab");
    }
    return kj::READY_NOW;
  }

  kj::Promise<void> pressure(PressureContext context) override {
    // The sessions to hand over are marked in their tables, where the decode loop looks.
    if (context.getParams().getReturnPages()) shared_->magazine->ReturnAll();
    return kj::READY_NOW;
  }

 private:
  std::shared_ptr<TenantShared> shared_;
};

// ---- Calls ------------------------------------------------------------------------------------

class RemoteCalls final : public AgentCalls {
 public:
  RemoteCalls(RpcThread& thread, std::chrono::milliseconds timeout,
              std::shared_ptr<TenantShared> shared, rpc::Tenant::Client tenant,
              rpc::Attachment::Client attachment)
      : thread_(thread), timeout_(timeout), shared_(std::move(shared)) {
    caps_ = std::make_shared<Caps>(
        Caps{.tenant = kj::mv(tenant), .attachment = kj::mv(attachment), .sessions = {}});
  }
  ~RemoteCalls() override {
    // When the agent is gone already there is nothing to let go of.
    (void)Call([shared = shared_](Caps& caps) {
      for (SlabIndex slab : shared->slabs) (void)shared->range->Unmap(slab);
      shared->slabs.clear();
      caps.sessions.clear();
      return caps.attachment.detachRequest().send().ignoreResult();
    });
    thread_.Post([caps = std::move(caps_)](kj::AsyncIoContext&) mutable { caps.reset(); });
  }

  absl::Status Reserve(uint32_t pages) override {
    absl::Status outcome;
    absl::Status call = Call([&outcome, pages](Caps& caps) {
      auto request = caps.attachment.reserveRequest();
      request.setPages(pages);
      return request.send().then(
          [&outcome](auto&& response) { outcome = FromOutcome(response.getResult()); });
    });
    return call.ok() ? outcome : call;
  }

  absl::StatusOr<OpenedSession> Open(const OpenOptions& options) override {
    absl::StatusOr<OpenedSession> opened = absl::UnknownError("an outcome of a newer agent");
    absl::Status call = Call([&opened, &options](Caps& caps) {
      auto request = caps.attachment.openSessionRequest();
      request.getParams().setPromptTokens(options.prompt_tokens);
      request.getParams().setMaxTokens(options.max_tokens);
      const auto told = static_cast<uint32_t>(
          std::min<size_t>({options.prompt.size(), options.prompt_tokens, limits::kPrefixTokens}));
      auto prompt = request.getParams().initPrompt(told);
      for (uint32_t i = 0; i < told; ++i) {
        prompt.set(i, static_cast<uint32_t>(options.prompt[i]));
      }
      request.getParams().setModel(options.model);
      return request.send().then(
          [&opened, &caps](auto&& response) { opened = TakeSession(caps, response.getResult()); });
    });
    if (!call.ok()) return call;
    return opened;
  }

  absl::StatusOr<OpenedSession> Fork(uint32_t slot, uint32_t max_tokens) override {
    absl::StatusOr<OpenedSession> opened = absl::UnknownError("an outcome of a newer agent");
    absl::Status call = Call([&opened, slot, max_tokens](Caps& caps) {
      auto request = caps.attachment.forkSessionRequest();
      request.setSlot(slot);
      request.setMaxTokens(max_tokens);
      return request.send().then(
          [&opened, &caps](auto&& response) { opened = TakeSession(caps, response.getResult()); });
    });
    if (!call.ok()) return call;
    return opened;
  }

  void Close(uint64_t handle) override {
    thread_.Post([caps = caps_, handle](kj::AsyncIoContext&) { caps->sessions.erase(handle); });
  }

  void Drain(const std::vector<DrainRequest>& requests, Done done) override {
    Send(requests.size(), std::move(done), [requests](Caps& caps) {
      auto request = caps.attachment.drainRequest();
      auto items = request.initItems(requests.size());
      for (size_t i = 0; i < requests.size(); ++i) {
        items[i].setSlot(requests[i].slot);
        items[i].setWindow(requests[i].window);
        items[i].setFirst(requests[i].first);
        items[i].setCount(requests[i].count);
      }
      return request.send().then([](auto&& response) {
        std::vector<absl::Status> outcomes;
        for (auto result : response.getResults()) outcomes.push_back(FromOutcome(result));
        return outcomes;
      });
    });
  }

  void HandOver(const std::vector<uint32_t>& slots, Done done) override {
    Send(slots.size(), std::move(done), [slots](Caps& caps) {
      auto request = caps.attachment.handOverRequest();
      auto list = request.initSlots(slots.size());
      for (size_t i = 0; i < slots.size(); ++i) list.set(i, slots[i]);
      return request.send().then([](auto&& response) {
        std::vector<absl::Status> outcomes;
        for (auto result : response.getResults()) {
          outcomes.push_back(FromOutcome(result.getOutcome()));
        }
        return outcomes;
      });
    });
  }

  absl::Status Ping() override {
    return Call([](Caps& caps) { return caps.attachment.pingRequest().send().ignoreResult(); });
  }

  absl::StatusOr<TenantStatistics> Statistics() override {
    TenantStatistics statistics;
    absl::Status call = Call([&statistics](Caps& caps) {
      return caps.attachment.statisticsRequest().send().then([&statistics](auto&& response) {
        statistics = {.lease_slabs = response.getLeaseSlabs(),
                      .held_slabs = response.getHeldSlabs(),
                      .used_bytes = response.getUsedBytes()};
      });
    });
    if (!call.ok()) return call;
    return statistics;
  }

 private:
  struct Caps {
    rpc::Tenant::Client tenant;
    rpc::Attachment::Client attachment;
    std::unordered_map<uint64_t, rpc::Session::Client> sessions;
    uint64_t next_handle = 1;
  };

  // Runs `function(Caps&) -> kj::Promise<void>` on the RPC thread and waits. What it refers to
  // stays alive: the caller blocks, and a deadline cancels the promise before it returns.
  template <typename F>
  absl::Status Call(F function) {
    const absl::Status status =
        thread_.Call([caps = caps_, timeout = timeout_,
                      function = std::move(function)](kj::AsyncIoContext& io) mutable {
          kj::Promise<void> promise = function(*caps);
          return WithDeadline(kj::mv(promise), io.provider->getTimer(), timeout)
              .attach(std::move(caps));
        });
    return absl::IsUnavailable(status) ? absl::UnavailableError("the agent is gone") : status;
  }

  static absl::StatusOr<OpenedSession> TakeSession(Caps& caps, rpc::OpenResult::Reader result) {
    if (result.isRefused()) return FromRefusal(result.getRefused());
    if (!result.isOpened()) return absl::UnknownError("an outcome of a newer agent");
    const rpc::Opened::Reader opened = result.getOpened();
    const uint64_t handle = caps.next_handle++;
    caps.sessions.emplace(handle, opened.getSession());
    return OpenedSession{.handle = handle,
                         .slot = opened.getSlot(),
                         .queries = FromCapnp(opened.getQueryNeed()),
                         .sample_every = std::max(opened.getSampleEvery(), 1u),
                         .prompt_rows = opened.getPromptRows(),
                         .token_flags = opened.getTokenFlags(),
                         .profile = FromCapnp(opened.getProfile()),
                         .shared_tokens = opened.getSharedTokens()};
  }

  // Runs `function(Caps&) -> kj::Promise<std::vector<absl::Status>>` on the RPC thread, without
  // waiting. Whatever becomes of it, `done` is told about all `count` items, once.
  template <typename F>
  void Send(size_t count, Done done, F function) {
    thread_.Post([caps = caps_, count, done = std::move(done), function = std::move(function),
                  timeout = timeout_](kj::AsyncIoContext& io) mutable {
      auto answered = function(*caps).then([count, done](std::vector<absl::Status> outcomes) {
        if (outcomes.size() != count) {
          outcomes.assign(count, absl::InternalError("the agent answered for another number"));
        }
        done(outcomes);
      });
      WithDeadline(kj::mv(answered), io.provider->getTimer(), timeout)
          .attach(std::move(caps))
          .detach([count, done](kj::Exception&&) {
            done(std::vector<absl::Status>(
                count, absl::UnavailableError("the agent is gone, or has not answered in time")));
          });
    });
  }

  RpcThread& thread_;
  const std::chrono::milliseconds timeout_;
  const std::shared_ptr<TenantShared> shared_;
  std::shared_ptr<Caps> caps_;
};

// ---- Connection -------------------------------------------------------------------------------

// What Attach brings from the RPC thread.
struct AttachedParts {
  absl::Status status;
  kj::Maybe<rpc::Tenant::Client> tenant;
  kj::Maybe<rpc::Attachment::Client> attachment;
  kj::AutoCloseFd control;
  kj::AutoCloseFd tables;
  uint64_t slab_bytes = 0;
  uint32_t slab_slots = 0;
  std::string policy;
};

class RemoteConnection final : public Connection {
 public:
  RemoteConnection(ConnectOptions options) : options_(std::move(options)) {}
  ~RemoteConnection() override {
    thread_.Post([wire = std::move(wire_)](kj::AsyncIoContext&) mutable { wire.reset(); });
  }

  absl::Status Dial() {
    return thread_.Call([this](kj::AsyncIoContext& io) {
      return WithDeadline(RpcConnect(io, UnixPath{options_.socket}), io.provider->getTimer(),
                          options_.timeout)
          .then([this](kj::Own<RpcClient> client) {
            wire_ = std::make_shared<Wire>(Wire{kj::mv(client)});
          });
    });
  }

  absl::StatusOr<std::unique_ptr<Tenant>> Attach(const std::string& token,
                                                 const AttachOptions& options) override {
    auto shared = std::make_shared<TenantShared>();
    AttachedParts parts;
    absl::Status call =
        thread_.Call([this, &token, &options, &parts, shared](kj::AsyncIoContext& io) {
          return WithDeadline(Authenticate(token, options, shared, &parts), io.provider->getTimer(),
                              options_.timeout);
        });
    if (call.ok()) call = parts.status;
    using Result = absl::StatusOr<std::unique_ptr<Tenant>>;
    Result tenant = call.ok() ? Finish(options, std::move(shared), parts) : Result(call);
    // What is left of the capabilities after a failure goes where it came from.
    (void)thread_.Call([&parts](kj::AsyncIoContext&) -> kj::Promise<void> {
      parts.tenant = nullptr;
      parts.attachment = nullptr;
      return kj::READY_NOW;
    });
    return tenant;
  }

 private:
  struct Wire {
    kj::Own<RpcClient> client;
  };

  // RPC thread.
  kj::Promise<void> Authenticate(const std::string& token, const AttachOptions& options,
                                 std::shared_ptr<TenantShared> shared, AttachedParts* parts) {
    auto request = wire_->client->Bootstrap().castAs<rpc::Agent>().authenticateRequest();
    auto params = request.getParams();
    params.setProtocolVersion(limits::kProtocolVersion);
    params.setToken(token);
    params.setWorker(options_.worker);
    return request.send().then([this, &options, shared, parts](auto&& response) mutable {
      auto result = response.getResult();
      if (result.isTenant()) return AttachTenant(result.getTenant(), options, shared, parts);
      parts->status = result.isRefused() ? FromRefusal(result.getRefused())
                                         : absl::UnknownError("an outcome of a newer agent");
      return kj::Promise<void>(kj::READY_NOW);
    });
  }

  kj::Promise<void> AttachTenant(rpc::Tenant::Client tenant, const AttachOptions& options,
                                 std::shared_ptr<TenantShared> shared, AttachedParts* parts) {
    auto request = tenant.attachRequest();
    auto params = request.getParams();
    ToCapnp(options.geometry, params.initGeometry());
    params.setMaxSessions(options.max_sessions);
    params.setMaxRunning(options.max_running);
    params.setMaxSessionTokens(options.max_session_tokens);
    params.setChunkTokens(options.chunk_tokens);
    params.setQueries(options.queries == GivenQueries::kNone ? rpc::QueryOffer::NONE
                                                             : rpc::QueryOffer::ALL);
    params.setEvents(kj::heap<EventsImpl>(shared));
    parts->tenant = kj::mv(tenant);
    return request.send().then([parts, shared](auto&& response) -> kj::Promise<void> {
      auto result = response.getResult();
      if (!result.isAttached()) {
        parts->status = result.isRefused() ? FromRefusal(result.getRefused())
                                           : absl::UnknownError("an outcome of a newer agent");
        return kj::READY_NOW;
      }
      auto attached = result.getAttached();
      parts->attachment = attached.getAttachment();
      parts->slab_bytes = attached.getSlabBytes();
      parts->slab_slots = attached.getSlabSlots();
      parts->policy = attached.getPolicy().cStr();
      auto fds = kj::heapArrayBuilder<kj::Promise<void>>(3);
      fds.add(TakeFd(attached.getControl()).then([parts](kj::AutoCloseFd fd) {
        parts->control = kj::mv(fd);
      }));
      fds.add(TakeFd(attached.getTables()).then([parts](kj::AutoCloseFd fd) {
        parts->tables = kj::mv(fd);
      }));
      fds.add(TakeFd(attached.getDoorbell()).then([shared](kj::AutoCloseFd fd) {
        shared->doorbell = kj::mv(fd);
      }));
      return kj::joinPromises(fds.finish()).attach(kj::mv(response));
    });
  }

  // Caller's thread. The agent grants slabs only when asked for a session or pages, so mapping the
  // range here is in time.
  absl::StatusOr<std::unique_ptr<Tenant>> Finish(const AttachOptions& options,
                                                 std::shared_ptr<TenantShared> shared,
                                                 AttachedParts& parts) {
    auto calls = std::make_unique<RemoteCalls>(thread_, options_.timeout, shared,
                                               kj::mv(KJ_ASSERT_NONNULL(parts.tenant)),
                                               kj::mv(KJ_ASSERT_NONNULL(parts.attachment)));
    const Bytes slab_bytes(static_cast<int64_t>(parts.slab_bytes));
    if (range_ == nullptr) {
      absl::StatusOr<PoolRange> range = PoolRange::Reserve(slab_bytes, parts.slab_slots);
      if (!range.ok()) return range.status();
      range_ = std::make_shared<PoolRange>(*std::move(range));
    }
    shared->range = range_;
    absl::StatusOr<Layout> layout = Layout::Make(options.geometry, slab_bytes);
    if (!layout.ok()) return layout.status();
    const shm::ShmSizes sizes{
        .sessions = options.max_sessions,
        .windows = options.max_running,
        .session_tokens = options.max_session_tokens,
        .planes = options.geometry.planes(),
        .query_floats = options.geometry.model_layers() * options.geometry.query_heads *
                        options.geometry.key_dim,
        .query_lses = options.geometry.model_layers() * options.geometry.query_heads};
    absl::StatusOr<Mapping> control =
        Mapping::Map(parts.control.get(), Bytes(static_cast<int64_t>(shm::ControlBytes(sizes))),
                     Mapping::Access::kReadWrite);
    if (!control.ok()) return control.status();
    const auto* header = reinterpret_cast<const shm::ControlHeader*>(control->data());
    if (header->magic != shm::kMagic || header->version != shm::kVersion) {
      return absl::FailedPreconditionError(
          absl::StrCat("the agent's shared memory is of version ", header->version,
                       ", this client knows version ", shm::kVersion));
    }
    absl::StatusOr<Mapping> tables =
        Mapping::Map(parts.tables.get(), Bytes(static_cast<int64_t>(shm::TablesBytes(sizes))),
                     Mapping::Access::kRead);
    if (!tables.ok()) return tables.status();
    shared->control = *std::move(control);
    shared->magazine = std::make_unique<Magazine>(shared->control.data(), shared->doorbell.get());
    return std::make_unique<TenantImpl>(TenantSetup{.layout = *std::move(layout),
                                                    .base = range_->base(),
                                                    .sizes = sizes,
                                                    .control = shared->control.data(),
                                                    .tables = *std::move(tables),
                                                    .magazine = shared->magazine.get(),
                                                    .keep_alive = shared,
                                                    .calls = std::move(calls),
                                                    .policy = parts.policy,
                                                    .timeout = options_.timeout});
  }

  const ConnectOptions options_;
  std::shared_ptr<Wire> wire_;  // RPC thread
  std::shared_ptr<PoolRange> range_;
  RpcThread thread_;  // destroyed first: nothing of ours runs on it any more
};

}  // namespace

absl::StatusOr<std::unique_ptr<Connection>> Connection::Open(const ConnectOptions& options) {
  auto connection = std::make_unique<RemoteConnection>(options);
  absl::Status status = connection->Dial();
  if (!status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat("cannot connect to the agent at ", options.socket, ": ",
                                     std::string(status.message())));
  }
  return connection;
}

}  // namespace kvpool
